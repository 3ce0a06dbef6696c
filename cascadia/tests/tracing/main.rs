//! A real OTLP receiver judges the traces of a cluster of processes.

#[path = "../real/mod.rs"]
mod real;
mod receiver;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::inference_client::InferenceClient;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{GenerateRequest, Message, Messages, Parameters, Prompt};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use real::{Etcd, Process};
use receiver::{Receiver, Span, named};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};

const PAIR: &str = "acceptance=0.7,length=none,drafter.step=1ms,expert.step=4ms";
const PROMPT: &str = "a prompt that nobody shall read in a log";
const SAID: u64 = 0x00f0_67aa_0ba9_02b7;

const ROUTER: &str = "cascadia-router";
const DRAFTER: &str = "cascadia-drafter";
const EXPERT: &str = "cascadia-expert";

/// A cluster of processes: three routers that trace differently, two drafters, an expert.
struct Cluster {
    received: Receiver,
    /// Exports what fails, and what its caller samples.
    quiet: String,
    quiet_log: PathBuf,
    /// Exports what takes a millisecond; logs prompts.
    impatient: String,
    impatient_log: PathBuf,
    http: String,
    drafters: Vec<(String, Process)>,
    _others: Vec<Process>,
    _etcd: Etcd,
    folder: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Cluster {
    async fn start() -> Self {
        let (received, collector) = Receiver::start().await;
        let (etcd, folder) = (real::etcd(), real::folder("tracing"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let traced = |command: &mut Command, slow_ms: &str| {
            command
                .args(["--otlp-endpoint", &collector, "--trace-ratio", "0", "--trace-slow-ms", slow_ms])
                .args(["--log-json", "--log", "info"])
                .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
                .env("OTEL_BSP_SCHEDULE_DELAY", "100");
        };
        let start = |mut command: Command| Process(command.spawn().expect("the binary runs"));
        let node = |role: &str, id: &str| {
            let mut command = real::synthetic_command(role, id, &real::free_address(), &etcd, PAIR);
            traced(&mut command, "0");
            start(command)
        };
        let router = |id: &str, listen: &str, http: &str, slow_ms: &str, more: &[&str]| {
            let mut command = real::cascadia();
            command.args(["router", "--id", id, "--listen", listen, "--http", http, "--etcd", &etcd.address]);
            traced(&mut command, slow_ms);
            let log = folder.join(id);
            command.args(more).stderr(File::create(&log).expect("a file"));
            (start(command), log)
        };
        let (quiet, impatient, http) = (real::free_address(), real::free_address(), real::free_address());
        let (first, quiet_log) = router("quiet", &quiet, &http, "0", &[]);
        let (second, impatient_log) = router("impatient", &impatient, "off", "1", &["--log-prompts"]);
        let others = vec![first, second, node("expert", "expert-1")];
        let drafters = ["drafter-1", "drafter-2"].map(|id| (id.to_owned(), node("drafter", id)));
        for server in [&quiet, &impatient] {
            real::wait_for(server, |status| {
                real::ready(status, "expert") == 1 && real::ready(status, "drafter") == drafters.len()
            });
        }
        Self {
            received,
            quiet,
            quiet_log,
            impatient,
            impatient_log,
            http,
            drafters: drafters.into(),
            _others: others,
            _etcd: etcd,
            folder,
        }
    }

    fn log(path: &PathBuf) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }
}

fn traceparent(trace: u128, sampled: bool) -> String {
    format!("00-{trace:032x}-{SAID:016x}-{:02x}", u8::from(sampled))
}

fn request(max_tokens: u32, timeout_ms: Option<u64>) -> GenerateRequest {
    let message = Message { role: "user".into(), content: PROMPT.into() };
    GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::Messages(Messages { messages: vec![message] })) }),
        parameters: Some(Parameters {
            strategy: "speculative".into(),
            temperature: Some(0.8),
            seed: Some(7),
            max_tokens: Some(max_tokens),
            ..Parameters::default()
        }),
        tenant: "someone".into(),
        timeout_ms,
        ..GenerateRequest::default()
    }
}

/// Asks over gRPC within a trace; `streaming` is called with the drafter's name when some messages are there.
async fn ask(
    server: &str,
    trace: (u128, bool),
    asked: GenerateRequest,
    streaming: impl FnOnce(&str),
) -> Result<(), Status> {
    let mut client = InferenceClient::connect(format!("http://{server}")).await.expect("the router is there");
    let mut call = tonic::Request::new(asked);
    let parent = traceparent(trace.0, trace.1).parse().expect("a header");
    call.metadata_mut().insert("traceparent", parent);
    call.metadata_mut().insert("tracestate", "vendor=something".parse().expect("a header"));
    let mut stream = client.generate(call).await?.into_inner();
    let (mut count, mut drafter, mut streaming) = (0, String::new(), Some(streaming));
    while let Some(message) = stream.message().await? {
        if let Some(Event::Started(started)) = message.event {
            drafter = started.drafter;
        }
        count += 1;
        if let Some(streaming) = streaming.take_if(|_| count > 3) {
            streaming(&drafter);
        }
    }
    Ok(())
}

/// A request is there when the first span of it is.
fn has_ended(spans: &[Span]) -> bool {
    !named(spans, ROUTER, "chat synthetic").is_empty()
}

/// Whether every process that worked for a request has sent its part.
fn is_whole(spans: &[Span]) -> bool {
    has_ended(spans)
        && !named(spans, DRAFTER, "Session/Run").is_empty()
        && !named(spans, EXPERT, "Verify/Stream").is_empty()
        && !named(spans, EXPERT, "verify").is_empty()
}

/// Whether all has come that a request's spans tell of: they come in several exports.
fn is_told(received: &Receiver, spans: &[Span]) -> bool {
    let answered = |spans: &[&Span]| spans.iter().filter(|span| span.number("spec.accepted.tokens").is_some()).count();
    let (rounds, blocks) = (named(spans, DRAFTER, "round"), named(spans, EXPERT, "verify"));
    let counted: f64 =
        named(spans, DRAFTER, "Verify/Stream").iter().filter_map(|span| span.number("spec.rounds")).sum();
    let all = received.all();
    let links = blocks.iter().flat_map(|block| &block.span.links);
    let batches_came = links.map(|link| &link.span_id).all(|id| all.iter().any(|span| span.span.span_id == *id));
    is_whole(spans) && rounds.len() as f64 == counted && answered(&rounds) <= answered(&blocks) && batches_came
}

fn only<'a>(spans: &'a [Span], service: &str, name: &str) -> &'a Span {
    match named(spans, service, name)[..] {
        [span] => span,
        ref several => panic!("{} spans {name} of {service}", several.len()),
    }
}

/// The tree of a request that went well: parents, kinds, attributes, links, resources.
fn assert_tree(received: &Receiver, spans: &[Span]) {
    let request = only(spans, ROUTER, "chat synthetic");
    let placement = only(spans, ROUTER, "placement");
    let call = only(spans, ROUTER, "Session/Run");
    let session = only(spans, DRAFTER, "Session/Run");
    let stream = only(spans, DRAFTER, "Verify/Stream");
    let verified = only(spans, EXPERT, "Verify/Stream");
    let (drafts, rounds) = (named(spans, DRAFTER, "draft"), named(spans, DRAFTER, "round"));
    let blocks = named(spans, EXPERT, "verify");

    assert_eq!(request.span.parent_span_id, SAID.to_be_bytes(), "the client's span");
    for (child, parent) in
        [(placement, request), (call, request), (session, call), (stream, session), (verified, stream)]
    {
        assert!(child.is_child_of(parent), "{} below {}", child.span.name, parent.span.name);
    }
    assert!(drafts.iter().all(|draft| draft.is_child_of(session)));
    assert!(rounds.iter().all(|round| round.is_child_of(stream)));
    assert!(blocks.iter().all(|block| block.is_child_of(verified)));
    for (span, kind) in [
        (request, SpanKind::Server),
        (placement, SpanKind::Internal),
        (call, SpanKind::Client),
        (session, SpanKind::Server),
        (stream, SpanKind::Client),
        (verified, SpanKind::Server),
    ] {
        assert_eq!(span.span.kind(), kind, "{}", span.span.name);
        assert!(!span.failed(), "{}", span.span.name);
        assert_eq!(span.span.trace_state, "vendor=something", "{}", span.span.name);
    }

    assert_eq!(request.text("gen_ai.operation.name").as_deref(), Some("chat"));
    assert_eq!(request.text("gen_ai.request.model").as_deref(), Some("synthetic"));
    assert_eq!(request.text("gen_ai.response.finish_reasons").as_deref(), Some("length"));
    assert_eq!(request.number("gen_ai.request.temperature"), Some(0.8));
    assert_eq!(request.number("gen_ai.usage.output_tokens"), Some(24.0));
    assert!(request.number("gen_ai.usage.input_tokens").is_some_and(|tokens| tokens > 0.0));
    assert!(request.number("gen_ai.response.time_to_first_chunk").is_some_and(|seconds| seconds > 0.0));
    assert_eq!(placement.text("cascadia.placement.reason").as_deref(), Some("new"));
    assert_eq!(placement.number("cascadia.placement.attempt"), Some(1.0));
    assert_eq!(placement.text("cascadia.drafter"), Some(session.node()));
    assert_eq!(placement.text("cascadia.expert"), Some(verified.node()));
    let name = request.text("cascadia.session").expect("a session");
    for span in [session, verified] {
        assert_eq!(span.text("cascadia.session").as_ref(), Some(&name));
        assert_eq!(span.text("spec.strategy").as_deref(), Some("speculative"));
        assert!(span.text("gen_ai.usage.output_tokens").is_none(), "usage is told once");
    }

    // Each round trip has its draft at the drafter and its block at the expert, and they tell one story.
    let total = |spans: &[&Span], key: &str| spans.iter().filter_map(|span| span.number(key)).sum::<f64>();
    assert!(rounds.len() > 1 && !drafts.is_empty());
    assert_eq!(Some(rounds.len() as f64), stream.number("spec.rounds"));
    for key in ["spec.draft.tokens", "spec.accepted.tokens", "spec.deferred.tokens"] {
        // The last blocks may be under way when the text ends.
        assert!(total(&rounds, key) >= request.number(key).expect(key), "{key}");
    }
    assert_eq!(total(&rounds, "spec.accepted.tokens"), request.number("spec.accepted.tokens").expect("accepted"));
    for round in &rounds {
        assert_eq!(round.text("spec.rule").as_deref(), Some("speculative"));
        let answered = round.number("spec.accepted.tokens").is_some();
        let base = round.number("spec.base").expect("a base");
        let block = blocks.iter().find(|block| block.number("spec.base") == Some(base));
        assert!(!answered || block.is_some(), "a round that was answered was verified");
    }

    // A batch is nobody's child: it links the sessions it served, and they link it.
    let answered: Vec<_> = blocks.iter().filter(|block| block.number("spec.accepted.tokens").is_some()).collect();
    assert!(!answered.is_empty());
    let all = received.all();
    for block in answered {
        assert!(block.number("spec.verify.queue_ms").is_some());
        let [link] = &block.span.links[..] else { panic!("one batch answers a block") };
        let batch = all.iter().find(|span| span.span.span_id == link.span_id).expect("the batch is exported too");
        assert_eq!((batch.service().as_str(), batch.span.name.as_str()), (EXPERT, "verify batch"));
        assert!(batch.span.parent_span_id.is_empty() && batch.span.trace_id != request.span.trace_id);
        assert!(batch.links_to(verified));
        assert!(batch.number("spec.verify.batch_sessions").is_some_and(|sessions| sessions >= 1.0));
        assert!(batch.number("spec.verify.batch_tokens").is_some_and(|tokens| tokens >= 1.0));
        assert!(batch.span.end_time_unix_nano >= batch.span.start_time_unix_nano);
    }
    for span in spans {
        let of = |key| receiver::text(&span.resource, key);
        assert_eq!(of("deployment.environment.name").as_deref(), Some("test"));
        assert_eq!(of("cascadia.node.role").map(|role| format!("cascadia-{role}")), Some(span.service()));
        assert_eq!(of("service.instance.id").map(|id| id.len()), Some(16));
    }
}

async fn ask_over_http(server: &str, trace: u128) -> String {
    let body = serde_json::json!({
        "model": "synthetic",
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0.8,
        "max_tokens": 24,
        "cascadia": {"strategy": "speculative"},
    })
    .to_string();
    let mut socket = tokio::net::TcpStream::connect(server).await.expect("the router is there");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\nConnection: close\r\n\
         traceparent: {}\r\ntracestate: vendor=something\r\nContent-Length: {}\r\n\r\n",
        traceparent(trace, true),
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("read");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_gets_whole_trees_of_what_is_sampled_fails_is_slow_or_migrates() {
    let mut cluster = Cluster::start().await;
    let received = cluster.received.clone();

    // What its caller samples is exported whatever the ratio, over either door.
    ask(&cluster.quiet, (0xa1, true), request(24, None), |_| ()).await.expect("an answer");
    assert_tree(&received, &received.wait(0xa1, |spans| is_told(&received, spans)).await);
    let answer = ask_over_http(&cluster.http, 0xa2).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_tree(&received, &received.wait(0xa2, |spans| is_told(&received, spans)).await);

    // Neither sampled nor slow nor failed, then one that fails: its spans come after those of the first would have.
    ask(&cluster.quiet, (0xb1, false), request(24, None), |_| ()).await.expect("an answer");
    let failed = ask(&cluster.quiet, (0xb2, false), request(4_000, Some(4_000)), |_| ()).await;
    assert_eq!(failed.expect_err("it has no time").code(), Code::DeadlineExceeded);
    let spans = received.wait(0xb2, is_whole).await;
    let whole = only(&spans, ROUTER, "chat synthetic");
    assert!(whole.failed());
    assert_eq!(whole.text("error.type").as_deref(), Some("deadline_exceeded"));
    assert!(named(&spans, DRAFTER, "round").len() > 1);
    // Asked of every process: what it exports now comes after what it would have exported of the first.
    ask(&cluster.quiet, (0xb3, true), request(24, None), |_| ()).await.expect("an answer");
    received.wait(0xb3, is_whole).await;
    assert!(received.trace(0xb1).is_empty(), "{:?}", received.trace(0xb1));

    // The router alone knows that it was slow; drafter and expert are told.
    ask(&cluster.impatient, (0xc1, false), request(24, None), |_| ()).await.expect("an answer");
    assert_tree(&received, &received.wait(0xc1, |spans| is_told(&received, spans)).await);

    // A refusal at the door is a trace of one span.
    let refused = ask(&cluster.quiet, (0xd1, false), request(0, None), |_| ()).await;
    assert_eq!(refused.expect_err("no tokens").code(), Code::InvalidArgument);
    received.wait(0xd1, |spans| spans.len() == 1 && spans[0].failed()).await;

    // The drafter dies under a request: another placement and run, and a trace although nobody sampled it.
    let mut killed = String::new();
    let kill = |drafter: &str| {
        let (id, process) = cluster.drafters.iter_mut().find(|(id, _)| id == drafter).expect("one of ours");
        process.0.kill().expect("it runs");
        killed.clone_from(id);
    };
    ask(&cluster.quiet, (0xe1, false), request(1_500, None), kill).await.expect("it goes on");
    let both = |spans: &[Span]| is_whole(spans) && named(spans, EXPERT, "Verify/Stream").len() == 2;
    let spans = received.wait(0xe1, both).await;
    assert_migrated(&spans, &killed);

    assert_logs(&cluster);
}

fn assert_migrated(spans: &[Span], lost: &str) {
    let request = only(spans, ROUTER, "chat synthetic");
    assert!(!request.failed(), "the client noticed nothing");
    let migration = request.span.events.iter().find(|event| event.name == "migration").expect("it is said");
    let reason = receiver::text(&migration.attributes, "cascadia.move.reason").expect("why");
    assert!(reason.starts_with("owner_"), "{reason}");
    let mut placements = named(spans, ROUTER, "placement");
    placements.sort_by_key(|span| span.span.start_time_unix_nano);
    let [first, .., last] = &placements[..] else { panic!("two placements") };
    assert_eq!(first.text("cascadia.drafter").as_deref(), Some(lost));
    assert_ne!(last.text("cascadia.drafter").as_deref(), Some(lost));
    assert_eq!(last.text("cascadia.placement.reason").as_ref(), Some(&reason));
    assert_eq!(last.number("cascadia.placement.attempt"), Some(placements.len() as f64));
    let runs = named(spans, ROUTER, "Session/Run");
    let broken = runs.iter().find(|run| run.text("cascadia.owner").as_deref() == Some(lost)).expect("the first run");
    assert!(broken.failed() && broken.text("error.type").as_ref() == Some(&reason));
    assert!(placements.iter().chain(&runs).all(|span| span.is_child_of(request)));
    // The dead drafter's own spans died with it; what the expert did for it is there, and the whole second run.
    let session = only(spans, DRAFTER, "Session/Run");
    let run = runs.iter().find(|run| session.is_child_of(run)).expect("the second run");
    assert!(!run.failed() && session.number("cascadia.history_tokens").is_some(), "it goes on with what is committed");
}

fn assert_logs(cluster: &Cluster) {
    let quiet = Cluster::log(&cluster.quiet_log);
    let of = |trace: u128| {
        let id = format!("{trace:032x}");
        quiet.iter().filter(|line| line["trace_id"] == id.as_str()).cloned().collect::<Vec<_>>()
    };
    let lines = of(0xa1);
    assert!(lines.len() >= 2, "admitted and finished: {lines:?}");
    assert!(lines.iter().all(|line| line["session"].as_str().is_some_and(|session| session.len() == 32)));
    assert!(lines.iter().all(|line| line["message"].is_string() && line["timestamp"].is_string()));
    assert!(!quiet.iter().any(|line| line.to_string().contains(PROMPT)), "no prompt unless asked");
    let impatient = Cluster::log(&cluster.impatient_log);
    assert!(impatient.iter().any(|line| line.to_string().contains(PROMPT)), "--log-prompts asks");
    assert!(impatient.iter().any(|line| line["message"] == "answered" && line["answer"].is_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_nothing_but_its_spans() {
    let nowhere = format!("http://{}", real::free_address());
    let folder = real::folder("nowhere");
    std::fs::create_dir_all(&folder).expect("a folder");
    let log = folder.join("log");
    let mut command = real::cascadia();
    command
        .args(["up", "--synthetic", PAIR, "--listen", "127.0.0.1:0", "--http", "off", "--log", "info"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &nowhere)
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .stdout(Stdio::piped())
        .stderr(File::create(&log).expect("a file"));
    let mut up = Process(command.spawn().expect("the binary runs"));
    let mut said = BufReader::new(up.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let line = said.by_ref().find(|line| line.contains(" on ")).expect("it says where it serves");
    let server = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).expect("an address").to_owned();
    let times_said = || std::fs::read_to_string(&log).expect("a log").matches("collector does not answer").count();
    let mut trace = 0xf00;
    while trace < 0xf20 || times_said() == 0 {
        assert!(trace < 0x3_000, "it is said");
        ask(&server, (trace, true), request(8, None), |_| ()).await.expect("an answer");
        trace += 1;
    }
    up.signal("TERM");
    assert!(up.wait(real::PATIENCE).success());
    assert_eq!(times_said(), 1, "five nodes of one process say it once");
    let _ = std::fs::remove_dir_all(&folder);
}
