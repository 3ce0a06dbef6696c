//! An OpenAI server over HTTP, followed as it streams: ours or any other that speaks `/v1`.

use std::time::{Duration, Instant};

use cascadia_proto::v1;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::measure::Speculation;
use super::target::{Ask, Failed, Observed};
use super::workload::Item;
use crate::Failure;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server and its connections, one a request that is open: HTTP/1.1 has no streams to share.
#[derive(Clone, Debug)]
pub struct OpenAi {
    http: Client<HttpConnector, String>,
    /// Ends in `/v1`, or wherever the endpoints are.
    base: String,
    /// What is asked where the request names none.
    model: String,
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
        let mut new = Self { http: client(), base: url.trim_end_matches('/').to_owned(), model: String::new() };
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
    pub async fn ask(&self, ask: &Ask, item: &Item, salt: Option<String>) -> Result<Observed, Failed> {
        let endpoint = if ask.raw { "completions" } else { "chat/completions" };
        let request = http::Request::post(format!("{}/{endpoint}", self.base))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(self.body(ask, item, salt).to_string())
            .map_err(|error| broken("URL", &error))?;
        let response = self.http.request(request).await.map_err(|error| broken("UNREACHABLE", &error))?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let whole = body.collect().await.map_err(|error| broken("BROKEN", &error))?.to_bytes();
            let text = String::from_utf8_lossy(&whole);
            let said: Value = serde_json::from_str(&text).unwrap_or_default();
            let sentence = said["error"]["message"].as_str().map_or_else(|| shortened(&text), ToOwned::to_owned);
            return Err(Failed { kind: status.as_u16().to_string(), sentence });
        }
        let (mut lines, mut observed, mut ended) = (Lines::default(), Observed::default(), false);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken("BROKEN", &error))?;
            let Ok(data) = frame.into_data() else { continue };
            let now = Instant::now();
            for event in lines.take(&data) {
                ended |= event == "[DONE]";
                if !ended {
                    take(&mut observed, &event, now, item.answer.is_some())?;
                }
            }
        }
        if ended {
            return Ok(observed);
        }
        Err(Failed { kind: "BROKEN".into(), sentence: "the stream ended without data: [DONE]".into() })
    }

    fn body(&self, ask: &Ask, item: &Item, salt: Option<String>) -> Value {
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
        if let Some(salt) = salt {
            body["cache_salt"] = json!(salt);
        }
        if let Some(contender) = &ask.contender {
            let v1::Parameters { strategy, rule, alpha, .. } = contender.parameters();
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
fn take(observed: &mut Observed, event: &str, now: Instant, keep: bool) -> Result<(), Failed> {
    let chunk: Value = serde_json::from_str(event).map_err(|error| broken("PROTOCOL", &error))?;
    if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
        let word = |field: &str| error[field].as_str().map(ToOwned::to_owned);
        let kind = word("code").or_else(|| word("type")).unwrap_or_else(|| "ERROR".into());
        return Err(Failed { kind, sentence: word("message").unwrap_or_else(|| shortened(event)) });
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
    let told = &chunk["metrics"]["speculative_decoding"];
    if let Some(drafted) = told["num_draft_tokens"].as_u64() {
        let accepted = told["num_accepted_draft_tokens"].as_u64().unwrap_or_default();
        let own = |field: &str| chunk["cascadia"][field].as_u64();
        observed.speculation = Some(Speculation {
            blocks: told["num_spec_steps"].as_u64().unwrap_or_default(),
            drafted,
            accepted,
            relaxed: own("relaxed").unwrap_or_default(),
            deferred: own("deferred").unwrap_or_else(|| observed.output.saturating_sub(accepted)),
            // A server that says nothing of passes verifies one block in each.
            expert_passes: own("expert_passes").or(told["num_spec_steps"].as_u64()).unwrap_or_default(),
            moves: own("moves").unwrap_or_default(),
        });
    }
    Ok(())
}

fn broken(kind: &str, error: &dyn std::error::Error) -> Failed {
    Failed { kind: kind.to_owned(), sentence: innermost(error) }
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

    #[test]
    fn chunks_usage_and_errors() {
        let mut observed = Observed::default();
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
        let failed = take(&mut observed, r#"{"error": {"message": "gone", "code": "unavailable"}}"#, now, true);
        assert_eq!(failed, Err(Failed { kind: "unavailable".into(), sentence: "gone".into() }));
    }
}
