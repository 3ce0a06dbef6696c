//! Time, room and readers: what ends a session from the client's side.

mod cluster;

use std::time::Duration;

use cascadia_core::limits;
use cascadia_core::placement::Role;
use cascadia_proto::v1::{GenerateRequest, OnDrafterLoss, Parameters, Speculation};
use cascadia_router::RouterConfig;
use cluster::{Cluster, PATIENCE, StoppedClock, config, parameters, request, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

#[tokio::test]
async fn a_client_that_leaves_stops_the_work() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let mut client = cluster.client();
    let asking = tokio::spawn(async move {
        let mut stream = client.generate(request(parameters("speculative"))).await.unwrap().into_inner();
        stream.message().await.unwrap();
    });
    let mut call = drafter.call().await;
    call.opened(&[1]).await;
    soon(asking).await.unwrap();
    call.cancelled().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_it_began_stops_the_work() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let asking = cluster.ask(request(parameters("speculative")));
    let mut call = drafter.call().await;
    asking.abort();
    call.cancelled().await;
}

#[tokio::test]
async fn a_deadline_ends_the_work() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let clock = StoppedClock::stop();
    let asked = GenerateRequest { timeout_ms: Some(600), ..request(parameters("speculative")) };
    let told = cluster.ask(asked);
    let mut call = drafter.call().await;
    assert_eq!(call.open.remaining_ms, 600);
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    told.hears(1).await;
    clock.pass(Duration::from_millis(600)).await;
    drop(clock);
    call.cancelled().await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.ids(), told.code()), (vec![2], Code::DeadlineExceeded));
    assert!(told.message().contains("0.6 s") && told.message().contains("after 1 tokens"), "{}", told.message());
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_a_place() {
    let cluster = Cluster::start(config()).await;
    let mut expert = cluster.owner("expert-1", Role::Expert).await;
    let asked = Parameters { on_drafter_loss: OnDrafterLoss::Wait.into(), ..parameters("speculative") };
    let told = cluster.ask(GenerateRequest { timeout_ms: Some(300), ..request(asked) });
    let told = soon(told).await.unwrap();
    assert_eq!(told.code(), Code::DeadlineExceeded);
    assert!(told.message().contains("no drafter"), "{}", told.message());
    expert.is_left_alone().await;
}

#[tokio::test]
async fn the_router_admits_so_many_and_says_when_to_retry() {
    let (cluster, mut drafter, _expert) = Cluster::pair(RouterConfig { max_sessions: 1, ..config() }).await;
    let first = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    let refused = soon(cluster.ask(request(parameters("speculative")))).await.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "this router serves 1 sessions at most and is full: retry in 1 s");
    assert_eq!(refused.error.unwrap().metadata().get("retry-after").unwrap(), "1");
    call.opened(&[1]).await;
    call.finish(Speculation::default()).await;
    assert!(soon(first).await.unwrap().finished.is_some());
    // The place is free again.
    let next = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.finish(Speculation::default()).await;
    assert!(soon(next).await.unwrap().finished.is_some());
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_nobody() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let long = Parameters { max_tokens: Some(4_000), ..parameters("speculative") };
    let mut client = cluster.client();
    let stalled = tokio::spawn(async move { client.generate(request(long)).await.unwrap().into_inner() });
    let call = drafter.call().await;
    call.opened(&[1]).await;
    // More than any window holds; the owner is never made to wait.
    let ids: Vec<u32> = (0..250).collect();
    for message in 0..4 {
        soon(call.tokens(1 + message * 250, &ids)).await;
    }
    for message in 0..3_000 {
        soon(call.tokens(1_001 + message, &[7])).await;
    }
    let unread = soon(stalled).await.unwrap();

    let brisk = cluster.ask(request(parameters("speculative")));
    let other = drafter.call().await;
    other.opened(&[1]).await;
    other.tokens(1, &[2]).await;
    other.finish(Speculation::default()).await;
    // Sooner than a client is given up that does not read.
    assert!(PATIENCE < limits::CLIENT_WRITE_TIMEOUT);
    assert!(soon(brisk).await.unwrap().finished.is_some());
    drop(unread);
}

#[tokio::test]
async fn a_draining_router_finishes_what_is_open() {
    let (cluster, mut drafter, _expert) = Cluster::pair(RouterConfig { lame_duck_ms: 300, ..config() }).await;
    let told = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    let clock = StoppedClock::stop();
    cluster.shutdown.drain();
    assert!(page(&cluster.admin, "/ready").await.contains("503"));
    // A lame duck still accepts.
    let late = cluster.ask(request(parameters("speculative")));
    let other = drafter.call().await;
    clock.pass(Duration::from_millis(300)).await;
    drop(clock);
    other.opened(&[1]).await;
    other.tokens(1, &[3]).await;
    other.finish(Speculation::default()).await;
    assert_eq!(soon(late).await.unwrap().ids(), [3]);
    assert!(!cluster.running.is_finished());
    call.finish(Speculation::default()).await;
    assert!(soon(told).await.unwrap().finished.is_some());
    soon(cluster.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_that_stops_at_once_tells_whoever_had_a_stream_open() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    told.hears(1).await;
    cluster.shutdown.stop();
    let told = soon(told).await.unwrap();
    assert_eq!((told.ids(), told.code()), (vec![2], Code::Unavailable));
    assert!(told.message().contains("this router stops"), "{}", told.message());
    soon(cluster.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn operators_see_what_happens() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.tokens(1, &[2, 3]).await;
    call.finish(Speculation::default()).await;
    soon(told).await.unwrap();
    assert!(page(&cluster.admin, "/ready").await.contains("200 OK"));
    let metrics = page(&cluster.admin, "/metrics").await;
    assert!(metrics.contains("cascadia_generation_tokens_total{model_name=\"demo\"} 2"), "{metrics}");
    assert!(
        metrics.contains("cascadia_request_success_total{model_name=\"demo\",finished_reason=\"stop\"} 1"),
        "{metrics}"
    );
    assert!(page(&cluster.admin, "/status").await.contains("drafter-1"));
}

async fn page(admin: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
    let ask = format!("GET {path} HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}
