//! An OpenAI server over HTTP, followed as it streams: ours or any other that speaks `/v1`.

use std::time::{Duration, Instant};

use cascadia_core::synthetic;
use cascadia_proto::v1;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::measure::Speculation;
use super::request::{RequestError, RequestOptions, RunOptions, Sample};
use super::workload::Item;
use crate::terminal::Failure;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may say nothing at all, neither that it answers nor the next piece of its answer. Longer than queues
/// are; over gRPC the connection's own pings find a server that has gone.
const SILENCE: Duration = Duration::from_secs(300);

/// How long the end of a body is waited for after `[DONE]`, so that its connection serves the next request.
const CLOSING: Duration = Duration::from_millis(50);

/// A server and its connections, one a request that is open: HTTP/1.1 has no streams to share.
#[derive(Clone, Debug)]
pub struct OpenAi {
    http: Client<HttpConnector, String>,
    /// Ends in `/v1`, or wherever the endpoints are.
    base: String,
    /// What is asked where the request names none.
    model: String,
    /// [`SILENCE`], or less in a test.
    silence: Duration,
}

/// A client that keeps its connections.
#[must_use]
pub fn client() -> Client<HttpConnector, String> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Client::builder(TokioExecutor::new()).build(connector)
}

/// A whole page.
///
/// # Errors
/// When nothing answers there.
pub async fn get(http: &Client<HttpConnector, String>, url: &str) -> Result<String, Failure> {
    let request = http::Request::get(url).body(String::new()).map_err(|_| format!("{url:?} is no URL"))?;
    let unreachable = |error: &dyn std::error::Error| format!("nothing answers at {url}: {}", innermost(error));
    let response = http.request(request).await.map_err(|error| unreachable(&error))?;
    let body = response.into_body().collect().await.map_err(|error| unreachable(&error))?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

impl OpenAi {
    /// A server by its URL, and the first of its models.
    ///
    /// # Errors
    /// When it is no URL, nothing answers, or nothing is served.
    pub async fn connect(url: &str) -> Result<Self, Failure> {
        if !url.starts_with("http://") {
            return Err(
                format!("{url:?} cannot be driven: give a plain URL like http://127.0.0.1:8080/v1 (no TLS)").into()
            );
        }
        let base = url.trim_end_matches('/').to_owned();
        let mut new = Self { http: client(), base, model: String::new(), silence: SILENCE };
        let page = get(&new.http, &format!("{}/models", new.base)).await?;
        let models: Value = serde_json::from_str(&page).unwrap_or_default();
        let first = models["data"][0]["id"].as_str();
        new.model = first.ok_or_else(|| format!("{url} serves no model: {}", shortened(&page)))?.to_owned();
        Ok(new)
    }

    /// Asks and follows the answer to its end.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn ask(&self, ask: &RunOptions, item: &Item, own: RequestOptions) -> Result<Sample, RequestError> {
        let endpoint = if ask.raw { "completions" } else { "chat/completions" };
        let request = http::Request::post(format!("{}/{endpoint}", self.base))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(self.body(ask, item, own).to_string())
            .map_err(|error| broken("URL", &error))?;
        let response = self.heard(self.http.request(request)).await?.map_err(|error| broken("UNREACHABLE", &error))?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let whole = self.heard(body.collect()).await?.map_err(|error| broken("BROKEN", &error))?.to_bytes();
            let text = String::from_utf8_lossy(&whole);
            let said: Value = serde_json::from_str(&text).unwrap_or_default();
            let sentence = said["error"]["message"].as_str().map_or_else(|| shortened(&text), ToOwned::to_owned);
            return Err(RequestError { kind: status.as_u16().to_string(), sentence });
        }
        let (mut lines, mut observed) = (Lines::default(), Sample::default());
        while let Some(frame) = self.heard(body.frame()).await? {
            let frame = frame.map_err(|error| broken("BROKEN", &error))?;
            let Ok(data) = frame.into_data() else { continue };
            let now = Instant::now();
            for event in lines.take(&data) {
                if event == "[DONE]" {
                    observed.end = Some(now);
                    // However it goes: the answer is whole.
                    let _ = tokio::time::timeout(CLOSING, body.collect()).await;
                    return Ok(observed);
                }
                take(&mut observed, &event, now, item.answer.is_some())?;
            }
        }
        Err(RequestError { kind: "BROKEN".into(), sentence: "the stream ended without data: [DONE]".into() })
    }

    /// What the server says next, unless it is silent for too long.
    async fn heard<T>(&self, next: impl Future<Output = T>) -> Result<T, RequestError> {
        tokio::time::timeout(self.silence, next).await.map_err(|_| RequestError {
            kind: "SILENT".into(),
            sentence: format!("the server said nothing for {:?}", self.silence),
        })
    }

    fn body(&self, ask: &RunOptions, item: &Item, own: RequestOptions) -> Value {
        let model = if ask.model.is_empty() { &self.model } else { &ask.model };
        let mut body = json!({
            "model": model,
            "max_tokens": item.output,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if ask.raw {
            body["prompt"] = json!(item.prompt);
        } else {
            body["messages"] = json!([{"role": "user", "content": item.prompt}]);
        }
        if let Some(temperature) = ask.temperature {
            body["temperature"] = json!(temperature);
        }
        if item.exact {
            body["ignore_eos"] = json!(true);
        }
        if let Some(salt) = own.salt {
            body["cache_salt"] = json!(salt);
        }
        if let Some(seed) = own.seed {
            body["seed"] = json!(seed);
        }
        if let Some(spec) = &ask.spec {
            let v1::Parameters { strategy, rule, alpha, .. } = spec.parameters();
            let mut object = json!({"strategy": strategy});
            if !rule.is_empty() {
                object["rule"] = json!(rule);
            }
            if let Some(alpha) = alpha {
                object["alpha"] = json!(alpha);
            }
            body["cascadia"] = object;
        }
        body
    }
}

/// Reads one event into what is observed. A chunk of text counts as one token until the usage says how many there were.
fn take(observed: &mut Sample, event: &str, now: Instant, keep: bool) -> Result<(), RequestError> {
    let chunk: Value = serde_json::from_str(event).map_err(|error| broken("PROTOCOL", &error))?;
    if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
        let word = |field: &str| error[field].as_str().map(ToOwned::to_owned);
        let kind = word("code").or_else(|| word("type")).unwrap_or_else(|| "ERROR".into());
        return Err(RequestError { kind, sentence: word("message").unwrap_or_else(|| shortened(event)) });
    }
    let choice = &chunk["choices"][0];
    let text = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default();
    if !text.is_empty() {
        observed.pieces.push((now, 1));
        observed.output += 1;
        if keep {
            observed.text.push_str(text);
        }
    }
    let usage = &chunk["usage"];
    if let Some(tokens) = usage["completion_tokens"].as_u64() {
        observed.output = tokens;
        observed.input = usage["prompt_tokens"].as_u64().unwrap_or_default();
    }
    let (told, ours) = (&chunk["metrics"]["speculative_decoding"], &chunk["cascadia"]);
    if told.is_object() || ours.is_object() {
        // Strategies that ask for no verdict have no such metrics.
        let count = |field: &str| told[field].as_u64().unwrap_or_default();
        let own = |field: &str| ours[field].as_u64();
        let accepted = count("num_accepted_draft_tokens");
        observed.speculation = Some(Speculation {
            blocks: count("num_spec_steps"),
            drafted: count("num_draft_tokens"),
            accepted,
            relaxed: own("relaxed").unwrap_or_default(),
            unverified: own("accepted").unwrap_or(accepted).saturating_sub(accepted),
            deferred: own("deferred").unwrap_or_else(|| observed.output.saturating_sub(accepted)),
            // A server that says nothing of passes verifies one block in each.
            expert_passes: own("expert_passes").unwrap_or_else(|| count("num_spec_steps")),
            moves: own("moves").unwrap_or_default(),
        });
        observed.synthetic = ["drafter", "expert"].iter().any(|role| {
            ours["fingerprints"][role].as_str().is_some_and(|model| model.starts_with(synthetic::FINGERPRINT))
        });
    }
    Ok(())
}

fn broken(kind: &str, error: &dyn std::error::Error) -> RequestError {
    RequestError { kind: kind.to_owned(), sentence: innermost(error) }
}

/// What is at the bottom of a chain of wrappers.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Server-sent events out of pieces of a stream that end anywhere.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The data of the events that are complete now.
    fn take(&mut self, piece: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(piece);
        let Some(last) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.rest.drain(..=last).collect();
        // One `data:` line an event is all that such servers send; comments keep the connection alive.
        let data = |line: &[u8]| Some(String::from_utf8_lossy(line.strip_prefix(b"data:")?).trim().to_owned());
        whole.split(|byte| *byte == b'\n').filter_map(data).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_stream_is_cut() {
        let stream = b": hello\ndata: {\"a\": 1}\n\ndata: [DONE]\r\n\n";
        for cut in 0..stream.len() {
            let mut lines = Lines::default();
            let mut events = lines.take(&stream[..cut]);
            events.extend(lines.take(&stream[cut..]));
            assert_eq!(events, ["{\"a\": 1}", "[DONE]"], "{cut}");
        }
    }

    /// A server that writes this after its head and then keeps the connection open without a word.
    async fn server(body: &'static str, silence: Duration) -> OpenAi {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut connection, _)) = listener.accept().await {
                let _ = connection.read(&mut [0; 4096]).await;
                let piece = format!("{:x}\r\n{body}\r\n", body.len());
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                connection.write_all(format!("{head}{piece}").as_bytes()).await.unwrap();
                open.push(connection);
            }
        });
        OpenAi { http: client(), base, model: "m".into(), silence }
    }

    #[tokio::test]
    async fn done_is_the_end_of_an_answer_and_silence_is_none() {
        const FIRST: &str = "data: {\"choices\": [{\"text\": \"a\"}]}\n\n";
        const WHOLE: &str = "data: {\"choices\": [{\"text\": \"a\"}]}\n\ndata: [DONE]\n\n";
        let item = Item { prompt: "p".into(), answer: None, output: 1, exact: false };
        let never_closed = server(WHOLE, Duration::from_secs(3600)).await;
        let observed = never_closed.ask(&RunOptions::default(), &item, RequestOptions::default()).await.unwrap();
        assert_eq!(observed.end, Some(observed.pieces[0].0));
        let silent = server(FIRST, Duration::from_millis(20)).await;
        let failed = silent.ask(&RunOptions::default(), &item, RequestOptions::default()).await.unwrap_err();
        assert_eq!((failed.kind.as_str(), failed.sentence.as_str()), ("SILENT", "the server said nothing for 20ms"));
    }

    #[test]
    fn chunks_usage_and_errors() {
        let mut observed = Sample::default();
        let now = Instant::now();
        for event in [
            r#"{"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}], "usage": null}"#,
            r#"{"choices": [{"delta": {"content": "ab"}, "finish_reason": null}]}"#,
            r#"{"choices": [{"text": "c", "finish_reason": "stop"}]}"#,
            r#"{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3},
                "metrics": {"speculative_decoding": {"num_spec_steps": 2, "num_draft_tokens": 4,
                "num_accepted_draft_tokens": 2}}}"#,
        ] {
            take(&mut observed, event, now, true).unwrap();
        }
        assert_eq!((observed.pieces.len(), observed.input, observed.output), (2, 5, 3));
        assert_eq!(observed.text, "abc");
        let told = observed.speculation.unwrap();
        assert_eq!((told.drafted, told.accepted, told.deferred, told.expert_passes), (4, 2, 1, 2));
        assert_eq!((told.unverified, observed.synthetic), (0, false));
        let alone = r#"{"choices": [], "metrics": {"speculative_decoding": null}, "cascadia": {"accepted": 3,
            "deferred": 0, "expert_passes": 0, "fingerprints": {"drafter": "synthetic-1-drafter", "expert": null}}}"#;
        take(&mut observed, alone, now, true).unwrap();
        let told = observed.speculation.unwrap();
        assert_eq!((told.drafted, told.accepted, told.unverified, observed.synthetic), (0, 0, 3, true));
        let failed = take(&mut observed, r#"{"error": {"message": "gone", "code": "unavailable"}}"#, now, true);
        assert_eq!(failed, Err(RequestError { kind: "unavailable".into(), sentence: "gone".into() }));
    }
}
