//! What the router counts, as verbs; names and units stand in `names` and nowhere else.
//!
//! A session's counters are looked up once, when it is admitted: a message of tokens costs a few atomic additions and
//! one short lock of a histogram.

mod names;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cascadia_core::placement::Role;
use cascadia_node::metrics::{Gauge, Histogram, OTHER, Registry, Values};
use cascadia_proto::convert::role_name;
use cascadia_proto::v1::{Provenance, Tokens};
use tokio::time::Instant;

use crate::error::CLIENT_LEFT;
use names::{Names, OfModel, OfTenant};

/// Served models that have series of their own.
const MODELS: usize = 32;

/// A tenant that has asked nothing for so long leaves its series to one that comes. What it had counted is added nowhere: it
/// would count a second time in every rate.
const TENANT_IDLE: Duration = Duration::from_secs(600);

/// What HTTP answers are counted under, with what is below; any other path is `other`.
pub const ROUTES: [&str; 6] = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/version", OTHER];

/// The name of who names no tenant.
const NO_TENANT: &str = "none";

/// The router's counters.
#[derive(Debug)]
pub struct Metrics {
    names: Names,
    models: Values,
    tenants: Values,
    of_model: Mutex<BTreeMap<String, Arc<OfModel>>>,
    of_tenant: Mutex<BTreeMap<String, Arc<OfTenant>>>,
}

impl Metrics {
    /// Registers them; so many tenants have series of their own, the others share one.
    pub fn register(registry: &mut Registry, tenants: usize) -> Self {
        let names = Names::register(registry);
        names.begin(&ROUTES);
        let metrics = Self {
            names,
            models: Values::new(MODELS),
            tenants: Values::new(tenants),
            of_model: Mutex::default(),
            of_tenant: Mutex::default(),
        };
        metrics.tenant("");
        metrics
    }

    /// What the messages of one client are timed by.
    #[must_use]
    pub fn relay(&self) -> Relay {
        Relay(self.names.relay.clone())
    }

    /// A model is served: its series are there before the first request.
    pub fn serves(&self, model: &str) {
        self.model(model);
    }

    /// A request was admitted; what it does is counted there, until it ends.
    #[must_use]
    pub fn admitted(&self, model: &str, tenant: &str) -> SessionMetrics<'_> {
        let (model, tenant) = (self.model(model), self.tenant(tenant));
        tenant.running.inc();
        SessionMetrics {
            node: self,
            model,
            tenant,
            prompt_tokens: 0,
            tokens: 0,
            first: None,
            last: None,
            in_step: false,
        }
    }

    /// A request was not admitted; `model` is the one it named if there is such a one. A tenant of whom nothing was
    /// admitted yet is counted with the others: what is refused may be of any length, and takes no place.
    pub fn refused(&self, model: Option<&str>, tenant: &str, code: &'static str) {
        self.names.failure.of([&self.model(model.unwrap_or(OTHER)).name, code]).inc();
        self.known_tenant(tenant).failure.inc();
    }

    /// A request waits before its admission for a model that nobody serves yet, until this is dropped.
    #[must_use]
    pub fn awaits_model(&self) -> Counted {
        Counted::new(&self.model(OTHER).waiting)
    }

    /// The client of such a request left.
    pub fn left_unadmitted(&self, tenant: &str) {
        self.names.failure.of([OTHER, CLIENT_LEFT]).inc();
        self.known_tenant(tenant).left.inc();
    }

    /// A node left the cluster without draining.
    pub fn node_lost(&self, role: Role) {
        self.names.nodes_lost.of([role_name(role)]).inc();
    }

    /// An HTTP request for a path was answered, to its last byte.
    pub fn http_answered(&self, path: &str, status: u16, took: Duration) {
        let below = |route: &str| path.strip_prefix(route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let route = ROUTES.into_iter().find(|route| below(route)).unwrap_or(OTHER);
        self.names.http_requests.of([route, &status.to_string()]).inc();
        self.names.http_seconds.of([route]).observe(took.as_secs_f64());
    }

    fn model(&self, name: &str) -> Arc<OfModel> {
        let name = if name == OTHER { name } else { self.models.admit(name) };
        of(&mut locked(&self.of_model), name, |name| OfModel::new(&self.names, name))
    }

    /// The tenant's counters; where all places are taken, one that has been idle for long leaves its own.
    fn tenant(&self, name: &str) -> Arc<OfTenant> {
        let mut known = locked(&self.of_tenant);
        if name.is_empty() {
            return self.of_tenant(&mut known, NO_TENANT);
        }
        // A session that runs holds its tenant's.
        let is_idle = |tenant: &str| known.get(tenant).is_none_or(|of_tenant| Arc::strong_count(of_tenant) == 1);
        let (label, gone) =
            self.tenants.admit_for(name, |tenant, last| last.elapsed() >= TENANT_IDLE && is_idle(tenant));
        if let Some(gone) = gone {
            known.remove(&gone);
            OfTenant::forget(&self.names, &gone);
        }
        self.of_tenant(&mut known, label)
    }

    /// The tenant's counters where something of it was admitted.
    fn known_tenant(&self, name: &str) -> Arc<OfTenant> {
        let mut known = locked(&self.of_tenant);
        let label = if name.is_empty() { NO_TENANT } else { self.tenants.known(name) };
        self.of_tenant(&mut known, label)
    }

    fn of_tenant(&self, known: &mut BTreeMap<String, Arc<OfTenant>>, label: &str) -> Arc<OfTenant> {
        of(known, label, |name| OfTenant::new(&self.names, name))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of<T>(known: &mut BTreeMap<String, Arc<T>>, name: &str, new: impl FnOnce(&str) -> T) -> Arc<T> {
    known.entry(name.to_owned()).or_insert_with(|| Arc::new(new(name))).clone()
}

/// Registers how many nodes of each role are in which state, as `census` has it.
pub fn cluster(registry: &mut Registry, census: impl Fn() -> Vec<([String; 2], f64)> + Send + Sync + 'static) {
    let help = "Nodes that this router knows; a hung, silent or failing one is quarantined, not ready";
    registry.reads("cluster_nodes", help, ["role", "state"], census);
}

/// Registers how many nodes of each role are failing, as `count` has it.
pub fn failing(registry: &mut Registry, count: impl Fn() -> Vec<([String; 1], f64)> + Send + Sync + 'static) {
    let help = "Nodes that this router gives no new sessions because they failed one after another by their own fault";
    registry.reads("nodes_quarantined", help, ["role"], count);
}

/// What one session counts.
#[derive(Debug)]
pub struct SessionMetrics<'a> {
    node: &'a Metrics,
    model: Arc<OfModel>,
    tenant: Arc<OfTenant>,
    prompt_tokens: u64,
    tokens: u64,
    /// How long the first token took.
    first: Option<Duration>,
    /// When tokens last came.
    last: Option<Instant>,
    /// The next tokens belong to the step that the last belonged to.
    in_step: bool,
}

impl Drop for SessionMetrics<'_> {
    fn drop(&mut self) {
        self.tenant.running.dec();
    }
}

impl SessionMetrics<'_> {
    /// A node decodes the session, until this is dropped.
    #[must_use]
    pub fn running(&self) -> Counted {
        Counted::new(&self.model.running)
    }

    /// The session waits for a node, until this is dropped.
    #[must_use]
    pub fn waiting(&self) -> Counted {
        Counted::new(&self.model.waiting)
    }

    /// A node took the session, so long after it was asked for.
    pub fn began(&mut self, prompt_tokens: u64, waited: Duration) {
        self.prompt_tokens = prompt_tokens;
        self.model.prompt_tokens.inc_by(prompt_tokens);
        self.tenant.prompt_tokens.inc_by(prompt_tokens);
        self.model.queue.observe(waited.as_secs_f64());
    }

    /// Tokens are relayed now.
    pub fn tokens(&mut self, tokens: &Tokens, now: Instant, arrived: Instant) {
        let count = tokens.ids.len() as u64;
        let goes_on = std::mem::replace(&mut self.in_step, tokens.more);
        if count == 0 {
            return;
        }
        match self.last.replace(now) {
            None => {
                let first = now.saturating_duration_since(arrived);
                self.first = Some(first);
                self.model.first_token.observe(first.as_secs_f64());
                self.tenant.first_token.observe(first.as_secs_f64());
            }
            Some(_) if goes_on => {}
            Some(last) => self.model.inter_token.observe(now.saturating_duration_since(last).as_secs_f64()),
        }
        self.tokens += count;
        self.model.generation_tokens.inc_by(count);
        self.tenant.generation_tokens.inc_by(count);
        for provenance in tokens.provenance() {
            match provenance {
                Provenance::Accepted => self.model.accepted.inc(),
                Provenance::Relaxed => self.model.relaxed.inc(),
                Provenance::Deferred => self.model.deferred.inc(),
                Provenance::Unspecified => continue,
            };
        }
    }

    /// The session goes to another node, which begins a step of its own.
    pub fn migrated(&mut self, reason: &'static str) {
        self.in_step = false;
        self.node.names.migrations.of([reason]).inc();
    }

    /// The session goes on without the kind of node that its strategy asks for.
    pub fn fell_back(&self, missing: Missing) {
        self.node.names.fallbacks.of([missing.reason()]).inc();
    }

    /// The text is whole, so long after it was asked for.
    pub fn finished(&self, reason: &'static str, took: Duration) {
        let model = &self.model;
        self.node.names.success.of([&model.name, reason]).inc();
        self.tenant.success.inc();
        model.e2e.observe(took.as_secs_f64());
        self.tenant.e2e.observe(took.as_secs_f64());
        model.request_prompt.observe(self.prompt_tokens as f64);
        model.request_generation.observe(self.tokens as f64);
        if let (Some(first), 2..) = (self.first, self.tokens) {
            model.per_token.observe(took.saturating_sub(first).as_secs_f64() / (self.tokens - 1) as f64);
        }
    }

    /// The request ended with an error.
    pub fn failed(&self, code: &'static str) {
        self.node.names.failure.of([&self.model.name, code]).inc();
        self.tenant.failure.inc();
    }

    /// The client left before the end.
    pub fn left(&self) {
        self.node.names.failure.of([&self.model.name, CLIENT_LEFT]).inc();
        self.tenant.left.inc();
    }
}

/// Times messages on their way through the router.
#[derive(Clone, Debug)]
pub struct Relay(Histogram);

impl Relay {
    /// A client's connection took a message, so long after it was read off its owner's.
    pub fn relayed(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// A session that is counted in a gauge while this lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A kind of node that a strategy asks for and that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The expert goes on alone.
    Drafter,
    /// The drafter goes on alone.
    Expert,
}

impl Missing {
    fn reason(self) -> &'static str {
        match self {
            Self::Drafter => "no_drafter",
            Self::Expert => "no_expert",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(provenance: &[Provenance], more: bool) -> Tokens {
        let ids = vec![7; provenance.len()];
        Tokens { ids, provenance: provenance.iter().map(|&p| p.into()).collect(), more, ..Tokens::default() }
    }

    fn has(page: &str, lines: &[&str]) {
        for line in lines {
            assert!(page.lines().any(|has| has == *line), "{line} is missing in\n{page}");
        }
    }

    #[test]
    fn a_step_of_several_messages_is_one_latency() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, 4);
        let mut session = metrics.admitted("demo", "acme");
        let arrived = Instant::now();
        let after = |ms| arrived + Duration::from_millis(ms);
        let running = session.running();
        session.began(12, Duration::from_millis(5));
        session.tokens(&tokens(&[Provenance::Accepted; 2], true), after(30), arrived);
        session.tokens(&tokens(&[Provenance::Deferred], false), after(30), arrived);
        session.tokens(&tokens(&[], false), after(31), arrived);
        session.tokens(&tokens(&[Provenance::Relaxed], true), after(38), arrived);
        session.tokens(&tokens(&[Provenance::Deferred], false), after(39), arrived);
        session.migrated("owner_lost");
        session.finished("stop", Duration::from_millis(70));
        let page = registry.page();
        has(
            &page.render("").1,
            &[
                r#"cascadia_num_requests_running{model_name="demo"} 1"#,
                r#"cascadia_generation_tokens_total{model_name="demo"} 5"#,
                r#"cascadia_committed_tokens_total{model_name="demo",provenance="accepted"} 2"#,
                r#"cascadia_committed_tokens_total{model_name="demo",provenance="relaxed"} 1"#,
                r#"cascadia_time_to_first_token_seconds_bucket{model_name="demo",le="0.02"} 0"#,
                r#"cascadia_time_to_first_token_seconds_bucket{model_name="demo",le="0.04"} 1"#,
                r#"cascadia_inter_token_latency_seconds_count{model_name="demo"} 1"#,
                r#"cascadia_inter_token_latency_seconds_sum{model_name="demo"} 0.008"#,
                r#"cascadia_time_per_output_token_seconds_sum{model_name="demo"} 0.01"#,
                r#"cascadia_request_success_total{model_name="demo",finished_reason="stop"} 1"#,
                r#"cascadia_session_migrations_total{reason="owner_lost"} 1"#,
                r#"cascadia_session_migrations_total{reason="owner_hung"} 0"#,
                r#"cascadia_tenant_requests_running{tenant="acme"} 1"#,
                r#"cascadia_tenant_generation_tokens_total{tenant="acme"} 5"#,
            ],
        );
        drop((running, session));
        has(
            &page.render("").1,
            &[
                r#"cascadia_num_requests_running{model_name="demo"} 0"#,
                r#"cascadia_tenant_requests_running{tenant="acme"} 0"#,
            ],
        );
    }

    #[test]
    fn a_refused_tenant_takes_no_place_however_long_its_name() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, 2);
        let long = "x".repeat(100_000);
        for tenant in [&long, "eve", "mallory"] {
            metrics.refused(None, tenant, "invalid_argument");
        }
        drop(metrics.admitted("m", "alice"));
        metrics.refused(None, "alice", "invalid_argument");
        let (_, page) = registry.page().render("");
        assert!(!page.contains("xxxx") && !page.contains("mallory"), "{page}");
        for (tenant, refused) in [("other", 3), ("alice", 1)] {
            let line = format!("cascadia_tenant_requests_total{{tenant=\"{tenant}\",outcome=\"failure\"}} {refused}");
            has(&page, &[&line]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_is_idle_for_long_gives_way_and_one_that_is_not_stays() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, 3);
        let page = registry.page();
        let served = |tenant: &str| drop(metrics.admitted("m", tenant));
        let has_series = |tenant: &str| page.render("").1.contains(&format!("tenant=\"{tenant}\""));
        let running = metrics.admitted("m", "long-runner");
        ["invented-1", "invented-2", "late"].into_iter().for_each(served);
        assert!(has_series("invented-1") && has_series("invented-2") && !has_series("late"));
        tokio::time::advance(TENANT_IDLE / 2).await;
        served("invented-2");
        tokio::time::advance(TENANT_IDLE / 2).await;
        // One of them is idle, one was seen since, one has a session open all the time.
        ["late", "later"].into_iter().for_each(served);
        assert!(has_series("late") && !has_series("invented-1") && !has_series("later"), "{}", page.render("").1);
        assert!(has_series("invented-2") && has_series("long-runner"));
        drop(running);
        metrics.refused(None, "invented-1", "internal");
        assert!(!has_series("invented-1"), "what is refused takes no place");
        tokio::time::advance(TENANT_IDLE).await;
        served("later");
        assert!(has_series("later") && has_series("late") && !has_series("long-runner"));
    }

    #[test]
    fn what_clients_send_makes_no_series_without_bound() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, 4);
        let page = registry.page();
        let fill = |round: usize| {
            for i in 0..200 {
                let name = format!("{round}-{i}");
                metrics.admitted(&name, &name).failed("internal");
                metrics.refused(None, &name, "not_found");
                metrics.http_answered(&format!("/{name}"), 404, Duration::ZERO);
            }
            page.render("").1.lines().count()
        };
        metrics.http_answered("/v1/models/demo", 200, Duration::ZERO);
        let first = fill(0);
        assert_eq!(fill(1), first, "the same series");
        has(
            &page.render("").1,
            &[
                r#"cascadia_http_requests_total{route="other",status="404"} 400"#,
                r#"cascadia_http_requests_total{route="/v1/models",status="200"} 1"#,
                r#"cascadia_request_failure_total{model_name="other",code="not_found"} 400"#,
                r#"cascadia_tenant_requests_total{tenant="0-3",outcome="failure"} 2"#,
                r#"cascadia_tenant_requests_total{tenant="other",outcome="failure"} 792"#,
            ],
        );
    }

    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_message() {
        const MESSAGES: u32 = 1_000_000;
        let metrics = Metrics::register(&mut Registry::default(), 4);
        let message = tokens(&[Provenance::Accepted], false);
        for threads in [1, 2] {
            let began = std::time::Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let mut session = metrics.admitted("demo", "acme");
                        let arrived = Instant::now();
                        for step in 0..MESSAGES {
                            session.tokens(&message, arrived + Duration::from_micros(u64::from(step)), arrived);
                        }
                    });
                }
            });
            println!("{threads} threads: {:?} a message and thread", began.elapsed() / MESSAGES);
        }
    }
}
