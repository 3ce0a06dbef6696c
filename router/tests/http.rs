//! The front door for OpenAI's clients, over sockets of our own: shapes, refusals, departures, garbage, the end.

mod cluster;

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use cascadia_core::placement::Role;
use cascadia_node::config::Reloadable;
use cascadia_proto::refusal;
use cascadia_proto::v1::inference_client::InferenceClient;
use cascadia_proto::v1::{ListModelsRequest, Parameters, Speculation};
use cascadia_router::RouterConfig;
use cascadia_router::http::HttpConfig;
use cluster::{Call, Cluster, Owner, StoppedClock, config, request, soon};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

const CHAT: &str = "/v1/chat/completions";

/// A response, read to its end.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a stream's data frames say; chunk sizes and comments fall out.
    fn frames(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).unwrap() }).collect()
    }
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn chat(more: &Value) -> Vec<u8> {
    let mut body = json!({
        "model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, "seed": 5,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(CHAT, body.to_string().as_bytes())
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: &str, bytes: &[u8]) -> Reply {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = soon(socket.read_to_end(&mut answer)).await;
    Reply::of(&String::from_utf8_lossy(&answer))
}

fn ask(cluster: &Cluster, bytes: Vec<u8>) -> JoinHandle<Reply> {
    let address = cluster.http.clone();
    tokio::spawn(async move { exchange(&address, &bytes).await })
}

/// Plays a whole session of four tokens.
async fn play(call: &Call) {
    call.opened(&[1, 2, 3]).await;
    call.tokens(3, &[10, 11]).await;
    call.tokens(5, &[12]).await;
    call.finish(Speculation { blocks: 2, accepted: 3, ..Speculation::default() }).await;
}

#[tokio::test]
async fn a_stream_is_openais_to_the_letter() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let asked = ask(&cluster, chat(&json!({"stream": true})));
    play(&drafter.call().await).await;
    let reply = soon(asked).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.head.contains("content-type: text/event-stream"));
    let frames = reply.frames();
    let choice = |frame: &Value| frame["choices"][0].clone();
    assert_eq!(choice(&frames[0])["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(choice(&frames[1])["delta"], json!({"content": "<10><11>"}));
    assert_eq!(choice(&frames[2])["delta"], json!({"content": "<12>"}));
    for frame in &frames[..3] {
        assert_eq!(choice(frame).get("finish_reason"), Some(&Value::Null));
        assert_eq!(frame["object"], "chat.completion.chunk");
        assert_eq!((&frame["id"], &frame["created"]), (&frames[0]["id"], &frames[0]["created"]));
        assert!(frame.get("usage").is_none());
    }
    assert_eq!((&choice(&frames[3])["delta"], &choice(&frames[3])["finish_reason"]), (&json!({}), &json!("stop")));
    assert_eq!(frames[4..], [json!("[DONE]")]);
}

#[tokio::test]
async fn what_breaks_is_a_status_before_the_first_event_and_a_frame_behind_it() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let asked = ask(&cluster, chat(&json!({"stream": true})));
    drafter.call().await.fail(refusal::too_long("the prompt is over the context")).await;
    let reply = soon(asked).await.unwrap();
    assert_eq!(reply.status, 400);
    let said = json!({"error": {
        "message": "the prompt is over the context", "type": "invalid_request_error", "param": "messages",
        "code": "context_length_exceeded",
    }});
    assert_eq!(reply.json(), said);

    let asked = ask(&cluster, chat(&json!({"stream": true})));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.tokens(1, &[10]).await;
    call.fail(Status::data_loss("the model computes no numbers")).await;
    let reply = soon(asked).await.unwrap();
    let frames = reply.frames();
    assert_eq!(reply.status, 200);
    assert_eq!(frames.last().unwrap()["error"]["message"], "the model computes no numbers");
    assert!(!frames.contains(&json!("[DONE]")), "the text is not whole");
}

#[tokio::test]
async fn choices_are_sessions_of_one_seed() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let asked = ask(&cluster, chat(&json!({"n": 2})));
    for _ in 0..2 {
        let call = drafter.call().await;
        let resolved = call.open.resolved.clone().unwrap();
        assert_eq!(resolved.seed, 5);
        call.opened(&[1]).await;
        call.tokens_of(resolved.choice, 1, &[20 + resolved.choice]).await;
        call.finish(Speculation::default()).await;
    }
    let answer = soon(asked).await.unwrap().json();
    let texts: Vec<&Value> = (0..2).map(|i| &answer["choices"][i]["message"]["content"]).collect();
    assert_eq!(texts, [&json!("<20>"), &json!("<21>")]);
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(1), &json!(2)));
    assert_eq!(answer["metrics"], Value::Null);
}

#[tokio::test]
async fn a_client_that_goes_takes_its_sessions_along() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    for stream in [false, true] {
        let mut socket = TcpStream::connect(&cluster.http).await.unwrap();
        socket.write_all(&chat(&json!({"stream": stream, "n": 2}))).await.unwrap();
        let mut calls = [drafter.call().await, drafter.call().await];
        for call in &calls {
            call.opened(&[1]).await;
        }
        drop(socket);
        for call in &mut calls {
            call.cancelled().await;
        }
    }
}

#[tokio::test]
async fn a_full_house_admits_all_choices_or_none() {
    let (cluster, mut drafter, _expert) = Cluster::pair(RouterConfig { max_sessions: 1, ..config() }).await;
    let reply = exchange(&cluster.http, &chat(&json!({"n": 2}))).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(reply.head.contains("retry-after: ") && reply.head.contains("retry-after-ms: "), "{}", reply.head);
    drafter.is_left_alone().await;
    let asked = ask(&cluster, chat(&json!({})));
    play(&drafter.call().await).await;
    assert_eq!(soon(asked).await.unwrap().json()["choices"][0]["message"]["content"], "<10><11><12>");
}

#[tokio::test]
async fn what_is_no_request_has_its_status_and_the_envelope() {
    let cluster = Cluster::start(config()).await;
    let plain = |text: &str| text.replace('\n', "\r\n").into_bytes();
    let huge = vec![b' '; 5 << 20];
    for (bytes, status, code) in [
        (post(CHAT, b"{"), 400, "invalid_json"),
        (post(CHAT, b"[1]"), 400, "invalid_type"),
        (post(CHAT, &[0xff, 0xfe]), 400, "invalid_json"),
        (post(CHAT, &huge), 413, "payload_too_large"),
        (chat(&json!({"tools": [{}]})), 400, "unsupported_parameter"),
        (chat(&json!({"model": "demo:x"})), 503, "unavailable"),
        (
            plain("POST /v1/completions HTTP/1.1\nHost: x\nContent-Length: 2\nConnection: close\n\n{}"),
            415,
            "unsupported_media_type",
        ),
        (plain("GET /v2 HTTP/1.1\nHost: x\nConnection: close\n\n"), 404, "unknown_url"),
        (plain("GET /v1/chat/completions HTTP/1.1\nHost: x\nConnection: close\n\n"), 405, "method_not_allowed"),
        (plain("OPTIONS /v1/completions HTTP/1.1\nHost: x\nConnection: close\n\n"), 405, "method_not_allowed"),
        // As a request for it would be answered.
        (plain("GET /v1/models/a/b HTTP/1.1\nHost: x\nConnection: close\n\n"), 503, "unavailable"),
        (plain("GET /v1/models/%ff HTTP/1.1\nHost: x\nConnection: close\n\n"), 400, "invalid_value"),
        (chat(&json!({"request_id": "a\nb"})), 400, "invalid_value"),
        (chat(&json!({"request_id": "x".repeat(513)})), 400, "invalid_value"),
        (
            "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Cascadia-Tenant: Z\u{fc}rich\r\nConnection: close\r\n\r\n".into(),
            400,
            "invalid_value",
        ),
        (version_with(&"a: b\r\n".repeat(150)), 431, "headers_too_large"),
        (version_with(&format!("a: {}\r\n", "b".repeat(70_000))), 431, "headers_too_large"),
        (plain("GET /health HTTP/1.1\nHost: x\nConnection: close\n\n"), 503, "unavailable"),
    ] {
        let reply = exchange(&cluster.http, &bytes).await;
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(reply.json()["error"]["code"], code, "{reply:?}");
        assert!(reply.head.contains("x-request-id: "), "{}", reply.head);
    }
    let many = version_with(&"a: b\r\n".repeat(1_000));
    assert_eq!(exchange(&cluster.http, &many).await.status, 431);
    let long = version_with(&format!("a: {}\r\n", "b".repeat(1 << 20)));
    assert_eq!(exchange(&cluster.http, &long).await.status, 431);
    let named = b"GET /version HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nConnection: close\r\n\r\n";
    let reply = exchange(&cluster.http, named).await;
    assert!(reply.status == 200 && reply.head.contains("x-request-id: mine"), "{reply:?}");
}

#[tokio::test]
async fn a_grpc_client_at_this_port_is_told_where_to_go() {
    let cluster = Cluster::start(config()).await;
    let mut client = InferenceClient::connect(format!("http://{}", cluster.http)).await.unwrap();
    let refused = soon(client.list_models(ListModelsRequest {})).await.unwrap_err();
    assert!(refused.code() == Code::Unimplemented && refused.message().contains("--listen"), "{refused}");
}

fn version_with(headers: &str) -> Vec<u8> {
    format!("GET /version HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn headers_have_the_same_bounds_over_http_2() {
    let cluster = Cluster::start(config()).await;
    let io = TokioIo::new(TcpStream::connect(&cluster.http).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    for (count, bytes, status) in [(150, 1, 431), (1, 70_000, 431), (90, 100, 200)] {
        let value = "b".repeat(bytes);
        let request = (0..count)
            .fold(Request::get("http://router/version"), |request, i| request.header(format!("a-{i}"), &value));
        let response = soon(sender.send_request(request.body(Body::empty()).unwrap())).await.unwrap();
        assert_eq!(response.status(), status, "{count} of {bytes}");
        let body = axum::body::to_bytes(Body::new(response.into_body()), 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"] == "headers_too_large", status == 431, "{body}");
    }
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_before_it_is_sent() {
    let cluster = Cluster::start(config()).await;
    for expect in ["", "Expect: 100-continue\r\n"] {
        let mut socket = TcpStream::connect(&cluster.http).await.unwrap();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000000\r\n{expect}\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut said = [0u8; 12];
        soon(socket.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 413");
    }
}

#[tokio::test]
async fn a_large_body_is_read_as_a_small_one_is() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let text = "x".repeat(1 << 20);
    let asked = ask(&cluster, chat(&json!({"messages": [{"role": "user", "content": &text}]})));
    play(&drafter.call().await).await;
    assert_eq!(soon(asked).await.unwrap().json()["choices"][0]["message"]["content"], "<10><11><12>");
}

#[tokio::test]
async fn a_request_id_of_nothing_is_none() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let asked = ask(&cluster, chat(&json!({"request_id": "", "n": 2, "seed": null})));
    let mut named = Vec::new();
    for _ in 0..2 {
        let call = drafter.call().await;
        let resolved = call.open.resolved.clone().unwrap();
        assert!(resolved.default_max_tokens || call.parameters().max_tokens == Some(16));
        named.push((call.open.request_id.clone(), resolved.seed));
        call.opened(&[1]).await;
        call.tokens_of(resolved.choice, 1, &[20]).await;
        call.finish(Speculation::default()).await;
    }
    assert!(named[0].0.starts_with("req-") && named[0] == named[1], "{named:?}");
    assert!(soon(asked).await.unwrap().head.contains(&format!("x-request-id: {}", named[0].0)));
}

#[tokio::test]
async fn a_model_without_nodes_is_told_of_where_requests_for_it_wait() {
    let (cluster, drafter, expert) = Cluster::pair(config()).await;
    drop((drafter, expert));
    let get = |name: &str| format!("GET /v1/models/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let reply = soon(async {
        loop {
            let reply = exchange(&cluster.http, get("demo").as_bytes()).await;
            if reply.status != 200 {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(reply.status == 503 && message.contains("requests for it wait"), "{reply:?}");
    // And one that nobody ever served has the same answer as a request for it.
    for bytes in [get("gpt-4").into_bytes(), chat(&json!({"model": "gpt-4"}))] {
        let error = exchange(&cluster.http, &bytes).await.json()["error"].clone();
        assert_eq!(error["message"], "model \"gpt-4\" is not served here: name one of demo");
    }
}

#[tokio::test]
async fn garbage_disturbs_nobody() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let asked = ask(&cluster, chat(&json!({"stream": true})));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    let mut state = 7u64;
    for round in 0..64 {
        let length = 1 + (round * 37) % 900;
        let noise = std::iter::repeat_with(|| {
            state = cascadia_core::history::splitmix64(state);
            state as u8
        });
        let start: &[u8] = [&b""[..], b"POST ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n"][round % 4];
        let bytes: Vec<u8> = start.iter().copied().chain(noise.take(length)).collect();
        let mut socket = TcpStream::connect(&cluster.http).await.unwrap();
        let _ = socket.write_all(&bytes).await;
        let _ = socket.shutdown().await;
        let _ = soon(socket.read_to_end(&mut Vec::new())).await;
    }
    call.tokens(1, &[10]).await;
    call.finish(Speculation::default()).await;
    assert_eq!(soon(asked).await.unwrap().frames().last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn keys_open_the_api_and_health_is_open() {
    let file = std::env::temp_dir().join(format!("cascadia-keys-{}", std::process::id()));
    std::fs::write(&file, "# ours\nsk-one\n").unwrap();
    let http = HttpConfig { http: "127.0.0.1:0".into(), api_key_file: Some(file.clone()) };
    let cluster = Cluster::start_with(config(), http).await;
    std::fs::remove_file(file).unwrap();
    let get = |path: &str, key: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{key}Connection: close\r\n\r\n");
    let reply = exchange(&cluster.http, get("/v1/models", "").as_bytes()).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    assert!(reply.head.contains("www-authenticate: bearer"));
    let key = "Authorization: Bearer sk-one\r\n";
    assert_eq!(exchange(&cluster.http, get("/v1/models", key).as_bytes()).await.status, 200);
    assert_eq!(exchange(&cluster.http, get("/version", "").as_bytes()).await.status, 200);
}

#[tokio::test]
async fn a_draining_router_finishes_what_is_open() {
    let lame_duck = RouterConfig { lame_duck_ms: 1_000, ..config() };
    let (cluster, mut drafter, _expert) = Cluster::pair(lame_duck).await;
    let asked = ask(&cluster, chat(&json!({"stream": true})));
    let call = drafter.call().await;
    call.opened(&[1, 2, 3]).await;
    let mut idle = TcpStream::connect(&cluster.http).await.unwrap();
    idle.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0u8; 12];
    idle.read_exact(&mut first).await.unwrap();

    let clock = StoppedClock::stop();
    cluster.shutdown.drain();
    // A balancer that has not heard of it yet: the request is served, and the connection told to close.
    let reply = exchange(&cluster.http, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(reply.status == 200 && reply.head.contains("connection: close"), "{reply:?}");
    // Behind the lame duck, idle connections end.
    drop(clock);
    soon(idle.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(TcpStream::connect(&cluster.http).await.is_err(), "nobody listens any more");
    call.tokens(3, &[10]).await;
    call.finish(Speculation::default()).await;
    assert_eq!(soon(asked).await.unwrap().frames().last().unwrap(), "[DONE]");
    soon(cluster.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_goes_by_the_lame_duck_that_is_in_force_when_it_begins() {
    let (live, replace) = Reloadable::new(RouterConfig { lame_duck_ms: 600_000, ..config() });
    let http = HttpConfig { http: "127.0.0.1:0".into(), ..HttpConfig::default() };
    let cluster = Cluster::start_with(live, http).await;
    let mut idle = TcpStream::connect(&cluster.http).await.unwrap();
    idle.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    idle.read_exact(&mut [0u8; 12]).await.unwrap();
    replace.with(config());
    cluster.shutdown.drain();
    soon(idle.read_to_end(&mut Vec::new())).await.unwrap();
    soon(cluster.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_prompt_travels_as_a_grpc_clients_would() {
    let cluster = Cluster::start(config()).await;
    let mut drafter: Owner = cluster.owner("drafter-1", Role::Drafter).await;
    let _expert = cluster.owner("expert-1", Role::Expert).await;
    let body = json!({
        "model": "demo:token_v3@0.5", "prompt": [1, 2, 3], "max_tokens": 9, "temperature": 0.5, "stop": "x", "seed": 9,
        "prompt_cache_key": "talk", "priority": 3, "request_id": "label", "cascadia": {"draft_length": 2},
    });
    let asked = ask(&cluster, post("/v1/completions", body.to_string().as_bytes()));
    let call = drafter.call().await;
    let parameters = call.parameters();
    assert_eq!((parameters.rule.as_str(), parameters.alpha), ("token_v3", Some(0.5)));
    assert_eq!((parameters.draft_length, parameters.max_tokens, parameters.seed), (Some(2), Some(9), Some(9)));
    assert!(!call.open.resolved.as_ref().unwrap().default_max_tokens);
    assert_eq!((call.open.priority, call.open.request_id.as_str()), (3, "label"));
    play(&call).await;
    let reply = soon(asked).await.unwrap();
    assert!(reply.head.contains("x-request-id: label"));
    assert_eq!(reply.json()["choices"][0]["text"], "<10><11><12>");
    assert_eq!(reply.json()["cascadia"]["rule"], "token_v3");
}

#[tokio::test]
async fn a_number_is_the_same_over_both_doors() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    // Digits that give another number where they are not read to the last bit.
    let digits = ["0.9210986675838745", "0.9355867217045211", "0.47274908866546683", "0.09745430973087721"];
    let [temperature, top_p, min_p, alpha] = digits.map(|digits| digits.parse::<f64>().unwrap());
    let asked = Parameters {
        strategy: "speculative_cascade".into(),
        rule: "token_v3".into(),
        temperature: Some(temperature),
        top_p: Some(top_p),
        min_p: Some(min_p),
        alpha: Some(alpha),
        max_tokens: Some(16),
        seed: Some(5),
        ..Parameters::default()
    };
    let _over_grpc = cluster.ask(request(asked));
    let over_grpc = drafter.call().await.parameters().clone();
    let [temperature, top_p, min_p, alpha] = digits;
    let body = format!(
        "{{\"prompt\": \"x\", \"temperature\": {temperature}, \"top_p\": {top_p}, \"min_p\": {min_p}, \"max_tokens\": 16, \
         \"seed\": 5, \"cascadia\": {{\"rule\": \"token_v3\", \"alpha\": {alpha}}}}}"
    );
    let _over_http = ask(&cluster, post("/v1/completions", body.as_bytes()));
    let over_http = drafter.call().await.parameters().clone();
    assert_eq!(over_http, over_grpc);
    // And what an answer says of it is what was asked.
    assert_eq!(serde_json::to_string(&over_http.alpha).unwrap(), alpha);
}
