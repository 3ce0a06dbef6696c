//! What a node says about itself: `Node/Watch`, which carries load and tells hung from slow.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cascadia_core::limits;
use cascadia_core::placement::NodeState;
use cascadia_proto::convert;
use cascadia_proto::v1::node_server::{self, NodeServer};
use cascadia_proto::v1::{NodeStatus, WatchRequest};
use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::cluster::ClusterName;

/// How busy an engine is, as it says after each step and each opened session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Open sessions.
    pub sessions: usize,
    /// Sessions that wait for a slot or for pages. They are no work: nobody is hung because others are idle.
    pub sessions_waiting: usize,
    /// Tokens of their histories.
    pub tokens_waiting: usize,
    /// Tokens that wait for a forward pass, those of a batch in flight among them: while this is above 0, finished
    /// layers are expected, and a node that finishes none is hung.
    pub queued_tokens: usize,
    /// Tokens of the running batch, or of the last.
    pub running_tokens: usize,
    /// KV pages of the pool.
    pub kv_pages: usize,
    /// KV pages free or released.
    pub kv_pages_free: usize,
    /// Bytes of a page; 0 where pages hold nothing.
    pub kv_page_bytes: usize,
    /// Tokens in the last batch.
    pub batch_tokens_last: usize,
    /// Tokens that a batch may have.
    pub batch_budget: usize,
    /// Tokens that sessions came with, ever.
    pub prefix_queries: u64,
    /// Of these, tokens that were found in the cache.
    pub prefix_hits: u64,
}

/// An engine with work that finishes no layer for so long is stuck for good: a restart is what helps.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// And for so many of its longest layer: slow is not stuck.
const STUCK_LAYERS: u32 = 32;

/// When the engine last showed that it lives.
#[derive(Debug)]
struct Pulse {
    progress: u64,
    since: Instant,
}

impl Pulse {
    /// For how long the engine has been stuck, if it is.
    fn stuck(&mut self, status: &NodeStatus, now: Instant) -> Option<Duration> {
        if status.queued_tokens == 0 || self.progress != status.progress {
            *self = Self { progress: status.progress, since: now };
        }
        let layers = Duration::from_micros(status.longest_layer_us).saturating_mul(STUCK_LAYERS);
        let time = now.duration_since(self.since);
        (time > STUCK_AFTER.max(layers)).then_some(time)
    }
}

/// What this node says about itself; clones share it.
#[derive(Clone, Debug)]
pub struct StatusBoard(Arc<Board>);

#[derive(Debug)]
struct Board {
    instance: u64,
    cluster: ClusterName,
    progress: Arc<AtomicU64>,
    longest_layer_us: AtomicU64,
    load: Mutex<EngineLoad>,
    pulse: Mutex<Pulse>,
    /// Sessions whose tasks have not said their last word yet; the engine may be through with them.
    serving: AtomicUsize,
    /// Routers whose status streams are open.
    routers: AtomicUsize,
    /// The state, and whether status streams go on.
    stage: watch::Sender<(NodeState, bool)>,
    /// Why the engine can do nothing any more.
    lost: watch::Sender<Option<String>>,
}

impl StatusBoard {
    /// A starting node; `progress` counts the engine's finished layers.
    #[must_use]
    pub fn new(instance: u64, progress: Arc<AtomicU64>, cluster: &ClusterName) -> Self {
        Self(Arc::new(Board {
            instance,
            cluster: cluster.clone(),
            progress,
            longest_layer_us: AtomicU64::new(0),
            load: Mutex::default(),
            pulse: Mutex::new(Pulse { progress: 0, since: Instant::now() }),
            serving: AtomicUsize::new(0),
            routers: AtomicUsize::new(0),
            stage: watch::Sender::new((NodeState::Starting, true)),
            lost: watch::Sender::new(None),
        }))
    }

    /// The cluster that the node belongs to.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// Says where the node is in its life; watchers hear it at once.
    pub fn set_state(&self, state: NodeState) {
        self.0.stage.send_if_modified(|stage| std::mem::replace(&mut stage.0, state) != state);
    }

    /// Where the node is in its life.
    #[must_use]
    pub fn state(&self) -> NodeState {
        self.0.stage.borrow().0
    }

    /// Says that the engine can do nothing any more, and why: the node is to end.
    pub fn engine_lost(&self, reason: String) {
        self.0.lost.send_replace(Some(reason));
    }

    /// Returns when the engine can do nothing any more, with the reason.
    pub async fn lost(&self) -> String {
        let mut lost = self.0.lost.subscribe();
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // The board owns the sender, so there is always one to wait for.
            None => std::future::pending().await,
        }
    }

    /// Says how busy the engine is.
    pub fn record(&self, load: EngineLoad) {
        let before = std::mem::replace(&mut *self.0.load.lock().unwrap_or_else(PoisonError::into_inner), load);
        if before.queued_tokens == 0 {
            // An idle engine owes no progress.
            self.pulse().since = Instant::now();
        }
    }

    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.0.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the engine still finishes layers while it has work.
    ///
    /// # Errors
    /// One line that says since when it does not.
    pub fn live(&self) -> Result<(), String> {
        let status = self.now();
        match self.pulse().stuck(&status, Instant::now()) {
            None => Ok(()),
            Some(time) => Err(format!(
                "the engine has finished no layer for {} s and {} tokens wait",
                time.as_secs(),
                status.queued_tokens
            )),
        }
    }

    /// Counts a session that is served here, until the guard is dropped.
    #[must_use]
    pub fn serving(&self) -> Serving {
        self.0.serving.fetch_add(1, Relaxed);
        Serving(self.clone())
    }

    /// Whether any session is open here, at the engine or on its way to or from it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.serving.load(Relaxed) > 0 || self.now().sessions > 0
    }

    /// Counts the time that a layer took.
    pub fn observe_layer(&self, elapsed: Duration) {
        self.0.longest_layer_us.fetch_max(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How busy the engine is, as it last said.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        *self.0.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status as watchers get it.
    #[must_use]
    pub fn now(&self) -> NodeStatus {
        let load = self.load();
        let batch_occupancy =
            if load.batch_budget == 0 { 0.0 } else { load.batch_tokens_last as f64 / load.batch_budget as f64 };
        NodeStatus {
            instance: self.0.instance,
            state: convert::node_state(self.state()).into(),
            progress: self.0.progress.load(Relaxed),
            queued_tokens: load.queued_tokens as u64,
            running_tokens: load.running_tokens as u64,
            sessions: u32::try_from(load.sessions).unwrap_or(u32::MAX),
            kv_pages: load.kv_pages as u64,
            kv_pages_free: load.kv_pages_free as u64,
            batch_occupancy,
            longest_layer_us: self.0.longest_layer_us.load(Relaxed),
            sessions_waiting: u32::try_from(load.sessions_waiting).unwrap_or(u32::MAX),
            tokens_waiting: load.tokens_waiting as u64,
        }
    }

    /// The status as a page of the admin listener.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let now = self.now();
        serde_json::json!({
            "instance": format!("{:016x}", now.instance),
            "cluster": self.cluster().to_string(),
            "state": convert::state_name(self.state()),
            "seen_by_router": self.seen_by_router(),
            "progress_layers": now.progress,
            "longest_layer_us": now.longest_layer_us,
            "sessions": now.sessions,
            "sessions_waiting": now.sessions_waiting,
            "queued_tokens": now.queued_tokens,
            "running_tokens": now.running_tokens,
            "kv_pages": now.kv_pages,
            "kv_pages_free": now.kv_pages_free,
            "kv_page_bytes": self.load().kv_page_bytes,
            "batch_occupancy": now.batch_occupancy,
        })
    }

    /// Whether some router watches this node.
    #[must_use]
    pub fn seen_by_router(&self) -> bool {
        self.0.routers.load(Relaxed) > 0
    }

    /// Whether the node takes sessions.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn ready(&self) -> Result<(), String> {
        match self.state() {
            NodeState::Starting => Err("starting: the model is loading or the node is not registered yet".into()),
            NodeState::Draining => Err("draining: open sessions finish or move, no new ones are taken".into()),
            NodeState::Ready if !self.seen_by_router() => {
                Err("no router watches this node; is one running with the same membership?".into())
            }
            NodeState::Ready => Ok(()),
        }
    }

    /// Ends all status streams, present and future: a server that waits for its streams can then stop.
    pub fn close(&self) {
        self.0.stage.send_modify(|stage| stage.1 = false);
    }

    /// The `Node` service over this board.
    #[must_use]
    pub fn service(&self) -> NodeServer<impl node_server::Node + use<>> {
        NodeServer::new(Watched(self.clone())).max_decoding_message_size(limits::CONTROL_BYTES)
    }

    fn stream(self, router: Option<Router>) -> impl Stream<Item = Result<NodeStatus, Status>> + Send + 'static {
        let mut ticks = tokio::time::interval(limits::WATCH_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stage = self.0.stage.subscribe();
        // The guard lives as long as the stream.
        futures::stream::unfold((self, ticks, stage, router), |(board, mut ticks, mut stage, router)| async move {
            tokio::select! {
                biased;
                _ = ticks.tick() => {}
                // The board owns the sender, so this is always a change.
                _ = stage.changed() => {}
            }
            let open = stage.borrow_and_update().1;
            open.then(|| (Ok(board.now()), (board, ticks, stage, router)))
        })
    }
}

/// A session that is served here.
#[derive(Debug)]
pub struct Serving(StatusBoard);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.0.serving.fetch_sub(1, Relaxed);
    }
}

/// A router's open status stream.
struct Router(StatusBoard);

impl Router {
    fn watches(board: &StatusBoard) -> Self {
        board.0.routers.fetch_add(1, Relaxed);
        Self(board.clone())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.0.0.routers.fetch_sub(1, Relaxed);
    }
}

struct Watched(StatusBoard);

#[tonic::async_trait]
impl node_server::Node for Watched {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<NodeStatus, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { watcher, cluster } = request.get_ref();
        let who = if watcher.is_empty() { "a watcher" } else { watcher };
        self.0.cluster().admits(who, cluster).map_err(Status::failed_precondition)?;
        let router = request.get_ref().watcher.starts_with("router").then(|| Router::watches(&self.0));
        Ok(Response::new(Box::pin(self.0.clone().stream(router))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cascadia_proto::v1::node_server::Node;
    use futures::StreamExt;

    #[tokio::test(start_paused = true)]
    async fn a_watcher_hears_at_once_then_every_period_and_at_every_change() {
        let board = StatusBoard::new(7, Arc::new(AtomicU64::new(3)), &"blue".parse().unwrap());
        assert!(board.ready().unwrap_err().starts_with("starting"));
        let service = Watched(board.clone());
        let watch_of = |watcher: &str, cluster: &str| {
            Request::new(WatchRequest { watcher: watcher.into(), cluster: cluster.into() })
        };
        let watch = |watcher: &str| watch_of(watcher, "blue");
        let refused = service.watch(watch_of("router-9", "green")).await.err().expect("it is of another cluster");
        assert!(refused.message().contains("\"green\"") && refused.message().contains("\"blue\""), "{refused}");
        assert!(!board.seen_by_router());
        assert!(service.watch(watch_of("drafter-9", "")).await.is_ok(), "it is of a release without names");
        drop(service.watch(watch("drafter-1")).await.unwrap());
        assert!(!board.seen_by_router());
        let mut statuses = service.watch(watch("router-1")).await.unwrap().into_inner();
        assert!(board.seen_by_router());

        let started = tokio::time::Instant::now();
        let first = statuses.next().await.unwrap().unwrap();
        assert_eq!((first.instance, first.progress, first.state()), (7, 3, cascadia_proto::v1::NodeState::Starting));
        assert_eq!(started.elapsed(), Duration::ZERO);
        board.record(EngineLoad { queued_tokens: 9, batch_tokens_last: 1, batch_budget: 4, ..EngineLoad::default() });
        let second = statuses.next().await.unwrap().unwrap();
        assert_eq!((second.queued_tokens, second.batch_occupancy), (9, 0.25));
        assert!(started.elapsed() >= limits::WATCH_PERIOD);

        board.set_state(NodeState::Ready);
        assert_eq!(statuses.next().await.unwrap().unwrap().state(), cascadia_proto::v1::NodeState::Ready);
        assert_eq!(board.ready(), Ok(()));
        board.close();
        assert!(statuses.next().await.is_none());
        drop(statuses);
        assert!(board.ready().unwrap_err().contains("no router"), "the last router has gone");
    }

    #[test]
    fn an_engine_is_stuck_when_it_has_work_and_finishes_nothing() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse { progress: 0, since: start };
        let status = |progress, queued_tokens, layer_s: u64| NodeStatus {
            progress,
            queued_tokens,
            longest_layer_us: layer_s * 1_000_000,
            ..NodeStatus::default()
        };
        assert_eq!(pulse.stuck(&status(5, 0, 0), after(1000)), None, "it is idle");
        assert_eq!(pulse.stuck(&status(5, 9, 0), after(1060)), None);
        assert_eq!(pulse.stuck(&status(5, 9, 0), after(1061)), Some(Duration::from_secs(61)));
        assert_eq!(pulse.stuck(&status(5, 9, 3), after(1061)), None, "its layers take long");
        assert_eq!(pulse.stuck(&status(6, 9, 0), after(1061)), None, "it moves again");
    }

    #[test]
    fn the_longest_layer_counts() {
        let board = StatusBoard::new(1, Arc::default(), &ClusterName::default());
        board.observe_layer(Duration::from_micros(40));
        board.observe_layer(Duration::from_micros(7));
        assert_eq!(board.now().longest_layer_us, 40);
        assert_eq!(board.json()["longest_layer_us"], 40);
    }
}
