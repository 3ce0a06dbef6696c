//! Who may ask: bearer tokens, compared in constant time.

use std::fmt;

use axum::http::{HeaderMap, StatusCode, header};
use cascadia_node::token::is_secret;

use crate::http::error::ApiError;

/// The keys that open the door; without any it stands open.
#[derive(Clone, Default)]
pub struct Keys(Vec<String>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// One key a line; empty lines and lines that begin with `#` are none.
    #[must_use]
    pub fn of_lines(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(str::to_owned).collect())
    }

    /// One more.
    pub fn add(&mut self, key: String) {
        self.0.push(key);
    }

    /// Those of another.
    pub fn extend(&mut self, keys: Self) {
        self.0.extend(keys.0);
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets in whoever has a key.
    ///
    /// # Errors
    /// 401 for everyone else.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let given = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let given = given.map(|(_, key)| key.trim()).unwrap_or_default();
        // Every key is compared, so that time says nothing of which one comes near.
        let known = self.0.iter().fold(false, |known, key| known | is_secret(key.as_bytes(), given.as_bytes()));
        if known || self.is_empty() {
            return Ok(());
        }
        let message = if given.is_empty() {
            "no API key was sent: set the header Authorization: Bearer KEY"
        } else {
            "the API key is not known here: check it"
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &str, header: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        Keys::of_lines(keys).check(&headers).is_ok()
    }

    #[test]
    fn a_key_opens_the_door() {
        assert!(check("", None) && check("# none\n\n", Some("Bearer x")));
        let keys = "# team\nsk-one\n  sk-two\r\n";
        assert!(check(keys, Some("Bearer sk-one")) && check(keys, Some("bearer sk-two")));
        for wrong in
            ["Bearer sk-on", "Bearer sk-onesk-one", "Bearer ", "Bearer", "Basic sk-one", "sk-one", "Bearer # team"]
        {
            assert!(!check(keys, Some(wrong)), "{wrong}");
        }
        assert!(!check(keys, None));
    }
}
