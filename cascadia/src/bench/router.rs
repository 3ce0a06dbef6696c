//! A Cascadia router over gRPC, followed as it streams.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cascadia_core::synthetic;
use cascadia_node::channel_pool::{ChannelPool, STREAMS_PER_CHANNEL, StreamPermit};
use cascadia_proto::v1;
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::prompt::Kind;

use super::measure::Speculation;
use super::request::{RequestError, RequestOptions, RunOptions, Sample};
use super::workload::Item;
use crate::client::{Client, ClientError};
use crate::strategy_spec::StrategySpec;

/// A router, over as many connections as its streams need.
#[derive(Debug)]
pub struct Router {
    server: String,
    channels: Mutex<ChannelPool<Arc<tokio::sync::OnceCell<Client>>>>,
}

impl Router {
    /// The router at an address; it is looked for at once.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn connect(server: &str) -> Result<Self, ClientError> {
        let new = Self { server: server.to_owned(), channels: Mutex::new(ChannelPool::new(STREAMS_PER_CHANNEL)) };
        new.client().await?;
        Ok(new)
    }

    /// A connection with room for one more stream.
    async fn client(&self) -> Result<(Client, StreamPermit), ClientError> {
        let (cell, permit) = self.channels.lock().unwrap_or_else(PoisonError::into_inner).permit(Arc::default);
        let client = cell.get_or_try_init(|| Client::connect(&self.server)).await?;
        Ok((client.clone(), permit))
    }

    /// Asks and follows the answer to its end.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn ask(&self, ask: &RunOptions, item: &Item, own: RequestOptions) -> Result<Sample, RequestError> {
        let (client, _lease) = self.client().await?;
        let mut events = client.generate(message(ask, item, own)).await?;
        let mut observed = Sample::default();
        while let Some(event) = events.next().await? {
            match event {
                Event::Started(started) => {
                    observed.input = started.prompt_tokens.into();
                    observed.synthetic = started.fingerprints.is_some_and(|of| {
                        [of.drafter, of.expert].iter().any(|model| model.starts_with(synthetic::FINGERPRINT))
                    });
                }
                Event::Tokens(tokens) => {
                    if !tokens.ids.is_empty() {
                        observed.pieces.push((Instant::now(), tokens.ids.len() as u32));
                    }
                    observed.output += tokens.ids.len() as u64;
                    if item.answer.is_some() {
                        observed.text.push_str(&tokens.text);
                    }
                }
                Event::Finished(finished) => {
                    observed.end = Some(Instant::now());
                    observed.speculation = finished.speculation.as_ref().map(Speculation::from);
                }
            }
        }
        Ok(observed)
    }
}

fn message(ask: &RunOptions, item: &Item, own: RequestOptions) -> v1::GenerateRequest {
    let kind = if ask.raw {
        Kind::Text(item.prompt.clone())
    } else {
        let message = v1::Message { role: "user".into(), content: item.prompt.clone() };
        Kind::Messages(v1::Messages { messages: vec![message] })
    };
    let parameters = ask.spec.as_ref().map(StrategySpec::parameters).unwrap_or_default();
    v1::GenerateRequest {
        model: ask.model.clone(),
        prompt: Some(v1::Prompt { kind: Some(kind) }),
        parameters: Some(v1::Parameters {
            temperature: ask.temperature,
            max_tokens: Some(item.output),
            ignore_eos: item.exact,
            seed: own.seed,
            ..parameters
        }),
        cache_salt: own.salt,
        ..v1::GenerateRequest::default()
    }
}
