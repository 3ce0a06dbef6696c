//! The front door for OpenAI's clients.
//!
//! A request is read ([`endpoint`], [`json`], [`fields`], [`asked`], [`sampling`], [`extension`], [`model_name`]; [`chat`] and
//! [`completions`] differ), becomes what a gRPC client would have sent, and takes the same path ([`generate`]):
//! admission, sessions, a bounded queue. What the sessions say is an [`mod@answer`], written in OpenAI's [`shapes`]
//! ([`logprobs`], [`statistics`]), whole or as a [`stream`]. [`routes`] is the surface, [`state`] what all requests share,
//! [`keys`] who may come in, [`error`] the one place where errors become statuses, [`connection`] the life of a connection
//! ([`activity`], [`socket`]), [`counted`] what is counted of an answer, [`config`] what is set.
//!
//! Absent on purpose: a relay of its own, a tokenizer, and any field that is skipped although it might change an answer.

pub mod activity;
pub mod answer;
pub mod asked;
pub mod chat;
pub mod completions;
pub mod config;
pub mod connection;
pub mod counted;
pub mod endpoint;
pub mod error;
pub mod extension;
pub mod fields;
pub mod generate;
pub mod json;
pub mod keys;
pub mod logprobs;
pub mod model_name;
pub mod models;
pub mod routes;
pub mod sampling;
pub mod shapes;
pub mod socket;
pub mod state;
pub mod statistics;
pub mod stream;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::FutureExt;

use crate::life::{Drain, Front};
use crate::router::Router;
use activity::ConnTimeouts;
pub use config::{Door, HttpConfig, HttpError};
use state::AppState;

/// The front that serves OpenAI's clients at this door.
#[must_use]
pub fn front(door: Door) -> Front {
    Box::new(move |router, drain| serve(door, router, drain).boxed())
}

/// Serves until told to leave, and returns when the last connection has ended. Dropping the future cuts them.
async fn serve(door: Door, router: Arc<Router>, drain: Drain) {
    let Door { listener, keys } = door;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    tracing::info!(router = %router.id, address = %listener.address(), keys = ?keys, "serving HTTP");
    let routes = routes::routes(Arc::new(AppState { router, keys, since }));
    connection::serve(listener, routes, ConnTimeouts::default(), drain.leave()).await;
}
