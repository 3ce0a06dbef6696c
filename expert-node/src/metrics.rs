//! What an expert counts, as verbs; names and units only here.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cascadia_core::block::Answer;
use cascadia_node::sessions::Observer;

use crate::engine::ExpertReply;

/// Counters of one expert node.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    blocks: AtomicU64,
    accepted: AtomicU64,
    deferred: AtomicU64,
    relaxed: AtomicU64,
    stale: AtomicU64,
    steps: AtomicU64,
    batch_sessions: AtomicU64,
    batch_tokens: AtomicU64,
    verify_nanos: AtomicU64,
}

impl Observer<ExpertReply> for Metrics {
    fn replied(&mut self, reply: &ExpertReply) {
        let ExpertReply::Answer(answer, _) = reply else { return };
        let counters = &self.0;
        match answer {
            Answer::Stale(_) => {
                counters.stale.fetch_add(1, Relaxed);
            }
            Answer::Verdict(verdict) => {
                counters.blocks.fetch_add(1, Relaxed);
                counters.accepted.fetch_add(verdict.accepted as u64, Relaxed);
                counters.deferred.fetch_add(u64::from(verdict.replacement.is_some()), Relaxed);
                let relaxed = verdict.scores.iter().filter(|score| score.relaxed).count();
                counters.relaxed.fetch_add(relaxed as u64, Relaxed);
            }
        }
    }

    fn stepped(&mut self, sessions: usize, tokens: usize, elapsed: Duration) {
        let counters = &self.0;
        counters.steps.fetch_add(1, Relaxed);
        counters.batch_sessions.fetch_add(sessions as u64, Relaxed);
        counters.batch_tokens.fetch_add(tokens as u64, Relaxed);
        counters.verify_nanos.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
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
        counter("spec_decode_num_drafts_total", "Draft blocks verified.", read(&c.blocks));
        counter("spec_decode_num_accepted_tokens_total", "Drafts accepted.", read(&c.accepted));
        counter(
            "spec_decode_num_deferred_tokens_total",
            "Tokens written by the expert in verified blocks.",
            read(&c.deferred),
        );
        counter(
            "spec_decode_num_relaxed_accepted_tokens_total",
            "Drafts accepted only thanks to the rule.",
            read(&c.relaxed),
        );
        counter("stale_blocks_total", "Blocks answered Stale.", read(&c.stale));
        counter("verify_batches_total", "Batches run.", read(&c.steps));
        counter("verify_batch_sessions_total", "Sessions in them.", read(&c.batch_sessions));
        counter("verify_batch_tokens_total", "Tokens in them.", read(&c.batch_tokens));
        counter("verify_seconds_total", "Time in them.", read(&c.verify_nanos) / 1e9);
        text
    }
}
