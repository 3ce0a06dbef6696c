//! What an expert counts, as verbs; names and units only here.

use std::time::Duration;

use cascadia_core::block::Answer;
use cascadia_core::placement::Role;
use cascadia_core::stepper::StepReport;
use cascadia_node::engine_metrics::EngineMetrics;
use cascadia_node::metrics::{Counter, Gauge, Histogram, PASS_SECONDS, Registry};
use cascadia_node::sessions::Observer;

use crate::engine::ExpertReply;

/// Counters of one expert node; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    engine: EngineMetrics,
    verdicts: Counter,
    stale: Counter,
    queue: Histogram,
    waiting: Gauge,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let answers =
            registry.counters("verify_answers", "Draft blocks answered, with a verdict or as stale", ["answer"]);
        Self {
            engine: EngineMetrics::register(registry, Role::Expert),
            verdicts: answers.of(["verdict"]),
            stale: answers.of(["stale"]),
            queue: registry.histogram(
                "verify_queue_seconds",
                "From a draft block's arrival to the forward pass that verifies it",
                PASS_SECONDS,
            ),
            waiting: registry.gauge("verify_queue_blocks", "Draft blocks that wait for their answer"),
        }
    }

    /// The blocks of one session that wait for their answer, until this is dropped.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting { gauge: self.waiting.clone(), blocks: 0 }
    }

    /// A block waited so long for the pass that verified it.
    pub fn verified(&self, waited: Duration) {
        self.queue.observe(waited.as_secs_f64());
    }
}

impl Observer<ExpertReply> for Metrics {
    fn replied(&mut self, reply: &ExpertReply) {
        let answer = match reply {
            ExpertReply::Answer(Answer::Verdict(_), _) => &self.verdicts,
            ExpertReply::Answer(Answer::Stale(_), _) => &self.stale,
            ExpertReply::Decoded(decoded, _) => return self.engine.decoded(decoded.len()),
        };
        answer.inc();
    }

    fn stepped(&mut self, report: &StepReport, elapsed: Duration) {
        self.engine.stepped(report, elapsed);
    }
}

/// One session's part of the queue; leaves it whatever ends the session.
#[derive(Debug)]
pub struct Waiting {
    gauge: Gauge,
    blocks: i64,
}

impl Waiting {
    /// A block came.
    pub fn came(&mut self) {
        self.blocks += 1;
        self.gauge.inc();
    }

    /// The oldest was answered.
    pub fn answered(&mut self) {
        self.blocks -= 1;
        self.gauge.dec();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gauge.dec_by(self.blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_ends_leaves_the_queue() {
        let metrics = Metrics::register(&mut Registry::default());
        let (mut one, mut other) = (metrics.waiting(), metrics.waiting());
        one.came();
        one.came();
        other.came();
        one.answered();
        assert_eq!(metrics.waiting.get(), 2);
        drop(one);
        assert_eq!(metrics.waiting.get(), 1);
    }
}
