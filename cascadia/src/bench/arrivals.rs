//! When requests are sent and how long they are: a pure function of a seed, or of a trace.

use std::time::Duration;

use cascadia_core::chance::{Chance, Stream};
use serde::Deserialize;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Since the first.
    pub at: Duration,
    /// Prompt tokens.
    pub input: u32,
    /// Output tokens.
    pub output: u32,
}

impl Arrival {
    /// When it is due in a trace that is played so many times faster.
    #[must_use]
    pub fn due(&self, speedup: f64) -> Duration {
        Duration::try_from_secs_f64(self.at.as_secs_f64() / speedup).unwrap_or(Duration::MAX)
    }
}

/// Times of a Poisson process of `rate` a second.
pub fn poisson(rate: f64, seed: u64) -> impl Iterator<Item = Duration> + Send {
    let chance = Chance::new(seed, 0);
    (0..).scan(0.0, move |at, request| {
        *at -= (-chance.uniform(request, 0, Stream::Draft)).ln_1p() / rate;
        Some(Duration::try_from_secs_f64(*at).unwrap_or(Duration::MAX))
    })
}

/// Reads a trace: Azure's CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) or Mooncake's JSON lines.
///
/// # Errors
/// Which line is not of its format.
pub fn parse(text: &str) -> Result<Vec<Arrival>, String> {
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let is_json = lines().next().is_some_and(|(_, line)| line.trim_start().starts_with('{'));
    let read = |(number, line): (usize, &str)| {
        let read = if is_json { mooncake(line) } else { azure(line) };
        read.ok_or_else(|| {
            let format = if is_json {
                r#"{"timestamp": MS, "input_length": N, "output_length": N}"#
            } else {
                "TIMESTAMP,ContextTokens,GeneratedTokens with a time like 2023-11-16 18:15:46.68"
            };
            format!("line {} is not of the form {format}", number + 1)
        })
    };
    // Only the CSV has a line of titles.
    let titles = usize::from(!is_json);
    let mut arrivals = lines().skip(titles).map(read).collect::<Result<Vec<Arrival>, String>>()?;
    arrivals.sort_by_key(|arrival| arrival.at);
    let first = arrivals.first().ok_or("it holds no request")?.at;
    for arrival in &mut arrivals {
        arrival.at -= first;
    }
    Ok(arrivals)
}

fn azure(line: &str) -> Option<Arrival> {
    let mut fields = line.trim().split(',');
    let (time, input, output) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Arrival { at: since_epoch(time)?, input: input.parse().ok()?, output: output.parse().ok()? })
}

fn mooncake(line: &str) -> Option<Arrival> {
    #[derive(Deserialize)]
    struct Line {
        timestamp: f64,
        input_length: u32,
        output_length: u32,
    }
    let line: Line = serde_json::from_str(line).ok()?;
    let at = Duration::try_from_secs_f64(line.timestamp / 1e3).ok()?;
    Some(Arrival { at, input: line.input_length, output: line.output_length })
}

/// `2023-11-16 18:15:46.6805900` since 1970; leap seconds are not counted, as nowhere.
fn since_epoch(text: &str) -> Option<Duration> {
    let (date, time) = text.trim().split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.trim_end_matches('Z').splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<u32>().ok()?, time.next()?.parse::<u32>().ok()?);
    let second: f64 = time.next()?.parse().ok()?;
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let whole = u64::try_from(days).ok()? * 86_400 + u64::from(hour) * 3_600 + u64::from(minute) * 60;
    Duration::from_secs(whole).checked_add(Duration::try_from_secs_f64(second).ok()?)
}

/// A rate a second or a speed: within these bounds every time that is made of it is one.
///
/// # Errors
/// When it is beyond them, or no number.
pub fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (1e-6..=1e6).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is no number from 0.000001 to 1000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_has_its_rate_and_its_law_and_repeats() {
        let times: Vec<f64> = poisson(50.0, 7).take(20_000).map(|at| at.as_secs_f64()).collect();
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!((times[19_999] / 400.0 - 1.0).abs() < 0.03, "{}", times[19_999]);
        let longer = times.windows(2).filter(|pair| pair[1] - pair[0] > 0.02).count() as f64 / 19_999.0;
        assert!((longer - (-1.0f64).exp()).abs() < 0.015, "{longer}");
        assert!(poisson(50.0, 7).take(9).eq(poisson(50.0, 7).take(9)));
        assert!(poisson(50.0, 8).take(9).ne(poisson(50.0, 7).take(9)));
    }

    #[test]
    fn times_without_end_are_late_and_no_panic() {
        assert_eq!(poisson(1e-300, 7).nth(3), Some(Duration::MAX));
        let arrival = Arrival { at: Duration::from_secs(3), input: 1, output: 1 };
        assert_eq!((arrival.due(2.0), arrival.due(1e-30)), (Duration::from_millis(1500), Duration::MAX));
    }

    #[test]
    fn both_kinds_of_trace() {
        let ms = Duration::from_millis;
        let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                   2023-11-30 23:59:59.5000000,374,44\n\
                   2023-12-01 00:00:01.2500000,396,109\n";
        let expected =
            [Arrival { at: ms(0), input: 374, output: 44 }, Arrival { at: ms(1750), input: 396, output: 109 }];
        assert_eq!(parse(csv).unwrap(), expected);
        let json = "{\"timestamp\": 1750, \"input_length\": 396, \"output_length\": 109, \"hash_ids\": [1]}\n\
                    {\"timestamp\": 0, \"input_length\": 374, \"output_length\": 44, \"hash_ids\": [0]}\n";
        assert_eq!(parse(json).unwrap(), expected);
    }

    #[test]
    fn what_is_no_trace_is_said_with_its_line() {
        for (text, says) in [
            ("", "no request"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
            ("a,b,c\n2023-11-16 18:15:46.68,374\n", "line 2"),
            ("a,b,c\nyesterday,374,1\n", "line 2"),
            ("{\"timestamp\": 0}\n", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, seconds) in [
            ("1970-01-01 00:00:00", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2023-11-16 18:15:46", 1_700_158_546),
            ("2024-03-01 00:00:00", 1_709_251_200),
        ] {
            assert_eq!(since_epoch(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(since_epoch("2023-13-01 00:00:00"), None);
        assert_eq!(since_epoch("2023-11-16 18:15:18446744073709551000"), None);
    }
}
