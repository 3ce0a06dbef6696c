//! What an operator allows of a parameter: an interval.

use std::fmt;
use std::str::FromStr;

use cascadia_core::rule::Rule;

use super::{ParameterError, refuse};
use crate::v1::Parameters;

/// A parameter's values, from what was asked or resolved.
type Read = fn(&Parameters) -> Option<f64>;

/// Parameters of any request.
const ANY: [(&str, Read); 8] = [
    ("temperature", |p| p.temperature),
    ("top_p", |p| p.top_p),
    ("min_p", |p| p.min_p),
    ("repetition_penalty", |p| p.repetition_penalty),
    ("presence_penalty", |p| p.presence_penalty),
    ("frequency_penalty", |p| p.frequency_penalty),
    ("draft_length", |p| p.draft_length.map(f64::from)),
    ("max_tokens", |p| p.max_tokens.map(f64::from)),
];

/// Parameters of a rule or strategy.
const OWN: [(&str, &str, Read); 5] = [
    ("alpha", "", |p| p.alpha),
    ("fallback", "bild", |p| p.bild.as_ref().map(|bild| bild.fallback)),
    ("rollback", "bild", |p| p.bild.as_ref().map(|bild| bild.rollback)),
    ("epsilon", "typical", |p| p.typical.as_ref().map(|typical| typical.epsilon)),
    ("delta", "typical", |p| p.typical.as_ref().map(|typical| typical.delta)),
];

/// Strategies with an alpha of their own; that of `speculative_cascade` is its rule's.
const WITH_ALPHA: [&str; 2] = ["cascade_query", "cascade_token"];

/// An interval of one parameter: `temperature=0..1.5`, `token_v3.alpha=0..0.5`; either end may be open.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed {
    /// The rule or strategy whose parameter it is; empty for all that have it.
    of: String,
    parameter: &'static str,
    least: f64,
    most: f64,
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write NAME=LEAST..MOST, for example token_v3.alpha=0..0.5";
        let (name, interval) = text.split_once('=').ok_or_else(|| format!("{text:?} has no =; {FORM}"))?;
        let (least, most) = interval.split_once("..").ok_or_else(|| format!("{interval:?} has no ..; {FORM}"))?;
        let end = |text: &str, open: f64| match text.trim() {
            "" => Ok(open),
            number => number.parse::<f64>().map_err(|_| format!("{number:?} is no number; {FORM}")),
        };
        let (least, most) = (end(least, f64::NEG_INFINITY)?, end(most, f64::INFINITY)?);
        if least > most || least.is_nan() || most.is_nan() {
            return Err(format!("nothing lies between {least} and {most}; {FORM}"));
        }
        let (of, parameter) = name.trim().split_once('.').unwrap_or(("", name.trim()));
        let any = ANY.iter().find(|(known, _)| of.is_empty() && *known == parameter).map(|(known, _)| *known);
        let own = OWN.iter().find(|(known, owner, _)| {
            let owned = if owner.is_empty() { has_alpha(of) } else { of == *owner };
            *known == parameter && (owned || of.is_empty())
        });
        let found = any.or(own.map(|(known, ..)| *known));
        let parameter = found.ok_or_else(|| format!("{name:?} is no parameter; {}", known()))?;
        Ok(Self { of: of.to_owned(), parameter, least, most })
    }
}

/// Whether a rule or strategy reads an alpha.
fn has_alpha(of: &str) -> bool {
    WITH_ALPHA.contains(&of) || (Rule::NAMES.contains(&of) && of != "bild" && of != "typical")
}

fn known() -> String {
    let any = ANY.iter().map(|(name, _)| (*name).to_owned());
    let own = OWN.iter().map(|(name, owner, _)| match *owner {
        "" => (*name).to_owned(),
        owner => format!("{owner}.{name}"),
    });
    let names = any.chain(own).collect::<Vec<_>>().join(", ");
    format!("there are {names}, and RULE.alpha, cascade_query.alpha, cascade_token.alpha")
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.of.is_empty() {
            write!(f, "{}.", self.of)?;
        }
        write!(f, "{}={}..{}", self.parameter, End(self.least), End(self.most))
    }
}

/// An end of an interval; an open one is nothing.
struct End(f64);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_finite() { self.0.fmt(f) } else { Ok(()) }
    }
}

impl Allowed {
    /// Refuses what lies outside; `asked` is what the client said itself.
    ///
    /// # Errors
    /// The parameter, and the interval.
    pub(super) fn check(&self, resolved: &Parameters, asked: &Parameters) -> Result<(), ParameterError> {
        if !self.is_about(resolved) {
            return Ok(());
        }
        let Some(value) = self.read(resolved).filter(|value| !(self.least..=self.most).contains(value)) else {
            return Ok(());
        };
        let (name, of) = (self.parameter, self.owner(resolved));
        let cure = if self.read(asked).is_some() { "" } else { ", its default: give one that is" };
        let interval = match (self.least.is_finite(), self.most.is_finite()) {
            (true, true) => format!("between {} and {}", self.least, self.most),
            (true, false) => format!("at least {}", self.least),
            _ => format!("at most {}", self.most),
        };
        let field = OWN.iter().find(|(known, ..)| *known == name).map_or(name, |(known, owner, _)| match *owner {
            "" => known,
            owner => owner,
        });
        refuse(field, format!("{name}{of} must be {interval} here, not {value}{cure}"))
    }

    fn read(&self, parameters: &Parameters) -> Option<f64> {
        let own = OWN.iter().map(|(known, _, read)| (known, read));
        let mut all = ANY.iter().map(|(known, read)| (known, read)).chain(own);
        all.find(|(known, _)| **known == self.parameter).and_then(|(_, read)| read(parameters))
    }

    fn is_about(&self, resolved: &Parameters) -> bool {
        match self.of.as_str() {
            // The alphas of strategies are on other scales than those of rules.
            "" => !(self.parameter == "alpha" && WITH_ALPHA.contains(&resolved.strategy.as_str())),
            of => resolved.rule == of || resolved.strategy == of,
        }
    }

    fn owner(&self, resolved: &Parameters) -> String {
        match OWN.iter().any(|(known, ..)| *known == self.parameter) {
            false => String::new(),
            true if resolved.rule.is_empty() => format!(" of {}", resolved.strategy),
            true => format!(" of {}", resolved.rule),
        }
    }
}
