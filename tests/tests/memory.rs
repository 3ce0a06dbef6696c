//! More sessions than slots or KV pages: they wait, they lose pages and fill them again, and nobody's text tells of it.

use std::time::Duration;

use cascadia_proto::v1;
use cascadia_tests::{Answer, Plan, ToyCluster, cascade, collect, parameters, request};
use futures::future::join_all;

/// Sessions of every strategy, with a beginning that all share, of different lengths.
fn crowd() -> Vec<v1::GenerateRequest> {
    let strategies = |seed| {
        [
            parameters("speculative", 0.8, seed),
            parameters("expert", 0.8, seed),
            cascade("token_v3", 0.5, 0.8, seed),
            parameters("cascade_token", 0.8, seed),
            parameters("drafter", 0.8, seed),
            parameters("cascade_query", 0.8, seed),
        ]
    };
    let asked = |(number, parameters): (usize, v1::Parameters)| {
        let alpha = match parameters.strategy.as_str() {
            "cascade_token" => Some(0.5),
            "cascade_query" => Some(if number.is_multiple_of(2) { -1e6 } else { 0.0 }),
            _ => parameters.alpha,
        };
        let (max_tokens, ignore_eos) = (Some(20 + 7 * (number as u32 % 9)), true);
        let prompt = format!("the same beginning, word for word; {}", "more ".repeat(number % 7 * 4));
        let mut request = request(&prompt, v1::Parameters { alpha, max_tokens, ignore_eos, ..parameters });
        request.timeout_ms = Some(120_000);
        request.priority = number as i32 % 3 - 1;
        request
    };
    (0..4).flat_map(strategies).enumerate().map(asked).collect()
}

async fn answers(cluster: &ToyCluster) -> Vec<Answer> {
    let client = cluster.client().await;
    let answers = join_all(crowd().into_iter().map(|request| collect(client.clone(), request))).await;
    answers.into_iter().map(|answer| answer.expect("an admitted session is delayed, never refused")).collect()
}

/// Sessions that wait in an engine's waiting queue now.
async fn waiting(cluster: &ToyCluster) -> u32 {
    let mut waiting = 0;
    for node in cluster.drafters.iter().chain(&cluster.experts) {
        let address = format!("http://{}", node.address);
        let mut client = v1::node_client::NodeClient::connect(address).await.expect("the node listens");
        let mut statuses = client.watch(v1::WatchRequest::default()).await.expect("a stream").into_inner();
        waiting += statuses.message().await.expect("it goes on").expect("a status").sessions_waiting;
    }
    waiting
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tiny_cache_gives_the_texts_of_a_large_one() {
    let steps = |plan| Plan {
        expert_step: Duration::from_millis(2),
        drafter_step: Duration::from_millis(1),
        drafters: 2,
        experts: 1,
        ..plan
    };
    let roomy = ToyCluster::start(steps(Plan::default())).await;
    let wanted = answers(&roomy).await;
    let mut plan = steps(Plan::default());
    // The longest session alone needs 18 of them.
    (plan.drafter.engine.kv_pages, plan.expert.engine.kv_pages) = (20, 20);
    plan.expert.engine.max_sessions = 8;
    let tiny = ToyCluster::start(plan).await;
    let mut waited = 0;
    let watched = async {
        loop {
            waited = waited.max(waiting(&tiny).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let got =
        tokio::select! { got = answers(&tiny) => got, () = watched => unreachable!("it watches as long as they run") };
    assert!(waited > 0, "nobody had to wait");
    for (number, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        assert_eq!((&got.ids, &got.text), (&wanted.ids, &wanted.text), "session {number}");
        assert!(got.finished.as_ref().expect("finished").reproducible, "session {number}");
    }
    tiny.quiesce().await;
    roomy.quiesce().await;
}
