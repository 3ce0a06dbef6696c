//! The router's word on which sessions' spans are wanted, to the nodes that worked for them.
//!
//! Whether a request failed or was slow is known when it ends, at the router; what drafters and experts recorded of it
//! waits there for a while. A node that is gone, or knows no such call, loses its part of the trace and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cascadia_core::ids::SessionId;
use cascadia_core::limits;
use cascadia_proto::v1::traces_client::TracesClient;
use cascadia_proto::v1::traces_server::{self, TracesServer};
use cascadia_proto::v1::{KeepRequest, KeepResponse};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::net::Connector;
use crate::telemetry::Tracer;

/// Sessions of one call at most.
const MOST_SESSIONS: usize = 1_024;

/// Words that may wait to be sent; further ones are lost.
const MOST_WORDS: usize = 1_024;

/// How long a node may take to hear them.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A router's way to tell.
#[derive(Clone, Debug, Default)]
pub struct KeepNotifier(Option<mpsc::Sender<Keep>>);

/// A session, and where it was worked on.
type Keep = (SessionId, BTreeSet<String>);

impl KeepNotifier {
    /// Tells over `connector`; where nothing is traced there is nothing to tell.
    #[must_use]
    pub fn spawn(tracer: &Tracer, connector: Connector) -> Self {
        if !tracer.is_on() {
            return Self::default();
        }
        let (sender, words) = mpsc::channel(MOST_WORDS);
        // Ends with the last handle.
        tokio::spawn(tell(words, connector));
        Self(Some(sender))
    }

    /// Tells these nodes, soon; never waits.
    pub fn tell(&self, session: SessionId, addresses: &BTreeSet<String>) {
        if let Some(sender) = &self.0
            && !addresses.is_empty()
        {
            let _ = sender.try_send((session, addresses.clone()));
        }
    }
}

async fn tell(mut words: mpsc::Receiver<Keep>, connector: Connector) {
    let mut waiting = Vec::new();
    while words.recv_many(&mut waiting, MOST_SESSIONS).await > 0 {
        let mut calls: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (session, addresses) in waiting.drain(..) {
            for address in addresses {
                calls.entry(address).or_default().push(session.0.to_be_bytes().to_vec());
            }
        }
        let calls = calls.into_iter().map(|(address, sessions)| {
            let channel = connector.channel(&address);
            async move {
                let mut client = TracesClient::new(channel);
                let told = tokio::time::timeout(TIMEOUT, client.keep(KeepRequest { sessions })).await;
                if !matches!(told, Ok(Ok(_))) {
                    tracing::debug!(%address, "a node does not hear which traces are wanted");
                }
            }
        });
        futures::future::join_all(calls).await;
    }
}

/// The service that hears it.
#[must_use]
pub fn service(tracer: &Tracer) -> TracesServer<impl traces_server::Traces + use<>> {
    TracesServer::new(KeepService(tracer.clone())).max_decoding_message_size(limits::CONTROL_BYTES)
}

struct KeepService(Tracer);

#[tonic::async_trait]
impl traces_server::Traces for KeepService {
    async fn keep(&self, request: Request<KeepRequest>) -> Result<Response<KeepResponse>, Status> {
        let sessions = request.into_inner().sessions;
        if sessions.len() > MOST_SESSIONS {
            let problem = format!("sessions: {} are named, at most {MOST_SESSIONS} at once", sessions.len());
            return Err(Status::invalid_argument(problem));
        }
        for session in &sessions {
            let bytes = <[u8; 16]>::try_from(session.as_slice()).map_err(|_| {
                Status::invalid_argument(format!("sessions: one has {} bytes, a session id has 16", session.len()))
            })?;
            self.0.keep(SessionId(u128::from_be_bytes(bytes)));
        }
        Ok(Response::new(KeepResponse {}))
    }
}
