//! Peers that lie: whoever reaches a node's port takes no session over and sends nobody anywhere.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Duration;

use cascadia_core::history::History;
use cascadia_core::ids::{Epoch, SessionId, SessionSecret};
use cascadia_proto::parameters::{Defaults, resolve};
use cascadia_proto::v1::run_request::Message as Order;
use cascadia_proto::v1::run_response::Message as Told;
use cascadia_proto::v1::session_client::SessionClient;
use cascadia_proto::v1::verify_client::VerifyClient;
use cascadia_proto::v1::verify_request::Message as Ask;
use cascadia_proto::v1::verify_response::Message as Said;
use cascadia_proto::{convert, v1};
use cascadia_tests::{Answer, MODEL, Plan, ToyCluster, parameters, request, text};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

const SESSION: SessionId = SessionId(7);

fn key(session: SessionId, epoch: u64, secret: Option<u128>) -> Option<v1::SessionKey> {
    Some(convert::session_key_message(session, Epoch(epoch), secret.map(SessionSecret::new).as_ref()))
}

fn resolved(tokens: u32) -> Option<v1::Resolved> {
    let asked = v1::Parameters { max_tokens: Some(tokens), ignore_eos: true, ..parameters("speculative", 0.0, 1) };
    let parameters = resolve(&asked, &Defaults::default()).expect("they can be meant");
    Some(v1::Resolved { parameters: Some(parameters), seed: 1, choice: 0, default_max_tokens: false })
}

/// A drafter's stream to an expert, by hand.
struct Verify {
    ask: mpsc::Sender<v1::VerifyRequest>,
    said: Streaming<v1::VerifyResponse>,
}

impl Verify {
    async fn open(address: &str, key: Option<v1::SessionKey>) -> Self {
        let (ask, asked) = mpsc::channel(8);
        let mut client = VerifyClient::connect(format!("http://{address}")).await.expect("the expert listens");
        let open = v1::VerifyOpen {
            protocol: Some(cascadia_proto::range()),
            key,
            model: MODEL.into(),
            resolved: resolved(60),
            remaining_ms: u64::MAX,
            age_ms: u64::MAX,
            prompt_tokens: 2,
            history_tokens: 2,
            tokenizer_fingerprint: cascadia_core::commit::Text::fingerprint(&text()).to_owned(),
            ..v1::VerifyOpen::default()
        };
        for message in [Ask::Open(open), Ask::History(v1::History { ids: vec![5, 6] })] {
            ask.send(v1::VerifyRequest { message: Some(message) }).await.expect("there is room");
        }
        let said = client.stream(ReceiverStream::new(asked)).await.expect("a stream").into_inner();
        Self { ask, said }
    }

    async fn draft(&self, epoch: u64, token: u32) {
        let draft = v1::Draft { token, q: 1.0, max_q: 1.0, ..v1::Draft::default() };
        let tail = History::from_ids(&[5, 6]).tail();
        let block = v1::Block { epoch, given_from: 2, base: 2, tail, drafts: vec![draft], ..v1::Block::default() };
        let message = Some(Ask::Block(block));
        self.ask.send(v1::VerifyRequest { message }).await.expect("the stream is open");
    }

    async fn next(&mut self) -> Result<Said, Status> {
        Ok(self.said.message().await?.expect("the stream goes on").message.expect("a message"))
    }
}

/// A router's stream to an owner, by hand: what it says until it ends.
async fn run(address: &str, open: v1::RunOpen) -> Result<Vec<Told>, Status> {
    let (_orders, later) = mpsc::channel::<v1::RunRequest>(1);
    let first = tokio_stream::once(v1::RunRequest { message: Some(Order::Open(open)) });
    let orders = futures::StreamExt::chain(first, ReceiverStream::new(later));
    let mut client = SessionClient::connect(format!("http://{address}")).await.expect("the owner listens");
    let mut said = client.run(orders).await?.into_inner();
    let mut told = Vec::new();
    while let Some(response) = said.message().await? {
        told.extend(response.message);
    }
    Ok(told)
}

fn run_open(key: Option<v1::SessionKey>) -> v1::RunOpen {
    v1::RunOpen {
        protocol: Some(cascadia_proto::range()),
        key,
        model: MODEL.into(),
        resolved: resolved(40),
        remaining_ms: 120_000,
        prompt: request("Hello world. the", v1::Parameters::default()).prompt,
        ..v1::RunOpen::default()
    }
}

fn is_another_secret(status: &Status) -> bool {
    status.code() == Code::Aborted && status.message().contains("another secret") && !status.message().contains("stale")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_gives_a_session_to_nobody_who_does_not_show_its_secret() {
    let cluster = ToyCluster::start(Plan { drafters: 0, experts: 1, ..Plan::default() }).await;
    let address = cluster.experts[0].address.clone();
    let mut owner = Verify::open(&address, key(SESSION, 5, Some(1))).await;
    assert!(matches!(owner.next().await, Ok(Said::Held(_))));
    for (epoch, secret) in [(u64::MAX, None), (u64::MAX, Some(2)), (6, Some(2)), (5, None), (1, Some(3))] {
        let refused = Verify::open(&address, key(SESSION, epoch, secret)).await.next().await;
        let refused = refused.expect_err("it does not know the secret");
        assert!(is_another_secret(&refused), "epoch {epoch}: {refused}");
    }
    owner.draft(5, 8).await;
    assert!(matches!(owner.next().await, Ok(Said::Verdict(verdict)) if verdict.epoch == 5), "nothing disturbed it");
    // Whoever shows it still needs a higher epoch, and then has the session.
    let stale = Verify::open(&address, key(SESSION, 5, Some(1))).await.next().await.expect_err("it is not higher");
    assert!(stale.message().contains("stale: epoch 5"), "{stale}");
    let mut next = Verify::open(&address, key(SESSION, 6, Some(1))).await;
    assert!(matches!(next.next().await, Ok(Said::Held(_))));
    assert_eq!(owner.next().await.expect_err("it is stale").code(), Code::Aborted);
    drop((owner, next));

    // From a router that has none a higher epoch is enough, also for one that has.
    let mut plain = Verify::open(&address, key(SESSION, 1, None)).await;
    assert!(matches!(plain.next().await, Ok(Said::Held(_))));
    let mut higher = Verify::open(&address, key(SESSION, 2, Some(4))).await;
    assert!(matches!(higher.next().await, Ok(Said::Held(_))));
    assert_eq!(plain.next().await.expect_err("it is stale").code(), Code::Aborted);
    // A secret is one, or none.
    let short = v1::SessionKey { secret: vec![1; 15], ..key(SESSION, 9, None).expect("a key") };
    let refused = Verify::open(&address, Some(short)).await.next().await.expect_err("it is none");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "key.secret: has 15 bytes, a session's secret has 16",)
    );
    drop((plain, higher));
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_a_sessions_name_and_no_secret_does_not_touch_it() {
    let plan = Plan { drafters: 1, experts: 1, expert_step: Duration::from_millis(8), ..Plan::default() };
    let cluster = ToyCluster::start(plan).await;
    let long = v1::Parameters { max_tokens: Some(120), ignore_eos: true, ..parameters("speculative", 0.9, 11) };
    let asked = v1::GenerateRequest { timeout_ms: Some(120_000), ..request("Hello world. the", long) };
    let calm = cluster.generate(asked.clone()).await.expect("calm");
    let (drafter, expert) = (cluster.drafters[0].address.clone(), cluster.experts[0].address.clone());
    let mut stream = cluster.client().await.generate(asked).await.expect("a stream").into_inner();
    let mut answer = Answer::default();
    let mut tried = 0;
    while let Some(response) = stream.message().await.expect("no error reaches the client") {
        answer.take(response);
        // While it is open at both: its first tokens are out, and most are to come.
        if tried == 0 && answer.ids.len() > 4 {
            let named = &answer.started.as_ref().expect("started").session;
            let session = SessionId(u128::from_str_radix(named, 16).expect("its name is in the answer"));
            for secret in [None, Some(1)] {
                let theft = Verify::open(&expert, key(session, u64::MAX, secret)).await.next().await;
                assert!(is_another_secret(&theft.expect_err("the expert keeps it")));
                let theft = run(&drafter, run_open(key(session, u64::MAX, secret))).await;
                assert!(is_another_secret(&theft.expect_err("the drafter keeps it")));
                tried += 1;
            }
        }
    }
    assert_eq!((tried, &answer.ids, &answer.text), (2, &calm.ids, &calm.text));
    assert_eq!(answer.finished.and_then(|finished| finished.speculation).expect("statistics").moves, 0);
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drafter_calls_no_address_that_a_router_names() {
    let cluster = ToyCluster::start(Plan { drafters: 1, experts: 1, ..Plan::default() }).await;
    let drafter = cluster.drafters[0].address.clone();
    let nowhere = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    nowhere.set_nonblocking(true).expect("a switch");
    let address = nowhere.local_addr().expect("it is bound").to_string();
    let snapshot = cluster.membership.snapshots().borrow().clone();
    let fingerprint = snapshot.nodes[&cluster.experts[0].id].models[0].fingerprint.clone();
    for (number, id) in ["expert-1", "expert-99", "drafter-1"].into_iter().enumerate() {
        let named = v1::NodeRef { id: id.into(), address: address.clone(), fingerprint: fingerprint.clone() };
        let open = v1::RunOpen { expert: Some(named), ..run_open(key(SessionId(number as u128), 1 << 32, Some(1))) };
        let told = run(&drafter, open).await.expect("an answer");
        let moved = told.iter().filter_map(|told| match told {
            Told::Moved(moved) => Some(moved.expert.as_ref().expect("an expert").id.as_str()),
            _ => None,
        });
        // One that nobody knows is as none: the drafter picks, and says whom.
        assert_eq!(moved.collect::<Vec<_>>(), if id == "expert-1" { vec![] } else { vec!["expert-1"] }, "{id}");
        assert!(
            matches!(told.last(), Some(Told::Finished(finished)) if finished.usage.unwrap().completion_tokens == 40)
        );
        let called = nowhere.accept().map(|(_, from)| from).map_err(|error| error.kind());
        assert_eq!(called, Err(ErrorKind::WouldBlock), "{id}");
    }
    cluster.quiesce().await;
}
