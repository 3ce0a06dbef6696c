//! Owners that die, hang, drain or have no room: what the client sees of it.

mod cluster;

use std::time::Duration;

use cascadia_core::placement::Role;
use cascadia_node::status::EngineLoad;
use cascadia_proto::fault;
use cascadia_proto::v1::{OnDrafterLoss, Parameters, Speculation};
use cluster::{Asked, Cluster, Owner, config, parameters, request, soon};
use tonic::{Code, Status};

/// A cluster of two drafters and one expert; the drafter that got the session comes first.
async fn started(asked: Parameters) -> (Cluster, Asked, [Owner; 2], Owner, cluster::Call) {
    let (cluster, mut one, expert) = Cluster::pair(config()).await;
    let mut two = cluster.owner("drafter-2", Role::Drafter).await;
    let told = cluster.ask(request(asked));
    tokio::select! {
        call = one.call() => (cluster, told, [one, two], expert, call),
        call = two.call() => (cluster, told, [two, one], expert, call),
    }
}

#[tokio::test]
async fn a_session_outlives_its_drafter() {
    let (_cluster, told, [mut first, mut second], mut expert, call) = started(parameters("speculative_cascade")).await;
    call.opened(&[1, 2, 3]).await;
    call.tokens(3, &[10, 11]).await;
    told.hears(2).await;
    first.kill();

    let again = second.call().await;
    assert_eq!((again.placement(), again.history.as_slice()), (2, [1, 2, 3, 10, 11].as_slice()));
    let continued = again.open.continued.as_ref().unwrap();
    assert_eq!((continued.prompt_tokens, continued.history_tokens, continued.handed_over), (3, 5, false));
    assert!(again.open.prompt.is_none());
    assert_eq!(again.open.key.as_ref().unwrap().session, call.open.key.as_ref().unwrap().session);
    assert_eq!(again.open.resolved, call.open.resolved);
    let pinned = again.open.pinned.as_ref().unwrap();
    assert_eq!((pinned.drafter.as_str(), pinned.expert.as_str()), ("drafter-1", "expert-1"));
    again.continued().await;
    again.tokens(5, &[12]).await;
    again.finish(Speculation { drafted: 4, accepted: 1, ..Speculation::default() }).await;

    let told = soon(told).await.unwrap();
    assert!(told.error.is_none(), "{:?}", told.error);
    assert_eq!((told.started.len(), told.ids()), (1, vec![10, 11, 12]));
    let finished = told.finished.unwrap();
    assert!(finished.reproducible, "an equal drafter writes what the first would have written");
    let speculation = finished.speculation.unwrap();
    assert_eq!((speculation.accepted, speculation.moves), (3, 1));
    assert_eq!(finished.usage.unwrap().completion_tokens, 3);
    expert.is_left_alone().await;
}

#[tokio::test]
async fn a_drafter_that_dies_before_the_prompt_is_known_is_replaced_from_the_start() {
    let (_cluster, told, [mut first, mut second], _expert, call) = started(parameters("speculative")).await;
    call.announce(3).await;
    call.prompt(&[1]).await;
    // Time for the part to arrive; nobody would say that it has.
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.kill();
    let again = second.call().await;
    assert!(again.open.prompt.is_some() && again.open.continued.is_none());
    assert_eq!(again.placement(), 2);
    again.opened(&[1, 2, 3]).await;
    again.tokens(3, &[4]).await;
    again.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.started.len(), told.ids()), (1, vec![4]));
}

/// Kills the only drafter after one token; the expert goes on.
async fn without_drafters(asked: Parameters) -> cluster::Told {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(asked));
    let call = drafter.call().await;
    call.opened(&[1, 2]).await;
    call.tokens(2, &[7]).await;
    told.hears(1).await;
    drafter.kill();
    let again = expert.call().await;
    assert_eq!((again.parameters().strategy.as_str(), again.history.as_slice()), ("expert", [1, 2, 7].as_slice()));
    assert!(again.open.expert.is_none());
    again.continued().await;
    again.tokens(3, &[8]).await;
    again.finish(Speculation::default()).await;
    soon(told).await.unwrap()
}

#[tokio::test]
async fn without_drafters_the_expert_writes_the_same_exact_text() {
    let told = without_drafters(parameters("speculative")).await;
    assert_eq!(told.ids(), [7, 8]);
    assert!(told.finished.unwrap().reproducible);
}

#[tokio::test]
async fn without_drafters_a_lossy_text_is_marked() {
    let told = without_drafters(parameters("speculative_cascade")).await;
    assert_eq!(told.ids(), [7, 8]);
    assert!(!told.finished.unwrap().reproducible);
}

#[tokio::test]
async fn without_any_drafter_the_expert_answers_and_says_so() {
    let cluster = Cluster::start(config()).await;
    let mut expert = cluster.owner("expert-1", Role::Expert).await;
    let told = cluster.ask(request(parameters("speculative_cascade")));
    let call = expert.call().await;
    call.opened(&[1]).await;
    call.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!(told.started[0].parameters.as_ref().unwrap().strategy, "expert");
    assert!(!told.finished.unwrap().reproducible, "a retry may find a drafter");
}

#[tokio::test]
async fn a_session_that_waits_for_drafters_goes_on_when_one_comes() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let asked = Parameters { on_drafter_loss: OnDrafterLoss::Wait.into(), ..parameters("speculative") };
    let told = cluster.ask(request(asked));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    told.hears(1).await;
    drafter.kill();
    expert.is_left_alone().await;
    let mut late = cluster.owner("drafter-2", Role::Drafter).await;
    let again = late.call().await;
    assert_eq!(again.history, [1, 2]);
    again.continued().await;
    again.finish(Speculation::default()).await;
    assert!(soon(told).await.unwrap().finished.is_some());
}

#[tokio::test]
async fn a_hung_owner_is_left() {
    let (_cluster, told, [first, mut second], _expert, mut call) = started(parameters("speculative")).await;
    call.opened(&[1]).await;
    first.board.record(EngineLoad { queued_tokens: 5, sessions: 1, ..EngineLoad::default() });
    let again = second.call().await;
    assert_eq!(again.placement(), 2);
    call.cancelled().await;
    again.continued().await;
    again.finish(Speculation::default()).await;
    assert!(soon(told).await.unwrap().finished.is_some());
}

#[tokio::test]
async fn an_owner_that_leaves_hands_its_session_back() {
    let (_cluster, told, [mut first, mut second], _expert, call) = started(parameters("speculative")).await;
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    first.drain().await;
    call.fail(Status::unavailable("draining: the session goes on elsewhere")).await;
    let again = second.call().await;
    assert_eq!(again.history, [1, 2]);
    again.continued().await;
    again.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!(told.finished.unwrap().speculation.unwrap().moves, 1);
}

#[tokio::test]
async fn an_owner_that_fails_by_its_own_fault_is_left_for_another() {
    let (_cluster, told, [_first, mut second], _expert, call) = started(parameters("speculative")).await;
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    call.fail(Status::internal("the engine failed")).await;
    let again = second.call().await;
    assert_eq!(again.history, [1, 2]);
    again.continued().await;
    again.fail(fault::of("expert-1", Status::internal("no expert serves it"))).await;
    assert_eq!(soon(told).await.unwrap().message(), "no expert serves it", "another would say the same");
}

#[tokio::test]
async fn an_owners_no_is_the_clients_answer() {
    let (_cluster, told, [_first, mut second], _expert, call) = started(parameters("speculative")).await;
    call.fail(Status::invalid_argument("the prompt has 9000 tokens, the context 4096: shorten it")).await;
    let told = soon(told).await.unwrap();
    assert_eq!(told.code(), Code::InvalidArgument);
    assert_eq!(told.message(), "the prompt has 9000 tokens, the context 4096: shorten it");
    second.is_left_alone().await;
}

#[tokio::test]
async fn a_full_owner_is_tried_once_elsewhere_then_refused() {
    let (_cluster, told, [_first, mut second], mut expert, call) = started(parameters("speculative")).await;
    call.fail(Status::resource_exhausted("no slot")).await;
    second.call().await.fail(Status::resource_exhausted("no slot here either")).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.code(), told.message()), (Code::ResourceExhausted, "no slot here either"));
    assert!(told.error.unwrap().metadata().contains_key("retry-after"));
    expert.is_left_alone().await;
}

#[tokio::test]
async fn a_full_lone_owner_refuses_and_nobody_steps_in() {
    let (cluster, mut drafter, mut expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(parameters("speculative")));
    drafter.call().await.fail(Status::resource_exhausted("no slot")).await;
    assert_eq!(soon(told).await.unwrap().code(), Code::ResourceExhausted);
    expert.is_left_alone().await;
}

#[tokio::test]
async fn an_owner_that_goes_on_without_its_expert_marks_the_text() {
    let (cluster, mut drafter, _expert) = Cluster::pair(config()).await;
    let told = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.moved(call.open.expert.clone()).await;
    call.finish(Speculation { moves: 1, ..Speculation::default() }).await;
    let finished = soon(told).await.unwrap().finished.unwrap();
    assert!(finished.reproducible && finished.speculation.unwrap().moves == 1, "an equal expert");

    let told = cluster.ask(request(parameters("speculative")));
    let call = drafter.call().await;
    call.opened(&[1]).await;
    call.moved(None).await;
    call.finish(Speculation::default()).await;
    assert!(!soon(told).await.unwrap().finished.unwrap().reproducible);
}

#[tokio::test]
async fn an_owner_that_cannot_continue_is_left_for_one_that_can() {
    let (_cluster, told, [mut first, mut second], mut expert, call) = started(parameters("speculative")).await;
    call.opened(&[1]).await;
    call.tokens(1, &[2]).await;
    told.hears(1).await;
    first.kill();
    second.call().await.fail(Status::failed_precondition("the session is pinned to another model")).await;
    let again = expert.call().await;
    assert_eq!((again.placement(), again.history.as_slice()), (3, [1, 2].as_slice()));
    again.continued().await;
    again.finish(Speculation::default()).await;
    assert!(soon(told).await.unwrap().finished.is_some());
}

#[tokio::test]
async fn an_owner_of_another_cluster_is_left_for_one_of_ours() {
    let (_cluster, told, [_first, mut second], _expert, call) = started(parameters("speculative")).await;
    assert_eq!(call.open.cluster, "default");
    call.opened_in("another").await;
    let again = second.call().await;
    assert_eq!(again.placement(), 2);
    again.opened(&[1, 2, 3]).await;
    again.tokens(3, &[4]).await;
    again.finish(Speculation::default()).await;
    let told = soon(told).await.unwrap();
    assert_eq!((told.started.len(), told.ids()), (1, vec![4]));
}
