//! One node's key: put under a lease, renewed at half its remaining life, put again whenever etcd has forgotten it.

use std::sync::Arc;
use std::time::Duration;

use cascadia_core::placement::NodeRecord;
use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper, PutOptions};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{CALL_TIMEOUT, EtcdConfig, FIRST_PAUSE, LONGEST_PAUSE, timed};
use crate::jitter::Backoff;
use crate::membership::{MembershipError, record};

/// How long a node that leaves waits for etcd to hear it.
const FAREWELL: Duration = Duration::from_secs(2);

/// A node registered in etcd. Dropped without a farewell, its key outlives it until the lease ends.
#[derive(Debug)]
pub(crate) struct Lease {
    records: watch::Sender<NodeRecord>,
    leave: CancellationToken,
    task: JoinHandle<()>,
}

impl Lease {
    /// Returns when the node is registered, however long etcd is away.
    pub(super) async fn hold(config: Arc<EtcdConfig>, record: NodeRecord) -> Result<Self, MembershipError> {
        let id = record.id.clone();
        let (records, receiver) = watch::channel(record);
        let (registered, first) = oneshot::channel();
        let leave = CancellationToken::new();
        let keeper = KeepNotifier {
            pauses: Backoff::new(&id.0, FIRST_PAUSE, LONGEST_PAUSE),
            config,
            records: receiver,
            registered: Some(registered),
            leave: leave.clone(),
        };
        let lease = Self { records, leave, task: tokio::spawn(keeper.run()) };
        first.await.map_err(|_| MembershipError::Ended(id.to_string()))?;
        Ok(lease)
    }

    pub(crate) fn update(&self, record: NodeRecord) {
        self.records.send_replace(record);
    }

    pub(crate) async fn withdraw(mut self) {
        self.leave.cancel();
        // Late or not, the lease ends by itself.
        let _ = timeout(FAREWELL, &mut self.task).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct KeepNotifier {
    config: Arc<EtcdConfig>,
    records: watch::Receiver<NodeRecord>,
    registered: Option<oneshot::Sender<()>>,
    leave: CancellationToken,
    pauses: Backoff,
}

impl KeepNotifier {
    async fn run(mut self) {
        while let Err(reason) = self.hold().await {
            let (id, endpoints) = (self.records.borrow().id.clone(), self.config.endpoints.join(", "));
            if self.registered.is_some() {
                tracing::warn!(node = %id, %endpoints, %reason, "etcd is away: the node is not registered and not ready, trying again");
            } else {
                tracing::warn!(node = %id, %endpoints, %reason, "the lease in etcd is lost; the node goes on serving and registers again");
            }
            tokio::select! {
                () = sleep(self.pauses.pause()) => {}
                () = self.leave.cancelled() => return,
            }
        }
    }

    /// One lease, from its grant to its loss; `Ok` where it was given back.
    async fn hold(&mut self) -> Result<(), String> {
        let mut client = self.config.connect().await?;
        let asked = i64::try_from(self.config.lease_ttl.as_secs()).unwrap_or(i64::MAX);
        let sent = Instant::now();
        let granted = timed(CALL_TIMEOUT, client.lease_grant(asked, None)).await?;
        let mut renewal = Renewal { id: granted.id(), expires: sent + seconds(granted.ttl()), stream: None };
        self.put(&mut client, renewal.id).await?;
        self.pauses.reset();
        loop {
            tokio::select! {
                changed = self.records.changed() => match changed {
                    Ok(()) => self.put(&mut client, renewal.id).await?,
                    // The handle was dropped without a farewell.
                    Err(_) => return Ok(()),
                },
                () = sleep_until(renewal.due()) => renewal.renew(&mut client).await?,
                () = self.leave.cancelled() => {
                    return timed(FAREWELL, client.lease_revoke(renewal.id)).await.map(drop);
                }
            }
        }
    }

    async fn put(&mut self, client: &mut Client, lease: i64) -> Result<(), String> {
        let (key, value) = {
            let record = self.records.borrow_and_update();
            let value = record::encode(&record, &self.config.cluster.to_string());
            (format!("{}{}", self.config.prefix, record.id), value)
        };
        timed(CALL_TIMEOUT, client.put(key, value, Some(PutOptions::new().with_lease(lease)))).await?;
        if let Some(registered) = self.registered.take() {
            // Whoever waited may have given up; the handle's drop says so.
            let _ = registered.send(());
        }
        Ok(())
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// A lease's life, counted from when etcd was asked: never longer than etcd itself counts.
struct Renewal {
    id: i64,
    expires: Instant,
    stream: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
}

impl Renewal {
    /// Half the remaining life from now.
    fn due(&self) -> Instant {
        let now = Instant::now();
        now + self.expires.saturating_duration_since(now) / 2
    }

    /// Asks for a new life. A failure that leaves some life is tried again at half of it.
    async fn renew(&mut self, client: &mut Client) -> Result<(), String> {
        let sent = Instant::now();
        let limit = (self.expires.saturating_duration_since(sent) / 2).max(Duration::from_millis(50));
        let life = match timeout(limit, self.ask(client)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {:.1} s", limit.as_secs_f64())),
        };
        match life {
            Ok(0) => Err("etcd does not know the lease any more".into()),
            Ok(ttl) => {
                self.expires = sent + seconds(ttl);
                Ok(())
            }
            Err(reason) => {
                self.stream = None;
                let left = self.expires.saturating_duration_since(Instant::now());
                if left < Duration::from_millis(200) {
                    return Err(reason);
                }
                tracing::debug!(%reason, "a lease could not be renewed, trying again");
                Ok(())
            }
        }
    }

    async fn ask(&mut self, client: &mut Client) -> Result<i64, String> {
        let (keeper, answers) = match &mut self.stream {
            Some(stream) => stream,
            None => match client.lease_keep_alive(self.id).await {
                // Opening the stream is a renewal, but the client keeps its answer to itself: ask once more.
                Ok(stream) => self.stream.insert(stream),
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => return Ok(0),
                Err(error) => return Err(error.to_string()),
            },
        };
        keeper.keep_alive().await.map_err(|error| error.to_string())?;
        let answer = answers.message().await.map_err(|error| error.to_string())?;
        Ok(answer.ok_or("the stream of renewals ended")?.ttl().max(0))
    }
}
