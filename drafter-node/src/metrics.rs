//! What a drafter counts, as verbs; names and units only here.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cascadia_node::sessions::Observer;

use crate::engine::DrafterReply;

/// Counters of one drafter node.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    drafts: AtomicU64,
    decoded: AtomicU64,
    steps: AtomicU64,
    batch_sessions: AtomicU64,
    batch_tokens: AtomicU64,
    step_nanos: AtomicU64,
}

impl Observer<DrafterReply> for Metrics {
    fn replied(&mut self, reply: &DrafterReply) {
        match reply {
            DrafterReply::Drafted(_, drafts) => self.0.drafts.fetch_add(drafts.len() as u64, Relaxed),
            DrafterReply::Decoded(decoded, _) => self.0.decoded.fetch_add(decoded.len() as u64, Relaxed),
        };
    }

    fn stepped(&mut self, sessions: usize, tokens: usize, elapsed: Duration) {
        let counters = &self.0;
        counters.steps.fetch_add(1, Relaxed);
        counters.batch_sessions.fetch_add(sessions as u64, Relaxed);
        counters.batch_tokens.fetch_add(tokens as u64, Relaxed);
        counters.step_nanos.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

impl Metrics {
    /// The Prometheus text of the counters.
    #[must_use]
    pub fn render(&self) -> String {
        let c = &self.0;
        let mut text = String::new();
        let mut counter = |name: &str, help: &str, value: f64| {
            let _ = writeln!(
                text,
                "# HELP cascadia_{name} {help}\n# TYPE cascadia_{name} counter\ncascadia_{name} {value}"
            );
        };
        let read = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        counter("spec_decode_num_draft_tokens_total", "Tokens drafted.", read(&c.drafts));
        counter("drafter_decoded_tokens_total", "Tokens the drafter decoded alone.", read(&c.decoded));
        counter("draft_batches_total", "Batches run.", read(&c.steps));
        counter("draft_batch_sessions_total", "Sessions in them.", read(&c.batch_sessions));
        counter("draft_batch_tokens_total", "Tokens in them.", read(&c.batch_tokens));
        counter("draft_seconds_total", "Time in them.", read(&c.step_nanos) / 1e9);
        text
    }
}
