//! What every node's metrics share: one registry with one prefix, buckets, labels of few values, and the page.
//!
//! A node's own `metrics.rs` registers what it counts, once, and has a verb for each event; call sites see no name.
//! `docs/metrics.md` has a row for every metric, and a test compares it with what a running cluster serves.

mod labels;
mod process;
mod usage;

use std::fmt;
use std::sync::Arc;

use cascadia_core::placement::Role;
use cascadia_proto::convert::role_name;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;

use labels::{LabelSet, label_set};
pub use labels::{Labelled, OTHER, Values};
pub use process::{Ready, node, sessions};
pub use usage::Usage;

/// Every name begins with this.
const PREFIX: &str = "cascadia";

/// From a request to its first token, seconds: vLLM's.
pub const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// From token to token, seconds: vLLM's, which begin at 10 ms, and three below for what speculation makes possible.
pub const TOKEN_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];

/// Of whole requests, seconds: vLLM's, which begin at 0.3 s, and six below for small models.
pub const REQUEST_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// Of one forward pass, a wait for one, or a round trip, seconds.
pub const PASS_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Sessions or tokens of one batch.
pub const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0];

/// Tokens of one request.
pub const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0,
];

/// Takes the metrics of one node.
#[derive(Debug)]
pub struct Registry(prometheus_client::registry::Registry);

impl Default for Registry {
    fn default() -> Self {
        let mut all = prometheus_client::registry::Registry::default();
        usage::register(&mut all);
        Self(all)
    }
}

impl Registry {
    fn register(&mut self, name: &str, help: &str, metric: impl prometheus_client::registry::Metric) {
        self.0.sub_registry_with_prefix(PREFIX).register(name, help, metric);
    }

    /// A counter; its name gets the ending `_total` where it is served.
    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.register(name, help, counter.clone());
        counter
    }

    /// Counters that differ by labels.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        keys: [&'static str; N],
    ) -> Labelled<Counter, N> {
        let counters = Labelled::new(keys, Counter::default);
        self.register(name, help, counters.family());
        counters
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.register(name, help, gauge.clone());
        gauge
    }

    /// Gauges that differ by labels.
    pub fn gauges<const N: usize>(&mut self, name: &str, help: &str, keys: [&'static str; N]) -> Labelled<Gauge, N> {
        let gauges = Labelled::new(keys, Gauge::default);
        self.register(name, help, gauges.family());
        gauges
    }

    /// A histogram.
    pub fn histogram(&mut self, name: &str, help: &str, buckets: &'static [f64]) -> Histogram {
        let histogram = Histogram::new(buckets.iter().copied());
        self.register(name, help, histogram.clone());
        histogram
    }

    /// Histograms that differ by labels.
    pub fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        keys: [&'static str; N],
        buckets: &'static [f64],
    ) -> Labelled<Histogram, N> {
        let histograms = Labelled::new(keys, move || Histogram::new(buckets.iter().copied()));
        self.register(name, help, histograms.family());
        histograms
    }

    /// A gauge that nodes of every role have, read when the page is.
    pub fn read(&mut self, name: &str, help: &str, role: Role, read: impl Fn() -> f64 + Send + Sync + 'static) {
        self.reads(name, help, ["role"], move || vec![([role_name(role).to_owned()], read())]);
    }

    /// A counter that nodes of every role have and somebody else keeps, read when the page is.
    pub fn read_counter(&mut self, name: &str, help: &str, role: Role, read: impl Fn() -> u64 + Send + Sync + 'static) {
        let read = move || vec![([role_name(role).to_owned()], read() as f64)];
        self.register(name, help, Read { keys: ["role"], kind: MetricType::Counter, read: Box::new(read) });
    }

    /// Gauges with labels, read when the page is.
    pub fn reads<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        keys: [&'static str; N],
        read: impl Fn() -> Vec<([String; N], f64)> + Send + Sync + 'static,
    ) {
        self.register(name, help, Read { keys, kind: MetricType::Gauge, read: Box::new(read) });
    }

    /// No more metrics: the page that serves these.
    #[must_use]
    pub fn page(self) -> Page {
        Page(Arc::new(self.0))
    }
}

/// What `/metrics` serves; clones serve the same.
#[derive(Clone, Default)]
pub struct Page(Arc<prometheus_client::registry::Registry>);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text";

impl Page {
    /// The content type and text for a reader that accepts these types: OpenMetrics, or Prometheus' older text.
    #[must_use]
    pub fn render(&self, accept: &str) -> (&'static str, String) {
        let mut page = String::new();
        let (kind, rendered) = if accept.contains(OPEN_METRICS) {
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", text::encode(&mut page, &self.0))
        } else {
            (prometheus_text::CONTENT_TYPE, prometheus_text::encode(&mut page, &self.0))
        };
        // A string takes everything, so only a metric that cannot be written could fail.
        if let Err(error) = rendered {
            tracing::error!(%error, "the metrics page is incomplete");
        }
        (kind, page)
    }
}

type ReadValues<const N: usize> = Box<dyn Fn() -> Vec<([String; N], f64)> + Send + Sync>;

/// A metric whose value is somebody else's.
struct Read<const N: usize> {
    keys: [&'static str; N],
    kind: MetricType,
    read: ReadValues<N>,
}

impl<const N: usize> fmt::Debug for Read<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<const N: usize> EncodeMetric for Read<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (values, value) in (self.read)() {
            let labels: LabelSet<N> = label_set(self.keys, values);
            let mut encoder = encoder.encode_family(&labels)?;
            match self.kind {
                MetricType::Counter => encoder.encode_counter::<LabelSet<0>, _, u64>(&value, None)?,
                _ => encoder.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let mut registry = Registry::default();
        registry.counter("blocks", "Blocks verified").inc_by(3);
        registry.counters("moves", "Moves", ["reason"]).of(["lo\"st"]).inc();
        registry.histogram("pass_seconds", "Time of a pass", &[0.1, 1.0]).observe(0.5);
        registry.read("sessions", "Open sessions", Role::Expert, || 7.0);
        registry.reads("nodes", "Nodes", ["role", "state"], || vec![(["expert".into(), "ready".into()], 2.0)]);
        registry.read_counter("hits", "Tokens found", Role::Expert, || 9);
        registry.page()
    }

    #[test]
    fn prometheus_gets_open_metrics_and_others_the_older_text() {
        let (kind, open) = page().render("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"));
        assert!(open.ends_with("# EOF\n") && open.contains("# TYPE cascadia_blocks counter\n"), "{open}");
        let (kind, older) = page().render("*/*");
        assert!(kind.starts_with("text/plain; version=0.0.4"));
        assert!(!older.contains("EOF") && older.contains("# TYPE cascadia_blocks_total counter\n"), "{older}");
        for line in [
            "cascadia_blocks_total 3",
            r#"cascadia_moves_total{reason="lo\"st"} 1"#,
            r#"cascadia_pass_seconds_bucket{le="1.0"} 1"#,
            "cascadia_pass_seconds_count 1",
            r#"cascadia_nodes{role="expert",state="ready"} 2.0"#,
            r#"cascadia_hits_total{role="expert"} 9.0"#,
            r#"cascadia_sessions{role="expert"} 7.0"#,
            "# TYPE process_cpu_seconds counter",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(open.lines().any(|has| has == line), "{line} is missing in\n{open}");
        }
    }
}
