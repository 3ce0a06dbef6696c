//! A peer says what cannot be: an expert's sessions go on with another one, and nobody else notices.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, NodeState, Role};
use cascadia_node::cluster::ClusterName;
use cascadia_node::membership::Registration;
use cascadia_node::net::{self, Listener};
use cascadia_node::status::StatusBoard;
use cascadia_proto::v1;
use cascadia_proto::v1::verify_client::VerifyClient;
use cascadia_proto::v1::verify_request::Message as Ask;
use cascadia_proto::v1::verify_response::Message as Said;
use cascadia_proto::v1::verify_server::{Verify, VerifyServer};
use cascadia_tests::{Answer, MODEL, PATIENCE, Plan, ToyCluster, collect, parameters, request, text};
use futures::future::join_all;
use futures::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

/// What makes a wrong answer of a right one.
type Lie = fn(&mut Said);

/// An expert that has another one do its work, and passes on its first answers as they are.
struct Liar {
    /// Who does the work.
    honest: String,
    /// So many verdicts of a stream are passed on.
    verdicts: usize,
    lie: Lie,
}

#[tonic::async_trait]
impl Verify for Liar {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::VerifyResponse, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::VerifyRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let asked = request
            .into_inner()
            .take_while(|asked| std::future::ready(asked.is_ok()))
            .filter_map(|asked| std::future::ready(asked.ok()));
        let mut client = VerifyClient::connect(format!("http://{}", self.honest))
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let said = client.stream(asked).await?.into_inner();
        let (mut left, lie) = (self.verdicts, self.lie);
        let said = said.map(move |said| {
            let mut said = said?;
            if let Some(message) = &mut said.message {
                match message {
                    Said::Verdict(_) if left > 0 => left -= 1,
                    message => lie(message),
                }
            }
            Ok(said)
        });
        Ok(Response::new(Box::pin(said)))
    }
}

/// A liar that is listed beside the honest experts.
struct Listed {
    _registration: Registration,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Lists a liar as an expert of the cluster, and waits until the router may place sessions on it.
async fn list(cluster: &ToyCluster, name: &str, liar: Liar, like: NodeRecord) -> Listed {
    let listener = Listener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let board = StatusBoard::new(7, Arc::default(), &ClusterName::default());
    board.set_state(NodeState::Ready);
    let record = NodeRecord { id: NodeId(name.into()), instance: 7, address: listener.address().to_owned(), ..like };
    let routes = net::server().add_service(VerifyServer::new(liar)).add_service(board.service());
    let serving = tokio::spawn(async move {
        routes.serve_with_incoming(listener.into_incoming()).await.expect("it serves");
    });
    let registration = cluster.membership.register(record).await.expect("it registers");
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let status = cluster.status().await.expect("the router answers");
        if status.members.iter().any(|member| member.id == name && member.load.is_some()) {
            return Listed { _registration: registration, serving };
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the router does not see {name}");
}

/// The record of a running expert.
fn record(cluster: &ToyCluster) -> NodeRecord {
    let snapshot = cluster.membership.snapshots().borrow().clone();
    snapshot.nodes.values().find(|node| node.role == Role::Expert).expect("an expert").clone()
}

fn plan(drafters: usize, experts: usize) -> Plan {
    let step = Duration::from_millis(1);
    Plan { drafters, experts, expert_step: step, drafter_step: step, ..Plan::default() }
}

fn asked(seed: u64) -> v1::GenerateRequest {
    let exactly = v1::Parameters {
        max_tokens: Some(40),
        ignore_eos: true,
        logprobs: Some(2),
        ..parameters("speculative", 0.8, seed)
    };
    v1::GenerateRequest { timeout_ms: Some(120_000), ..request("Hello world. the the the", exactly) }
}

fn moves(answer: &Answer) -> u64 {
    answer.finished.as_ref().and_then(|finished| finished.speculation.as_ref()).expect("statistics").moves
}

fn assert_same(answer: &Answer, calm: &Answer, what: &str) {
    assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text), "{what}");
    assert_eq!(answer.logprobs, calm.logprobs, "{what}");
    assert!(answer.finished.as_ref().expect("finished").reproducible, "{what}");
}

/// Changes verdicts, and nothing else.
macro_rules! verdict {
    ($lie:expr) => {
        |said| {
            if let Said::Verdict(verdict) = said {
                let lie: fn(&mut v1::Verdict) = $lie;
                lie(verdict);
            }
        }
    };
}

/// Changes what the expert says it holds, and nothing else.
macro_rules! held {
    ($lie:expr) => {
        |said| {
            if let Said::Held(held) = said {
                let lie: fn(&mut v1::Held) = $lie;
                lie(held);
            }
        }
    };
}

fn write_unknown(verdict: &mut v1::Verdict) {
    (verdict.accepted, verdict.replacement) = (0, Some(70_000));
    verdict.scores.truncate(1);
}

fn lies() -> Vec<(&'static str, Lie)> {
    vec![
        ("an unknown replacement", verdict!(write_unknown)),
        ("an unknown alternative", verdict!(|v| v.scores[0].top[0].token = 70_000)),
        ("too many alternatives", verdict!(|v| v.scores[0].top.push(v1::Alternative { token: 9, logprob: -99.0 }))),
        ("a score that is no number", verdict!(|v| v.scores[0].expert_logprob = Some(f32::NAN))),
        ("an infinite score", verdict!(|v| v.scores[0].expert_logprob = Some(f32::INFINITY))),
        ("a score of more than a sure thing", verdict!(|v| v.scores[0].expert_logprob = Some(3.0))),
        ("no score", verdict!(|v| v.scores[0].expert_logprob = None)),
        ("too few scores", verdict!(|v| drop(v.scores.pop()))),
        ("more accepted than drafted", verdict!(|v| (v.accepted, v.replacement) = (99, None))),
        (
            "nothing accepted and no replacement",
            verdict!(|v| {
                (v.accepted, v.replacement) = (0, None);
                v.scores.clear();
            }),
        ),
        ("another base", verdict!(|v| v.base += 1)),
        ("another epoch", verdict!(|v| v.epoch += 1)),
        ("a stale block that is none", |said| {
            if let Said::Verdict(v1::Verdict { epoch, base, .. }) = *said {
                let reason = v1::StaleReason::Tail.into();
                *said = Said::Stale(v1::Stale { epoch, base, committed: base, tail: 1, reason });
            }
        }),
        ("more held than told", held!(|h| h.n = 1 << 40)),
        ("a context that is over", held!(|h| h.context = 3)),
        ("another model", held!(|h| h.fingerprint = "another".into())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_experts_sessions_go_on_with_an_honest_one_and_no_others_notice() {
    let cluster = ToyCluster::start(plan(1, 1)).await;
    let mut calm = Vec::new();
    for seed in 0..12 {
        calm.push(cluster.generate(asked(seed)).await.expect("calm"));
    }
    for (what, lie) in lies() {
        let cluster = ToyCluster::start(plan(1, 1)).await;
        let client = cluster.client().await;
        let liar = Liar { honest: cluster.experts[0].address.clone(), verdicts: 2, lie };
        let _listed = list(&cluster, "liar", liar, record(&cluster)).await;
        let (mut lied_to, mut undisturbed) = (0, 0);
        let since = Instant::now();
        while lied_to == 0 || undisturbed == 0 {
            assert!(since.elapsed() < PATIENCE, "{what}: {lied_to} sessions met the liar, {undisturbed} did not");
            let crowd = join_all((0..12).map(|seed| collect(client.clone(), asked(seed)))).await;
            for (answer, calm) in crowd.into_iter().zip(&calm) {
                let answer = answer.unwrap_or_else(|status| panic!("{what}: {status}"));
                assert_same(&answer, calm, what);
                if answer.started.as_ref().expect("started").expert == "liar" {
                    lied_to += 1;
                    assert!(moves(&answer) > 0, "{what} was taken");
                } else {
                    undisturbed += 1;
                    assert_eq!(moves(&answer), 0, "{what}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_finds_the_one_honest_expert_among_many() {
    let cluster = ToyCluster::start(plan(1, 1)).await;
    let calm = cluster.generate(asked(5)).await.expect("calm");
    let mut listed = Vec::new();
    for number in 0..10 {
        let liar = Liar { honest: cluster.experts[0].address.clone(), verdicts: 0, lie: verdict!(write_unknown) };
        listed.push(list(&cluster, &format!("liar-{number}"), liar, record(&cluster)).await);
    }
    let client = cluster.client().await;
    for answer in join_all((0..8).map(|_| collect(client.clone(), asked(5)))).await {
        assert_same(&answer.expect("the honest one is there"), &calm, "ten liars");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_expert_lies_the_client_hears_it_or_the_drafter_goes_on() {
    let elsewhere = ToyCluster::start(plan(0, 1)).await;
    let cluster = ToyCluster::start(plan(1, 0)).await;
    let liar = Liar { honest: elsewhere.experts[0].address.clone(), verdicts: 0, lie: verdict!(write_unknown) };
    let _listed = list(&cluster, "liar", liar, record(&elsewhere)).await;
    let refused = cluster.generate(asked(5)).await.expect_err("nobody answers it rightly");
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert!(refused.message().contains("expert liar answered wrongly: the replacement is token 70000"), "{refused}");
    let mut alone = asked(5);
    if let Some(parameters) = &mut alone.parameters {
        parameters.on_expert_loss = v1::OnExpertLoss::Drafter.into();
    }
    let answer = cluster.generate(alone).await.expect("the drafter goes on");
    assert_eq!(answer.ids.len(), 40);
    assert!(!answer.finished.expect("finished").reproducible);
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_of_a_kept_answer_come_from_an_expert_that_tells_the_truth() {
    let cluster = ToyCluster::start(plan(1, 1)).await;
    let scored = |seed| {
        let mut request = asked(seed);
        if let Some(parameters) = &mut request.parameters {
            (parameters.strategy, parameters.alpha) = ("cascade_query".into(), Some(-1e6));
        }
        request
    };
    let calm = cluster.generate(scored(3)).await.expect("calm");
    let lie: Lie = verdict!(|v| v.scores.iter_mut().for_each(|score| score.expert_logprob = Some(3.0)));
    let liar = Liar { honest: cluster.experts[0].address.clone(), verdicts: 0, lie };
    let _listed = list(&cluster, "liar", liar, record(&cluster)).await;
    let client = cluster.client().await;
    for answer in join_all((0..8).map(|_| collect(client.clone(), scored(3)))).await {
        let answer = answer.expect("the honest one scores");
        assert_eq!((&answer.ids, &answer.logprobs), (&calm.ids, &calm.logprobs));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_whose_prompt_is_no_part_of_its_history_is_refused() {
    let cluster = ToyCluster::start(plan(0, 1)).await;
    let mut client =
        VerifyClient::connect(format!("http://{}", cluster.experts[0].address)).await.expect("the expert listens");
    for prompt_tokens in [0, 3, u32::MAX] {
        let penalties =
            v1::Parameters { strategy: "speculative".into(), presence_penalty: Some(1.0), ..v1::Parameters::default() };
        let open = v1::VerifyOpen {
            protocol: Some(cascadia_proto::range()),
            key: Some(v1::SessionKey { session: vec![7; 16], epoch: 1, ..Default::default() }),
            model: MODEL.into(),
            resolved: Some(v1::Resolved { parameters: Some(penalties), ..v1::Resolved::default() }),
            remaining_ms: 30_000,
            prompt_tokens,
            history_tokens: 2,
            tokenizer_fingerprint: text().fingerprint().to_owned(),
            ..v1::VerifyOpen::default()
        };
        let messages = [Ask::Open(open), Ask::History(v1::History { ids: vec![5, 6] })];
        let asked = messages.map(|message| v1::VerifyRequest { message: Some(message) });
        let mut said = client.stream(futures::stream::iter(asked)).await.expect("a stream").into_inner();
        let refused = said.message().await.expect_err("a prompt is part of the history");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("prompt_tokens"), "{refused}");
    }
}
