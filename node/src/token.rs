//! The secret that state-changing calls of the admin listener must prove, or show.

use std::path::{Path, PathBuf};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq as _;

/// The variable that holds the token itself. There is no flag for it: whoever lists processes would read it.
pub const VARIABLE: &str = "CASCADIA_ADMIN_TOKEN";

/// Most bytes of a token: it travels in one header.
const MOST_BYTES: usize = 1024;

/// The admin token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("the admin token cannot be read from {}: {source}; check the path and who may read it", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It cannot travel in a header.
    #[error(
        "the admin token in {from} is {what}: it must be one line of 1 to {MOST_BYTES} visible ASCII characters without \
         spaces, for example what `openssl rand -hex 32` prints"
    )]
    Unusable {
        /// Where it was found.
        from: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Token {
    /// The token of a file, else of [`VARIABLE`]; none where neither is given.
    ///
    /// # Errors
    /// When the file cannot be read, or what was found is no token.
    pub fn find(file: Option<&Path>) -> Result<Option<Self>, TokenError> {
        if let Some(file) = file {
            let text =
                std::fs::read_to_string(file).map_err(|source| TokenError::File { file: file.to_owned(), source })?;
            return Self::new(&text, &file.display().to_string()).map(Some);
        }
        // An empty variable is how one is unset for a child.
        match std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) {
            Some(text) => Self::new(&text.to_string_lossy(), VARIABLE).map(Some),
            None => Ok(None),
        }
    }

    /// A token as it was written down; `from` is named where it is unusable.
    ///
    /// # Errors
    /// When it is empty, too long or not visible ASCII.
    pub fn new(text: &str, from: &str) -> Result<Self, TokenError> {
        let token = text.trim_end_matches(['\n', '\r']);
        let what = match token.len() {
            0 => Some("empty"),
            length if length > MOST_BYTES => Some("too long"),
            _ if !token.bytes().all(|byte| byte.is_ascii_graphic()) => Some("no single word"),
            _ => None,
        };
        match what {
            None => Ok(Self(token.to_owned())),
            Some(what) => Err(TokenError::Unusable { from: from.to_owned(), what }),
        }
    }

    /// What proofs are made with.
    pub(crate) fn secret(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether a request shows this token itself, as scripts do (`curl -H "Authorization: Bearer TOKEN"`).
    #[must_use]
    pub fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let Some((scheme, token)) = shown.split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && is_secret(self.0.as_bytes(), token)
    }
}

/// Whether what is offered is the secret. Takes a time that depends on the two lengths, and on nothing else of the secret.
///
/// # Panics
/// When the secret is empty.
#[must_use]
pub fn is_secret(secret: &[u8], offered: &[u8]) -> bool {
    assert!(!secret.is_empty(), "an empty secret guards nothing");
    secret.ct_eq(offered).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        let token = Token::new("correct-horse\n", "a test").unwrap();
        let shown = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            token.is_shown(&headers)
        };
        assert!(shown("Bearer correct-horse") && shown("bearer correct-horse"));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "correct-horse",
            "Basic correct-horse",
            "Bearer correct-hors",
            "Bearer correct-horse ",
            "Bearer correct-horsecorrect-horse",
            "Bearer Correct-horse",
        ] {
            assert!(!shown(wrong), "{wrong:?}");
        }
        assert!(!token.is_shown(&HeaderMap::new()));
        assert!(!format!("{token:?}").contains("horse"));
    }

    #[test]
    fn what_is_no_token_is_refused_by_name() {
        for bad in ["", "\n", "two words", "line\nline", "schlüssel", &"x".repeat(1025)] {
            let error = Token::new(bad, "the file x").unwrap_err().to_string();
            assert!(error.contains("the file x"), "{error}");
        }
        let nowhere = Token::find(Some(Path::new("/nowhere/token"))).unwrap_err().to_string();
        assert!(nowhere.contains("/nowhere/token"), "{nowhere}");
    }
}
