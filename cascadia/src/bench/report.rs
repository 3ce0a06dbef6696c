//! Figures as a table and as JSON, under the names that `vllm bench serve` gave them.

use serde_json::{Map, Value, json};

use super::measure::{Figures, Latency};
use crate::columns::{Side, layout};

/// A run's name and what it measured.
pub type Run = (String, Figures);

/// One column a run.
#[must_use]
pub fn table(runs: &[Run]) -> String {
    let mut titles = vec![("", Side::Left)];
    titles.extend(runs.iter().map(|(name, _)| (name.as_str(), Side::Right)));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for Line { name, value, kinds } in lines() {
        let cells: Vec<Option<String>> = runs.iter().map(|(_, figures)| value(figures)).collect();
        // What nobody measured is no row.
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            rows.push(std::iter::once(name).chain(cells).collect());
        }
        if kinds {
            rows.extend(errors(runs));
        }
    }
    layout(&titles, &rows)
}

/// One row a kind of error.
fn errors(runs: &[Run]) -> Vec<Vec<String>> {
    let kinds: std::collections::BTreeSet<&String> =
        runs.iter().flat_map(|(_, figures)| figures.errors.keys()).collect();
    let row = |kind: &String| {
        let count = |(_, figures): &Run| figures.errors.get(kind).copied().unwrap_or_default().to_string();
        std::iter::once(format!("  {kind}")).chain(runs.iter().map(count)).collect()
    };
    kinds.into_iter().map(row).collect()
}

type Cell = Box<dyn Fn(&Figures) -> Option<String>>;

struct Line {
    name: String,
    value: Cell,
    /// The kinds of errors follow, a row each.
    kinds: bool,
}

fn line(name: &str, value: impl Fn(&Figures) -> Option<String> + 'static) -> Line {
    Line { name: name.to_owned(), value: Box::new(value), kinds: false }
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn lines() -> Vec<Line> {
    let mut lines = vec![
        line("Successful requests", |f| Some(f.completed.to_string())),
        Line { kinds: true, ..line("Failed requests", |f| Some((f.ended() - f.completed).to_string())) },
        line("Unfinished requests", |f| (f.unfinished > 0).then(|| f.unfinished.to_string())),
        line("Peak concurrent requests", |f| Some(f.peak.to_string())),
        line("Benchmark duration (s)", |f| Some(format!("{:.2}", f.duration))),
        line("Total input tokens", |f| Some(f.input.to_string())),
        line("Total generated tokens", |f| Some(f.output.to_string())),
        line("Request throughput (req/s)", |f| ratio(f.completed as f64, f.duration).map(|n| format!("{n:.2}"))),
        line("Request goodput (req/s)", |f| ratio(f.good? as f64, f.duration).map(|n| format!("{n:.2}"))),
        line("Good requests (%)", |f| ratio(100.0 * f.good? as f64, f.ended() as f64).map(|n| format!("{n:.1}"))),
        line("Output token throughput (tok/s)", |f| ratio(f.output as f64, f.duration).map(|n| format!("{n:.1}"))),
        line("Total token throughput (tok/s)", |f| {
            ratio((f.input + f.output) as f64, f.duration).map(|n| format!("{n:.1}"))
        }),
    ];
    for (name, latency) in LATENCIES {
        lines.push(line(&format!("Mean {name} (ms)"), move |f| latency(f).map(|l| format!("{:.2}", l.mean))));
        lines.push(line(&format!("Median {name} (ms)"), move |f| latency(f).map(|l| format!("{:.2}", l.median))));
        lines.push(line(&format!("P90 {name} (ms)"), move |f| latency(f).map(|l| format!("{:.2}", l.p90))));
        lines.push(line(&format!("P99 {name} (ms)"), move |f| latency(f).map(|l| format!("{:.2}", l.p99))));
    }
    lines.extend([
        line("P99 late sends (ms)", |f| f.late.filter(|late| late.p99 >= 1.0).map(|late| format!("{:.2}", late.p99))),
        line("Draft tokens", |f| Some(f.speculation?.drafted.to_string())),
        line("Accepted tokens", |f| Some(f.speculation?.accepted.to_string())),
        line("  of them relaxed", |f| Some(f.speculation?.relaxed.to_string())),
        line("Unverified tokens", |f| Some(f.speculation?.unverified).filter(|n| *n > 0).map(|n| n.to_string())),
        line("Deferred tokens", |f| Some(f.speculation?.deferred.to_string())),
        line("Acceptance rate (%)", |f| acceptance(f).map(|n| format!("{:.1}", 100.0 * n))),
        line("Accepted tokens per pass", |f| accepted_per_pass(f).map(|n| format!("{n:.2}"))),
        line("Tokens per expert pass", |f| tokens_per_pass(f).map(|n| format!("{n:.2}"))),
        line("Sessions that moved, left out", |f| (f.moved > 0).then(|| f.moved.to_string())),
        line("Accuracy (%)", |f| {
            f.right.and_then(|(right, known)| ratio(100.0 * right as f64, known as f64)).map(|n| format!("{n:.1}"))
        }),
    ]);
    lines
}

type OfFigures = fn(&Figures) -> Option<Latency>;

const LATENCIES: [(&str, OfFigures); 4] =
    [("TTFT", |f| f.ttft), ("TPOT", |f| f.tpot), ("ITL", |f| f.itl), ("E2EL", |f| f.e2el)];

fn acceptance(figures: &Figures) -> Option<f64> {
    let speculation = figures.speculation?;
    ratio(speculation.accepted as f64, speculation.drafted as f64)
}

fn accepted_per_pass(figures: &Figures) -> Option<f64> {
    let speculation = figures.speculation?;
    ratio(speculation.accepted as f64, speculation.expert_passes as f64)
}

fn tokens_per_pass(figures: &Figures) -> Option<f64> {
    ratio(figures.told as f64, figures.speculation?.expert_passes as f64)
}

/// One object a run.
#[must_use]
pub fn to_json(runs: &[Run]) -> Value {
    Value::Array(runs.iter().map(|(name, figures)| object(name, figures)).collect())
}

fn object(name: &str, figures: &Figures) -> Value {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    let per_second = |count: f64| json!(ratio(count, figures.duration));
    set("strategy", json!(name));
    set("completed", json!(figures.completed));
    set("failed", json!(figures.ended() - figures.completed));
    set("errors", json!(figures.errors));
    set("unfinished", json!(figures.unfinished));
    set("max_concurrent_requests", json!(figures.peak));
    set("duration", json!(figures.duration));
    set("total_input_tokens", json!(figures.input));
    set("total_output_tokens", json!(figures.output));
    set("request_throughput", per_second(figures.completed as f64));
    set("request_goodput", figures.good.map_or(Value::Null, |good| per_second(good as f64)));
    set("good_requests", json!(figures.good));
    set("output_throughput", per_second(figures.output as f64));
    set("total_token_throughput", per_second((figures.input + figures.output) as f64));
    for (name, latency) in LATENCIES.into_iter().chain([("send_delay", (|f| f.late) as OfFigures)]) {
        let name = name.to_ascii_lowercase();
        let latency = latency(figures);
        set(&format!("mean_{name}_ms"), json!(latency.map(|l| l.mean)));
        set(&format!("median_{name}_ms"), json!(latency.map(|l| l.median)));
        set(&format!("p90_{name}_ms"), json!(latency.map(|l| l.p90)));
        set(&format!("p99_{name}_ms"), json!(latency.map(|l| l.p99)));
    }
    if let Some(speculation) = figures.speculation {
        set("spec_decode_num_drafts", json!(speculation.blocks));
        set("spec_decode_num_draft_tokens", json!(speculation.drafted));
        set("spec_decode_num_accepted_tokens", json!(speculation.accepted));
        set("spec_decode_num_relaxed_tokens", json!(speculation.relaxed));
        set("spec_decode_num_unverified_tokens", json!(speculation.unverified));
        set("spec_decode_num_deferred_tokens", json!(speculation.deferred));
        set("spec_decode_acceptance_rate", json!(acceptance(figures)));
        set("expert_passes", json!(speculation.expert_passes));
        set("accepted_tokens_per_pass", json!(accepted_per_pass(figures)));
        set("tokens_per_expert_pass", json!(tokens_per_pass(figures)));
    }
    set("session_migrations", json!(figures.moves));
    set("migrated_sessions_left_out", json!(figures.moved));
    if let Some((right, known)) = figures.right {
        set("accuracy", json!(ratio(right as f64, known as f64)));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::measure::Speculation;
    use super::*;

    fn figures() -> Figures {
        Figures {
            completed: 8,
            errors: BTreeMap::from([("UNAVAILABLE".to_owned(), 2)]),
            duration: 4.0,
            output: 80,
            good: Some(5),
            ttft: Some(Latency { mean: 2.5, median: 2.0, p90: 4.0, p99: 5.0 }),
            speculation: Some(Speculation { drafted: 60, accepted: 45, expert_passes: 20, ..Default::default() }),
            told: 70,
            moved: 1,
            moves: 3,
            right: Some((6, 8)),
            ..Figures::default()
        }
    }

    #[test]
    fn a_row_a_figure_and_a_column_a_run() {
        let table = table(&[("expert".into(), Figures::default()), ("speculative".into(), figures())]);
        for (name, cells) in [
            ("Successful requests", ["0", "8"]),
            ("Failed requests", ["0", "2"]),
            ("UNAVAILABLE", ["0", "2"]),
            ("Request goodput (req/s)", ["-", "1.25"]),
            ("Good requests (%)", ["-", "50.0"]),
            ("Output token throughput (tok/s)", ["-", "20.0"]),
            ("P90 TTFT (ms)", ["-", "4.00"]),
            ("Acceptance rate (%)", ["-", "75.0"]),
            ("Tokens per expert pass", ["-", "3.50"]),
            ("Sessions that moved, left out", ["-", "1"]),
            ("Accuracy (%)", ["-", "75.0"]),
        ] {
            let row = table.lines().find(|line| line.trim_start().starts_with(name)).expect(name);
            assert!(row.split_whitespace().rev().take(2).eq(cells.into_iter().rev()), "{row}");
        }
        assert!(!table.contains("Unfinished") && !table.contains("E2EL"), "{table}");
    }

    #[test]
    fn nothing_verified_has_no_acceptance() {
        let alone = Speculation { unverified: 80, ..Default::default() };
        let runs = [("drafter".into(), Figures { speculation: Some(alone), told: 80, ..figures() })];
        let table = table(&runs);
        assert!(table.contains("Unverified tokens") && !table.contains("Acceptance rate"), "{table}");
        assert!(to_json(&runs)[0]["spec_decode_acceptance_rate"].is_null());
    }

    #[test]
    fn json_has_the_names_of_the_trade() {
        let json = to_json(&[("speculative".into(), figures())]);
        let run = &json[0];
        assert_eq!((run["completed"].as_u64(), run["failed"].as_u64()), (Some(8), Some(2)));
        assert_eq!((run["request_goodput"].as_f64(), run["p99_ttft_ms"].as_f64()), (Some(1.25), Some(5.0)));
        assert!(run["mean_e2el_ms"].is_null());
        assert_eq!(run["accuracy"].as_f64(), Some(0.75));
        assert_eq!(
            (run["session_migrations"].as_u64(), run["migrated_sessions_left_out"].as_u64()),
            (Some(3), Some(1))
        );
    }
}
