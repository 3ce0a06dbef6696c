//! What the router counts, as verbs. Names and units stand here and nowhere else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// The router's counters.
#[derive(Debug)]
pub struct Metrics {
    running: AtomicI64,
    waiting: AtomicI64,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_latency: Histogram,
    finished: Labelled,
    failed: Labelled,
    migrations: Labelled,
}

/// A session that is counted as running, or as waiting for a place, while this lives.
#[derive(Debug)]
pub struct Counted<'a>(&'a AtomicI64);

impl<'a> Counted<'a> {
    fn new(gauge: &'a AtomicI64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            running: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            prompt_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            time_to_first_token: Histogram::new(&[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            inter_token_latency: Histogram::new(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]),
            e2e_latency: Histogram::new(&[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]),
            finished: Labelled::default(),
            failed: Labelled::default(),
            migrations: Labelled::default(),
        }
    }
}

impl Metrics {
    /// An owner decodes a session, until the guard is dropped.
    pub fn running(&self) -> Counted<'_> {
        Counted::new(&self.running)
    }

    /// A session waits for a ready owner, until the guard is dropped.
    pub fn waiting(&self) -> Counted<'_> {
        Counted::new(&self.waiting)
    }

    /// A session began with a prompt of so many tokens.
    pub fn began(&self, prompt_tokens: u64) {
        self.prompt_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
    }

    /// The first tokens of a session were relayed, so long after it was asked for.
    pub fn first_tokens(&self, count: usize, waited: Duration) {
        self.generation_tokens.fetch_add(count as u64, Ordering::Relaxed);
        self.time_to_first_token.observe(waited, 1);
    }

    /// More tokens were relayed, so long after those before them.
    pub fn tokens(&self, count: usize, waited: Duration) {
        self.generation_tokens.fetch_add(count as u64, Ordering::Relaxed);
        self.inter_token_latency.observe(waited / (count.max(1) as u32), count as u64);
    }

    /// A session came to its end.
    pub fn finished(&self, reason: &'static str, took: Duration) {
        self.finished.add(reason);
        self.e2e_latency.observe(took, 1);
    }

    /// A request ended with an error, or its client left.
    pub fn failed(&self, code: &'static str) {
        self.failed.add(code);
    }

    /// A session was placed on another owner.
    pub fn migrated(&self, reason: &'static str) {
        self.migrations.add(reason);
    }

    /// Everything, as Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = String::new();
        let gauge = |value: &AtomicI64| value.load(Ordering::Relaxed).to_string();
        let counter = |value: &AtomicU64| value.load(Ordering::Relaxed).to_string();
        single(&mut page, "num_requests_running", "gauge", "Sessions that an owner decodes", &gauge(&self.running));
        single(
            &mut page,
            "num_requests_waiting",
            "gauge",
            "Sessions that wait for a ready owner",
            &gauge(&self.waiting),
        );
        single(
            &mut page,
            "prompt_tokens_total",
            "counter",
            "Prompt tokens of sessions begun",
            &counter(&self.prompt_tokens),
        );
        single(&mut page, "generation_tokens_total", "counter", "Tokens relayed", &counter(&self.generation_tokens));
        let first = "From the request to the first token";
        self.time_to_first_token.render(&mut page, "time_to_first_token_seconds", first);
        let between = "From token to token, those of one message sharing their wait";
        self.inter_token_latency.render(&mut page, "inter_token_latency_seconds", between);
        self.e2e_latency.render(&mut page, "e2e_request_latency_seconds", "From the request to its end");
        self.finished.render(&mut page, "request_success_total", "finished_reason", "Sessions finished");
        self.failed.render(&mut page, "request_failure_total", "code", "Requests that ended with an error");
        self.migrations.render(&mut page, "session_migrations_total", "reason", "Sessions placed on another owner");
        page
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP cascadia_{name} {help}\n# TYPE cascadia_{name} {kind}");
}

fn single(page: &mut String, name: &str, kind: &str, help: &str, value: &str) {
    head(page, name, kind, help);
    let _ = writeln!(page, "cascadia_{name} {value}");
}

/// A counter with one label of few values.
#[derive(Debug, Default)]
struct Labelled(Mutex<BTreeMap<&'static str, u64>>);

impl Labelled {
    fn add(&self, label: &'static str) {
        *self.0.lock().expect("no panic under this lock").entry(label).or_default() += 1;
    }

    fn render(&self, page: &mut String, name: &str, label: &str, help: &str) {
        head(page, name, "counter", help);
        for (value, count) in &*self.0.lock().expect("no panic under this lock") {
            let _ = writeln!(page, "cascadia_{name}{{{label}=\"{value}\"}} {count}");
        }
    }
}

/// Observations in seconds, in buckets.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last has no bound.
    buckets: Vec<AtomicU64>,
    sum_us: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum_us: AtomicU64::new(0) }
    }

    fn observe(&self, value: Duration, times: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value.as_secs_f64());
        self.buckets[bucket].fetch_add(times, Ordering::Relaxed);
        self.sum_us.fetch_add((value.as_micros() as u64).saturating_mul(times), Ordering::Relaxed);
    }

    fn render(&self, page: &mut String, name: &str, help: &str) {
        head(page, name, "histogram", help);
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = self.bounds.get(index).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(page, "cascadia_{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(page, "cascadia_{name}_sum {sum}\ncascadia_{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_what_was_counted() {
        let metrics = Metrics::default();
        let running = metrics.running();
        metrics.first_tokens(2, Duration::from_millis(30));
        metrics.tokens(4, Duration::from_millis(8));
        metrics.migrated("loss");
        metrics.migrated("loss");
        let page = metrics.render();
        for line in [
            "cascadia_num_requests_running 1",
            "cascadia_generation_tokens_total 6",
            "cascadia_time_to_first_token_seconds_bucket{le=\"0.025\"} 0",
            "cascadia_time_to_first_token_seconds_bucket{le=\"0.05\"} 1",
            "cascadia_inter_token_latency_seconds_count 4",
            "cascadia_inter_token_latency_seconds_sum 0.008",
            "cascadia_session_migrations_total{reason=\"loss\"} 2",
        ] {
            assert!(page.lines().any(|has| has == line), "{line} is missing in\n{page}");
        }
        drop(running);
        assert!(metrics.render().contains("cascadia_num_requests_running 0"));
    }
}
