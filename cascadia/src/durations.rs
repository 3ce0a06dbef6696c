//! Durations as people write them: 250ms, 20us, 1.5s, 2m.

use std::time::Duration;

/// Reads a duration with its unit.
///
/// # Errors
/// When there is no unit, or it is no length of time.
pub fn parse(text: &str) -> Result<Duration, String> {
    let sentence = || format!("{text:?} is no duration; write it like 20us, 250ms, 1.5s or 2m");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(sentence()),
    };
    let number: f64 = digits.parse().map_err(|_| sentence())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| sentence())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_unit_or_not_at_all() {
        for (text, micros) in [("20us", 20), ("250ms", 250_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("0s", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "5", "ms", "-1s", "5 ms", "1h", "nans", "infs", "1e30s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
