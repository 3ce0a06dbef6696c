//! The way to a collector: OTLP over gRPC, from a bounded queue of its own. A collector that is away is said once and
//! slows nobody.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_core::placement::Role;
use cascadia_proto::convert::role_name;
use opentelemetry::KeyValue;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor};

use super::TelemetryError;
use super::config::TelemetryConfig;
use super::tail_sampling::Sampling;
use super::tracer::Tracer;

/// A process's way to its collector; off by default. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// Whether the router logs prompts and answers.
    pub log_prompts: bool,
    exports: Option<Arc<Exports>>,
}

#[derive(Debug)]
struct Exports {
    endpoint: String,
    sampling: Sampling,
    /// The collector did not answer lately.
    away: Arc<AtomicBool>,
    /// One for each node of the process: each has a resource of its own.
    queues: Mutex<Vec<Arc<BatchSpanProcessor>>>,
}

impl Telemetry {
    /// As configured. `OTEL_BSP_*` bound the queue, `OTEL_EXPORTER_OTLP_HEADERS` and `_TIMEOUT` count as well.
    ///
    /// # Errors
    /// When the configuration cannot be meant.
    pub fn new(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        config.check().map_err(TelemetryError::Config)?;
        let exports = config.endpoint()?.map(|endpoint| {
            Arc::new(Exports { endpoint, sampling: config.sampling(), away: Arc::default(), queues: Mutex::default() })
        });
        Ok(Self { log_prompts: config.log_prompts, exports })
    }

    /// What a node records its spans with. Must be called on a tokio runtime, which carries the connection.
    #[must_use]
    pub fn tracer(&self, role: Role, id: &NodeId, instance: u64) -> Tracer {
        let Some(exports) = &self.exports else { return Tracer::default() };
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(&exports.endpoint);
        let exporter = match exporter.build() {
            Ok(exporter) => Told { exporter, endpoint: exports.endpoint.clone(), away: exports.away.clone() },
            Err(error) => {
                tracing::error!(endpoint = %exports.endpoint, %error, "nothing is traced: the exporter cannot be made");
                return Tracer::default();
            }
        };
        let mut queue = BatchSpanProcessor::builder(exporter).build();
        queue.set_resource(&resource(role, id, instance));
        let queue = Arc::new(queue);
        exports.queues.lock().unwrap_or_else(PoisonError::into_inner).push(queue.clone());
        Tracer::new(exports.sampling, queue)
    }

    /// Sends what waits, for as long as `patience`; what is left then is lost.
    pub async fn shutdown(&self, patience: Duration) {
        let Some(exports) = &self.exports else { return };
        let queues = std::mem::take(&mut *exports.queues.lock().unwrap_or_else(PoisonError::into_inner));
        let flushed = queues.into_iter().map(|queue| {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = queue.shutdown_with_timeout(patience) {
                    tracing::debug!(%error, "some spans did not reach the collector");
                }
            })
        });
        let _ = tokio::time::timeout(patience, futures::future::join_all(flushed)).await;
    }
}

/// Who speaks: OpenTelemetry's own variables have the last word.
fn resource(role: Role, id: &NodeId, instance: u64) -> Resource {
    let role = role_name(role);
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new("service.name", format!("cascadia-{role}")),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{instance:016x}")),
            KeyValue::new("cascadia.node.id", id.0.clone()),
            KeyValue::new("cascadia.node.role", role),
        ])
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// An exporter that says once that its collector is away, and once that it is back.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    endpoint: String,
    away: Arc<AtomicBool>,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        let endpoint = &self.endpoint;
        match &exported {
            Ok(()) if self.away.swap(false, Relaxed) => tracing::info!(endpoint, "the trace collector is back"),
            Err(error) if !self.away.swap(true, Relaxed) => {
                tracing::warn!(endpoint, %error, "the trace collector does not answer: spans are lost, requests are served");
            }
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::Key;

    #[tokio::test]
    async fn a_collector_that_is_away_slows_nobody() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Takes connections and never answers.
        let endpoint = Some(listener.local_addr().unwrap().to_string());
        let config = TelemetryConfig { otlp_endpoint: endpoint, ..TelemetryConfig::default() };
        let telemetry = Telemetry::new(&config).unwrap();
        let tracer = telemetry.tracer(Role::Router, &NodeId("r".into()), 1);
        // More than any queue holds: none of these waits.
        for session in 0..10_000 {
            tracer.session(cascadia_core::ids::SessionId(session), &super::super::TraceContext::default(), "x").end();
        }
        let began = std::time::Instant::now();
        telemetry.shutdown(Duration::from_millis(200)).await;
        assert!(began.elapsed() < Duration::from_secs(60), "a bound that holds");
    }

    #[test]
    fn a_node_says_who_it_is() {
        let resource = resource(Role::Drafter, &NodeId("d1".into()), 0xab);
        let of = |key: &'static str| resource.get(&Key::from_static_str(key)).map(|value| value.to_string());
        assert_eq!(of("service.name").as_deref(), Some("cascadia-drafter"));
        assert_eq!(of("service.instance.id").as_deref(), Some("00000000000000ab"));
        assert_eq!(of("cascadia.node.id").as_deref(), Some("d1"));
    }
}
