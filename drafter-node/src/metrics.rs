//! What a drafter counts, as verbs; names and units only here.
//!
//! A drafter sees every verdict on its drafts, so what speculation gains and loses is counted here and nowhere else: the
//! sum over drafters is the cluster's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cascadia_core::decoding::Strategy;
use cascadia_core::limits;
use cascadia_core::placement::Role;
use cascadia_core::rule::Rule;
use cascadia_core::session::Counters;
use cascadia_core::stepper::StepReport;
use cascadia_node::engine_metrics::EngineMetrics;
use cascadia_node::metrics::{Counter, Histogram, Labelled, PASS_SECONDS, Registry, Values};
use cascadia_node::sessions::Observer;

use crate::engine::DrafterReply;

/// Served models that have series of their own.
const MODELS: usize = 32;

/// Counters of one drafter node; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: EngineMetrics,
    drafted: Counter,
    draft_bytes: Counter,
    draft_rtt: Histogram,
    stale: Counter,
    moved: Counter,
    cancelled: Counter,
    names: Names,
    models: Values,
    speculations: Mutex<BTreeMap<(String, &'static str), Speculation>>,
}

#[derive(Debug)]
struct Names {
    drafts: Labelled<Counter, 1>,
    draft_tokens: Labelled<Counter, 1>,
    accepted: Labelled<Counter, 1>,
    accepted_at: Labelled<Counter, 2>,
    deferred: Labelled<Counter, 2>,
    relaxed: Labelled<Counter, 2>,
}

impl Metrics {
    /// Registers them, with a series for every rule and reason.
    pub fn register(registry: &mut Registry) -> Self {
        let dropped = registry.counters(
            "spec_decode_num_dropped_draft_tokens",
            "Drafts thrown away unverified: a verdict made them void, their expert was lost, or nobody waited any more",
            ["reason"],
        );
        let model = ["model_name"];
        let names = Names {
            drafts: registry.counters("spec_decode_num_drafts", "Draft blocks that got a verdict", model),
            draft_tokens: registry.counters(
                "spec_decode_num_draft_tokens",
                "Drafts in blocks that got a verdict",
                model,
            ),
            accepted: registry.counters("spec_decode_num_accepted_tokens", "Drafts that the verdict accepted", model),
            accepted_at: registry.counters(
                "spec_decode_num_accepted_tokens_per_pos",
                "Drafts accepted at a position of their block, the first is 0",
                ["model_name", "position"],
            ),
            deferred: registry.counters(
                "spec_decode_num_deferred_tokens",
                "Tokens that the expert wrote in a verdict, by the rule that deferred to it",
                ["model_name", "rule"],
            ),
            relaxed: registry.counters(
                "spec_decode_num_relaxed_accepted_tokens",
                "Accepted drafts that were kept only thanks to the rule, the loss of a lossy one",
                ["model_name", "rule"],
            ),
        };
        Self(Arc::new(Inner {
            engine: EngineMetrics::register(registry, Role::Drafter),
            drafted: registry.counter("drafted_tokens", "Drafts that the engine finished"),
            draft_bytes: registry.counter("draft_bytes", "Bytes of draft blocks sent to experts"),
            draft_rtt: registry.histogram(
                "draft_rtt_seconds",
                "From sending a draft block to its answer",
                PASS_SECONDS,
            ),
            stale: dropped.of(["stale"]),
            moved: dropped.of(["moved"]),
            cancelled: dropped.of(["cancelled"]),
            names,
            models: Values::new(MODELS),
            speculations: Mutex::default(),
        }))
    }

    /// The node drafts for a model: its series are there before the first session.
    pub fn serves(&self, model: &str) {
        for rule in RULES.into_iter().chain(Rule::NAMES) {
            self.speculation_of(model, rule);
        }
    }

    /// What sessions of a model and strategy count.
    #[must_use]
    pub fn speculation(&self, model: &str, strategy: &Strategy) -> Speculation {
        self.speculation_of(model, rule_name(strategy))
    }

    fn speculation_of(&self, model: &str, rule: &'static str) -> Speculation {
        let inner = &self.0;
        let model = inner.models.admit(model);
        let mut known = inner.speculations.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry((model.to_owned(), rule)).or_insert_with(|| Speculation::of(self.clone(), model, rule)).clone()
    }
}

/// The rules of strategies that have only one.
const RULES: [&str; 2] = ["speculative", "cascade_token"];

fn rule_name(strategy: &Strategy) -> &'static str {
    match strategy {
        Strategy::SpeculativeCascade { rule } => rule.name(),
        Strategy::CascadeToken { .. } => "cascade_token",
        Strategy::Speculative { .. } => "speculative",
        // These ask for scores alone, which accepts and defers nothing.
        Strategy::Expert | Strategy::Drafter | Strategy::CascadeQuery { .. } => "none",
    }
}

impl Observer<DrafterReply> for Metrics {
    fn replied(&mut self, reply: &DrafterReply) {
        match reply {
            DrafterReply::Drafted(_, drafts) => {
                self.0.drafted.inc_by(drafts.len() as u64);
            }
            DrafterReply::Decoded(decoded, _) => self.0.engine.decoded(decoded.len()),
        }
    }

    fn stepped(&mut self, report: &StepReport, elapsed: Duration) {
        self.0.engine.stepped(report, elapsed);
    }
}

/// What the sessions of one model and rule count; clones count together, without a search.
#[derive(Clone, Debug)]
pub struct Speculation(Arc<Series>);

#[derive(Debug)]
struct Series {
    node: Metrics,
    model: String,
    drafts: Counter,
    draft_tokens: Counter,
    accepted: Counter,
    accepted_at: [OnceLock<Counter>; limits::MAX_DRAFT_LENGTH],
    deferred: Counter,
    relaxed: Counter,
}

impl Speculation {
    fn of(node: Metrics, model: &str, rule: &str) -> Self {
        let names = &node.0.names;
        let series = Series {
            drafts: names.drafts.of([model]),
            draft_tokens: names.draft_tokens.of([model]),
            accepted: names.accepted.of([model]),
            accepted_at: std::array::from_fn(|_| OnceLock::new()),
            deferred: names.deferred.of([model, rule]),
            relaxed: names.relaxed.of([model, rule]),
            model: model.to_owned(),
            node,
        };
        for position in 0..limits::DEFAULT_DRAFT_LENGTH {
            series.accepted_at(position);
        }
        Self(Arc::new(series))
    }

    /// A block of so many bytes was sent.
    pub fn sent(&self, bytes: usize) {
        self.0.node.0.draft_bytes.inc_by(bytes as u64);
    }

    /// The oldest block was answered after so long; the session did this with it.
    pub fn answered(&self, took: Duration, did: &Counters) {
        let series = &self.0;
        series.node.0.draft_rtt.observe(took.as_secs_f64());
        self.progressed(did);
        for position in 0..did.accepted as usize {
            if let Some(counter) = series.accepted_at(position) {
                counter.inc();
            }
        }
    }

    /// The session did this since it was last counted.
    pub fn progressed(&self, did: &Counters) {
        let (series, node) = (&self.0, &self.0.node.0);
        for (counter, count) in [
            (&series.drafts, did.blocks),
            (&series.deferred, did.deferred),
            (&series.relaxed, did.relaxed),
            (&node.stale, did.stale_drafts),
            (&node.moved, did.moved_drafts),
        ] {
            counter.inc_by(count);
        }
        if did.blocks > 0 {
            series.draft_tokens.inc_by(did.drafted);
            series.accepted.inc_by(did.accepted);
        }
    }

    /// The session ended and nobody waits for so many drafts.
    pub fn cancelled(&self, drafts: u64) {
        self.0.node.0.cancelled.inc_by(drafts);
    }
}

impl Series {
    fn accepted_at(&self, position: usize) -> Option<&Counter> {
        let place = self.accepted_at.get(position)?;
        Some(place.get_or_init(|| self.node.0.names.accepted_at.of([&self.model, &position.to_string()])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_counted_by_model_rule_and_position() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.serves("demo");
        let rule = Strategy::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 0.3 } };
        let speculation = metrics.speculation("demo", &rule);
        let verdict = Counters { blocks: 1, drafted: 6, accepted: 2, relaxed: 1, deferred: 1, ..Counters::default() };
        speculation.answered(Duration::from_millis(2), &verdict);
        // Kept without asking: no verdict, and no position of a block.
        speculation.progressed(&Counters { drafted: 4, accepted: 4, stale_drafts: 3, ..Counters::default() });
        speculation.cancelled(5);
        for model in 0..2 * MODELS {
            metrics.serves(&format!("model-{model}"));
        }
        let (_, page) = registry.page().render("");
        for line in [
            r#"cascadia_spec_decode_num_drafts_total{model_name="demo"} 1"#,
            r#"cascadia_spec_decode_num_draft_tokens_total{model_name="demo"} 6"#,
            r#"cascadia_spec_decode_num_accepted_tokens_total{model_name="demo"} 2"#,
            r#"cascadia_spec_decode_num_accepted_tokens_per_pos_total{model_name="demo",position="1"} 1"#,
            r#"cascadia_spec_decode_num_accepted_tokens_per_pos_total{model_name="demo",position="2"} 0"#,
            r#"cascadia_spec_decode_num_deferred_tokens_total{model_name="demo",rule="token_v3"} 1"#,
            r#"cascadia_spec_decode_num_deferred_tokens_total{model_name="demo",rule="bild"} 0"#,
            r#"cascadia_spec_decode_num_relaxed_accepted_tokens_total{model_name="other",rule="speculative"} 0"#,
            r#"cascadia_spec_decode_num_dropped_draft_tokens_total{reason="stale"} 3"#,
            r#"cascadia_spec_decode_num_dropped_draft_tokens_total{reason="cancelled"} 5"#,
            "cascadia_draft_rtt_seconds_count 1",
        ] {
            assert!(page.lines().any(|has| has == line), "{line} is missing in\n{page}");
        }
        let models = page.lines().filter(|line| line.starts_with("cascadia_spec_decode_num_drafts_total{")).count();
        assert_eq!(models, MODELS + 1);
    }
}
