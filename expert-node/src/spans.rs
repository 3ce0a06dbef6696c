//! The spans of a session that is verified here: one for the stream, one for each block from its arrival to its answer.

use std::collections::VecDeque;

use cascadia_core::block::{Answer, DraftBlock, StaleReason};
use cascadia_node::sessions::BatchInfo;
use cascadia_node::telemetry::{Span, SpanRef, TraceContext, Tracer, log_span};
use tokio::time::Instant;
use tonic::Status;

use crate::verify::OpenedVerify;

/// A session's spans.
#[derive(Debug)]
pub struct Spans {
    stream: Span,
    /// Blocks without an answer, oldest first; empty where nothing is recorded.
    blocks: VecDeque<Span>,
}

impl Spans {
    /// A drafter opened the session.
    pub fn opened(tracer: &Tracer, caller: &TraceContext, opening: &OpenedVerify) -> Self {
        let mut stream = tracer.session(opening.key, caller, "Verify/Stream");
        if stream.is_recording() {
            stream.set("cascadia.session", opening.key.to_string());
            stream.set("cascadia.epoch", opening.epoch.0 as i64);
            stream.set("cascadia.history_tokens", opening.ids.len() as i64);
            stream.set("spec.strategy", opening.strategy.clone());
            stream.set_some("spec.rule", Some(opening.rule.clone()).filter(|rule| !rule.is_empty()));
        }
        Self { stream, blocks: VecDeque::new() }
    }

    /// What its log lines have in common.
    pub fn log_span(&self, opening: &OpenedVerify) -> tracing::Span {
        log_span(opening.key, &self.stream.context())
    }

    /// What batches link to.
    pub fn mark(&self) -> SpanRef {
        self.stream.mark()
    }

    /// The engine holds the session, so many of its tokens in the cache.
    pub fn held(&mut self, cached: usize) {
        self.stream.set("cascadia.cached_tokens", cached as i64);
    }

    /// The session lost pages to another.
    pub fn evicted(&mut self, held: usize) {
        self.stream.event("evicted", [("cascadia.cached_tokens", (held as i64).into())]);
    }

    /// The node drains: the drafter was told to leave.
    pub fn told_to_move(&mut self) {
        self.stream.event("told to move", []);
    }

    /// A block came.
    pub fn came(&mut self, block: &DraftBlock) {
        if !self.stream.is_recording() {
            return;
        }
        let mut span = self.stream.child("verify");
        span.set("spec.base", block.base as i64);
        span.set("spec.draft.tokens", block.drafts.len() as i64);
        self.blocks.push_back(span);
    }

    /// The oldest block, which came at `came`, was answered.
    pub fn answered(&mut self, answer: &Answer, came: Instant, hint: BatchInfo) {
        let Some(mut span) = self.blocks.pop_front() else { return };
        match answer {
            Answer::Verdict(verdict) => {
                span.set("spec.accepted.tokens", verdict.accepted as i64);
                span.set("spec.deferred.tokens", i64::from(verdict.replacement.is_some()));
            }
            Answer::Stale(stale) => span.set(
                "spec.stale",
                match stale.reason {
                    StaleReason::Epoch => "epoch",
                    StaleReason::Base => "base",
                    StaleReason::Tail => "tail",
                },
            ),
        }
        if let Some(began) = hint.began {
            span.set("spec.verify.queue_ms", began.saturating_duration_since(came).as_secs_f64() * 1e3);
            span.set("spec.verify.batch_sessions", hint.batch_sessions as i64);
            span.set("spec.verify.batch_tokens", hint.batch_tokens as i64);
        }
        span.link_batch(hint.span);
    }

    /// The stream is over; a drafter that goes away is no failure.
    pub fn ended(mut self, ended: &Result<(), Status>) {
        self.blocks.clear();
        if let Err(status) = ended {
            self.stream.fail_with(status);
        }
    }
}
