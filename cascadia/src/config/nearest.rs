//! What was probably meant by a word that is unknown.

/// The nearest of `known`, if it is near enough to be a slip: one letter in three may be wrong.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(LONGEST).collect();
    let distances = known.into_iter().map(|candidate| (strsim::levenshtein(&word, candidate), candidate));
    let (distance, candidate) = distances.min()?;
    (distance <= (candidate.len() / 3).max(1)).then_some(candidate)
}

/// No key is longer; what is longer is no slip.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_nonsense_is_not() {
        let keys = ["max_sessions", "default_rule", "listen"];
        assert_eq!(nearest("max_session", keys), Some("max_sessions"));
        assert_eq!(nearest("defualt_rule", keys), Some("default_rule"));
        assert_eq!(nearest("lisen", keys), Some("listen"));
        assert_eq!(nearest("temperature", keys), None);
        assert_eq!(nearest("x", []), None);
        assert_eq!(nearest(&"m".repeat(10_000), keys), None);
    }
}
