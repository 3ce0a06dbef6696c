//! What an undisturbed client sees, and what the owner is told.

mod cluster;

use cascadia_core::placement::Role;
use cascadia_proto::v1::{self, Parameters, Speculation};
use cluster::{Cluster, config, parameters, request, soon};
use tonic::Code;

#[tokio::test]
async fn a_request_is_placed_and_its_tokens_relayed() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let asked = v1::GenerateRequest {
        tenant: "acme".into(),
        priority: 3,
        timeout_ms: Some(500_000),
        ..request(parameters("speculative"))
    };
    let told = cluster.ask(asked.clone());

    let call = drafter.call().await;
    let open = &call.open;
    assert_eq!((call.placement(), open.model.as_str(), open.request_id.as_str()), (1, "demo", "test"));
    assert_eq!((open.tenant.as_str(), open.cache_salt.as_str(), open.priority), ("acme", "acme", 3));
    assert!((400_000..=500_000).contains(&open.remaining_ms), "{}", open.remaining_ms);
    assert_eq!(open.prompt, asked.prompt);
    assert!(open.continued.is_none() && call.history.is_empty());
    let chosen = open.expert.as_ref().unwrap();
    assert_eq!((chosen.id.as_str(), chosen.fingerprint.as_str()), ("expert-1", "expert-1"));
    let seed = open.resolved.as_ref().unwrap().seed;

    call.opened(&[1, 2, 3]).await;
    call.tokens(3, &[10, 11]).await;
    call.tokens(5, &[12]).await;
    call.finish(Speculation { blocks: 1, drafted: 6, accepted: 3, ..Speculation::default() }).await;

    let told = soon(told).await.unwrap();
    assert!(told.error.is_none(), "{:?}", told.error);
    let started = &told.started[0];
    assert_eq!((started.drafter.as_str(), started.expert.as_str()), ("drafter-1", "expert-1"));
    assert_eq!((started.request_id.as_str(), started.model.as_str(), started.seed), ("test", "demo", seed));
    assert_eq!((started.prompt_tokens, started.session.len()), (3, 32));
    assert_eq!(started.parameters.as_ref().unwrap().strategy, "speculative");
    assert_eq!(started.parameters.as_ref().unwrap().seed, Some(seed));
    assert_eq!(started.fingerprints.as_ref().unwrap().tokenizer, "tokenizer");
    assert_eq!((told.ids(), told.text()), (vec![10, 11, 12], "<10><11><12>".to_owned()));
    let finished = told.finished.unwrap();
    assert!(finished.reproducible);
    let usage = finished.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 3));
    assert_eq!(finished.speculation.unwrap().drafted, 6);
    expert.is_left_alone().await;
}

#[tokio::test]
async fn each_strategy_has_its_owner() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    for strategy in ["drafter", "cascade_query", "cascade_token", "speculative", "speculative_cascade"] {
        let told = cluster.ask(request(parameters(strategy)));
        let call = drafter.call().await;
        assert_eq!(call.parameters().strategy, strategy);
        assert_eq!(call.open.expert.is_some(), strategy != "drafter");
        call.opened(&[1]).await;
        call.finish(Speculation::default()).await;
        assert!(soon(told).await.unwrap().finished.unwrap().reproducible);
    }
    let told = cluster.ask(request(parameters("expert")));
    let call = expert.call().await;
    assert_eq!(call.parameters().strategy, "expert");
    call.opened(&[1]).await;
    call.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.started[0].drafter.as_str(), told.started[0].expert.as_str()), ("", "expert-1"));
    assert!(told.finished.unwrap().reproducible);
}

#[tokio::test]
async fn positions_are_relayed_once_and_in_order_and_after_a_gap_another_owner_goes_on() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(parameters("speculative")));
    let mut call = drafter.call().await;
    call.opened(&[1, 2]).await;
    call.tokens(2, &[5, 6]).await;
    call.tokens(4, &[7]).await;
    call.tokens(9, &[8]).await;
    let again = expert.call().await;
    assert_eq!(again.history, [1, 2, 5, 6, 7]);
    call.cancelled().await;
    again.continued().await;
    again.tokens(5, &[8]).await;
    again.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.ids(), told.code()), (vec![5, 6, 7, 8], Code::Ok));
}

#[tokio::test]
async fn a_query_that_falls_short_is_handed_over_from_its_prompt() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(parameters("cascade_query")));
    let call = drafter.call().await;
    call.opened(&[1, 2, 3]).await;
    call.hand_over(-1.5).await;

    let call = expert.call().await;
    let continued = call.open.continued.as_ref().unwrap();
    assert_eq!((continued.prompt_tokens, continued.history_tokens, continued.handed_over), (3, 3, true));
    assert_eq!(call.history, [1, 2, 3]);
    assert_eq!((call.placement(), call.parameters().strategy.as_str()), (2, "expert"));
    assert!(call.open.prompt.is_none());
    call.continued().await;
    call.tokens(3, &[9]).await;
    call.finish(Speculation { deferred: 1, ..Speculation::default() }).await;

    let told = soon(told).await.unwrap();
    assert_eq!(told.started.len(), 1);
    assert_eq!(told.started[0].parameters.as_ref().unwrap().strategy, "cascade_query");
    assert_eq!(told.ids(), [9]);
    let finished = told.finished.unwrap();
    assert!(finished.reproducible, "a handover is what a retry would do");
    let speculation = finished.speculation.unwrap();
    assert_eq!((speculation.score, speculation.drafted, speculation.deferred), (Some(-1.5), 5, 1));
    assert_eq!(speculation.moves, 0);
}

#[tokio::test]
async fn bad_requests_get_one_sentence_each() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let ask = |change: &dyn Fn(&mut v1::GenerateRequest)| {
        let mut asked = request(parameters("speculative"));
        change(&mut asked);
        cluster.ask(asked)
    };
    let with =
        |parameters: Parameters| move |asked: &mut v1::GenerateRequest| asked.parameters = Some(parameters.clone());
    let base = || parameters("speculative");
    for (change, code, says) in [
        (
            Box::new(|asked: &mut v1::GenerateRequest| asked.prompt = None) as Box<dyn Fn(&mut _)>,
            Code::InvalidArgument,
            "prompt is empty",
        ),
        (Box::new(|asked: &mut v1::GenerateRequest| asked.model = "nope".into()), Code::NotFound, "name one of demo"),
        (Box::new(|asked: &mut v1::GenerateRequest| asked.timeout_ms = Some(0)), Code::InvalidArgument, "timeout_ms"),
        (Box::new(with(Parameters { max_tokens: Some(0), ..base() })), Code::InvalidArgument, "max_tokens"),
        (Box::new(with(Parameters { temperature: Some(f64::NAN), ..base() })), Code::InvalidArgument, "temperature"),
        (Box::new(with(Parameters { top_p: Some(2.0), ..base() })), Code::InvalidArgument, "top_p"),
        (Box::new(with(parameters("magic"))), Code::InvalidArgument, "magic"),
        (
            Box::new(with(Parameters { rule: "no_rule".into(), ..parameters("speculative_cascade") })),
            Code::InvalidArgument,
            "no_rule",
        ),
        (
            Box::new(with(Parameters {
                rule: "token_v3".into(),
                alpha: Some(7.0),
                ..parameters("speculative_cascade")
            })),
            Code::InvalidArgument,
            "alpha",
        ),
    ] {
        let told = soon(ask(change.as_ref())).await.unwrap();
        assert_eq!(told.code(), code, "{says}: {}", told.message());
        assert!(told.message().contains(says), "{says}: {}", told.message());
        assert!(!told.message().contains('\n'));
    }
    drafter.is_left_alone().await;
}

#[tokio::test]
async fn clients_and_operators_see_the_cluster() {
    let cluster = Cluster::start(config()).await;
    let mut client = cluster.client();
    let mut health = tonic_health::pb::health_client::HealthClient::new(
        cascadia_node::net::Connector::tcp().channel(&cluster.address),
    );
    let mut serving = async || {
        let asked = tonic_health::pb::HealthCheckRequest { service: String::new() };
        health.check(asked).await.unwrap().into_inner().status == 1
    };
    let refused = soon(cluster.ask(request(parameters("speculative")))).await.unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{}", refused.message());
    assert!(!serving().await, "no model was served yet");

    let _expert = cluster.owner("expert-1", Role::Expert).await;
    let _drafter = cluster.owner("drafter-1", Role::Drafter).await;
    soon(async {
        while !serving().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let models = client.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert_eq!((models[0].name.as_str(), models[0].drafters.len(), models[0].experts.len()), ("demo", 1, 1));
    let status = client.cluster_status(v1::ClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.router.as_str(), status.pairs.len()), ("router-1", 1));
    let members: Vec<_> = status.members.iter().map(|member| (member.id.as_str(), member.role.as_str())).collect();
    assert_eq!(members, [("drafter-1", "drafter"), ("expert-1", "expert"), ("router-1", "router")]);
}
