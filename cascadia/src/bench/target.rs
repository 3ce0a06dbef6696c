//! Who is asked. What it says is noted with the time at which it came.

use super::openai::OpenAi;
use super::request::{RequestError, RequestOptions, RunOptions, Sample};
use super::router::Router;
use super::workload::Item;
use crate::terminal::Failure;

/// Who is asked.
#[derive(Debug)]
pub enum Target {
    /// A Cascadia router, over gRPC.
    Router(Router),
    /// A server that speaks OpenAI's HTTP.
    OpenAi(Box<OpenAi>),
}

impl Target {
    /// The router at an address.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn router(server: &str) -> Result<Self, Failure> {
        Ok(Self::Router(Router::connect(server).await?))
    }

    /// The OpenAI server whose endpoints are below `url`.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn open_ai(url: &str) -> Result<Self, Failure> {
        Ok(Self::OpenAi(Box::new(OpenAi::connect(url).await?)))
    }

    /// Asks and follows the answer to its end.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn ask(&self, ask: &RunOptions, item: &Item, own: RequestOptions) -> Result<Sample, RequestError> {
        match self {
            Self::Router(router) => router.ask(ask, item, own).await,
            Self::OpenAi(server) => server.ask(ask, item, own).await,
        }
    }
}
