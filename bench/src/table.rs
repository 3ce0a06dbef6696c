//! What was measured, as JSON and as a table.

use cascadia::columns::{Side, layout};
use serde::Serialize;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What, and in which unit.
    pub name: String,
    /// Our engine.
    pub ours: f64,
    /// The yardstick, where it is there and does such a thing.
    pub llama_cpp: Option<f64>,
    /// Ours over the yardstick's.
    pub ratio: Option<f64>,
    /// What this machine could do at most in the same unit, by its measured bandwidth and arithmetic.
    pub limit: Option<f64>,
}

impl Row {
    /// A row from what the rounds gave.
    #[must_use]
    pub fn new(name: impl Into<String>, ours: &[f64], theirs: &[f64], limit: Option<f64>) -> Self {
        let (ours, llama_cpp) = (median(ours).unwrap_or(f64::NAN), median(theirs));
        let ratio = llama_cpp.filter(|theirs| *theirs > 0.0).map(|theirs| ours / theirs);
        Self { name: name.into(), ours, llama_cpp, ratio, limit }
    }
}

/// The middle one, of an even number the higher of the two.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// All rows of a run.
#[derive(Debug, Serialize)]
pub struct Table {
    /// The processor's name.
    pub cpu: String,
    /// The measurements.
    pub rows: Vec<Row>,
}

impl Table {
    /// As text, numbers with four digits that count.
    #[must_use]
    pub fn to_text(&self) -> String {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".into(), digits);
        let share =
            |row: &Row| row.limit.map_or_else(|| "-".into(), |limit| format!("{:.0} %", 100.0 * row.ours / limit));
        let titles = [("", Side::Left), ("ours", Side::Right), ("llama.cpp", Side::Right), ("ratio", Side::Right)];
        let titles = [&titles[..], &[("limit", Side::Right), ("of it", Side::Right)]].concat();
        let row = |r: &Row| {
            let ratio = r.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
            vec![r.name.clone(), digits(r.ours), cell(r.llama_cpp), ratio, cell(r.limit), share(r)]
        };
        layout(&titles, &self.rows.iter().map(row).collect::<Vec<_>>())
    }
}

fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_medians_and_their_ratio() {
        let row = Row::new("a", &[3.0, 1.0, 2.0], &[1.0, 4.0, 4.0], Some(8.0));
        assert_eq!((row.ours, row.llama_cpp, row.ratio), (2.0, Some(4.0), Some(0.5)));
        let alone = Row::new("b", &[1234.5], &[], None);
        assert_eq!((alone.llama_cpp, alone.ratio), (None, None));
        let table = Table { cpu: "c".into(), rows: vec![row, alone] };
        let text = table.to_text();
        assert!(text.contains("a  2.00       4.00   0.50   8.00   25 %") && text.contains("b  1234"), "{text}");
        let json = serde_json::to_value(&table).expect("it is JSON");
        assert_eq!(
            json["rows"][1],
            serde_json::json!({
                "name": "b", "ours": 1234.5, "llama_cpp": null, "ratio": null, "limit": null,
            })
        );
    }
}
