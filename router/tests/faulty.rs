//! Owners that say what they may not say: the session goes on elsewhere, and nothing of it is used.

mod cluster;

use std::sync::{Arc, Mutex};

use cascadia_core::placement::Role;
use cascadia_node::net::{BoxIo, Connector};
use cascadia_node::telemetry::{Telemetry, TelemetryConfig};
use cascadia_proto::v1::run_response::Message;
use cascadia_proto::v1::{self, Parameters, Speculation};
use cascadia_router::http::HttpConfig;
use cluster::{Asked, Call, Cluster, Owner, config, parameters, request, soon};
use tonic::Code;

/// A cluster of two drafters and one expert; the drafter that got the session comes first.
async fn started(asked: Parameters) -> (Cluster, Asked, [Owner; 2], Owner, Call) {
    let (cluster, mut one, expert) = Cluster::pair(config()).await;
    let mut two = cluster.owner("drafter-2", Role::Drafter).await;
    let told = cluster.ask(request(asked));
    tokio::select! {
        call = one.call() => (cluster, told, [one, two], expert, call),
        call = two.call() => (cluster, told, [two, one], expert, call),
    }
}

fn tokens(position: u64, ids: &[u32]) -> v1::Tokens {
    let provenance = vec![v1::Provenance::Accepted.into(); ids.len()];
    v1::Tokens { position, ids: ids.to_vec(), text: "EVIL".into(), provenance, ..v1::Tokens::default() }
}

fn opened(prompt_tokens: u32) -> Message {
    Message::Opened(v1::Opened { protocol: 1, prompt_tokens, ..v1::Opened::default() })
}

#[tokio::test]
async fn what_an_owner_may_not_say_of_a_running_session_reaches_nobody() {
    let finished = |speculation| v1::Finished { speculation: Some(speculation), ..v1::Finished::default() };
    let outcomes = vec![v1::BlockOutcome { drafted: 6, accepted: 1, blocks: 1 }; 100_000];
    for (what, message) in [
        ("more tokens than asked for", Message::Tokens(tokens(5, &[7; 15]))),
        ("an id that no vocabulary has", Message::Tokens(tokens(5, &[4_000_000_000]))),
        ("a gap", Message::Tokens(tokens(6, &[7]))),
        ("a position again", Message::Tokens(tokens(4, &[11]))),
        ("a position again and more", Message::Tokens(tokens(4, &[11, 12]))),
        ("another choice", Message::Tokens(v1::Tokens { choice: 1, ..tokens(5, &[7]) })),
        ("too few words on who wrote it", Message::Tokens(v1::Tokens { provenance: Vec::new(), ..tokens(5, &[7]) })),
        ("a long text", Message::Tokens(v1::Tokens { text: "x".repeat(100_000), ..tokens(5, &[7]) })),
        (
            "log-probabilities that nobody asked for",
            Message::Tokens(v1::Tokens { logprobs: vec![v1::TokenLogprobs::default(); 1], ..tokens(5, &[7]) }),
        ),
        ("a second opening", opened(3)),
        ("a longer prompt", Message::History(v1::History { ids: vec![9] })),
        ("a handover after tokens", Message::Handover(v1::Handover::default())),
        (
            "a stop string of its own",
            Message::Finished(v1::Finished { stop_string: Some("EVIL".into()), ..v1::Finished::default() }),
        ),
        (
            "a count that overflows",
            Message::Finished(finished(Speculation { accepted: u64::MAX, ..Speculation::default() })),
        ),
        ("outcomes without end", Message::Finished(finished(Speculation { outcomes, ..Speculation::default() }))),
    ] {
        let (_cluster, told, [_first, mut second], _expert, mut call) = started(parameters("speculative")).await;
        call.opened(&[1, 2, 3]).await;
        call.tokens(3, &[10, 11]).await;
        told.hears(2).await;
        call.send(message).await;
        let again = second.call().await;
        assert_eq!((again.placement(), again.history.as_slice()), (2, [1, 2, 3, 10, 11].as_slice()), "{what}");
        call.cancelled().await;
        again.continued().await;
        again.tokens(5, &[12]).await;
        again.finish(Speculation::default()).await;
        let told = soon(told).await.unwrap();
        assert!(told.error.is_none(), "{what}: {:?}", told.error);
        assert_eq!((told.ids(), told.text()), (vec![10, 11, 12], "<10><11><12>".to_owned()), "{what}");
        assert_eq!(told.finished.unwrap().speculation.unwrap().moves, 1, "{what}");
    }
}

#[tokio::test]
async fn what_an_owner_may_not_say_of_a_prompt_begins_no_session() {
    let history = |ids: &[u32]| Message::History(v1::History { ids: ids.to_vec() });
    let prints = |tokenizer: &str| v1::Fingerprints { tokenizer: tokenizer.into(), ..v1::Fingerprints::default() };
    for (what, messages) in [
        ("no prompt", vec![opened(0)]),
        ("a prompt without end", vec![opened(u32::MAX), history(&[1; 4_096])]),
        ("more than it announced", vec![opened(2), history(&[1, 2, 3])]),
        ("an id that no vocabulary has", vec![opened(2), history(&[1, u32::MAX])]),
        ("tokens before the prompt", vec![opened(2), history(&[1]), Message::Tokens(tokens(1, &[7]))]),
        ("tokens before the opening", vec![Message::Tokens(tokens(0, &[7]))]),
        (
            "a prompt over its context",
            vec![Message::Opened(v1::Opened { protocol: 1, prompt_tokens: 9, context: 8, ..v1::Opened::default() })],
        ),
        (
            "an id over its vocabulary",
            vec![
                Message::Opened(v1::Opened { protocol: 1, prompt_tokens: 1, vocabulary: 9, ..v1::Opened::default() }),
                history(&[9]),
            ],
        ),
        (
            "a tokenizer that membership does not list",
            vec![Message::Opened(v1::Opened {
                protocol: 1,
                prompt_tokens: 2,
                fingerprints: Some(prints("another")),
                ..v1::Opened::default()
            })],
        ),
    ] {
        let (_cluster, told, [_first, mut second], _expert, mut call) = started(parameters("speculative")).await;
        for message in messages {
            // The router may have left after the first.
            call.try_send(message).await;
        }
        let again = second.call().await;
        assert!(again.open.prompt.is_some() && again.open.continued.is_none(), "{what}");
        call.cancelled().await;
        again.opened(&[1, 2, 3]).await;
        again.tokens(3, &[12]).await;
        again.finish(Speculation::default()).await;
        let told = soon(told).await.unwrap();
        assert!(told.error.is_none(), "{what}: {:?}", told.error);
        assert_eq!((told.started.len(), told.ids(), told.text()), (1, vec![12], "<12>".to_owned()), "{what}");
    }
}

#[tokio::test]
async fn owners_that_all_break_the_protocol_are_an_error_that_names_the_last() {
    let (cluster, mut one, mut expert) = Cluster::pair(config()).await;
    let mut two = cluster.owner("drafter-2", Role::Drafter).await;
    let told = cluster.ask(request(parameters("speculative")));
    let call = tokio::select! { call = one.call() => call, call = two.call() => call };
    call.opened(&[1]).await;
    call.tokens(7, &[7]).await;
    let call = tokio::select! { call = one.call() => call, call = two.call() => call };
    call.continued().await;
    call.tokens(8, &[7]).await;
    let call = expert.call().await;
    call.continued().await;
    call.tokens(9, &[7]).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.ids().len(), told.code()), (0, Code::Internal));
    assert!(told.message().contains("expert-1") && told.message().contains("position 9"), "{}", told.message());
}

#[tokio::test]
async fn a_prompt_of_ids_is_the_clients_own() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let ids = v1::prompt::Kind::Ids(v1::TokenIds { ids: vec![5, 6, 7] });
    let asked =
        v1::GenerateRequest { prompt: Some(v1::Prompt { kind: Some(ids) }), ..request(parameters("speculative")) };
    let told = cluster.ask(asked);
    let call = drafter.call().await;
    call.opened(&[5, 6, 8]).await;
    let again = expert.call().await;
    again.opened(&[5, 6, 7]).await;
    again.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.started[0].prompt_tokens, told.code()), (3, Code::Ok));
}

#[tokio::test]
async fn a_router_calls_no_address_that_an_owner_names() {
    let dialled: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = dialled.clone();
    let connector = Connector::from_fn(move |uri| {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        record.lock().unwrap().push(address.clone());
        Box::pin(async move { Ok(BoxIo::new(tokio::net::TcpStream::connect(address).await?)) })
    });
    // What is not exported anyhow is asked for at the nodes: here, because the session moves.
    let traced = TelemetryConfig {
        otlp_endpoint: Some("http://127.0.0.1:1".into()),
        trace_ratio: 0.0,
        ..TelemetryConfig::default()
    };
    let http = HttpConfig { http: "127.0.0.1:0".into(), ..HttpConfig::default() };
    let cluster = Cluster::start_over(config(), http, connector, Telemetry::new(&traced).unwrap()).await;
    let mut drafter = cluster.owner("drafter-1", Role::Drafter).await;
    let mut expert = cluster.owner("expert-1", Role::Expert).await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = nowhere.local_addr().unwrap().to_string();
    // The nodes of the first are told before those of the second.
    for known in ["expert-9", "expert-1"] {
        let told = cluster.ask(request(parameters("speculative")));
        let call = drafter.call().await;
        call.opened(&[1]).await;
        let named = v1::NodeRef { id: known.into(), address: nowhere.clone(), fingerprint: "expert-1".into() };
        call.moved(Some(named)).await;
        call.finish(Speculation::default()).await;
        assert!(soon(told).await.unwrap().finished.is_some());
        expert.keeps(&call.open.key.as_ref().unwrap().session).await;
    }
    let dialled = dialled.lock().unwrap().clone();
    assert!(dialled.contains(&cluster.membership.snapshots().borrow().nodes.values().next().unwrap().address));
    assert!(!dialled.contains(&nowhere), "{dialled:?}");
}

#[tokio::test]
async fn a_session_has_one_secret_that_its_owners_are_told_and_nobody_else() {
    let (cluster, told, [mut first, mut second], _expert, call) = started(parameters("speculative")).await;
    let secret = |call: &Call| call.open.key.as_ref().unwrap().secret.clone();
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    told.hears(1).await;
    first.kill();
    let again = second.call().await;
    assert_eq!((secret(&call).len(), secret(&again)), (16, secret(&call)));
    assert_ne!(secret(&call), call.open.key.as_ref().unwrap().session);
    again.continued().await;
    again.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    let hex: String = secret(&call).iter().map(|byte| format!("{byte:02x}")).collect();
    let shown = format!("{told:?} {:?}", again.open);
    assert!(!shown.contains(&hex) && !shown.contains(&format!("{:?}", secret(&call))));
    // Another session has another.
    let other = cluster.ask(request(parameters("speculative")));
    assert_ne!(secret(&second.call().await), secret(&call));
    other.abort();
}
