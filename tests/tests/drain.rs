//! Nodes are told to go, and clients do not notice: sessions move where they can, and finish where they cannot.

use std::time::Duration;

use cascadia_proto::v1;
use cascadia_tests::{Answer, Plan, Running, ToyCluster, cascade, parameters, request};

const PROMPT: &str = "Hello world. the the the";

fn slow() -> Plan {
    Plan { expert_step: Duration::from_millis(12), drafter_step: Duration::from_millis(2), ..Plan::default() }
}

fn asked(parameters: v1::Parameters) -> v1::GenerateRequest {
    let long = v1::Parameters { max_tokens: Some(120), ignore_eos: true, ..parameters };
    v1::GenerateRequest { timeout_ms: Some(120_000), ..request(PROMPT, long) }
}

/// Reads a stream, telling nodes to drain once so many tokens have come.
async fn with_drain(
    cluster: &ToyCluster,
    request: v1::GenerateRequest,
    after: usize,
    drain: impl Fn(&ToyCluster, &v1::Started),
) -> Answer {
    let mut stream = cluster.client().await.generate(request).await.expect("a stream").into_inner();
    let (mut answer, mut told) = (Answer::default(), false);
    while let Some(response) = stream.message().await.expect("no error reaches the client") {
        answer.take(response);
        if answer.ids.len() >= after && !std::mem::replace(&mut told, true) {
            drain(cluster, answer.started.as_ref().expect("started"));
        }
    }
    assert!(told, "the answer was over before the drain");
    answer
}

fn named<'a>(nodes: &'a [Running], name: &str) -> &'a Running {
    nodes.iter().find(|node| node.id.0 == name).expect("the node that serves the session")
}

fn strategies(seed: u64) -> Vec<v1::Parameters> {
    vec![
        parameters("speculative", 0.9, seed),
        cascade("token_v3", 0.6, 0.9, seed),
        cascade("chow", 0.5, 0.9, seed),
        v1::Parameters { alpha: Some(0.5), ..parameters("cascade_token", 0.9, seed) },
    ]
}

/// The answer of a cluster of two and two some of whose nodes drain is the calm one, and the nodes are gone.
async fn moves(parameters: v1::Parameters, drain: impl Fn(&ToyCluster, &v1::Started)) {
    let cluster = ToyCluster::start(slow()).await;
    let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
    let answer = with_drain(&cluster, asked(parameters), 20, drain).await;
    assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
    assert!(answer.finished.as_ref().expect("finished").reproducible);
    for node in cluster.drafters.iter().chain(&cluster.experts).filter(|node| node.shutdown.is_draining()) {
        node.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_drafter_move() {
    for parameters in strategies(21).into_iter().chain([parameters("drafter", 0.9, 21)]) {
        moves(parameters, |cluster, started| named(&cluster.drafters, &started.drafter).shutdown.drain()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_an_expert_move() {
    for parameters in strategies(22).into_iter().chain([parameters("expert", 0.9, 22)]) {
        moves(parameters, |cluster, started| named(&cluster.experts, &started.expert).shutdown.drain()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_of_a_session_drain_at_once() {
    for parameters in strategies(23) {
        moves(parameters, |cluster, started| {
            named(&cluster.drafters, &started.drafter).shutdown.drain();
            named(&cluster.experts, &started.expert).shutdown.drain();
        })
        .await;
    }
}

/// The last drafter and the last expert of their models are told to go: what is open finishes there, and no more comes.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_a_model_finishes_its_sessions() {
    for parameters in strategies(24) {
        let cluster = ToyCluster::start(Plan { drafters: 1, experts: 1, ..slow() }).await;
        let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
        let answer = with_drain(&cluster, asked(parameters.clone()), 20, |cluster, _| {
            cluster.drafters[0].shutdown.drain();
            cluster.experts[0].shutdown.drain();
        })
        .await;
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
        let finished = answer.finished.expect("finished");
        assert_eq!((finished.reproducible, finished.speculation.expect("statistics").moves), (true, 0));
        cluster.drafters[0].gone().await;
        cluster.experts[0].gone().await;
    }
}

/// A session whose only expert drains has nowhere to go from its drafter, although there is another drafter.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_where_no_expert_would_serve_it_elsewhere() {
    let cluster = ToyCluster::start(Plan { experts: 1, ..slow() }).await;
    let parameters = cascade("token_v3", 0.6, 0.9, 25);
    let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
    let answer = with_drain(&cluster, asked(parameters), 20, |cluster, started| {
        cluster.experts[0].shutdown.drain();
        named(&cluster.drafters, &started.drafter).shutdown.drain();
    })
    .await;
    assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
    cluster.experts[0].gone().await;
}

/// The drafter's engine is through when the expert scores its answer; the session is open all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_being_scored_is_an_open_session() {
    let cluster = ToyCluster::start(Plan { drafters: 1, expert_step: Duration::from_millis(400), ..slow() }).await;
    let query = v1::Parameters { alpha: Some(-100.0), logprobs: Some(1), ..parameters("cascade_query", 0.9, 26) };
    let calm = cluster.generate(asked(query.clone())).await.expect("calm");
    let answer = with_drain(&cluster, asked(query), 0, |cluster, _| cluster.drafters[0].shutdown.drain()).await;
    assert_eq!((&answer.ids, &answer.logprobs), (&calm.ids, &calm.logprobs));
    assert!(answer.finished.expect("finished").reproducible);
    cluster.drafters[0].gone().await;
}

/// Sessions that come while a node is being told to go, and before anybody knows.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_come_with_the_drain_are_served_elsewhere() {
    let cluster = ToyCluster::start(Plan { expert_step: Duration::from_millis(2), ..Plan::default() }).await;
    let mut calm = Vec::new();
    for seed in 0..24 {
        calm.push(cluster.generate(asked(cascade("token_v3", 0.6, 0.9, seed))).await.expect("calm").ids);
    }
    let client = cluster.client().await;
    let storm: Vec<_> = (0..24)
        .map(|seed| {
            let client = client.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5 * seed)).await;
                cascadia_tests::collect(client, asked(cascade("token_v3", 0.6, 0.9, seed))).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.drafters[0].shutdown.drain();
    cluster.experts[1].shutdown.drain();
    for (calm, answer) in calm.into_iter().zip(storm) {
        let answer = answer.await.expect("the task runs").expect("no error reaches the client");
        assert_eq!(answer.ids, calm);
    }
    cluster.drafters[0].gone().await;
    cluster.experts[1].gone().await;
}
