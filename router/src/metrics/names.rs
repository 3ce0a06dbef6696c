//! Every name of the router's metrics, and what of them a model and a tenant have.

use cascadia_core::placement::Role;
use cascadia_node::metrics::{
    Counter, FIRST_TOKEN_SECONDS, Gauge, Histogram, Labelled, REQUEST_SECONDS, REQUEST_TOKENS, Registry, TOKEN_SECONDS,
};
use cascadia_proto::convert::role_name;

use crate::error::{CLIENT_LEFT, LABELS};
use crate::failover::OwnerLoss;

/// What a message costs inside the router: mostly tens of microseconds, more where its client does not keep up.
const RELAY_SECONDS: &[f64] = &[
    0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75, 0.001, 0.001_5, 0.002, 0.005, 0.01,
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0,
];

/// How a text ends.
const FINISHED: [&str; 3] = ["stop", "length", "other"];

/// Why a session is placed again, beside the ways to lose an owner.
const MOVES: [&str; 3] = ["expert_drain", "expert_lost", "handover"];

#[derive(Debug)]
pub(super) struct Names {
    pub(super) http_requests: Labelled<Counter, 2>,
    pub(super) http_seconds: Labelled<Histogram, 1>,
    pub(super) relay: Histogram,
    pub(super) migrations: Labelled<Counter, 1>,
    pub(super) fallbacks: Labelled<Counter, 1>,
    pub(super) nodes_lost: Labelled<Counter, 1>,
    pub(super) running: Labelled<Gauge, 1>,
    pub(super) waiting: Labelled<Gauge, 1>,
    pub(super) success: Labelled<Counter, 2>,
    pub(super) failure: Labelled<Counter, 2>,
    pub(super) prompt_tokens: Labelled<Counter, 1>,
    pub(super) generation_tokens: Labelled<Counter, 1>,
    pub(super) committed_tokens: Labelled<Counter, 2>,
    pub(super) queue: Labelled<Histogram, 1>,
    pub(super) first_token: Labelled<Histogram, 1>,
    pub(super) inter_token: Labelled<Histogram, 1>,
    pub(super) per_token: Labelled<Histogram, 1>,
    pub(super) e2e: Labelled<Histogram, 1>,
    pub(super) request_prompt: Labelled<Histogram, 1>,
    pub(super) request_generation: Labelled<Histogram, 1>,
    pub(super) tenant_requests: Labelled<Counter, 2>,
    pub(super) tenant_running: Labelled<Gauge, 1>,
    pub(super) tenant_prompt_tokens: Labelled<Counter, 1>,
    pub(super) tenant_generation_tokens: Labelled<Counter, 1>,
    pub(super) tenant_first_token: Labelled<Histogram, 1>,
    pub(super) tenant_e2e: Labelled<Histogram, 1>,
}

impl Names {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let (model, tenant) = (["model_name"], ["tenant"]);
        Self {
            http_requests: registry.counters("http_requests", "HTTP requests answered", ["route", "status"]),
            http_seconds: registry.histograms(
                "http_request_duration_seconds",
                "From an HTTP request to the end of its answer",
                ["route"],
                FIRST_TOKEN_SECONDS,
            ),
            relay: registry.histogram(
                "relay_seconds",
                "From a message decoded off its owner's stream to the client's connection that takes it",
                RELAY_SECONDS,
            ),
            migrations: registry.counters(
                "session_migrations",
                "Sessions placed on another node: their owner or expert was lost or drained, or a query was handed over",
                ["reason"],
            ),
            fallbacks: registry.counters(
                "fallback",
                "Sessions that one kind of node goes on with alone because the other is missing",
                ["reason"],
            ),
            nodes_lost: registry.counters(
                "cluster_nodes_lost",
                "Nodes that left the cluster without draining, or came back as another process",
                ["role"],
            ),
            running: registry.gauges("num_requests_running", "Requests that a node decodes", model),
            waiting: registry.gauges("num_requests_waiting", "Requests that wait for a node to take them", model),
            success: registry.counters(
                "request_success",
                "Requests that came to the end of their text",
                ["model_name", "finished_reason"],
            ),
            failure: registry.counters(
                "request_failure",
                "Requests that ended without their whole text, by gRPC status or because the client left",
                ["model_name", "code"],
            ),
            prompt_tokens: registry.counters("prompt_tokens", "Prompt tokens of requests that began", model),
            generation_tokens: registry.counters("generation_tokens", "Tokens relayed to clients", model),
            committed_tokens: registry.counters(
                "committed_tokens",
                "The same tokens by who wrote them: the draft accepted, accepted only thanks to the rule, or the expert",
                ["model_name", "provenance"],
            ),
            queue: registry.histograms(
                "request_queue_time_seconds",
                "From the request to the node that took it",
                model,
                REQUEST_SECONDS,
            ),
            first_token: registry.histograms(
                "time_to_first_token_seconds",
                "From the request to its first token",
                model,
                FIRST_TOKEN_SECONDS,
            ),
            inter_token: registry.histograms(
                "inter_token_latency_seconds",
                "From one step's tokens to the next step's; a step may bring several tokens",
                model,
                TOKEN_SECONDS,
            ),
            per_token: registry.histograms(
                "time_per_output_token_seconds",
                "Time after the first token of a request over its tokens after the first",
                model,
                TOKEN_SECONDS,
            ),
            e2e: registry.histograms(
                "e2e_request_latency_seconds",
                "From the request to the end of its text",
                model,
                REQUEST_SECONDS,
            ),
            request_prompt: registry.histograms(
                "request_prompt_tokens",
                "Prompt tokens of a request that came to its end",
                model,
                REQUEST_TOKENS,
            ),
            request_generation: registry.histograms(
                "request_generation_tokens",
                "Tokens written for a request that came to its end",
                model,
                REQUEST_TOKENS,
            ),
            tenant_requests: registry.counters(
                "tenant_requests",
                "Requests that ended, by tenant: well, with an error, or because the client left",
                ["tenant", "outcome"],
            ),
            tenant_running: registry.gauges("tenant_requests_running", "Requests admitted and not ended, by tenant", tenant),
            tenant_prompt_tokens: registry.counters(
                "tenant_prompt_tokens",
                "Prompt tokens of requests that began, by tenant",
                tenant,
            ),
            tenant_generation_tokens: registry.counters(
                "tenant_generation_tokens",
                "Tokens relayed to clients, by tenant",
                tenant,
            ),
            tenant_first_token: registry.histograms(
                "tenant_time_to_first_token_seconds",
                "From the request to its first token, by tenant",
                tenant,
                FIRST_TOKEN_SECONDS,
            ),
            tenant_e2e: registry.histograms(
                "tenant_e2e_request_latency_seconds",
                "From the request to the end of its text, by tenant",
                tenant,
                REQUEST_SECONDS,
            ),
        }
    }

    /// Puts what is known beforehand on the page: a series that appears with its first event has no increase.
    pub(super) fn begin(&self, routes: &[&str]) {
        for reason in MOVES.into_iter().chain(OwnerLoss::ALL.map(OwnerLoss::reason)) {
            self.migrations.of([reason]);
        }
        for role in [Role::Router, Role::Drafter, Role::Expert] {
            self.nodes_lost.of([role_name(role)]);
        }
        for missing in ["no_drafter", "no_expert"] {
            self.fallbacks.of([missing]);
        }
        for route in routes {
            self.http_requests.of([route, "200"]);
            self.http_seconds.of([route]);
        }
    }
}

/// Counters of one model.
#[derive(Debug)]
pub(super) struct OfModel {
    pub(super) name: String,
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
    pub(super) prompt_tokens: Counter,
    pub(super) generation_tokens: Counter,
    pub(super) accepted: Counter,
    pub(super) relaxed: Counter,
    pub(super) deferred: Counter,
    pub(super) queue: Histogram,
    pub(super) first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) per_token: Histogram,
    pub(super) e2e: Histogram,
    pub(super) request_prompt: Histogram,
    pub(super) request_generation: Histogram,
}

impl OfModel {
    pub(super) fn new(names: &Names, name: &str) -> Self {
        for reason in FINISHED {
            names.success.of([name, reason]);
        }
        for code in LABELS {
            names.failure.of([name, code]);
        }
        Self {
            name: name.to_owned(),
            running: names.running.of([name]),
            waiting: names.waiting.of([name]),
            prompt_tokens: names.prompt_tokens.of([name]),
            generation_tokens: names.generation_tokens.of([name]),
            accepted: names.committed_tokens.of([name, "accepted"]),
            relaxed: names.committed_tokens.of([name, "relaxed"]),
            deferred: names.committed_tokens.of([name, "deferred"]),
            queue: names.queue.of([name]),
            first_token: names.first_token.of([name]),
            inter_token: names.inter_token.of([name]),
            per_token: names.per_token.of([name]),
            e2e: names.e2e.of([name]),
            request_prompt: names.request_prompt.of([name]),
            request_generation: names.request_generation.of([name]),
        }
    }
}

/// Counters of one tenant.
#[derive(Debug)]
pub(super) struct OfTenant {
    pub(super) success: Counter,
    pub(super) failure: Counter,
    pub(super) left: Counter,
    pub(super) running: Gauge,
    pub(super) prompt_tokens: Counter,
    pub(super) generation_tokens: Counter,
    pub(super) first_token: Histogram,
    pub(super) e2e: Histogram,
}

impl OfTenant {
    pub(super) fn new(names: &Names, name: &str) -> Self {
        Self {
            success: names.tenant_requests.of([name, "success"]),
            failure: names.tenant_requests.of([name, "failure"]),
            left: names.tenant_requests.of([name, CLIENT_LEFT]),
            running: names.tenant_running.of([name]),
            prompt_tokens: names.tenant_prompt_tokens.of([name]),
            generation_tokens: names.tenant_generation_tokens.of([name]),
            first_token: names.tenant_first_token.of([name]),
            e2e: names.tenant_e2e.of([name]),
        }
    }

    /// Takes a tenant's series off the page.
    pub(super) fn forget(names: &Names, name: &str) {
        for outcome in ["success", "failure", CLIENT_LEFT] {
            names.tenant_requests.forget([name, outcome]);
        }
        names.tenant_running.forget([name]);
        names.tenant_prompt_tokens.forget([name]);
        names.tenant_generation_tokens.forget([name]);
        names.tenant_first_token.forget([name]);
        names.tenant_e2e.forget([name]);
    }
}
