//! The life of a node's process around its services, one for all roles: open, listed, of use, draining, gone.
//!
//! [`Process::run`] is the order of things; [`Life`] is where roles differ in it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::server::HealthReporter;

use crate::NodeEnv;
use crate::admin::Admin;
use crate::membership::{Membership, MembershipError, Registration};
use crate::net;
use crate::status::StatusBoard;
use crate::telemetry::Tracer;

/// Why a process ended badly; `Lost` is why its role cannot do its work any more.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError<Lost> {
    /// The node could not register.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The node can do its work no more.
    #[error("the node ends, it can do its work no more: {0}")]
    Lost(Lost),
    /// The listener failed.
    #[error("the gRPC listener failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What a node serves, and what it shows of itself.
pub struct Services {
    /// What membership says that it serves.
    pub models: Vec<ServedModel>,
    /// Sessions it holds at most.
    pub capacity: u32,
    /// Its gRPC services, beside those that every node has.
    pub routes: Routes,
    /// What it serves beside gRPC; each returns when its last connection has ended, and cuts them when it is dropped.
    pub fronts: Vec<BoxFuture<'static, ()>>,
    /// What its operators read.
    pub pages: Admin,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Services of a node with {} models and {} fronts", self.models.len(), self.fronts.len())
    }
}

/// How far a node's life has come.
#[derive(Clone, Copy, Debug)]
pub enum Stage<'a> {
    /// Clients can connect.
    Open,
    /// It cannot be in the member list.
    Unlisted(&'a MembershipError),
    /// It can do its work.
    Useful,
    /// It takes nothing new.
    Draining,
    /// It is gone.
    Stopped,
}

/// Where the lives of roles differ.
pub trait Life: Send + Sync + 'static {
    /// The gRPC services whose health is the node's; the empty name is the node itself.
    const HEALTH: &'static [&'static str];

    /// Nobody finds the node but in the member list: it is of no use before it is there, and has nothing open.
    const FOUND_IN_LIST: bool;

    /// Why the node can do its work no more; of a role that always can there is none.
    type Lost: Send;

    /// Returns when the node can do its work.
    fn useful(&self) -> impl Future<Output = ()> + Send;

    /// Returns when no new connection is taken: connections end behind what is open on them.
    fn closes(&self) -> impl Future<Output = ()> + Send + 'static;

    /// Returns when connections that are still open are cut.
    fn cuts(&self) -> impl Future<Output = ()> + Send + 'static;

    /// Told to drain, returns when all that was open has ended, or may go on no longer.
    fn drained(&self) -> impl Future<Output = ()> + Send;

    /// Returns when the node can do its work no more, and has logged why. The node ends then as the death of its process
    /// would end it.
    fn lost(&self) -> impl Future<Output = Self::Lost> + Send;

    /// Logs how far the life has come.
    fn log(&self, stage: Stage<'_>);
}

/// A node's process.
#[derive(Debug)]
pub struct Process {
    env: NodeEnv,
    role: Role,
    board: StatusBoard,
    instance: u64,
    tracer: Tracer,
}

impl Process {
    /// A process at its edge; `progress` counts the engine's finished layers.
    #[must_use]
    pub fn new(env: NodeEnv, role: Role, progress: Arc<AtomicU64>) -> Self {
        let (instance, tracer) = (env.instance(), env.tracer(role));
        Self { board: StatusBoard::new(instance, progress, env.membership.cluster()), env, role, instance, tracer }
    }

    /// Its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// What the node records its spans with.
    #[must_use]
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// What the node says about itself.
    #[must_use]
    pub fn board(&self) -> &StatusBoard {
        &self.board
    }

    /// Where the node meets the others.
    #[must_use]
    pub fn env(&self) -> &NodeEnv {
        &self.env
    }

    /// What membership says of the node when it is ready.
    #[must_use]
    pub fn record(&self, models: Vec<ServedModel>, capacity: u32) -> NodeRecord {
        let admin = self.env.admin.as_ref();
        NodeRecord {
            id: self.env.id.clone(),
            instance: self.instance,
            role: self.role,
            address: self.env.listener.address().to_owned(),
            admin_address: admin.map(|admin| admin.address().to_owned()).unwrap_or_default(),
            models,
            capacity,
            protocol: cascadia_proto::PROTOCOL,
            state: NodeState::Ready,
        }
    }

    /// Serves until told to stop. Dropping the future is a crash: its connections are cut, nobody is told.
    ///
    /// # Errors
    /// When the node cannot register although it must, its listener fails, or it can do its work no more.
    pub async fn run<L: Life>(self, services: Services, life: L) -> Result<(), ProcessError<L::Lost>> {
        let record = self.record(services.models, services.capacity);
        let Self { env: NodeEnv { listener, admin, membership, shutdown, .. }, board, .. } = self;
        if let Some(admin) = &admin {
            admin.show(services.pages);
        }
        let (health, health_service) = Health::new(L::HEALTH).await;
        let routes = services.routes.add_service(board.service()).add_service(health_service);
        let mut open = Open { serving: JoinSet::new(), entry: Entry::seek(membership, record), life: &life };
        open.serving.spawn(net::serve(routes, listener, life.closes(), life.cuts()));
        for front in services.fronts {
            open.serving.spawn(until(front, life.cuts()));
        }
        life.log(Stage::Open);

        if L::FOUND_IN_LIST {
            tokio::select! {
                listed = open.entry.listed() => listed?,
                // Told to go before it was there: nothing is open.
                () = shutdown.draining() => return Ok(()),
                lost = life.lost() => return Err(ProcessError::Lost(lost)),
            }
        }
        let lived = open.live(&board, &health, shutdown.draining()).await;
        if let ControlFlow::Break(Err(lost @ ProcessError::Lost(_))) = lived {
            open.cut().await;
            return Err(lost);
        }

        shutdown.stop();
        let Open { mut serving, entry, .. } = open;
        entry.withdraw().await;
        board.close();
        let ended = ended(&mut serving).await;
        if let Some(admin) = admin {
            admin.finish().await;
        }
        life.log(Stage::Stopped);
        lived.break_value().unwrap_or(Ok(()))?;
        Ok(ended?)
    }
}

/// How all that was served has ended.
type Ended = Result<(), tonic::transport::Error>;

/// How a life broke off.
type Broken<Lost> = Result<(), ProcessError<Lost>>;

/// What goes on while a node lives: its connections, and its entry in the member list.
struct Open<'a, L> {
    /// Dropped with this: a node that is aborted takes its connections with it.
    serving: JoinSet<Ended>,
    entry: Entry,
    life: &'a L,
}

impl<L: Life> Open<'_, L> {
    /// From the first client to the last; breaks off where all connections ended before, or the node cannot go on.
    async fn live(
        &mut self,
        board: &StatusBoard,
        health: &Health,
        draining: impl Future<Output = ()>,
    ) -> ControlFlow<Broken<L::Lost>> {
        let life = self.life;
        let useful = async {
            life.useful().await;
            health.say(ServingStatus::Serving).await;
            life.log(Stage::Useful);
            std::future::pending::<()>().await;
        };
        self.until(async {
            tokio::select! { biased; () = draining => {}, () = useful => {} }
        })
        .await?;
        health.say(ServingStatus::NotServing).await;
        board.set_state(NodeState::Draining);
        life.log(Stage::Draining);
        self.entry.drains().await;
        self.until(life.drained()).await
    }

    /// Waits for an event, and goes on serving and registering meanwhile.
    async fn until(&mut self, event: impl Future<Output = ()>) -> ControlFlow<Broken<L::Lost>> {
        tokio::pin!(event);
        loop {
            tokio::select! {
                biased;
                lost = self.life.lost() => return ControlFlow::Break(Err(ProcessError::Lost(lost))),
                ended = ended(&mut self.serving) => return ControlFlow::Break(ended.map_err(ProcessError::Serve)),
                error = self.entry.refused() => self.life.log(Stage::Unlisted(&error)),
                () = &mut event => return ControlFlow::Continue(()),
            }
        }
    }

    /// Ends as the death of the process would: connections break, and whoever held one moves its sessions.
    async fn cut(self) {
        drop(self.serving);
        self.entry.withdraw().await;
    }
}

/// Returns when all have ended well, or one has not.
async fn ended(serving: &mut JoinSet<Ended>) -> Ended {
    while let Some(one) = serving.join_next().await {
        one.unwrap_or(Ok(()))?;
    }
    Ok(())
}

async fn until(front: impl Future<Output = ()>, cut: impl Future<Output = ()>) -> Ended {
    tokio::select! { biased; () = front => {}, () = cut => {} }
    Ok(())
}

/// What gRPC health says of the node.
struct Health {
    reporter: HealthReporter,
    services: &'static [&'static str],
}

impl Health {
    /// Not serving yet.
    async fn new(services: &'static [&'static str]) -> (Self, HealthServer<impl health_server::Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = Self { reporter, services };
        health.say(ServingStatus::NotServing).await;
        (health, service)
    }

    async fn say(&self, status: ServingStatus) {
        for service in self.services {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// The node's entry in the member list: sought, held, given back.
struct Entry {
    record: NodeRecord,
    held: Held,
}

enum Held {
    Sought(BoxFuture<'static, Result<Registration, MembershipError>>),
    Listed(Registration),
    Refused,
}

impl Entry {
    fn seek(membership: Membership, record: NodeRecord) -> Self {
        let sought = record.clone();
        Self { record, held: Held::Sought(async move { membership.register(sought).await }.boxed()) }
    }

    /// Returns when there is one, or can be none; may be asked again at any time.
    async fn listed(&mut self) -> Result<(), MembershipError> {
        if let Held::Sought(sought) = &mut self.held {
            match sought.await {
                Ok(registration) => self.held = Held::Listed(registration),
                Err(error) => {
                    self.held = Held::Refused;
                    return Err(error);
                }
            }
            self.tell().await;
        }
        Ok(())
    }

    /// Goes on seeking; returns only when there can be none.
    async fn refused(&mut self) -> MembershipError {
        match self.listed().await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    }

    /// Says that the node drains.
    async fn drains(&mut self) {
        self.record.state = NodeState::Draining;
        self.tell().await;
    }

    /// Tells what has changed since it was sought.
    async fn tell(&mut self) {
        if let Held::Listed(registration) = &self.held
            && self.record.state == NodeState::Draining
        {
            registration.update(self.record.clone()).await;
        }
    }

    async fn withdraw(self) {
        if let Held::Listed(registration) = self.held {
            registration.withdraw().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::record;

    #[tokio::test]
    async fn a_node_that_is_listed_late_is_listed_as_it_is_by_then() {
        let membership = Membership::embedded();
        let ready = record("router-1", Role::Router);
        let mut entry = Entry::seek(membership.clone(), ready.clone());
        entry.drains().await;
        assert!(membership.snapshots().borrow().nodes.is_empty());
        entry.listed().await.unwrap();
        assert_eq!(membership.snapshots().borrow().nodes[&ready.id].state, NodeState::Draining);
        entry.listed().await.unwrap();
        entry.withdraw().await;
        assert!(membership.snapshots().borrow().nodes.is_empty());
    }

    #[tokio::test]
    async fn what_is_served_has_ended_with_the_last_of_it() {
        let mut serving = JoinSet::new();
        serving.spawn(async { Ok(()) });
        serving.spawn(std::future::pending());
        assert!(ended(&mut serving).now_or_never().is_none(), "a front has connections still");
        serving.abort_all();
        assert!(ended(&mut serving).await.is_ok());
    }
}
