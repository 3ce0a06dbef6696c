//! The spans of a request: one for the whole, one for each placement, one for each run at an owner. What is kept because
//! of how it went is told to the nodes that worked for it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cascadia_core::ids::SessionId;
use cascadia_core::placement::{NodeRecord, PlacementError};
use cascadia_node::keep::KeepNotifier;
use cascadia_node::telemetry::{Outcome, Span, TraceContext, Tracer};
use cascadia_proto::prompt::Shape;
use cascadia_proto::v1::{self, FinishReason, MoveReason};
use tokio::time::Instant;

use crate::admission::AdmittedRequest;
use crate::error::{CLIENT_LEFT, GenerateError};
use crate::ids::IdSource;
use crate::placement::Placement;

/// Refused requests that are kept although their traces would not be exported: a flood of them says nothing more.
const REFUSALS_PER_SECOND: u32 = 10;

/// What all requests of a router record their spans with.
#[derive(Debug, Default)]
pub struct Recorder {
    tracer: Tracer,
    keeper: KeepNotifier,
    refusals: Mutex<Option<(Instant, u32)>>,
}

impl Recorder {
    /// Over a tracer, and the way to tell the other nodes.
    #[must_use]
    pub fn new(tracer: Tracer, keeper: KeepNotifier) -> Self {
        Self { tracer, keeper, refusals: Mutex::default() }
    }

    /// A request was refused at the door.
    pub fn refused(&self, client: &TraceContext, ids: &IdSource, arrived: Instant, error: &GenerateError) {
        if !self.tracer.is_on() {
            return;
        }
        let mut span = self.tracer.request(ids.session(), client, || "generate".into());
        span.began(arrived.elapsed());
        if self.may_keep_refusal(Instant::now()) {
            span.fail(error.label(), || error.to_string());
        } else {
            span.refuse(error.label(), || error.to_string());
        }
    }

    fn may_keep_refusal(&self, now: Instant) -> bool {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, kept) = match &mut *refusals {
            Some(window) if now.duration_since(window.0) < Duration::from_secs(1) => window,
            other => other.insert((now, 0)),
        };
        *kept += 1;
        *kept <= REFUSALS_PER_SECOND
    }
}

/// One request's spans.
#[derive(Debug)]
pub struct Spans<'r> {
    recorder: &'r Recorder,
    session: SessionId,
    request: Span,
    placement: Span,
    run: Span,
    /// Why it is placed, where it has been placed before.
    reason: &'static str,
    attempt: i64,
    /// Tokens were committed.
    spoke: bool,
    /// It was known to be wanted before its end.
    kept: bool,
    /// Where it was worked on.
    visited: BTreeSet<String>,
}

impl<'r> Spans<'r> {
    /// A request was admitted.
    #[must_use]
    pub fn admitted(recorder: &'r Recorder, admitted: &AdmittedRequest) -> Self {
        let operation = operation(admitted);
        let mut request =
            recorder.tracer.request(admitted.session, &admitted.trace, || format!("{operation} {}", admitted.model));
        request.began(admitted.arrived.elapsed());
        if request.is_recording() {
            describe(&mut request, operation, admitted);
        }
        Self {
            recorder,
            session: admitted.session,
            request,
            placement: Span::default(),
            run: Span::default(),
            reason: "new",
            attempt: 0,
            spoke: false,
            kept: false,
            visited: BTreeSet::new(),
        }
    }

    /// What its calls are part of.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        self.request.context()
    }

    /// It looks for a place.
    pub fn placing(&mut self) {
        self.placement = self.request.child("placement");
        self.attempt += 1;
        self.placement.set("cascadia.placement.attempt", self.attempt);
        self.placement.set("cascadia.placement.reason", self.reason);
    }

    /// There is none yet.
    pub fn waiting(&mut self, missing: &PlacementError) {
        if self.placement.is_recording() {
            self.placement.event("waiting for a place", [("cascadia.missing", missing.to_string().into())]);
        }
    }

    /// It has one.
    pub fn placed(&mut self, placed: &Placement) {
        let mut placement = std::mem::take(&mut self.placement);
        if !placement.is_recording() {
            return;
        }
        for (key, name) in [("cascadia.drafter", placed.drafter_name()), ("cascadia.expert", placed.expert_name())] {
            placement.set_some(key, Some(name.to_owned()).filter(|name| !name.is_empty()));
        }
        self.visited.extend(std::iter::once(&placed.owner).chain(&placed.expert).map(|node| node.address.clone()));
    }

    /// It runs at its owner; what the call carries.
    pub fn running(&mut self, placed: &Placement) -> TraceContext {
        self.run = self.request.call("Session/Run");
        if self.run.is_recording() {
            self.run.set("cascadia.owner", placed.owner.id.0.clone());
            self.run.set("server.address", placed.owner.address.clone());
        }
        self.run.context()
    }

    /// So many tokens were committed; the first say how long the client waited.
    pub fn tokens(&mut self, count: usize, arrived: Instant) {
        if count > 0 && !std::mem::replace(&mut self.spoke, true) {
            self.request.set("gen_ai.response.time_to_first_chunk", arrived.elapsed().as_secs_f64());
        }
    }

    /// Its owner uses another expert, or none; `expert` is what membership knows of it.
    pub fn moved(&mut self, moved: &v1::Moved, expert: Option<&NodeRecord>) {
        if !self.request.is_recording() {
            return;
        }
        let reason = if moved.reason() == MoveReason::Drain { "expert_drain" } else { "expert_lost" };
        let name = moved.expert.as_ref().map_or_else(String::new, |expert| expert.id.clone());
        self.run.event("moved", [("cascadia.move.reason", reason.into()), ("cascadia.expert", name.into())]);
        self.visited.extend(expert.map(|expert| expert.address.clone()));
        self.keep();
    }

    /// The run is over well, or as the client wished.
    pub fn ran(&mut self) {
        self.run = Span::default();
    }

    /// The owner had no room.
    pub fn full(&mut self) {
        self.run.event("no room", []);
        self.ran();
        self.reason = "owner_full";
    }

    /// The query is handed over to the expert.
    pub fn handed_over(&mut self, score: f64) {
        self.run.event("handed over", [("spec.score", score.into())]);
        self.ran();
        self.reason = "handover";
    }

    /// The owner is lost, with so many tokens committed: the request goes on elsewhere, and is worth a look.
    pub fn lost(&mut self, reason: &'static str, committed: usize) {
        let committed = ("cascadia.committed_tokens", (committed as i64).into());
        self.request.event("migration", [("cascadia.move.reason", reason.into()), committed]);
        self.run.fail(reason, || "the owner is lost; the session is placed again".into());
        self.keep();
        self.ran();
        self.reason = reason;
    }

    /// The text is whole.
    pub fn finished(&mut self, finished: &v1::Finished) {
        self.ran();
        if !self.request.is_recording() {
            return;
        }
        let reason = if finished.reason() == FinishReason::Length { "length" } else { "stop" };
        self.request.set("gen_ai.response.finish_reasons", array(reason));
        let usage = finished.usage.unwrap_or_default();
        let speculation = finished.speculation.clone().unwrap_or_default();
        for (key, value) in [
            ("gen_ai.usage.input_tokens", u64::from(usage.prompt_tokens)),
            ("gen_ai.usage.output_tokens", u64::from(usage.completion_tokens)),
            ("gen_ai.usage.cache_read.input_tokens", u64::from(usage.cached_tokens)),
            ("spec.rounds", speculation.blocks),
            ("spec.draft.tokens", speculation.drafted),
            ("spec.accepted.tokens", speculation.accepted),
            ("spec.deferred.tokens", speculation.deferred),
            ("cascadia.moves", speculation.moves),
        ] {
            self.request.set(key, value as i64);
        }
        self.request.set("cascadia.reproducible", finished.reproducible);
    }

    /// It ended without its text.
    pub fn failed(&mut self, error: &GenerateError) {
        for span in [&mut self.placement, &mut self.run, &mut self.request] {
            span.fail(error.label(), || error.to_string());
        }
    }

    /// Its client left, which is no failure.
    pub fn client_left(&mut self) {
        self.request.event(CLIENT_LEFT, []);
    }

    fn keep(&mut self) {
        if self.request.keep() {
            self.kept = true;
            self.recorder.keeper.tell(self.session, &self.visited);
        }
    }
}

impl Drop for Spans<'_> {
    fn drop(&mut self) {
        // Within the request, so before it.
        self.placement = Span::default();
        self.run = Span::default();
        // Told again at the end: a node may have begun while the first word was under way.
        if std::mem::take(&mut self.request).end() == Outcome::Kept || self.kept {
            self.recorder.keeper.tell(self.session, &self.visited);
        }
    }
}

/// What is asked for, in OpenTelemetry's words.
fn operation(admitted: &AdmittedRequest) -> &'static str {
    match admitted.prompt.shape() {
        Shape::Messages => "chat",
        Shape::Text | Shape::Ids => "text_completion",
    }
}

fn describe(span: &mut Span, operation: &'static str, admitted: &AdmittedRequest) {
    let parameters = &admitted.parameters;
    span.set("gen_ai.operation.name", operation);
    span.set("gen_ai.provider.name", "cascadia");
    span.set("gen_ai.request.model", admitted.model.clone());
    span.set("gen_ai.response.model", admitted.model.clone());
    span.set("gen_ai.response.id", admitted.request_id.clone());
    span.set("gen_ai.request.seed", admitted.seed as i64);
    span.set("gen_ai.request.max_tokens", i64::from(parameters.max_tokens()));
    for (key, value) in [
        ("gen_ai.request.temperature", parameters.temperature),
        ("gen_ai.request.top_p", parameters.top_p),
        ("gen_ai.request.frequency_penalty", parameters.frequency_penalty),
        ("gen_ai.request.presence_penalty", parameters.presence_penalty),
        ("spec.alpha", parameters.alpha),
    ] {
        span.set_some(key, value);
    }
    span.set_some("gen_ai.request.top_k", parameters.top_k.map(i64::from));
    span.set("cascadia.session", admitted.session.to_string());
    span.set_some("cascadia.tenant", Some(admitted.tenant.clone()).filter(|tenant| !tenant.is_empty()));
    span.set("spec.strategy", parameters.strategy.clone());
    span.set_some("spec.rule", Some(parameters.rule.clone()).filter(|rule| !rule.is_empty()));
}

fn array(only: &'static str) -> opentelemetry::Value {
    opentelemetry::Value::Array(vec![opentelemetry::StringValue::from(only)].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_not_kept() {
        let recorder = Recorder::default();
        let now = Instant::now();
        let kept = (0..100).filter(|_| recorder.may_keep_refusal(now)).count();
        assert_eq!(kept, REFUSALS_PER_SECOND as usize);
        assert!(recorder.may_keep_refusal(now + Duration::from_secs(1)));
    }
}
