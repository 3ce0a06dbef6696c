//! Durations as people write them: 250ms, 20us, 1.5s, 2m.

use std::time::Duration;

/// The longest, 365 days: so many of them can be added and multiplied that no clock runs over.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a duration with its unit.
///
/// # Errors
/// When there is no unit, it is no length of time, or it is longer than a year.
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
    if number * unit > LONGEST.as_secs_f64() {
        return Err(format!("{text:?} is too long; give at most 525600m, which are 365 days"));
    }
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
        assert_eq!(parse("525600m"), Ok(LONGEST));
        for text in ["", "5", "ms", "-1s", "5 ms", "1h", "nans", "infs"] {
            assert!(parse(text).unwrap_err().ends_with("write it like 20us, 250ms, 1.5s or 2m"), "{text}");
        }
        for text in ["525601m", "1e18s", "1e30s"] {
            assert!(parse(text).unwrap_err().contains("at most 525600m"), "{text}");
        }
    }
}
