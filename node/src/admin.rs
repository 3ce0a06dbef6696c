//! The operator's port: `/live`, `/ready`, `/status`, `/metrics`, and gRPC health. Plain HTTP, no prompts, no changes.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::lifecycle::Shutdown;
use crate::net::{BoxIo, Listener, STOP_GRACE};

/// How often gRPC health learns whether the node is ready.
const HEALTH_PERIOD: Duration = Duration::from_millis(250);

/// What the pages say.
#[derive(Clone)]
pub struct Admin {
    /// Whether the node takes work, or one line why not.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Everything an operator asks first.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admin")
    }
}

/// Serves the pages until the node stops.
pub async fn serve(listener: Listener, admin: Admin, shutdown: Shutdown) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reports = report(reporter, admin.ready.clone());
    let router = pages(admin).route_service("/grpc.health.v1.Health/{method}", health);
    let address = listener.address().to_owned();
    let (stream, _cut) = listener.into_owned();
    let incoming = Incoming { address: address.clone(), stream };
    let serving = axum::serve(incoming, router).with_graceful_shutdown(shutdown.stopped());
    // A scraper that keeps its connection open does not keep the node alive.
    let late = async {
        shutdown.stopped().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        biased;
        served = serving.into_future() => {
            if let Err(error) = served {
                tracing::warn!(%address, %error, "the admin listener ended");
            }
        }
        () = late => {}
        () = reports => {}
    }
}

async fn report(reporter: HealthReporter, ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>) {
    let mut ticks = tokio::time::interval(HEALTH_PERIOD);
    loop {
        ticks.tick().await;
        let status = if ready().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
    }
}

fn pages(admin: Admin) -> Router {
    let Admin { ready, status, metrics } = admin;
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route(
            "/ready",
            get(move || async move {
                match ready() {
                    Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                    Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
                }
            }),
        )
        .route("/status", get(move || async move { Json(status()) }))
        .route(
            "/metrics",
            get(move || async move {
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics()).into_response()
            }),
        )
}

/// Our listener as axum wants it.
struct Incoming {
    address: String,
    stream: BoxStream<'static, io::Result<BoxIo>>,
}

impl axum::serve::Listener for Incoming {
    type Io = BoxIo;
    type Addr = ();

    async fn accept(&mut self) -> (BoxIo, ()) {
        loop {
            match self.stream.next().await {
                Some(Ok(io)) => return (io, ()),
                Some(Err(error)) => tracing::debug!(address = %self.address, %error, "cannot accept a connection"),
                // Nobody will come any more; the shutdown ends the server.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn page(address: &str, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_pages_say_what_they_are_told() {
        let ready = Arc::new(AtomicBool::new(false));
        let flag = ready.clone();
        let admin = Admin {
            ready: Arc::new(move || flag.load(Relaxed).then_some(()).ok_or_else(|| "the model is loading".into())),
            status: Arc::new(|| serde_json::json!({"state": "starting"})),
            metrics: Arc::new(|| "cascadia_up 1\n".into()),
        };
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.address().to_owned(), Shutdown::new());
        let serving = tokio::spawn(serve(listener, admin, shutdown.clone()));

        assert!(page(&address, "/live").await.starts_with("HTTP/1.1 200"));
        let not_ready = page(&address, "/ready").await;
        assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("the model is loading"), "{not_ready}");
        ready.store(true, Relaxed);
        assert!(page(&address, "/ready").await.starts_with("HTTP/1.1 200"));
        assert!(page(&address, "/status").await.ends_with(r#"{"state":"starting"}"#));
        assert!(page(&address, "/metrics").await.ends_with("cascadia_up 1\n"));
        assert!(page(&address, "/else").await.starts_with("HTTP/1.1 404"));

        tokio::time::sleep(HEALTH_PERIOD * 2).await;
        let channel = crate::net::Connector::tcp().channel(&address);
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let asked = tonic_health::pb::HealthCheckRequest { service: String::new() };
        let health = health.check(asked).await.unwrap().into_inner();
        assert_eq!(health.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

        shutdown.stop();
        serving.await.unwrap();
    }
}
