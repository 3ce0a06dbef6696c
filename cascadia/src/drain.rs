//! `cascadia drain`: asks a node from afar for what SIGTERM asks, and watches it go.

use std::time::{Duration, Instant};

use cascadia_node::proving::{ANSWER, Asking, Challenge};
use cascadia_node::token::Token;
use cascadia_proto::v1;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::cli::DrainArgs;
use crate::client::Client;
use crate::{Failure, Outcome};

/// How long a call to an admin listener may take: it answers from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the node is asked how far it is.
const PERIOD: Duration = Duration::from_millis(300);

/// Calls in a row that must find nobody before the node counts as gone.
const ABSENCES: u32 = 2;

/// The largest page that is read.
const PAGE_BYTES: usize = 16 << 20;

/// Runs the command.
///
/// # Errors
/// When there is no token, the node cannot be found or refuses, or it is not gone in time.
pub async fn run(args: &DrainArgs) -> Outcome {
    let token = Token::find(args.admin_token_file.as_deref())?.ok_or(
        "no admin token: give --admin-token-file FILE or set CASCADIA_ADMIN_TOKEN, to the token the node was started with",
    )?;
    let target = match (&args.admin, &args.node) {
        (Some(admin), _) => Target { name: admin.clone(), node: None, admin: admin.clone(), hint: "" },
        (None, Some(node)) => find(&Client::connect(&args.server).await?.status().await?, node, &args.server)?,
        (None, None) => return Err("name a node, or give its admin listener with --admin".into()),
    };
    let began = Instant::now();
    let before = target.status().await?;
    target.drain(&token).await?;
    if args.no_wait {
        return Ok(crate::print_line(&format!("{} drains", target.name))?);
    }
    let patience = args.timeout.map(Duration::from_secs);
    let waiting = target.wait(&before);
    let gone = match patience {
        Some(patience) => timeout(patience, waiting).await.unwrap_or(Ok(false))?,
        None => waiting.await?,
    };
    if !gone {
        let seconds = args.timeout.unwrap_or_default();
        return Err(format!("{} is still there after {seconds} s; it goes on draining, look again", target.name).into());
    }
    Ok(crate::print_line(&format!("{} is gone after {:.1} s", target.name, began.elapsed().as_secs_f64()))?)
}

/// What the node is asked for, and what that is to be proven over.
const DRAIN: &str = "/drain";
const CHALLENGE: &str = "/challenge";

/// What an admin listener answered.
struct Answer {
    status: StatusCode,
    /// That it knows the token, where it was to prove it.
    proof: Vec<u8>,
    body: Bytes,
}

/// A node's admin listener.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    name: String,
    /// The node that is meant, where it was named.
    node: Option<String>,
    admin: String,
    /// What to say where nobody answers.
    hint: &'static str,
}

/// Looks a node up in what a router says.
fn find(status: &v1::ClusterStatusResponse, node: &str, server: &str) -> Result<Target, Failure> {
    let Some(member) = status.members.iter().find(|member| member.id == node) else {
        let known: Vec<&str> = status.members.iter().map(|member| member.id.as_str()).collect();
        return Err(format!("the router at {server} knows no node \"{node}\"; it knows {}", known.join(", ")).into());
    };
    let Some((host, port)) = member.admin_address.rsplit_once(':') else {
        return Err(format!("{node} has no admin listener that others know of; give its address with --admin").into());
    };
    let serving = member.address.rsplit_once(':').map_or("", |(host, _)| host);
    let everywhere = matches!(host, "0.0.0.0" | "[::]");
    let admin = if everywhere { format!("{serving}:{port}") } else { member.admin_address.clone() };
    let is_loopback = |host: &str| host.starts_with("127.") || matches!(host, "[::1]" | "localhost");
    let hint = if is_loopback(host) && !is_loopback(serving) {
        "; its admin listener is on the loopback interface: run this on the node's machine, or start the node with \
         --admin on an address that can be reached from here"
    } else {
        ""
    };
    Ok(Target { name: node.to_owned(), node: Some(node.to_owned()), admin, hint })
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    instance: String,
    state: String,
    sessions: u64,
}

impl Said {
    fn of(page: &Value) -> Self {
        let text = |field: &str| page[field].as_str().unwrap_or_default().to_owned();
        Self { instance: text("instance"), state: text("state"), sessions: page["sessions"].as_u64().unwrap_or(0) }
    }
}

impl Target {
    async fn status(&self) -> Result<Said, Failure> {
        let Answer { status, body, .. } = self.call(Method::GET, "/status", None).await.map_err(|cause| {
            format!("nobody answers at {}'s admin listener {} ({cause}){}", self.name, self.admin, self.hint)
        })?;
        match serde_json::from_slice(&body) {
            Ok(page) if status == StatusCode::OK => Ok(Said::of(&page)),
            _ => {
                Err(format!("what answers at {} is no admin listener of a node: /status is {status}", self.admin)
                    .into())
            }
        }
    }

    /// Asks it to drain, and believes only who knows the token that it does. The token itself is never sent.
    async fn drain(&self, token: &Token) -> Outcome {
        let refuses = |answer: &Answer| -> Failure {
            let reason = String::from_utf8_lossy(&answer.body);
            format!("{} does not drain ({}): {}", self.name, answer.status, reason.trim_end()).into()
        };
        let answer = self.call(Method::GET, CHALLENGE, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(format!(
                "{} is of an older release, which takes the token in clear only: send it SIGTERM, or, where nobody listens \
                 in, `curl -X POST -H \"Authorization: Bearer TOKEN\" http://{}{DRAIN}`",
                self.name, self.admin
            )
            .into());
        }
        let challenge = match serde_json::from_slice::<Challenge>(&answer.body) {
            Ok(challenge) if answer.status == StatusCode::OK => challenge,
            _ => return Err(refuses(&answer)),
        };
        if let Some(node) = self.node.as_ref().filter(|node| **node != challenge.node) {
            return Err(format!(
                "what answers at {} says that it is {:?}, not {node}: it was asked nothing; see `cascadia status`",
                self.admin, challenge.node
            )
            .into());
        }
        let asking = Asking::new(token, &challenge, Method::POST.as_str(), DRAIN);
        let answer = self.call(Method::POST, DRAIN, Some(asking.authorization())).await?;
        match answer.status {
            StatusCode::ACCEPTED if asking.is_answered_by(&answer.proof) => Ok(()),
            StatusCode::ACCEPTED => Err(format!(
                "what answers at {} does not know the admin token, so it is not {}; the node itself was not reached",
                self.admin, self.name
            )
            .into()),
            _ => Err(refuses(&answer)),
        }
    }

    /// Says how far the node is until it is gone.
    async fn wait(&self, before: &Said) -> Result<bool, Failure> {
        let (mut absences, mut last) = (0, None);
        loop {
            match self.call(Method::GET, "/status", None).await {
                Err(_) => absences += 1,
                Ok(Answer { body, .. }) => {
                    absences = 0;
                    let said = serde_json::from_slice(&body).as_ref().map(Said::of).unwrap_or_default();
                    if said.instance != before.instance && !before.instance.is_empty() {
                        // Another start of it, or of another node, answers there by now.
                        return Ok(true);
                    }
                    if last.replace(said.clone()).as_ref() != Some(&said) {
                        crate::print_line(&progress(&self.name, &said))?;
                    }
                }
            }
            if absences == ABSENCES {
                return Ok(true);
            }
            sleep(PERIOD).await;
        }
    }

    async fn call(&self, method: Method, path: &str, authorization: Option<&str>) -> Result<Answer, Failure> {
        let calling = async {
            let stream = TcpStream::connect(&self.admin).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let mut request = Request::builder().method(method).uri(path).header(HOST, &self.admin);
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(Empty::<Bytes>::new())?;
            let answer = async {
                let (head, body) = sender.send_request(request).await?.into_parts();
                let body = Limited::new(body, PAGE_BYTES).collect().await?.to_bytes();
                let proof = head.headers.get(ANSWER).map(|proof| proof.as_bytes().to_vec()).unwrap_or_default();
                Ok::<_, Failure>(Answer { status: head.status, proof, body })
            };
            tokio::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                // The connection ends when the answer has been read, or cannot be.
                _ = connection => answer.await,
            }
        };
        timeout(CALL_TIMEOUT, calling)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs()).into()))
    }
}

fn progress(name: &str, said: &Said) -> String {
    let sessions = match said.sessions {
        0 => "no session is open".to_owned(),
        1 => "1 session is open".to_owned(),
        count => format!("{count} sessions are open"),
    };
    format!("{name} is {}: {sessions}", if said.state.is_empty() { "there" } else { &said.state })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn member(address: &str, admin_address: &str) -> v1::ClusterStatusResponse {
        let member = v1::Member {
            id: "expert-1".into(),
            address: address.into(),
            admin_address: admin_address.into(),
            ..Default::default()
        };
        v1::ClusterStatusResponse { members: vec![member], ..Default::default() }
    }

    #[test]
    fn a_node_is_found_where_others_reach_it() {
        let admin = |address, admin_address| find(&member(address, admin_address), "expert-1", "r:1").unwrap();
        assert_eq!(admin("127.0.0.1:1", "127.0.0.1:2").admin, "127.0.0.1:2");
        assert_eq!(admin("10.0.0.7:1", "0.0.0.0:2").admin, "10.0.0.7:2");
        assert_eq!(admin("[fd00::7]:1", "[::]:2").admin, "[fd00::7]:2");
        assert!(admin("10.0.0.7:1", "127.0.0.1:2").hint.contains("loopback"));
        assert!(admin("127.0.0.1:1", "127.0.0.1:2").hint.is_empty());
    }

    #[test]
    fn a_node_that_cannot_be_asked_is_named() {
        let unknown = find(&member("a:1", "a:2"), "expert-9", "r:1").unwrap_err().to_string();
        assert!(unknown.contains("expert-9") && unknown.contains("expert-1") && unknown.contains("r:1"), "{unknown}");
        let deaf = find(&member("a:1", ""), "expert-1", "r:1").unwrap_err().to_string();
        assert!(deaf.contains("--admin"), "{deaf}");
    }

    #[test]
    fn progress_counts_what_is_open() {
        let said = |page| Said::of(&page);
        let node = said(serde_json::json!({"instance": "ab", "state": "draining", "sessions": 2}));
        assert_eq!(progress("d", &node), "d is draining: 2 sessions are open");
        assert_eq!(progress("d", &Said { sessions: 0, ..node }), "d is draining: no session is open");
    }

    /// Answers with these, one a connection, and keeps what it was sent.
    async fn impostor(answers: Vec<String>) -> (Target, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let mut heard = String::new();
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut piece = [0; 4096];
                while !heard.ends_with("\r\n\r\n") {
                    let read = socket.read(&mut piece).await.unwrap();
                    heard.push_str(&String::from_utf8_lossy(&piece[..read]));
                }
                socket.write_all(answer.as_bytes()).await.unwrap();
                heard.push('|');
            }
            heard
        });
        (Target { name: "d7".into(), node: Some("d7".into()), admin, hint: "" }, serving)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn whoever_stands_in_for_a_node_gets_no_token_and_is_not_believed() {
        let token = Token::new("correct-horse-battery", "a test").unwrap();
        let challenge = r#"{"node": "d7", "instance": "05", "nonce": "ab"}"#;
        let answers = vec![answer("200 OK", challenge), answer("202 Accepted", "draining")];
        let (target, serving) = impostor(answers).await;
        let error = target.drain(&token).await.unwrap_err().to_string();
        assert!(error.contains("does not know the admin token") && error.contains(&target.admin), "{error}");
        let heard = serving.await.unwrap();
        assert!(heard.contains("POST /drain") && heard.contains("authorization: Cascadia-HMAC-SHA256 ab."), "{heard}");
        assert!(!heard.contains("correct-horse"), "{heard}");
    }

    #[tokio::test]
    async fn another_node_and_an_older_one_are_sent_nothing() {
        let token = Token::new("correct-horse-battery", "a test").unwrap();
        let other = r#"{"node": "d8", "instance": "05", "nonce": "ab"}"#;
        for (first, says) in
            [(answer("200 OK", other), "\"d8\", not d7"), (answer("404 Not Found", ""), "older release")]
        {
            let (target, serving) = impostor(vec![first]).await;
            let error = target.drain(&token).await.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            let heard = serving.await.unwrap();
            assert!(heard.starts_with("GET /challenge") && !heard.contains("uthorization"), "{heard}");
        }
    }
}
