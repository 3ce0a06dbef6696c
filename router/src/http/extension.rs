//! Our own object in a request, `"cascadia": {...}`: how drafter and expert share the work.

use cascadia_proto::parameters::MOST_IDS;
use cascadia_proto::v1::{BildParameters, OnDrafterLoss, OnExpertLoss, Parameters, TypicalParameters};

use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::model_name::Suffix;

/// Reads the object into the parameters. Ranges are checked at admission.
///
/// # Errors
/// The field that has another type, or that nobody knows.
pub fn read(mut object: Fields<'_>, parameters: &mut Parameters) -> Result<(), ApiError> {
    parameters.strategy = object.get("strategy")?.unwrap_or_default();
    parameters.rule = object.get("rule")?.unwrap_or_default();
    parameters.alpha = object.get("alpha")?;
    parameters.coupling = object.get("coupling")?.unwrap_or_default();
    parameters.bild = pair(&mut object, "bild", ["fallback", "rollback"])?
        .map(|[fallback, rollback]| BildParameters { fallback, rollback });
    parameters.typical = pair(&mut object, "typical", ["epsilon", "delta"])?
        .map(|[epsilon, delta]| TypicalParameters { epsilon, delta });
    parameters.draft_length = object.get("draft_length")?;
    parameters.strict_first_tokens = object.get("strict_first_tokens")?;
    parameters.wire_top_k = object.get("wire_top_k")?;
    parameters.banned = object.some_ids("banned", MOST_IDS)?;
    let expert = [("wait", OnExpertLoss::Wait), ("drafter", OnExpertLoss::Drafter)];
    if let Some(known) = word(&mut object, "on_expert_loss", &expert)? {
        parameters.set_on_expert_loss(known);
    }
    let drafter = [("expert", OnDrafterLoss::Expert), ("wait", OnDrafterLoss::Wait)];
    if let Some(known) = word(&mut object, "on_drafter_loss", &drafter)? {
        parameters.set_on_drafter_loss(known);
    }
    if !parameters.rule.is_empty() && parameters.strategy.is_empty() {
        // Only one strategy reads a rule.
        parameters.strategy = "speculative_cascade".to_owned();
    }
    object.finish()
}

/// Joins what the model's name said.
///
/// # Errors
/// When the object said otherwise.
pub fn apply(suffix: Suffix, parameters: &mut Parameters) -> Result<(), ApiError> {
    let differ = |field: &str, named: String, given: String| {
        let message = format!(
            "the model's name asks for {field} {named} and cascadia.{field} for {given}: say it in one of the two places"
        );
        Err(ApiError::field("invalid_value", format!("cascadia.{field}"), message))
    };
    for (field, named, given) in
        [("strategy", suffix.strategy, &mut parameters.strategy), ("rule", suffix.rule, &mut parameters.rule)]
    {
        let Some(named) = named else { continue };
        if !given.is_empty() && *given != named {
            return differ(field, named, given.clone());
        }
        *given = named;
    }
    if let Some(named) = suffix.alpha {
        if let Some(given) = parameters.alpha.filter(|given| *given != named) {
            return differ("alpha", named.to_string(), given.to_string());
        }
        parameters.alpha = Some(named);
    }
    Ok(())
}

/// Two numbers that are given together.
fn pair(object: &mut Fields<'_>, name: &str, names: [&str; 2]) -> Result<Option<[f64; 2]>, ApiError> {
    let Some(mut inner) = object.object(name)? else { return Ok(None) };
    let both = (inner.get(names[0])?, inner.get(names[1])?);
    let path = object.path(name);
    inner.finish()?;
    match both {
        (Some(first), Some(second)) => Ok(Some([first, second])),
        _ => {
            let message = format!("{path} needs both {} and {}", names[0], names[1]);
            Err(ApiError::field("missing_required_parameter", path, message))
        }
    }
}

/// One of a few words.
fn word<T: Copy>(object: &mut Fields<'_>, name: &str, known: &[(&str, T)]) -> Result<Option<T>, ApiError> {
    let Some(said) = object.get::<String>(name)? else { return Ok(None) };
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == said) {
        return Ok(Some(*value));
    }
    let path = object.path(name);
    let words = known.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" and ");
    let shown: String = said.chars().take(80).collect();
    Err(ApiError::field("invalid_value", &path, format!("{path} {shown:?} is unknown; there are {words}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(object: &Value, suffix: Suffix) -> Result<Parameters, ApiError> {
        let mut parameters = Parameters::default();
        let body = json!({"cascadia": object}).to_string();
        let mut body = Fields::of_body(body.as_bytes()).unwrap();
        read(body.object("cascadia").unwrap().unwrap(), &mut parameters)?;
        apply(suffix, &mut parameters)?;
        Ok(parameters)
    }

    fn token_v3() -> Suffix {
        Suffix { strategy: Some("speculative_cascade".into()), rule: Some("token_v3".into()), alpha: Some(0.3) }
    }

    #[test]
    fn a_rule_implies_its_strategy() {
        let parameters = parsed(&json!({"rule": "bild", "bild": {"fallback": 0.4, "rollback": 3}}), Suffix::default());
        let parameters = parameters.unwrap();
        assert_eq!(parameters.strategy, "speculative_cascade");
        assert_eq!(parameters.bild, Some(BildParameters { fallback: 0.4, rollback: 3.0 }));
    }

    #[test]
    fn name_and_object_may_agree_but_not_differ() {
        assert_eq!(parsed(&json!({}), token_v3()).unwrap().rule, "token_v3");
        assert_eq!(parsed(&json!({"rule": "token_v3", "alpha": 0.3}), token_v3()).unwrap().alpha, Some(0.3));
        for (object, param) in [
            (json!({"strategy": "expert"}), "cascadia.strategy"),
            (json!({"rule": "chow"}), "cascadia.rule"),
            (json!({"alpha": 0.5}), "cascadia.alpha"),
        ] {
            assert_eq!(parsed(&object, token_v3()).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (object, param) in [
            (json!({"bild": {"fallback": 0.4}}), "cascadia.bild"),
            (json!({"bild": {"fallback": 0.4, "rollback": 3, "more": 1}}), "cascadia.bild.more"),
            (json!({"on_expert_loss": "cry"}), "cascadia.on_expert_loss"),
            (json!({"draft_length": "long"}), "cascadia.draft_length"),
            (json!({"banned": vec![1; 1_025]}), "cascadia.banned"),
            (json!({"speed": 11}), "cascadia.speed"),
        ] {
            assert_eq!(parsed(&object, Suffix::default()).unwrap_err().param.as_deref(), Some(param), "{object}");
        }
    }
}
