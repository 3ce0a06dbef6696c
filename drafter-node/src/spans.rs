//! The spans of a session that asks an expert: one for each stream to one, each drafting, and each block's round trip.

use std::collections::VecDeque;

use cascadia_core::block::{Answer, DraftBlock};
use cascadia_core::session::DraftOrder;
use cascadia_node::owner::OpenedRun;
use cascadia_node::telemetry::{Span, TraceContext};
use tonic::Status;

use crate::expert_link::{Expert, ExpertLink};

/// A session's spans, within the one it was opened with.
#[derive(Debug)]
pub struct Spans<'o> {
    session: &'o Span,
    rule: String,
    stream: Span,
    /// What is being drafted, by its ticket.
    draft: Option<(u64, Span)>,
    /// Blocks without an answer, oldest first; empty where nothing is recorded.
    flights: VecDeque<Span>,
    /// Of the session.
    round: i64,
    /// Of the stream.
    sum: Sum,
}

/// What a stream carried.
#[derive(Debug, Default)]
struct Sum {
    rounds: i64,
    drafted: i64,
    accepted: i64,
    deferred: i64,
}

impl<'o> Spans<'o> {
    /// Of a session that was opened.
    pub fn new(opening: &'o OpenedRun) -> Self {
        let parameters = opening.resolved.parameters.as_ref().filter(|_| opening.span.is_recording());
        let rule = parameters.map(|p| if p.rule.is_empty() { p.strategy.clone() } else { p.rule.clone() });
        Self {
            session: &opening.span,
            rule: rule.unwrap_or_default(),
            stream: Span::default(),
            draft: None,
            flights: VecDeque::new(),
            round: 0,
            sum: Sum::default(),
        }
    }

    /// A stream to an expert opens; what it carries.
    pub fn opening(&mut self, expert: &Expert) -> TraceContext {
        self.close();
        self.stream = self.session.call("Verify/Stream");
        if self.stream.is_recording() {
            self.stream.set("cascadia.expert", expert.id.0.clone());
            self.stream.set("server.address", expert.address.clone());
            self.stream.set("spec.rule", self.rule.clone());
        }
        self.stream.context()
    }

    /// The expert took the session.
    pub fn opened(&mut self, link: &ExpertLink) {
        self.stream.set("cascadia.cached_tokens", link.held as i64);
    }

    /// The expert did not take the session, or is lost: worth a look, whatever comes of the session.
    pub fn failed(&mut self, status: &Status) {
        self.stream.fail_with(status);
        self.stream.keep();
        self.close();
    }

    /// The expert is hung.
    pub fn hung(&mut self) {
        self.stream.fail("hung", || "its status says that it hangs".into());
        self.stream.keep();
        self.close();
    }

    /// The expert drains.
    pub fn told_to_move(&mut self) {
        self.stream.event("told to move", []);
        self.stream.keep();
        self.close();
    }

    /// Drafts were ordered; an earlier order that is not done is void.
    pub fn ordered(&mut self, order: &DraftOrder) {
        if !self.session.is_recording() {
            return;
        }
        let mut span = self.session.child("draft");
        span.set("spec.draft.wanted", order.count as i64);
        if let Some((_, mut void)) = self.draft.replace((order.ticket, span)) {
            void.set("spec.void", true);
        }
    }

    /// An order is done.
    pub fn drafted(&mut self, ticket: u64, count: usize) {
        if let Some((_, mut span)) = self.draft.take_if(|(ordered, _)| *ordered == ticket) {
            span.set("spec.round", self.round + 1);
            span.set("spec.draft.tokens", count as i64);
        }
    }

    /// A block went to the expert.
    pub fn sent(&mut self, block: &DraftBlock) {
        if !self.stream.is_recording() {
            return;
        }
        self.round += 1;
        self.sum.rounds += 1;
        self.sum.drafted += block.drafts.len() as i64;
        let mut span = self.stream.child("round");
        span.set("spec.round", self.round);
        span.set("spec.rule", self.rule.clone());
        span.set("spec.base", block.base as i64);
        span.set("spec.draft.tokens", block.drafts.len() as i64);
        self.flights.push_back(span);
    }

    /// The oldest block was answered.
    pub fn answered(&mut self, answer: &Answer) {
        let Some(mut span) = self.flights.pop_front() else { return };
        match answer {
            Answer::Verdict(verdict) => {
                let (accepted, deferred) = (verdict.accepted as i64, i64::from(verdict.replacement.is_some()));
                span.set("spec.accepted.tokens", accepted);
                span.set("spec.deferred.tokens", deferred);
                self.sum.accepted += accepted;
                self.sum.deferred += deferred;
            }
            Answer::Stale(_) => span.set("spec.stale", true),
        }
    }

    /// The stream is over.
    fn close(&mut self) {
        self.flights.clear();
        let Sum { rounds, drafted, accepted, deferred } = std::mem::take(&mut self.sum);
        self.stream.set("spec.rounds", rounds);
        self.stream.set("spec.draft.tokens", drafted);
        self.stream.set("spec.accepted.tokens", accepted);
        self.stream.set("spec.deferred.tokens", deferred);
        self.stream = Span::default();
    }
}

impl Drop for Spans<'_> {
    fn drop(&mut self) {
        self.close();
    }
}
