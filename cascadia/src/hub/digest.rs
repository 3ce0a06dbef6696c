//! What the hub says a file's content is: the SHA-256 of a large one, git's id of a small one.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What a file holds, by its ETag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What the ETag says.
    Right,
    /// Something else.
    Wrong,
    /// Nobody knows: the ETag is no digest, as a mirror's own may be.
    Unknown,
}

/// Compares a file's content with its ETag.
pub(super) fn content(etag: &str, file: &Path) -> io::Result<Content> {
    if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Content::Unknown);
    }
    let mut file = File::open(file)?;
    let mut context = match etag.len() {
        64 => Context::new(&SHA256),
        40 => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
            context
        }
        _ => return Ok(Content::Unknown),
    };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(if hex.eq_ignore_ascii_case(etag) { Content::Right } else { Content::Wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_and_what_says_nothing() {
        let file = std::env::temp_dir().join(format!("cascadia-digest-{}", std::process::id()));
        std::fs::write(&file, "hello\n").expect("room");
        let (git, sha256) = (
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        );
        let says = |etag: &str| content(etag, &file).expect("a file");
        assert_eq!([git, sha256, &sha256.to_uppercase()].map(says), [Content::Right; 3]);
        assert_eq!([git.replace("ce", "cf"), sha256.replace("58", "59")].map(|etag| says(&etag)), [Content::Wrong; 2]);
        assert_eq!(["0123", "not-a-digest"].map(says), [Content::Unknown; 2], "a mirror's own");
        std::fs::remove_file(&file).expect("it goes");
    }
}
