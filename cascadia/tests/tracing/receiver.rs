//! An OTLP receiver: the collector that the nodes send their spans to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::real::PATIENCE;

/// A span as it arrived, with the resource that sent it.
#[derive(Clone, Debug)]
pub struct Span {
    pub resource: Vec<KeyValue>,
    pub span: v1::Span,
}

impl Span {
    pub fn service(&self) -> String {
        text(&self.resource, "service.name").expect("a resource has a name")
    }

    pub fn node(&self) -> String {
        text(&self.resource, "cascadia.node.id").expect("a resource has a node")
    }

    pub fn text(&self, key: &str) -> Option<String> {
        text(&self.span.attributes, key)
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        match value(&self.span.attributes, key)? {
            Value::IntValue(number) => Some(*number as f64),
            Value::DoubleValue(number) => Some(*number),
            _ => None,
        }
    }

    pub fn links_to(&self, other: &Self) -> bool {
        let mut links = self.span.links.iter();
        links.any(|link| link.span_id == other.span.span_id && link.trace_id == other.span.trace_id)
    }

    pub fn is_child_of(&self, parent: &Self) -> bool {
        self.span.parent_span_id == parent.span.span_id && self.span.trace_id == parent.span.trace_id
    }

    pub fn failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == v1::status::StatusCode::Error)
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

pub fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text.clone()),
        Value::ArrayValue(array) => match array.values.first() {
            Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// What has arrived.
#[derive(Clone, Default)]
pub struct Receiver(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().expect("no panic under this lock");
        for sent in request.into_inner().resource_spans {
            let resource = sent.resource.map(|resource| resource.attributes).unwrap_or_default();
            for span in sent.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.push(Span { resource: resource.clone(), span });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    /// Listens; where.
    pub async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let receiver = Self::default();
        let service = TraceServiceServer::new(receiver.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        (receiver, address)
    }

    pub fn all(&self) -> Vec<Span> {
        self.0.lock().expect("no panic under this lock").clone()
    }

    /// The spans of a trace.
    pub fn trace(&self, id: u128) -> Vec<Span> {
        self.all().into_iter().filter(|span| span.span.trace_id == id.to_be_bytes()).collect()
    }

    /// Waits until the spans of a trace are as they should be.
    pub async fn wait(&self, id: u128, what: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let until = Instant::now() + PATIENCE;
        loop {
            let spans = self.trace(id);
            if what(&spans) {
                return spans;
            }
            if Instant::now() > until {
                let names: Vec<_> = spans.iter().map(|span| (span.node(), span.span.name.clone())).collect();
                panic!("not within {PATIENCE:?}: {names:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The spans of a name.
pub fn named<'a>(spans: &'a [Span], service: &str, name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.service() == service && span.span.name == name).collect()
}
