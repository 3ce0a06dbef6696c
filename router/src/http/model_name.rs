//! Strategies and rules as suffixes of a model's name, for clients that can set nothing else: `demo:expert`,
//! `demo:token_v3@0.3`.

use axum::http::StatusCode;
use cascadia_core::rule::Rule;
use cascadia_proto::parameters::STRATEGIES;

use crate::http::error::ApiError;

/// What a suffix says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suffix {
    /// The strategy; a rule implies it.
    pub strategy: Option<String>,
    /// The deferral rule.
    pub rule: Option<String>,
    /// Behind the `@`.
    pub alpha: Option<f64>,
}

/// The served model that a name means, and what its suffix says. A served name is taken as it is, whatever it contains.
///
/// # Errors
/// When the suffix of a served name is none.
pub fn split(asked: &str, served: &[String]) -> Result<(String, Suffix), ApiError> {
    let is_served = |name: &str| served.iter().any(|served| served == name);
    let whole = (asked.to_owned(), Suffix::default());
    if is_served(asked) {
        return Ok(whole);
    }
    let Some((name, suffix)) = asked.rsplit_once(':').filter(|(name, _)| is_served(name)) else { return Ok(whole) };
    let (word, alpha) = match suffix.split_once('@') {
        Some((word, alpha)) => (word, Some(alpha.parse().map_err(|_| unknown(name, suffix))?)),
        None => (suffix, None),
    };
    let suffix = if Rule::NAMES.contains(&word) {
        Suffix { strategy: Some("speculative_cascade".to_owned()), rule: Some(word.to_owned()), alpha }
    } else if STRATEGIES.contains(&word) {
        Suffix { strategy: Some(word.to_owned()), rule: None, alpha }
    } else {
        return Err(unknown(name, suffix));
    };
    Ok((name.to_owned(), suffix))
}

fn unknown(name: &str, suffix: &str) -> ApiError {
    let shown: String = suffix.chars().take(80).collect();
    let (strategies, rules) = (STRATEGIES.join(", "), Rule::NAMES.join(", "));
    let message = format!(
        "model {name} is served, but \":{shown}\" is no suffix: name a strategy ({strategies}) or a rule ({rules}), and \
         its alpha behind @ if you like, as in {name}:token_v3@0.3"
    );
    ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).of_field("model")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_demo(asked: &str) -> Result<(String, Suffix), ApiError> {
        split(asked, &["demo".to_owned(), "llama:8b".to_owned()])
    }

    #[test]
    fn a_suffix_chooses_a_strategy_or_a_rule() {
        let (name, suffix) = split_demo("demo:expert").unwrap();
        assert_eq!((name.as_str(), suffix.strategy.as_deref(), suffix.rule), ("demo", Some("expert"), None));
        let (name, suffix) = split_demo("llama:8b:token_v3@0.3").unwrap();
        assert_eq!((name.as_str(), suffix.strategy.as_deref()), ("llama:8b", Some("speculative_cascade")));
        assert_eq!((suffix.rule.as_deref(), suffix.alpha), (Some("token_v3"), Some(0.3)));
        assert_eq!(split_demo("demo:cascade_query@-0.5").unwrap().1.alpha, Some(-0.5));
    }

    #[test]
    fn a_served_name_is_taken_as_it_is_and_an_unknown_one_is_left_alone() {
        for name in ["llama:8b", "demo", "gpt-4", "gpt-4:expert", "", ":expert"] {
            assert_eq!(split_demo(name).unwrap(), (name.to_owned(), Suffix::default()), "{name}");
        }
        for name in ["demo:fast", "demo:", "demo:token_v3@", "demo:token_v3@much", "demo:@1"] {
            assert_eq!(split_demo(name).unwrap_err().status, StatusCode::NOT_FOUND, "{name}");
        }
    }
}
