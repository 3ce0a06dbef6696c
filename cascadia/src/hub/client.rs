//! The hub over HTTP: what a revision holds, and files, gone on with where a connection broke.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::cache::Cache;
use super::digest::{self, Content};
use super::environment::{Hub, is_safe};
use super::error::HubError;
use crate::model_id::ModelId;
use crate::progress::Report;

/// Most redirects in a row.
const REDIRECTS: usize = 6;
/// Times in a row that a download may break off without a byte more.
const TRIES: usize = 5;
/// How long the hub may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// Most bytes of a list of files.
const LIST_BYTES: usize = 32 << 20;

/// A revision as the hub knows it.
pub(super) struct Revision {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// Asks for one model.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    id: &'a ModelId,
    http: Http<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// What a file is on the hub.
struct Meta {
    etag: String,
    size: u64,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, id: &'a ModelId) -> Self {
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1();
        Self { hub, id, http: Http::builder(TokioExecutor::new()).build(connector.build()) }
    }

    fn unreachable(&self, cause: impl ToString) -> HubError {
        let (model, endpoint) = (self.id.to_string(), self.hub.endpoint.clone());
        HubError::Unreachable { model, endpoint, cause: cause.to_string() }
    }

    fn nonsense(&self, what: impl ToString) -> HubError {
        let (model, endpoint) = (self.id.to_string(), self.hub.endpoint.clone());
        HubError::Nonsense { model, endpoint, what: what.to_string() }
    }

    /// Which commit the revision is, and its files.
    pub(super) async fn revision(&self) -> Result<Revision, HubError> {
        let revision = self.id.revision.replace('/', "%2F");
        let address = format!("{}/api/models/{}/revision/{revision}", self.hub.endpoint, self.id.repository);
        let response = self.follow(&Method::GET, &address, &HeaderMap::new(), true).await?;
        let body = Limited::new(self.good(response)?.into_body(), LIST_BYTES).collect();
        let body = tokio::time::timeout(SILENCE, body).await.map_err(|_| self.unreachable("it went silent"))?;
        let body = body.map_err(|error| self.unreachable(error))?.to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).map_err(|error| self.nonsense(error))?;
        let commit = json["sha"].as_str().filter(|sha| is_plain(sha)).ok_or_else(|| self.nonsense("no `sha`"))?;
        let siblings = json["siblings"].as_array().ok_or_else(|| self.nonsense("no `siblings`"))?;
        let files = siblings.iter().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned).collect();
        Ok(Revision { commit: commit.to_owned(), files })
    }

    /// Brings a file of a commit into the cache. What the hub says of its content may be nothing that can be checked.
    pub(super) async fn fetch(
        &self,
        commit: &str,
        file: &str,
        cache: &Cache,
        report: &mut Report<'_>,
    ) -> Result<Content, HubError> {
        let address = format!("{}/{}/resolve/{commit}/{file}", self.hub.endpoint, self.id.repository);
        let meta = self.meta(&address).await?;
        let (blob, incomplete) = cache.blob(&meta.etag)?;
        let _lock = cache.lock(&meta.etag)?;
        if blob.is_file() {
            cache.link(commit, file, &meta.etag)?;
            return Ok(Content::Right);
        }
        let mut wrong = 0;
        let content = loop {
            self.bring(&address, &incomplete, meta.size, &mut |done| report(file, done, meta.size)).await?;
            let disk = |error: std::io::Error| HubError::disk(&incomplete, &error);
            match digest::content(&meta.etag, &incomplete).map_err(disk)? {
                Content::Wrong => {}
                content => break content,
            }
            // What was left of an earlier attempt may have been the fault, so once more from the start.
            std::fs::remove_file(&incomplete).map_err(disk)?;
            wrong += 1;
            if wrong == 2 {
                let (model, endpoint) = (self.id.to_string(), self.hub.endpoint.clone());
                return Err(HubError::Content { model, endpoint, file: file.to_owned() });
            }
            tracing::warn!(file, "what came is not what the hub has; it is fetched again");
        };
        std::fs::rename(&incomplete, &blob).map_err(|error| HubError::disk(&blob, &error))?;
        cache.link(commit, file, &meta.etag)?;
        Ok(content)
    }

    /// Fetches what is missing of a file, as often as the connection breaks while bytes come.
    async fn bring(
        &self,
        address: &str,
        to: &Path,
        size: u64,
        done: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), HubError> {
        let (mut tries, mut before) = (0, None);
        loop {
            let failed = match self.go_on(address, to, size, done).await {
                Err(error @ HubError::Unreachable { .. }) => error,
                ended => return ended,
            };
            let held = std::fs::metadata(to).map_or(0, |meta| meta.len());
            tries = if before == Some(held) { tries + 1 } else { 1 };
            before = Some(held);
            if tries >= TRIES {
                return Err(failed);
            }
            tracing::warn!(address, bytes = held, error = %failed, "the download broke off and goes on");
            tokio::time::sleep(Duration::from_millis(200) * tries as u32).await;
        }
    }

    /// Fetches what is missing of a file. An [`HubError::Unreachable`] leaves what has come.
    async fn go_on(
        &self,
        address: &str,
        to: &Path,
        size: u64,
        done: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), HubError> {
        let disk = |error: std::io::Error| HubError::disk(to, &error);
        let mut held = std::fs::metadata(to).map_or(0, |meta| meta.len());
        if held > size {
            std::fs::remove_file(to).map_err(disk)?;
            held = 0;
        }
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(to).map_err(disk)?;
        done(held);
        if held < size {
            let mut headers = HeaderMap::new();
            if held > 0 {
                headers.insert(RANGE, format!("bytes={held}-").parse().map_err(|e| self.nonsense(e))?);
            }
            let response = self.good(self.follow(&Method::GET, address, &headers, true).await?)?;
            if held > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                // It knows no ranges: from the start.
                file.set_len(0).map_err(disk)?;
                held = 0;
            }
            let mut body = response.into_body();
            loop {
                let frame = tokio::time::timeout(SILENCE, body.frame()).await;
                let Some(frame) = frame.map_err(|_| self.unreachable("it went silent"))? else { break };
                let frame = frame.map_err(|error| self.unreachable(error))?;
                let Ok(data) = frame.into_data() else { continue };
                file.write_all(&data).map_err(disk)?;
                held += data.len() as u64;
                done(held);
            }
        }
        if held == size {
            return file.sync_all().map_err(disk);
        }
        if held > size {
            file.set_len(0).map_err(disk)?;
        }
        Err(self.unreachable(format!("{held} of {size} bytes came")))
    }

    /// Asks what a file is. Where its bytes are elsewhere, the hub itself says what it is.
    async fn meta(&self, address: &str) -> Result<Meta, HubError> {
        let response = self.follow(&Method::HEAD, address, &HeaderMap::new(), false).await?;
        let response = if response.status().is_redirection() { response } else { self.good(response)? };
        let header = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| response.headers().get(*name));
            found.and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let etag = header(["x-linked-etag", ETAG.as_str()]);
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let etag = etag.filter(|etag| is_plain(etag)).ok_or_else(|| self.nonsense("a file without an ETag"))?;
        let size = header(["x-linked-size", CONTENT_LENGTH.as_str()]).and_then(|size| size.parse().ok());
        Ok(Meta { etag, size: size.ok_or_else(|| self.nonsense("a file without a size"))? })
    }

    /// Asks, and follows redirects: all of them, or only those that stay at the hub. The token goes to the hub alone.
    async fn follow(
        &self,
        method: &Method,
        address: &str,
        headers: &HeaderMap,
        away: bool,
    ) -> Result<Response<Incoming>, HubError> {
        let home: Uri = address.parse().map_err(|error| self.nonsense(format!("{address}: {error}")))?;
        let mut uri = home.clone();
        for _ in 0..REDIRECTS {
            if !is_safe(&uri) {
                return Err(HubError::Plain { address: uri.to_string() });
            }
            let mut request = Request::builder().method(method).uri(&uri).header(ACCEPT_ENCODING, "identity");
            request = request.header(USER_AGENT, concat!("cascadia/", env!("CARGO_PKG_VERSION")));
            if let (Some(token), true) = (&self.hub.token, uri.authority() == home.authority()) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let mut request = request.body(Empty::new()).map_err(|error| self.nonsense(error))?;
            request.headers_mut().extend(headers.clone());
            let answer = tokio::time::timeout(SILENCE, self.http.request(request)).await;
            let response = answer.map_err(|_| self.unreachable("it does not answer"))?;
            let response = response.map_err(|error| self.unreachable(with_causes(&error)))?;
            let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let Some(location) = location.filter(|_| response.status().is_redirection()) else { return Ok(response) };
            let next = match (location.starts_with('/'), uri.scheme_str(), uri.authority()) {
                (true, Some(scheme), Some(authority)) => format!("{scheme}://{authority}{location}"),
                _ => location.to_owned(),
            };
            let next: Uri = next.parse().map_err(|error| self.nonsense(format!("a redirect to {next}: {error}")))?;
            if !away && next.authority() != home.authority() {
                return Ok(response);
            }
            uri = next;
        }
        Err(self.nonsense(format!("more than {REDIRECTS} redirects")))
    }

    /// An answer that is none of the refusals.
    fn good(&self, response: Response<Incoming>) -> Result<Response<Incoming>, HubError> {
        let (model, endpoint, status) = (self.id.to_string(), self.hub.endpoint.clone(), response.status());
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(HubError::Denied { model, endpoint, status }),
            StatusCode::NOT_FOUND => Err(HubError::Missing { model, endpoint }),
            _ => Err(HubError::Answer { model, endpoint, status }),
        }
    }
}

/// What may name a file of the cache.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// What a failed request has behind it: the client's own sentence says only that it failed.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
