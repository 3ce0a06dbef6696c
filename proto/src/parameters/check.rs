//! Bounds of single fields, each refusal one sentence with the cure.

use cascadia_core::limits;

use super::{MOST_IDS, ParameterError, refuse};
use crate::v1;

/// A finite number of a closed interval.
pub(super) fn between(field: &'static str, value: f64, least: f64, most: f64) -> Result<f64, ParameterError> {
    // No interval holds NaN.
    if value >= least && value <= most {
        return Ok(value);
    }
    refuse(field, format!("{field} must be between {least} and {most}, not {value}"))
}

/// A count of a closed interval.
pub(super) fn count(field: &'static str, value: u32, least: u32, most: u32) -> Result<u32, ParameterError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    refuse(field, format!("{field} must be between {least} and {most}, not {value}"))
}

/// Token ids, as a set: ascending, each once.
pub(super) fn ids(field: &'static str, ids: &mut Vec<u32>) -> Result<(), ParameterError> {
    if ids.len() > MOST_IDS {
        return refuse(field, format!("{field} has {} ids; at most {MOST_IDS} may be given", ids.len()));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(())
}

/// Biases: finite, bounded, one a token, ascending.
pub(super) fn biases(biases: &mut [v1::LogitBias]) -> Result<(), ParameterError> {
    const FIELD: &str = "logit_bias";
    if biases.len() > MOST_IDS {
        return refuse(FIELD, format!("logit_bias has {} entries; at most {MOST_IDS} may be given", biases.len()));
    }
    if let Some(bias) = biases.iter().find(|bias| !(-100.0..=100.0).contains(&bias.bias)) {
        let (token, bias) = (bias.token, bias.bias);
        let sentence =
            format!("logit_bias of token {token} must be between -100 and 100, not {bias}; ban a token with banned");
        return refuse(FIELD, sentence);
    }
    biases.sort_unstable_by_key(|bias| bias.token);
    match biases.windows(2).find(|pair| pair[0].token == pair[1].token) {
        Some(pair) => refuse(FIELD, format!("logit_bias names token {} twice; give one bias a token", pair[0].token)),
        None => Ok(()),
    }
}

/// Stop strings: few, short, none empty.
pub(super) fn stop_strings(stop: &[String]) -> Result<(), ParameterError> {
    const FIELD: &str = "stop";
    if stop.len() > limits::MAX_STOP_STRINGS {
        let (given, most) = (stop.len(), limits::MAX_STOP_STRINGS);
        return refuse(FIELD, format!("stop has {given} strings; at most {most} may be given"));
    }
    if stop.iter().any(String::is_empty) {
        return refuse(FIELD, "a stop string is empty; every text would end at once, leave it out");
    }
    match stop.iter().find(|string| string.len() > limits::STOP_STRING_BYTES) {
        Some(string) => refuse(
            FIELD,
            format!("a stop string has {} bytes; at most {} may be given", string.len(), limits::STOP_STRING_BYTES),
        ),
        None => Ok(()),
    }
}
