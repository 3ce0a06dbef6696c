//! What one request may take of a router's memory: no more than a few times its body, whatever it asks and however it is
//! answered. Measured at a process of its own, whose peak the system counts.
#![cfg(target_os = "linux")]

mod real;

use std::fmt::Write as _;

use cascadia::client::Client;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{GenerateRequest, LogitBias, Message, Messages, Parameters, Prompt, TokenIds};
use real::{Etcd, Process, etcd, exchange, free_address, node_command, ready, synthetic_command, wait_for};

/// What a router may take beside a request's body.
const BESIDE: usize = 16 << 20;

/// Bytes of the bodies: nearly as many as are taken.
const LARGE: usize = 3_800_000;

/// What is sent to a router that has seen nothing large before: memory that was once taken is taken again unseen.
const ALONE: [&str; 6] = [
    "ids for many",
    "a text for many",
    "a shorter text for many",
    "banned",
    "ids over gRPC",
    "empty messages over gRPC",
];

/// A router's process.
struct Router {
    process: Process,
    server: String,
    http: String,
}

impl Router {
    /// One that sees an expert and a drafter, and has answered.
    fn start(etcd: &Etcd) -> Self {
        let [server, http] = [free_address(), free_address()];
        let mut command = node_command("router", "router-1", &server, etcd);
        command.args(["--http", &http]).env("CASCADIA_LOG", "warn");
        let process = Process(command.spawn().expect("the binary runs"));
        wait_for(&server, |status| ready(status, "expert") == 1 && ready(status, "drafter") == 1);
        let router = Self { process, server, http };
        router.serves();
        router
    }

    fn serves(&self) {
        let (status, answer) = self.post("/v1/completions", r#"{"prompt": "x", "max_tokens": 1}"#);
        assert_eq!(status, "200", "{answer}");
    }

    /// The most memory that it ever had, bytes.
    fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the system counts it");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// Asks, and returns the status and the body of the answer.
    fn post(&self, path: &str, body: &str) -> (String, String) {
        let head = format!("Content-Type: application/json\r\nContent-Length: {}", body.len());
        let (head, answer) =
            exchange(&self.http, &format!("POST {path} HTTP/1.0\r\n{head}\r\n\r\n{body}")).expect("an answer");
        (head.split(' ').nth(1).unwrap_or_default().to_owned(), answer)
    }

    /// Does what sends a body of so many bytes, and looks at what that took.
    fn takes_little<T>(&self, what: &str, body: usize, send: impl FnOnce() -> T) -> T {
        let before = self.peak();
        let answer = send();
        // The system counts in batches of pages: a peak may be read a little lower than before.
        let grown = self.peak().saturating_sub(before);
        println!("{what}: {body} bytes, {grown} more at the peak of {}", self.peak());
        assert!(grown <= 4 * body + BESIDE, "{what}: a body of {body} bytes took {grown}");
        answer
    }
}

/// A JSON array of so many bytes.
fn array(element: &str, bytes: usize) -> String {
    let count = bytes / (element.len() + 1);
    format!("[{}{element}]", format!("{element},").repeat(count.saturating_sub(1)))
}

fn of_prompt(kind: Kind) -> GenerateRequest {
    GenerateRequest { prompt: Some(Prompt { kind: Some(kind) }), ..GenerateRequest::default() }
}

fn of_parameters(parameters: Parameters) -> GenerateRequest {
    GenerateRequest { parameters: Some(parameters), ..of_prompt(Kind::Text("x".into())) }
}

#[test]
fn a_request_takes_a_few_times_its_body_whatever_it_asks() {
    let etcd = etcd();
    let synthetic = |role: &str, id: &str| {
        let mut command = synthetic_command(role, id, &free_address(), &etcd, "length=none,context=64");
        Process(command.spawn().expect("the binary runs"))
    };
    let _nodes = [synthetic("expert", "expert-1"), synthetic("drafter", "drafter-1")];
    let mut router = Router::start(&etcd);
    let renewed = |what: &str, router: &mut Router| {
        if ALONE.contains(&what) {
            *router = Router::start(&etcd);
        }
    };

    let ids = array("1", LARGE);
    let text = "a digit 7 ".repeat(LARGE / 10);
    // Six bytes of JSON, one of text.
    let escaped = "\\u0061".repeat(LARGE / 6);
    let shared = "x".repeat(LARGE / 8);
    let mut biases = String::new();
    (0..LARGE / 12).for_each(|i| write!(biases, "\"{i:06}\":1,").expect("a string grows"));
    let biases = format!("{{{}}}", biases.trim_end_matches(','));
    let message = r#"{"role":"user","content":""}"#;
    let mut unknown = String::new();
    (0..LARGE / 10).for_each(|i| write!(unknown, "\"{i:06}\":1,").expect("a string grows"));
    for (what, path, body, code) in [
        ("ids for many", "completions", format!(r#"{{"prompt":{ids},"n":128}}"#), "invalid_value"),
        ("ids for one", "completions", format!(r#"{{"prompt":{ids}}}"#), "context_length_exceeded"),
        ("a text for many", "completions", format!(r#"{{"prompt":"{text}","n":128}}"#), "invalid_value"),
        // This one's sessions are all opened at the drafter, which refuses them.
        (
            "a shorter text for many",
            "completions",
            format!(r#"{{"prompt":"{shared}","n":128}}"#),
            "context_length_exceeded",
        ),
        ("escapes", "completions", format!(r#"{{"prompt":"{escaped}"}}"#), "context_length_exceeded"),
        (
            "a message",
            "chat/completions",
            format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"n":128}}"#),
            "invalid_value",
        ),
        (
            "messages",
            "chat/completions",
            format!(r#"{{"messages":{},"n":128}}"#, array(message, LARGE)),
            "invalid_value",
        ),
        (
            "parts",
            "chat/completions",
            format!(
                r#"{{"messages":[{{"role":"user","content":{}}}]}}"#,
                array(r#"{"type":"text","text":"a"}"#, LARGE)
            ),
            "context_length_exceeded",
        ),
        (
            "banned",
            "completions",
            format!(r#"{{"prompt":"x","n":128,"cascadia":{{"banned":{ids}}}}}"#),
            "invalid_value",
        ),
        ("stop ids", "completions", format!(r#"{{"prompt":"x","stop_token_ids":{ids}}}"#), "invalid_value"),
        ("stops", "completions", format!(r#"{{"prompt":"x","stop":{}}}"#, array("\"\"", LARGE)), "invalid_value"),
        ("a long stop", "completions", format!(r#"{{"prompt":"x","n":128,"stop":"{text}"}}"#), "invalid_value"),
        ("biases", "completions", format!(r#"{{"prompt":"x","n":128,"logit_bias":{biases}}}"#), "invalid_value"),
        ("ignored", "completions", format!(r#"{{"prompt":"","metadata":{ids}}}"#), "invalid_value"),
        ("unknown", "completions", format!(r#"{{"prompt":"x",{unknown}"n":1}}"#), "unknown_parameter"),
        ("echoes", "completions", format!(r#"{{"prompt":"{text}","n":128,"echo":true}}"#), "invalid_value"),
        ("prompts", "completions", format!(r#"{{"prompt":{}}}"#, array("\"x\"", LARGE)), "invalid_value"),
        ("no JSON", "completions", format!(r#"{{"prompt":{}"#, array("[", LARGE)), "invalid_json"),
    ] {
        renewed(what, &mut router);
        let (status, answer) = router.takes_little(what, body.len(), || router.post(&format!("/v1/{path}"), &body));
        assert!(status == "400" && answer.contains(code), "{what}: {status} {answer}");
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let said = |server: &str, request: GenerateRequest| {
        let client = runtime.block_on(Client::connect(server)).expect("the router is there");
        match runtime.block_on(client.answer(request)) {
            Ok(_) => panic!("it is refused"),
            Err(error) => error.to_string(),
        }
    };
    for (what, bytes, request, says) in [
        ("ids", LARGE, of_prompt(Kind::Ids(TokenIds { ids: vec![1; LARGE] })), "context"),
        ("a text", LARGE, of_prompt(Kind::Text(text)), "context"),
        (
            "empty messages",
            LARGE,
            of_prompt(Kind::Messages(Messages { messages: vec![Message::default(); LARGE / 2] })),
            "prompt is empty",
        ),
        (
            "banned",
            LARGE,
            of_parameters(Parameters { banned: vec![1; LARGE], ..Parameters::default() }),
            "parameters has",
        ),
        (
            "stops",
            LARGE,
            of_parameters(Parameters { stop: vec![String::new(); LARGE / 3], ..Parameters::default() }),
            "parameters has",
        ),
        (
            "biases",
            LARGE,
            of_parameters(Parameters { logit_bias: vec![LogitBias::default(); LARGE / 2], ..Parameters::default() }),
            "parameters has",
        ),
    ] {
        let what = format!("{what} over gRPC");
        renewed(&what, &mut router);
        let said = router.takes_little(&what, bytes, || said(&router.server, request));
        assert!(said.contains(says), "{what}: {said}");
    }
    router.serves();
}
