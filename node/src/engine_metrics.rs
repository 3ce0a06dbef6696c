//! What every engine counts, and what its status board says.

use std::time::Duration;

use cascadia_core::placement::Role;
use cascadia_core::stepper::StepReport;
use cascadia_proto::convert::role_name;

use crate::metrics::{BATCH_SIZES, Counter, Histogram, PASS_SECONDS, Registry};
use crate::status::{EngineLoad, StatusBoard};

/// What an engine loop counts.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    batch_sessions: Histogram,
    batch_tokens: Histogram,
    seconds: Histogram,
    evictions: Counter,
    decoded: Counter,
}

impl EngineMetrics {
    /// Registers them; an engine's batches are named by what they are for: `verify` at an expert, else `draft`.
    pub fn register(registry: &mut Registry, role: Role) -> Self {
        let verb = if role == Role::Expert { "verify" } else { "draft" };
        let role = [role_name(role)];
        let mut histogram = |what: &str, help, buckets| registry.histogram(&format!("{verb}_{what}"), help, buckets);
        Self {
            batch_sessions: histogram("batch_sessions", "Sessions in one forward pass", BATCH_SIZES),
            batch_tokens: histogram("batch_tokens", "Tokens in one forward pass", BATCH_SIZES),
            seconds: histogram("seconds", "Time of one forward pass", PASS_SECONDS),
            evictions: registry
                .counters("evictions", "Sessions that lost KV pages to another, to fill them again", ["role"])
                .of(role),
            decoded: registry
                .counters("decoded_tokens", "Tokens that this node's model decoded alone", ["role"])
                .of(role),
        }
    }

    /// The engine did a step.
    pub fn stepped(&self, report: &StepReport, elapsed: Duration) {
        if report.tokens > 0 {
            self.batch_sessions.observe(report.sessions as f64);
            self.batch_tokens.observe(report.tokens as f64);
            self.seconds.observe(elapsed.as_secs_f64());
        }
        self.evictions.inc_by(report.evicted.len() as u64);
    }

    /// The engine decoded tokens of a session that asks no other model.
    pub fn decoded(&self, tokens: usize) {
        self.decoded.inc_by(tokens as u64);
    }
}

/// Registers what an engine's status board says.
pub fn board(registry: &mut Registry, role: Role, board: &StatusBoard) {
    let mut load = |name: &str, help: &str, read: fn(EngineLoad) -> f64| {
        let board = board.clone();
        registry.read(name, help, role, move || read(board.load()));
    };
    load("queued_tokens", "Tokens that wait for a forward pass, those of a pass under way among them", |load| {
        load.queued_tokens as f64
    });
    load("sessions_waiting", "Sessions that wait at an engine for a slot or for KV pages", |load| {
        load.sessions_waiting as f64
    });
    load("batch_occupancy_ratio", "Share of its token budget that the last forward pass used, 0 to 1", |load| {
        share(load.batch_tokens_last, load.batch_budget)
    });
    load("kv_cache_usage_perc", "Share of the KV pages that open sessions hold, 0 to 1", |load| {
        share(load.kv_pages.saturating_sub(load.kv_pages_free), load.kv_pages)
    });
    load("kv_cache_limit_bytes", "Bytes that KV pages may take; memory is taken as pages are first used", |load| {
        (load.kv_pages * load.kv_page_bytes) as f64
    });
    load("kv_cache_used_bytes", "Bytes of the KV pages that open sessions hold", |load| {
        (load.kv_pages.saturating_sub(load.kv_pages_free) * load.kv_page_bytes) as f64
    });
    let mut count = |name: &str, help: &str, read: fn(EngineLoad) -> u64| {
        let board = board.clone();
        registry.read_counter(name, help, role, move || read(board.load()));
    };
    count("prefix_cache_queries", "Tokens that sessions came with, each looked up among the KV pages", |load| {
        load.prefix_queries
    });
    count("prefix_cache_hits", "Tokens of these that were found and needed no prefill", |load| load.prefix_hits);
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
