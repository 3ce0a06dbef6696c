//! Nodes die, and clients do not notice: the same text as without the fault.

use std::time::Duration;

use cascadia_proto::v1;
use cascadia_tests::{Answer, Plan, ToyCluster, cascade, collect, parameters, request};

const PROMPT: &str = "Hello world. the the the";

fn slow() -> Plan {
    Plan { expert_step: Duration::from_millis(12), drafter_step: Duration::from_millis(2), ..Plan::default() }
}

fn asked(parameters: v1::Parameters) -> v1::GenerateRequest {
    let long = v1::Parameters { max_tokens: Some(120), ignore_eos: true, ..parameters };
    v1::GenerateRequest { timeout_ms: Some(120_000), ..request(PROMPT, long) }
}

/// Reads a stream, doing `fault` to the cluster once so many tokens have come.
async fn with_fault(
    cluster: &mut ToyCluster,
    request: v1::GenerateRequest,
    after: usize,
    fault: impl FnOnce(&mut ToyCluster, &Answer),
) -> Answer {
    let mut stream = cluster.client().await.generate(request).await.expect("a stream").into_inner();
    let (mut answer, mut fault) = (Answer::default(), Some(fault));
    while let Some(response) = stream.message().await.expect("no error reaches the client") {
        answer.take(response);
        if answer.ids.len() >= after
            && let Some(fault) = fault.take()
        {
            fault(cluster, &answer);
        }
    }
    assert!(fault.is_none(), "the answer was over before the fault");
    let done = answer.finished.as_ref().and_then(|finished| finished.speculation.as_ref()).expect("statistics");
    assert!(done.accepted + done.deferred >= answer.ids.len() as u64, "all owners count: {done:?}");
    answer
}

fn strategies(seed: u64) -> Vec<v1::Parameters> {
    vec![
        parameters("speculative", 0.9, seed),
        cascade("token_v3", 0.6, 0.9, seed),
        cascade("chow", 0.5, 0.9, seed),
        v1::Parameters { alpha: Some(0.5), ..parameters("cascade_token", 0.9, seed) },
    ]
}

fn kill(nodes: &mut [cascadia_tests::Running], name: &str) {
    nodes.iter_mut().find(|node| node.id.0 == name).expect("the node that serves the session").kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_dies_and_the_text_goes_on() {
    for (seed, parameters) in strategies(11).into_iter().enumerate() {
        let mut cluster = ToyCluster::start(slow()).await;
        let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
        let answer = with_fault(&mut cluster, asked(parameters), 20 + seed, |cluster, answer| {
            let expert = answer.started.as_ref().expect("started").expert.clone();
            kill(&mut cluster.experts, &expert);
        })
        .await;
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
        let finished = answer.finished.expect("finished");
        assert!(finished.reproducible);
        assert!(finished.speculation.expect("statistics").moves >= 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drafter_dies_and_the_text_goes_on() {
    for parameters in strategies(12).into_iter().chain([parameters("drafter", 0.9, 12)]) {
        let mut cluster = ToyCluster::start(slow()).await;
        let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
        let answer = with_fault(&mut cluster, asked(parameters), 25, |cluster, answer| {
            let drafter = answer.started.as_ref().expect("started").drafter.clone();
            kill(&mut cluster.drafters, &drafter);
        })
        .await;
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
        assert!(answer.finished.expect("finished").reproducible);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_that_decodes_alone_dies_and_another_goes_on() {
    let mut cluster = ToyCluster::start(slow()).await;
    let parameters = parameters("expert", 0.9, 13);
    let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
    let answer = with_fault(&mut cluster, asked(parameters), 30, |cluster, answer| {
        let expert = answer.started.as_ref().expect("started").expert.clone();
        kill(&mut cluster.experts, &expert);
    })
    .await;
    assert_eq!(answer.ids, calm.ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_drafter_the_expert_goes_on_alone() {
    for (parameters, exact) in [(parameters("speculative", 0.9, 14), true), (cascade("token_v3", 0.6, 0.9, 14), false)]
    {
        let mut cluster = ToyCluster::start(Plan { drafters: 1, ..slow() }).await;
        let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
        let answer = with_fault(&mut cluster, asked(parameters), 25, |cluster, _| cluster.drafters[0].kill()).await;
        let finished = answer.finished.as_ref().expect("finished");
        // A lossy rule's token depends on q: where nobody drafts, the response says so.
        assert_eq!(finished.reproducible, exact);
        assert_eq!(answer.ids.len(), 120);
        if exact {
            assert_eq!(answer.ids, calm.ids);
        } else {
            assert_eq!(answer.ids[..25], calm.ids[..25]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_expert_the_drafter_goes_on_where_the_request_says_so() {
    let mut cluster = ToyCluster::start(Plan { experts: 1, ..slow() }).await;
    let asking =
        v1::Parameters { on_expert_loss: v1::OnExpertLoss::Drafter.into(), ..cascade("token_v3", 0.6, 0.9, 15) };
    let answer = with_fault(&mut cluster, asked(asking), 25, |cluster, _| cluster.experts[0].kill()).await;
    assert_eq!(answer.ids.len(), 120);
    assert!(!answer.finished.expect("finished").reproducible);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_expert_and_its_drafter_another_drafter_goes_on() {
    let mut cluster = ToyCluster::start(Plan { experts: 1, ..slow() }).await;
    let asking =
        v1::Parameters { on_expert_loss: v1::OnExpertLoss::Drafter.into(), ..cascade("token_v3", 0.6, 0.9, 15) };
    let answer = with_fault(&mut cluster, asked(asking), 25, |cluster, answer| {
        cluster.experts[0].kill();
        // One that hangs is left later than a dead expert is forgotten.
        let drafter = &answer.started.as_ref().expect("started").drafter;
        let hangs = cluster.drafters.iter().find(|node| node.id.0 == *drafter);
        hangs.expect("the node that serves the session").hang.set(true);
    })
    .await;
    assert_eq!(answer.ids.len(), 120);
    assert!(!answer.finished.expect("finished").reproducible);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_a_session_waits_for_an_expert() {
    let mut cluster = ToyCluster::start(Plan { experts: 1, ..slow() }).await;
    let parameters = cascade("token_v3", 0.6, 0.9, 16);
    let calm = cluster.generate(asked(parameters.clone())).await.expect("calm");
    let answer = with_fault(&mut cluster, asked(parameters), 25, |cluster, _| {
        cluster.experts[0].kill();
        cluster.add_expert();
    })
    .await;
    assert_eq!(answer.ids, calm.ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_engine_is_lost_ends_and_its_sessions_go_on_elsewhere() {
    let asking: Vec<_> = strategies(17).into_iter().chain([parameters("expert", 0.9, 17)]).map(asked).collect();
    let mut cluster = ToyCluster::start(slow()).await;
    let mut calm = Vec::new();
    for request in &asking {
        calm.push(cluster.generate(request.clone()).await.expect("calm"));
    }
    // Others are served meanwhile, some of them by the nodes that are lost.
    let client = cluster.client().await;
    let crowd: Vec<_> = asking.iter().map(|request| tokio::spawn(collect(client.clone(), request.clone()))).collect();
    let (mut expert, mut drafter) = (String::new(), String::new());
    let answer = with_fault(&mut cluster, asking[0].clone(), 20, |cluster, answer| {
        let started = answer.started.as_ref().expect("started");
        (expert, drafter) = (started.expert.clone(), started.drafter.clone());
        for node in cluster.experts.iter().filter(|node| node.id.0 == expert) {
            node.lose.now();
        }
        for node in cluster.drafters.iter().filter(|node| node.id.0 == drafter) {
            node.lose.now();
        }
    })
    .await;
    assert_eq!((&answer.ids, &answer.text), (&calm[0].ids, &calm[0].text));
    assert!(answer.finished.expect("finished").reproducible);
    for (answer, calm) in crowd.into_iter().zip(&calm) {
        let answer = answer.await.expect("no panic").expect("no error reaches the client");
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
    }
    for node in cluster.experts.iter().chain(&cluster.drafters) {
        if node.id.0 == expert || node.id.0 == drafter {
            node.gone().await;
            let line = node.ending().expect("it ended badly");
            assert!(line.contains("the engine is lost (the card has fallen off the bus)"), "{line}");
            assert!(!cluster.membership.snapshots().borrow().nodes.contains_key(&node.id), "{} is listed", node.id);
        } else {
            assert!(!node.is_gone(), "{} is well", node.id);
        }
    }
}
