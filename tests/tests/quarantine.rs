//! A node lives and fails every session: it is left alone, its sessions end elsewhere, and it gets some again once it works.

use std::time::{Duration, Instant};

use cascadia_proto::v1;
use cascadia_tests::{Answer, PATIENCE, Plan, ToyCluster, parameters, request};
use tonic::{Code, Status};

const PROMPT: &str = "Hello world. the the the";

/// How long a node that fails is left alone before one session may try it.
const RETRY: Duration = cascadia_core::limits::QUARANTINE_RETRY;

fn plan(drafters: usize, experts: usize) -> Plan {
    let step = Duration::from_millis(1);
    Plan { drafters, experts, expert_step: step, drafter_step: step, ..Plan::default() }
}

fn asked(strategy: &str, request_id: &str) -> v1::GenerateRequest {
    let parameters = v1::Parameters { max_tokens: Some(12), ignore_eos: true, ..parameters(strategy, 0.9, 5) };
    v1::GenerateRequest { timeout_ms: Some(120_000), request_id: request_id.into(), ..request(PROMPT, parameters) }
}

/// The nodes that get no new sessions because they fail.
async fn failing(cluster: &ToyCluster) -> Vec<String> {
    let status = cluster.status().await.expect("the router answers");
    status.members.into_iter().filter(|member| member.failing).map(|member| member.id).collect()
}

/// Asks again and again, each time with an id of its own, until something holds after an answer.
async fn ask_until(
    cluster: &ToyCluster,
    strategy: &str,
    what: &str,
    mut holds: impl AsyncFnMut(&ToyCluster, Answer) -> bool,
) {
    let since = Instant::now();
    for nth in 0.. {
        let answer = cluster.generate(asked(strategy, &format!("{what} {nth}"))).await;
        if holds(cluster, answer.expect("every session ends well, wherever")).await {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "in vain: {what}");
    }
}

fn started(answer: &Answer) -> &v1::Started {
    answer.started.as_ref().expect("started")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drafter_that_fails_every_session_is_left_alone_until_it_works() {
    for strategy in ["speculative", "drafter"] {
        let cluster = ToyCluster::start(plan(2, 1)).await;
        let calm = cluster.generate(asked(strategy, "calm")).await.expect("calm");
        let bad = &cluster.drafters[0];
        bad.hang.fail(true);
        ask_until(&cluster, strategy, "it is left alone", async |cluster, answer| {
            assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
            failing(cluster).await == [bad.id.0.clone()]
        })
        .await;
        let (failed, since) = (bad.hang.failed(), Instant::now());
        assert!(failed >= 3, "{failed} sessions");
        for nth in 0..20 {
            let answer = cluster.generate(asked(strategy, &format!("after {nth}"))).await.expect("it ends elsewhere");
            assert_eq!(answer.ids, calm.ids);
        }
        // One session at a time may try it.
        let tries = 1 + since.elapsed().as_secs() / RETRY.as_secs();
        assert!(bad.hang.failed() <= failed + tries, "{} of 20 sessions", bad.hang.failed() - failed);

        bad.hang.fail(false);
        ask_until(&cluster, strategy, "it serves again", async |cluster, answer| {
            started(&answer).drafter == bad.id.0 && failing(cluster).await.is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_that_fails_every_session_is_left_alone_until_it_works() {
    for strategy in ["speculative", "expert"] {
        let cluster = ToyCluster::start(plan(1, 2)).await;
        let calm = cluster.generate(asked(strategy, "calm")).await.expect("calm");
        let bad = &cluster.experts[0];
        bad.hang.fail(true);
        ask_until(&cluster, strategy, "it is left alone", async |cluster, answer| {
            assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
            failing(cluster).await == [bad.id.0.clone()]
        })
        .await;
        bad.hang.fail(false);
        ask_until(&cluster, strategy, "it serves again", async |cluster, answer| {
            started(&answer).expert == bad.id.0 && failing(cluster).await.is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_that_fails_a_drafter_again_and_again_closes_nothing() {
    let cluster = ToyCluster::start(plan(2, 1)).await;
    let bad = &cluster.drafters[0];
    bad.hang.fail(true);
    let since = Instant::now();
    while bad.hang.failed() < 6 {
        cluster.generate(asked("speculative", "the same")).await.expect("it ends elsewhere");
        assert_eq!(failing(&cluster).await, Vec::<String>::new());
        assert!(since.elapsed() < PATIENCE, "{} sessions met the drafter", bad.hang.failed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_drafter_is_never_left_alone_and_its_error_is_the_clients() {
    let cluster = ToyCluster::start(plan(1, 1)).await;
    let only = &cluster.drafters[0];
    only.hang.fail(true);
    let waits = |nth: usize| {
        let mut asked = asked("drafter", &format!("request {nth}"));
        asked.parameters.as_mut().expect("parameters").on_drafter_loss = v1::OnDrafterLoss::Wait.into();
        asked
    };
    let failed: Vec<Result<Answer, Status>> =
        futures::future::join_all((0..4).map(|nth| cluster.generate(waits(nth)))).await;
    for answer in failed {
        assert_eq!(answer.expect_err("nobody else serves it").code(), Code::Internal);
    }
    assert_eq!(failing(&cluster).await, Vec::<String>::new());
    only.hang.fail(false);
    cluster.generate(waits(4)).await.expect("it works again");
}
