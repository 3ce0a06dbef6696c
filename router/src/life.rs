//! How a router lives: of use from the first servable model on, listed when it can be, and gone when its clients are.
//!
//! Told to drain it goes on accepting for the lame-duck time, over gRPC and at every front alike, because balancers learn
//! late; then connections end behind their last response, and the last open stream ends the router.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cascadia_core::placement::NodeState;
use cascadia_node::config::Reloadable;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::net::{self, STOP_GRACE};
use cascadia_node::process::{Life, Stage};
use cascadia_node::status::StatusBoard;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::config::RouterConfig;
use crate::router::Router;
use crate::status;

/// Another way in than gRPC: serves clients of the router until told to leave, and returns when the last connection has
/// ended. Dropping what it returns cuts them.
pub type Front = Box<dyn FnOnce(Arc<Router>, Drain) -> BoxFuture<'static, ()> + Send>;

/// How a router's ways in are told to leave, all at once; clones say the same.
#[derive(Clone, Debug)]
pub struct Drain {
    shutdown: Shutdown,
    config: Reloadable<RouterConfig>,
}

impl Drain {
    /// Returns when nobody new is to be let in: the lame-duck time is over, or the router stops. Says for how long after
    /// its last response a client may still use an idle connection.
    pub async fn leave(self) -> Duration {
        self.shutdown.draining().await;
        let lame_duck = self.config.now().lame_duck();
        tokio::select! { biased; () = self.shutdown.stopped() => {}, () = tokio::time::sleep(lame_duck) => {} }
        self.config.now().linger()
    }
}

/// A router's life.
#[derive(Debug)]
pub struct RouterLife {
    router: Arc<Router>,
    board: StatusBoard,
    address: String,
    drain: Drain,
    /// Cancelled when all streams have ended that it waits for.
    waited: CancellationToken,
}

impl RouterLife {
    /// Of a router that serves at this address.
    #[must_use]
    pub fn new(router: Arc<Router>, board: StatusBoard, address: String) -> Self {
        let drain = Drain { shutdown: router.shutdown.clone(), config: router.config.clone() };
        Self { router, board, address, drain, waited: CancellationToken::new() }
    }

    /// Opens the fronts. The router waits for them as it does for a stream.
    pub fn fronts(&self, fronts: impl IntoIterator<Item = Front>) -> Vec<BoxFuture<'static, ()>> {
        let open = |front: Front| {
            let (serving, open) = (front(self.router.clone(), self.drain.clone()), self.router.streams.open());
            async move {
                let _open = open;
                serving.await;
            }
            .boxed()
        };
        fronts.into_iter().map(open).collect()
    }
}

impl Life for RouterLife {
    /// The node's own, and that of its one service to clients.
    const HEALTH: &'static [&'static str] = &["", "cascadia.v1.Inference"];

    /// Clients need no membership of the router.
    const FOUND_IN_LIST: bool = false;

    /// What a router does needs nothing that it could lose.
    type Lost = Infallible;

    async fn useful(&self) {
        self.router.cluster_health.servable().await;
    }

    fn closes(&self) -> impl Future<Output = ()> + Send + 'static {
        self.drain.clone().leave().map(drop)
    }

    fn cuts(&self) -> impl Future<Output = ()> + Send + 'static {
        let (waited, gone) = (self.waited.clone().cancelled_owned(), net::gone(&self.router.shutdown));
        async move {
            // Whoever still had a stream open when it stops is told so before the connection breaks.
            tokio::select! { biased; () = waited => {}, () = gone => {} }
        }
    }

    async fn drained(&self) {
        let config = self.router.config.now();
        let (lame_duck, grace) = (config.lame_duck(), self.router.admission.grace(config.grace()));
        let finished = async {
            tokio::time::sleep(lame_duck).await;
            // Status streams never end by themselves.
            self.board.close();
            self.router.streams.none().await;
        };
        tokio::select! {
            biased;
            () = self.router.shutdown.stopped() => {}
            () = tokio::time::sleep(grace) => tracing::warn!("grace is over, open streams are cut"),
            () = finished => {
                // What was written is flushed; whoever only watches is cut.
                tokio::time::sleep(STOP_GRACE).await;
                self.waited.cancel();
            }
        }
    }

    fn lost(&self) -> impl Future<Output = Infallible> + Send {
        std::future::pending()
    }

    fn log(&self, stage: Stage<'_>) {
        let (router, address) = (&self.router.id, &self.address);
        match stage {
            Stage::Open => tracing::info!(%router, %address, "serving"),
            Stage::Useful => {}
            Stage::Unlisted(error) => {
                tracing::warn!(%error, "the router is not in the member list; clients are served");
            }
            Stage::Draining => tracing::info!(%router, open = self.router.admission.admitted(), "draining"),
            Stage::Stopped => tracing::info!(%router, "stopped"),
        }
    }
}

/// Keeps the shared outlook fresh, and says on the board when the router is ready.
pub(crate) async fn observe(router: Arc<Router>, board: StatusBoard) {
    let mut changes = router.loads.changed();
    let mut before = router.loads.snapshot();
    loop {
        let now = router.loads.snapshot();
        status::lost(&before, &now).for_each(|node| router.metrics.node_lost(node.role));
        router.cluster_health.observe(&now, &router.loads.loads());
        before = now;
        router.cluster_health.known_models().iter().for_each(|model| router.metrics.serves(model));
        if router.cluster_health.was_servable() && board.state() == NodeState::Starting {
            board.set_state(NodeState::Ready);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
