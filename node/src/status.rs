//! What a node says about itself: `Node/Watch`, which carries load and tells hung from slow.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cascadia_core::limits;
use cascadia_core::placement::NodeState;
use cascadia_proto::convert;
use cascadia_proto::v1::node_server::{self, NodeServer};
use cascadia_proto::v1::{NodeStatus, WatchRequest};
use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// How busy an engine is, as it says after each step and each opened session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Open sessions.
    pub sessions: usize,
    /// Tokens that wait for a forward pass, those of a batch in flight among them: while this is above 0, finished
    /// layers are expected, and a node that finishes none is hung.
    pub queued_tokens: usize,
    /// Tokens of the running batch, or of the last.
    pub running_tokens: usize,
    /// KV pages of the pool.
    pub kv_pages: usize,
    /// KV pages free or released.
    pub kv_pages_free: usize,
    /// Tokens in the last batch.
    pub batch_tokens_last: usize,
    /// Tokens that a batch may have.
    pub batch_budget: usize,
}

/// What this node says about itself; clones share it.
#[derive(Clone, Debug)]
pub struct StatusBoard(Arc<Board>);

#[derive(Debug)]
struct Board {
    instance: u64,
    progress: Arc<AtomicU64>,
    longest_layer_us: AtomicU64,
    load: Mutex<EngineLoad>,
    seen_by_router: AtomicBool,
    /// The state, and whether status streams go on.
    stage: watch::Sender<(NodeState, bool)>,
}

impl StatusBoard {
    /// A starting node; `progress` counts the engine's finished layers.
    #[must_use]
    pub fn new(instance: u64, progress: Arc<AtomicU64>) -> Self {
        Self(Arc::new(Board {
            instance,
            progress,
            longest_layer_us: AtomicU64::new(0),
            load: Mutex::default(),
            seen_by_router: AtomicBool::new(false),
            stage: watch::Sender::new((NodeState::Starting, true)),
        }))
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

    /// Says how busy the engine is.
    pub fn record(&self, load: EngineLoad) {
        *self.0.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    /// Counts the time that a layer took.
    pub fn observe_layer(&self, elapsed: Duration) {
        self.0.longest_layer_us.fetch_max(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The status as watchers get it.
    #[must_use]
    pub fn now(&self) -> NodeStatus {
        let load = *self.0.load.lock().unwrap_or_else(PoisonError::into_inner);
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
        }
    }

    /// The status as a page of the admin listener.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let now = self.now();
        serde_json::json!({
            "instance": format!("{:016x}", now.instance),
            "state": convert::state_name(self.state()),
            "seen_by_router": self.seen_by_router(),
            "progress_layers": now.progress,
            "longest_layer_us": now.longest_layer_us,
            "sessions": now.sessions,
            "queued_tokens": now.queued_tokens,
            "running_tokens": now.running_tokens,
            "kv_pages": now.kv_pages,
            "kv_pages_free": now.kv_pages_free,
            "batch_occupancy": now.batch_occupancy,
        })
    }

    /// Whether some router has watched this node.
    #[must_use]
    pub fn seen_by_router(&self) -> bool {
        self.0.seen_by_router.load(Relaxed)
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
                Err("no router has seen this node yet; is one running with the same membership?".into())
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

    fn stream(self) -> impl Stream<Item = Result<NodeStatus, Status>> + Send + 'static {
        let mut ticks = tokio::time::interval(limits::WATCH_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stage = self.0.stage.subscribe();
        futures::stream::unfold((self, ticks, stage), |(board, mut ticks, mut stage)| async move {
            tokio::select! {
                biased;
                _ = ticks.tick() => {}
                // The board owns the sender, so this is always a change.
                _ = stage.changed() => {}
            }
            let open = stage.borrow_and_update().1;
            open.then(|| (Ok(board.now()), (board, ticks, stage)))
        })
    }
}

struct Watched(StatusBoard);

#[tonic::async_trait]
impl node_server::Node for Watched {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<NodeStatus, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if request.get_ref().watcher.starts_with("router") {
            self.0.0.seen_by_router.store(true, Relaxed);
        }
        Ok(Response::new(Box::pin(self.0.clone().stream())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cascadia_proto::v1::node_server::Node;
    use futures::StreamExt;

    #[tokio::test]
    async fn a_watcher_hears_at_once_then_every_period_and_at_every_change() {
        let board = StatusBoard::new(7, Arc::new(AtomicU64::new(3)));
        assert!(board.ready().unwrap_err().starts_with("starting"));
        let service = Watched(board.clone());
        let watch = |watcher: &str| Request::new(WatchRequest { watcher: watcher.into() });
        drop(service.watch(watch("drafter-1")).await.unwrap());
        assert!(!board.seen_by_router());
        let mut statuses = service.watch(watch("router-1")).await.unwrap().into_inner();
        assert!(board.seen_by_router());

        let started = tokio::time::Instant::now();
        let first = statuses.next().await.unwrap().unwrap();
        assert_eq!((first.instance, first.progress, first.state()), (7, 3, cascadia_proto::v1::NodeState::Starting));
        assert!(started.elapsed() < limits::WATCH_PERIOD);
        board.record(EngineLoad { queued_tokens: 9, batch_tokens_last: 1, batch_budget: 4, ..EngineLoad::default() });
        let second = statuses.next().await.unwrap().unwrap();
        assert_eq!((second.queued_tokens, second.batch_occupancy), (9, 0.25));
        assert!(started.elapsed() >= limits::WATCH_PERIOD);

        board.set_state(NodeState::Ready);
        assert_eq!(statuses.next().await.unwrap().unwrap().state(), cascadia_proto::v1::NodeState::Ready);
        assert_eq!(board.ready(), Ok(()));
        board.close();
        assert!(statuses.next().await.is_none());
    }

    #[test]
    fn the_longest_layer_counts() {
        let board = StatusBoard::new(1, Arc::default());
        board.observe_layer(Duration::from_micros(40));
        board.observe_layer(Duration::from_micros(7));
        assert_eq!(board.now().longest_layer_us, 40);
        assert_eq!(board.json()["longest_layer_us"], 40);
    }
}
