//! A strategy with its rule and threshold, as people name it: `expert`, `cascade_query@-0.05`, `token_v3@0.3`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use cascadia_proto::parameters::STRATEGIES;
use cascadia_proto::v1;

/// One way to share the work between drafter and expert.
#[derive(Clone, Debug, PartialEq)]
pub struct StrategySpec {
    /// The strategy.
    pub strategy: Cow<'static, str>,
    /// Its deferral rule.
    pub rule: Option<Cow<'static, str>>,
    /// Its threshold.
    pub alpha: Option<f64>,
}

impl StrategySpec {
    /// A strategy with what the router thinks best.
    #[must_use]
    pub const fn new(strategy: &'static str) -> Self {
        Self { strategy: Cow::Borrowed(strategy), rule: None, alpha: None }
    }

    /// A strategy with a rule and a threshold.
    #[must_use]
    pub const fn with(strategy: &'static str, rule: Option<&'static str>, alpha: f64) -> Self {
        let rule = match rule {
            Some(rule) => Some(Cow::Borrowed(rule)),
            None => None,
        };
        Self { strategy: Cow::Borrowed(strategy), rule, alpha: Some(alpha) }
    }

    /// What a request says of it.
    #[must_use]
    pub fn parameters(&self) -> v1::Parameters {
        // The sequential cascade has no choice of rule; naming it is for tables.
        let rule = self.rule.as_deref().filter(|_| self.strategy == "speculative_cascade");
        v1::Parameters {
            strategy: self.strategy.clone().into_owned(),
            rule: rule.unwrap_or_default().to_owned(),
            alpha: self.alpha,
            ..Default::default()
        }
    }
}

impl FromStr for StrategySpec {
    type Err = String;

    /// A word that is no strategy is taken for a rule: the router knows which there are, and says so.
    fn from_str(typed: &str) -> Result<Self, String> {
        let (word, alpha) = match typed.split_once('@') {
            Some((word, alpha)) => {
                let number: Result<f64, _> = alpha.parse();
                let sentence = |_| format!("{alpha:?} is no alpha; write STRATEGY@NUMBER, for example token_v3@0.3");
                (word, Some(number.map_err(sentence)?))
            }
            None => (typed, None),
        };
        if word.is_empty() {
            let known = STRATEGIES.join(", ");
            return Err(format!("a strategy has no name; name one of {known}, or a rule such as token_v3@0.3"));
        }
        let word = word.to_owned();
        Ok(if STRATEGIES.contains(&word.as_str()) {
            Self { strategy: word.into(), rule: None, alpha }
        } else {
            Self { strategy: "speculative_cascade".into(), rule: Some(word.into()), alpha }
        })
    }
}

impl fmt::Display for StrategySpec {
    /// As it can be typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule.as_deref().unwrap_or(&self.strategy))?;
        self.alpha.map_or(Ok(()), |alpha| write!(f, "@{alpha}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_shown_and_asked_for() {
        for (typed, strategy, rule, alpha) in [
            ("expert", "expert", "", None),
            ("cascade_query@-0.05", "cascade_query", "", Some(-0.05)),
            ("token_v3@0.3", "speculative_cascade", "token_v3", Some(0.3)),
            ("speculative_cascade", "speculative_cascade", "", None),
        ] {
            let spec: StrategySpec = typed.parse().expect(typed);
            assert_eq!(spec.to_string(), typed);
            let asked = spec.parameters();
            assert_eq!((asked.strategy.as_str(), asked.rule.as_str(), asked.alpha), (strategy, rule, alpha));
        }
        assert!("token_v3@much".parse::<StrategySpec>().is_err() && "@1".parse::<StrategySpec>().is_err());
    }
}
