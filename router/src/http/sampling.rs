//! How the next token is chosen and where the text ends: the fields of OpenAI, vLLM and llama.cpp as the wire has them.

use cascadia_proto::parameters::MOST_IDS;
use cascadia_proto::v1::{LogitBias, Parameters};

use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::json::{Json, Read, wrong};

/// Stop strings at most, as OpenAI's.
const MOST_STOPS: usize = 4;

/// Reads them all. Ranges are checked at admission, as every other client's.
///
/// # Errors
/// The field that has another type, or asks for what cannot be done.
pub fn read(body: &mut Fields<'_>) -> Result<Parameters, ApiError> {
    body.refuse(
        "min_tokens",
        |value| u32::read(value) == Some(0),
        "leave it out, or ban the stop tokens by logit_bias",
    )?;
    Ok(Parameters {
        temperature: body.get("temperature")?,
        top_p: body.get("top_p")?,
        top_k: top_k(body)?,
        min_p: body.get("min_p")?,
        repetition_penalty: body.get("repetition_penalty")?,
        presence_penalty: body.get("presence_penalty")?,
        frequency_penalty: body.get("frequency_penalty")?,
        logit_bias: logit_bias(body)?,
        seed: body.get("seed")?,
        max_tokens: max_tokens(body)?,
        stop: stop(body)?,
        stop_token_ids: body.some_ids("stop_token_ids", MOST_IDS)?,
        ignore_eos: body.get("ignore_eos")?.unwrap_or_default(),
        ..Parameters::default()
    })
}

/// Minus one is vLLM's word for all.
fn top_k(body: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    match body.get::<i32>("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(k) => match u32::try_from(k) {
            Ok(k) => Ok(Some(k)),
            Err(_) => {
                let message = format!("top_k must be at least 0, or -1 for all tokens, not {k}");
                Err(ApiError::field("invalid_value", "top_k", message))
            }
        },
    }
}

fn max_tokens(body: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    let (new, old) = (body.get::<u32>("max_completion_tokens")?, body.get::<u32>("max_tokens")?);
    if new.is_some() && old.is_some() && new != old {
        let message = "max_completion_tokens and max_tokens differ: give one of them, max_tokens is the older name";
        return Err(ApiError::field("invalid_value", "max_tokens", message));
    }
    Ok(new.or(old))
}

/// One string or several.
fn stop(body: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    const FIELD: &str = "stop";
    let Some(value) = body.take(FIELD) else { return Ok(Vec::new()) };
    if let Some(one) = String::read(value) {
        return Ok(vec![one]);
    }
    let strings = value.some(MOST_STOPS, FIELD).map_err(|_| wrong(FIELD, "a string or an array of strings", value));
    let (stop, count) = strings?;
    if count > MOST_STOPS {
        let message = format!("stop has {count} strings; at most {MOST_STOPS} may be given");
        return Err(ApiError::field("invalid_value", FIELD, message));
    }
    Ok(stop)
}

/// A map from token id, as a string, to bias.
fn logit_bias(body: &mut Fields<'_>) -> Result<Vec<LogitBias>, ApiError> {
    const FIELD: &str = "logit_bias";
    let Some(value) = body.take(FIELD) else { return Ok(Vec::new()) };
    if !value.is_object() {
        return Err(wrong(FIELD, "an object from token id to bias", value));
    }
    let (entries, count) = value.entries(MOST_IDS, FIELD)?;
    if count > MOST_IDS {
        let message = format!("logit_bias has {count} entries; at most {MOST_IDS} may be given");
        return Err(ApiError::field("invalid_value", FIELD, message));
    }
    let bias = |(token, bias): (std::borrow::Cow<'_, str>, Json<'_>)| {
        let shown: String = token.chars().take(40).collect();
        let path = format!("{FIELD}.{shown}");
        let Ok(token) = token.parse() else {
            let message = format!("logit_bias names {shown:?}, which is no token id");
            return Err(ApiError::field("invalid_value", path, message));
        };
        let value = f64::read(bias).ok_or_else(|| wrong(&path, "a number", bias))?;
        Ok(LogitBias { token, bias: value as f32 })
    };
    entries.into_iter().map(bias).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(body: &Value) -> Result<Parameters, ApiError> {
        read(&mut Fields::of_body(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn every_field_is_the_wires() {
        let parameters = parsed(&json!({
            "temperature": 0, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1,
            "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"7": -100}, "seed": -1,
            "max_completion_tokens": 9, "max_tokens": 9, "stop": "\n", "stop_token_ids": [2], "ignore_eos": true,
            "min_tokens": 0,
        }))
        .unwrap();
        assert_eq!((parameters.temperature, parameters.top_k, parameters.min_p), (Some(0.0), Some(0), Some(0.1)));
        assert_eq!((parameters.seed, parameters.max_tokens), (Some(u64::MAX), Some(9)));
        assert_eq!(parameters.logit_bias, [LogitBias { token: 7, bias: -100.0 }]);
        assert_eq!((parameters.stop, parameters.stop_token_ids), (vec!["\n".to_owned()], vec![2]));
        assert!(parameters.ignore_eos);
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (body, param) in [
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop_token_ids": vec![1; 1_025]}), "stop_token_ids"),
            (
                json!({"logit_bias": (0..1_025).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>()}),
                "logit_bias",
            ),
            (json!({"stop": 1}), "stop"),
            (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 1.5}), "max_tokens"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"min_tokens": 5}), "min_tokens"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"5": "much"}}), "logit_bias.5"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"seed": 1.5}), "seed"),
        ] {
            assert_eq!(parsed(&body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }
}
