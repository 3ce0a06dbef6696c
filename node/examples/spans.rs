//! What a span costs: `cargo run --release -p cascadia-node --example spans`. Off is the default.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cascadia_core::ids::SessionId;
use cascadia_node::telemetry::tail_sampling::Sampling;
use cascadia_node::telemetry::{Batch, Span, SpanRef, TraceContext, Tracer};
use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanProcessor};

/// A collector that is free: what is left is our own cost.
#[derive(Debug)]
struct Nowhere;

impl SpanProcessor for Nowhere {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        black_box(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// What a drafter and an expert record of one round: a draft, a round trip, a block, a batch of eight sessions.
fn round(tracer: &Tracer, session: &Span, marks: &[SpanRef]) {
    for name in ["draft", "round", "verify"] {
        let mut span = session.child(name);
        span.set("spec.round", 1);
        span.set("spec.draft.tokens", 5);
        span.set("spec.accepted.tokens", 4);
    }
    let batch = Batch { elapsed: Duration::from_millis(1), sessions: 8, tokens: 40, rows: 40 };
    black_box(tracer.batch(batch, marks.iter()));
}

fn main() {
    const ROUNDS: u32 = 200_000;
    let on = |ratio| Tracer::new(Sampling { ratio, slow: None }, Arc::new(Nowhere));
    for (what, tracer) in [("off", Tracer::default()), ("on, not sampled", on(0.0)), ("on, sampled", on(1.0))] {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            for _ in 0..ROUNDS / 100 {
                // A session of a hundred rounds.
                let sessions: Vec<Span> =
                    (0..8).map(|id| tracer.session(SessionId(id), &TraceContext::default(), "Session/Run")).collect();
                let marks: Vec<SpanRef> = sessions.iter().map(Span::mark).collect();
                for _ in 0..100 {
                    round(black_box(&tracer), black_box(&sessions[0]), &marks);
                }
            }
            best = best.min(began.elapsed() / ROUNDS);
        }
        println!("{what:16} {:8.0} ns a round (three spans and a batch of eight sessions)", best.as_nanos());
    }
}
