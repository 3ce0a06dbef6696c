//! What the hub says a file's content is: the SHA-256 of a large one, git's id of a small one.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// Whether a file's content is what its ETag says. A mirror may have ETags of its own, which say nothing.
pub(super) fn holds(etag: &str, file: &Path) -> io::Result<bool> {
    if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(true);
    }
    let mut file = File::open(file)?;
    let mut context = match etag.len() {
        64 => Context::new(&SHA256),
        40 => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
            context
        }
        _ => return Ok(true),
    };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(hex.eq_ignore_ascii_case(etag))
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
        let says = |etag: &str| holds(etag, &file).expect("a file");
        assert!(says(git) && says(sha256) && says(&sha256.to_uppercase()));
        assert!(!says(&git.replace("ce", "cf")) && !says(&sha256.replace("58", "59")));
        assert!(says("0123") && says("not-a-digest"), "a mirror's own");
        std::fs::remove_file(&file).expect("it goes");
    }
}
