//! Requests while they are sent: what is held of them has a bound and a time, and small ones do not wait for large ones.

mod cluster;

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::Request;
use cascadia_core::limits;
use cascadia_proto::v1::Speculation;
use cascadia_router::RouterConfig;
use cascadia_router::reading::BODY_WITHIN;
use cluster::{Cluster, Owner, StoppedClock, config, parameters, request, soon};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

const TEXT: &str = "/v1/completions";

/// As little as may be set.
fn tight() -> RouterConfig {
    RouterConfig { reading_memory: "32MiB".parse().unwrap(), prompt_memory: "32MiB".parse().unwrap(), ..config() }
}

/// A request to the HTTP port of which all but the last byte has been sent.
async fn held_open(cluster: &Cluster, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(&cluster.http).await.unwrap();
    let head = format!(
        "POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let _ = socket.write_all(&body.as_bytes()[..body.len() - 1]).await;
    socket
}

/// The answer as soon as it is whole: a connection whose request is not sent to its end is not closed for a while.
async fn answered(mut socket: TcpStream) -> String {
    let (mut answer, mut piece) = (String::new(), [0; 4096]);
    loop {
        let read = soon(socket.read(&mut piece)).await.unwrap();
        assert!(read > 0, "it was closed behind {answer:?}");
        answer.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(usize::MAX) {
            return answer;
        }
    }
}

fn large() -> String {
    format!("{{\"prompt\": \"{}\"}}", "x".repeat(limits::REQUEST_BYTES - 100))
}

/// Held open at once; six of them fit into three quarters of 32 MiB.
const FLOOD: usize = 16;

async fn serves_a_small_one(cluster: &Cluster, drafter: &mut Owner) {
    let told = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.finish(Speculation::default()).await;
    assert!(soon(told).await.unwrap().finished.is_some());

    let body = json!({"prompt": "x", "max_tokens": 4}).to_string();
    let mut socket = held_open(cluster, &body).await;
    socket.write_all(&body.as_bytes()[body.len() - 1..]).await.unwrap();
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.finish(Speculation::default()).await;
    assert!(answered(socket).await.starts_with("HTTP/1.1 200"));
}

const SENTENCE: &str = "this router holds 33554432 bytes of requests that are being read at most and has no room for more: \
                        retry in 1 s";

#[tokio::test]
async fn bodies_that_are_held_open_have_a_bound_and_keep_no_small_one_waiting() {
    let (cluster, mut drafter, _expert) = Cluster::pair(tight()).await;
    let mut held: FuturesUnordered<_> = (0..FLOOD)
        .map(|_| async {
            let socket = held_open(&cluster, &large()).await;
            answered(socket).await
        })
        .collect();
    for _ in 6..FLOOD {
        let refused = soon(held.next()).await.unwrap();
        let (head, body) = refused.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 429") && head.to_ascii_lowercase().contains("retry-after: 1"), "{head}");
        let said: Value = serde_json::from_str(body).unwrap();
        assert_eq!(said["error"]["message"], SENTENCE);
    }
    serves_a_small_one(&cluster, &mut drafter).await;
    drop(held);
    serves_a_large_one(&cluster, &mut drafter).await;
}

#[tokio::test]
async fn messages_that_are_held_open_over_grpc_have_the_same_bound() {
    let (cluster, mut drafter, _expert) = Cluster::pair(tight()).await;
    let mut sender = http2(&cluster.address).await;
    let message = [&[0][..], &(limits::REQUEST_BYTES as u32).to_be_bytes(), large().as_bytes()].concat();
    let (open, answers): (Vec<_>, FuturesUnordered<_>) =
        (0..FLOOD).map(|_| generate(&mut sender, message.clone())).unzip();
    let mut answers = answers;
    for _ in 6..FLOOD {
        let answer = soon(answers.next()).await.unwrap().unwrap();
        let (status, sentence) = said(&answer);
        assert_eq!((status, sentence.replace("%20", " ").as_str()), ("8", SENTENCE));
        assert_eq!(answer.headers().get("retry-after").unwrap(), "1");
    }
    serves_a_small_one(&cluster, &mut drafter).await;
    drop((open, sender));
    answers.iter().for_each(JoinHandle::abort);
    serves_a_large_one(&cluster, &mut drafter).await;
}

/// Once the router has seen that those who held it have gone.
async fn serves_a_large_one(cluster: &Cluster, drafter: &mut Owner) {
    let call = soon(async {
        loop {
            let told = cluster.ask(long_text(limits::REQUEST_BYTES - limits::CONTROL_BYTES));
            tokio::select! {
                told = told => assert_eq!(told.unwrap().code(), tonic::Code::ResourceExhausted),
                call = drafter.call() => return call,
            }
        }
    })
    .await;
    assert!(call.open.prompt.is_some());
}

fn long_text(bytes: usize) -> cascadia_proto::v1::GenerateRequest {
    let text = "x".repeat(bytes);
    let prompt = cascadia_proto::v1::Prompt { kind: Some(cascadia_proto::v1::prompt::Kind::Text(text)) };
    cascadia_proto::v1::GenerateRequest { prompt: Some(prompt), ..request(parameters("speculative")) }
}

async fn http2(address: &str) -> SendRequest<Body> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A gRPC request of which these bytes have been sent, and more may follow.
fn generate(
    sender: &mut SendRequest<Body>,
    first: Vec<u8>,
) -> (mpsc::Sender<Bytes>, JoinHandle<axum::http::Response<Incoming>>) {
    let (more, pieces) = mpsc::channel(4);
    more.try_send(Bytes::from(first)).unwrap();
    let body = Body::from_stream(ReceiverStream::new(pieces).map(Ok::<_, Infallible>));
    let request = Request::post("http://router/cascadia.v1.Inference/Generate")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answer = sender.send_request(request);
    (more, tokio::spawn(async move { answer.await.unwrap() }))
}

fn said(answer: &axum::http::Response<Incoming>) -> (&str, &str) {
    let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap());
    (header("grpc-status"), header("grpc-message"))
}

#[tokio::test]
async fn a_message_that_never_ends_over_grpc_has_a_time() {
    let (cluster, mut drafter, _expert) = Cluster::pair(tight()).await;
    let mut sender = http2(&cluster.address).await;
    // A message of a thousand bytes, of which ten have come.
    let (_more, answer) = generate(&mut sender, [&[0, 0, 0, 3, 232][..], &[0x0a; 10]].concat());
    let (_nothing, silent) = generate(&mut sender, Vec::new());
    serves_a_small_one(&cluster, &mut drafter).await;
    let clock = StoppedClock::stop();
    clock.pass(BODY_WITHIN).await;
    drop(clock);
    for answer in [answer, silent] {
        let answer = soon(answer).await.unwrap();
        let (status, message) = said(&answer);
        assert!(status == "4" && message.contains("within%2060%20s"), "{status}: {message}");
    }
}

#[tokio::test]
async fn prompts_of_sessions_have_a_bound_and_are_held_once() {
    let (cluster, mut drafter, _expert) = Cluster::pair(tight()).await;
    // Twelve megabytes for each: the text, and its ids for eleven sessions.
    let body = json!({"prompt": "x".repeat(1_000_000), "n": 11, "max_tokens": 4}).to_string();
    let ask = async || {
        let mut socket = held_open(&cluster, &body).await;
        socket.write_all(b"}").await.unwrap();
        socket
    };
    let mut open = Vec::new();
    for _ in 0..2 {
        let socket = ask().await;
        let mut calls = Vec::new();
        while calls.len() < 11 {
            calls.push(drafter.call().await);
        }
        open.push((socket, calls));
    }
    let refused = answered(ask().await).await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(refused.contains("bytes of prompts at most and has no room for more"), "{refused}");
    serves_a_small_one(&cluster, &mut drafter).await;

    let never = json!({"prompt": "x".repeat(1_000_000), "n": 100}).to_string();
    let mut socket = held_open(&cluster, &never).await;
    socket.write_all(b"}").await.unwrap();
    let refused = answered(socket).await;
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("the request's 100 sessions"), "{refused}");

    // What one request held is free for the next.
    let (socket, calls) = open.pop().unwrap();
    for call in &calls {
        call.opened(&[1]).await;
        call.finish(Speculation::default()).await;
    }
    assert!(answered(socket).await.starts_with("HTTP/1.1 200"));
    let _again = ask().await;
    drafter.call().await;
}
