//! What the demo measured, as a table and as JSON.

use std::borrow::Cow;

use serde::Serialize;

use super::compare::StrategyScore;
use crate::columns::{Side, layout};
use crate::strategy_spec::StrategySpec;

/// One pair's table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// Parameters of the expert.
    pub expert_parameters: u64,
    /// Parameters of the drafter.
    pub drafter_parameters: u64,
    /// Problems that each strategy solved.
    #[serde(skip)]
    pub problems: usize,
    /// Whether the expert is padded.
    pub padded: bool,
    /// Sessions at a time.
    pub sessions: u32,
    /// One row a strategy.
    pub rows: Vec<Row>,
}

/// What one strategy reached. `None` where a number is not defined.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The strategy.
    pub strategy: Cow<'static, str>,
    /// Its deferral rule.
    pub rule: Option<Cow<'static, str>>,
    /// Its threshold.
    pub alpha: Option<f64>,
    /// Share of problems solved.
    pub accuracy: Option<f64>,
    /// Tokens over time.
    pub tokens_per_second: Option<f64>,
    /// Tokens a second over those of the expert alone.
    pub speedup_vs_expert: Option<f64>,
    /// Tokens over passes of the expert; undefined where it was never asked.
    pub tokens_per_expert_pass: Option<f64>,
    /// Share of the tokens that the drafter wrote.
    pub drafter_share: Option<f64>,
}

/// `None` for 0 / 0 and the like.
fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// The rows of `specs`, the first of which is the yardstick.
#[must_use]
pub fn rows(specs: &[StrategySpec], scores: &[StrategyScore]) -> Vec<Row> {
    let speed = |score: &StrategyScore| ratio(score.tokens as f64, score.time.as_secs_f64());
    let expert = specs.iter().position(|spec| spec.strategy == "expert").and_then(|i| speed(&scores[i]));
    specs
        .iter()
        .zip(scores)
        .map(|(spec, score)| Row {
            strategy: spec.strategy.clone(),
            rule: spec.rule.clone(),
            alpha: spec.alpha,
            accuracy: ratio(score.right as f64, score.problems as f64),
            tokens_per_second: speed(score),
            speedup_vs_expert: speed(score).zip(expert).and_then(|(own, expert)| ratio(own, expert)),
            tokens_per_expert_pass: ratio(score.tokens as f64, score.expert_passes as f64),
            drafter_share: ratio(score.from_drafter as f64, score.tokens as f64),
        })
        .collect()
}

impl Table {
    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let titles = [
            ("strategy", Side::Left),
            ("accuracy", Side::Right),
            ("tokens/s", Side::Right),
            ("vs expert", Side::Right),
            ("tokens/expert pass", Side::Right),
            ("from drafter", Side::Right),
        ];
        let cell = |value: Option<f64>, show: fn(f64) -> String| value.map_or_else(|| "-".to_owned(), show);
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                vec![
                    row.name(),
                    cell(row.accuracy, |x| format!("{:.1}%", 100.0 * x)),
                    cell(row.tokens_per_second, |x| format!("{x:.0}")),
                    cell(row.speedup_vs_expert, |x| format!("{x:.2}x")),
                    cell(row.tokens_per_expert_pass, |x| format!("{x:.2}")),
                    cell(row.drafter_share, |x| format!("{:.0}%", 100.0 * x)),
                ]
            })
            .collect();
        layout(&titles, &rows)
    }

    /// For programs: one line.
    ///
    /// # Panics
    /// Never: every field is a number or a word.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and words")
    }
}

impl Row {
    /// The strategy with what was chosen for it.
    fn name(&self) -> String {
        match (&self.rule, self.alpha) {
            (Some(rule), Some(alpha)) => format!("{}({rule}, {alpha})", self.strategy),
            (None, Some(alpha)) => format!("{}({alpha})", self.strategy),
            _ => self.strategy.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::compare::{ALL, SHORT};
    use super::*;

    fn score(tokens: u64, from_drafter: u64, expert_passes: u64, seconds: f64) -> StrategyScore {
        StrategyScore {
            problems: 10,
            right: 9,
            tokens,
            from_drafter,
            expert_passes,
            time: Duration::from_secs_f64(seconds),
        }
    }

    fn table() -> Table {
        let scores = [score(100, 0, 100, 1.0), score(100, 75, 25, 0.5), score(110, 99, 22, 0.5)];
        let rows = rows(&SHORT, &scores);
        Table {
            expert_parameters: 100_000_000,
            drafter_parameters: 460_000,
            problems: 10,
            padded: true,
            sessions: 1,
            rows,
        }
    }

    #[test]
    fn rows_are_relative_to_the_expert() {
        let table = table();
        assert_eq!(table.rows[0].speedup_vs_expert, Some(1.0));
        assert_eq!(table.rows[1].speedup_vs_expert, Some(2.0));
        assert_eq!(table.rows[1].tokens_per_expert_pass, Some(4.0));
        assert_eq!(table.rows[2].drafter_share, Some(0.9));
    }

    #[test]
    fn the_table_reads_well() {
        let table = table();
        let text = table.to_text();
        let lines: Vec<&str> = text.lines().collect();
        let width = lines[0].find("accuracy").expect("a title");
        assert_eq!(&lines[0][width..], "accuracy  tokens/s  vs expert  tokens/expert pass  from drafter");
        assert_eq!(&lines[1][width..], "   90.0%       100      1.00x                1.00            0%");
        assert!(lines[3].starts_with("speculative_cascade(token_v3, "), "{text}");
    }

    #[test]
    fn what_is_not_defined_is_no_number() {
        let scores = vec![score(100, 100, 0, 1.0); ALL.len()];
        let rows = rows(&ALL, &scores);
        assert_eq!(rows[1].strategy, "drafter");
        assert_eq!(rows[1].tokens_per_expert_pass, None);
        let table =
            Table { expert_parameters: 1, drafter_parameters: 1, problems: 10, padded: false, sessions: 1, rows };
        assert!(table.to_text().lines().nth(2).is_some_and(|line| line.contains("  -  ")));
        assert!(!table.to_json().contains("NaN"));
    }

    #[test]
    fn json_has_exactly_the_promised_keys() {
        let object: serde_json::Value = serde_json::from_str(&table().to_json()).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&object), ["drafter_parameters", "expert_parameters", "padded", "rows", "sessions"]);
        let row = [
            "accuracy",
            "alpha",
            "drafter_share",
            "rule",
            "speedup_vs_expert",
            "strategy",
            "tokens_per_expert_pass",
            "tokens_per_second",
        ];
        for r in object["rows"].as_array().unwrap() {
            assert_eq!(keys(r), row);
        }
        assert_eq!(object["rows"][0]["alpha"], serde_json::Value::Null);
        assert_eq!(object["padded"], true);
    }
}
