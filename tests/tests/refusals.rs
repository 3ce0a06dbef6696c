//! A node says no, or has less room than another: sessions wait, end or move, and their text stays right.

use std::time::{Duration, Instant};

use cascadia_core::history::History;
use cascadia_proto::v1::verify_request::Message as Ask;
use cascadia_proto::v1::verify_response::Message as Said;
use cascadia_proto::v1::{self, FinishReason};
use cascadia_tests::{Answer, MODEL, PATIENCE, Plan, Running, ToyCluster, cascade, collect, parameters, request, text};
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

const PROMPT: &str = "Hello world. the the the";

fn plan(drafters: usize, experts: usize, expert_ms: u64) -> Plan {
    let (expert_step, drafter_step) = (Duration::from_millis(expert_ms), Duration::from_millis(1));
    Plan { drafters, experts, expert_step, drafter_step, ..Plan::default() }
}

fn asked(parameters: v1::Parameters, tokens: u32) -> v1::GenerateRequest {
    let exactly = v1::Parameters { max_tokens: Some(tokens), ignore_eos: true, ..parameters };
    v1::GenerateRequest { timeout_ms: Some(120_000), ..request(PROMPT, exactly) }
}

fn moves(answer: &Answer) -> u64 {
    answer.finished.as_ref().and_then(|finished| finished.speculation.as_ref()).expect("statistics").moves
}

fn find<'a>(nodes: &'a mut [Running], name: &str) -> &'a mut Running {
    nodes.iter_mut().find(|node| node.id.0 == name).expect("the node that serves the session")
}

/// Reads a stream, doing `fault` to the cluster once so many tokens have come.
async fn with_fault(
    cluster: &mut ToyCluster,
    request: v1::GenerateRequest,
    after: usize,
    fault: impl FnOnce(&mut ToyCluster, &v1::Started),
) -> Answer {
    let mut stream = cluster.client().await.generate(request).await.expect("a stream").into_inner();
    let (mut answer, mut fault) = (Answer::default(), Some(fault));
    while let Some(response) = stream.message().await.expect("no error reaches the client") {
        answer.take(response);
        if let (Some(started), true) = (&answer.started, answer.ids.len() >= after)
            && let Some(fault) = fault.take()
        {
            fault(cluster, started);
        }
    }
    assert!(fault.is_none(), "the answer was over before the fault");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_under_way_when_an_expert_dies_come_from_the_next() {
    // The drafter keeps all, so that tokens wait for nothing but their scores; the pause lets some be under way.
    for (after, tokens, pause) in [(1, 200, 60), (12, 200, 60), (1, 149, 60), (0, 12, 20)] {
        let drafter_step = Duration::from_millis(4);
        let mut cluster = ToyCluster::start(Plan { drafter_step, ..plan(1, 2, 40) }).await;
        let asking = v1::Parameters { alpha: Some(1.0), logprobs: Some(1), ..parameters("cascade_token", 0.9, 5) };
        let calm = cluster.generate(asked(asking.clone(), tokens)).await.expect("calm");
        assert!(calm.logprobs.len() == tokens as usize && calm.logprobs.iter().all(|scores| scores.expert.is_some()));
        // The short text would be over before it is known where it is.
        cluster.experts.iter().for_each(|expert| expert.hang.set(after == 0));
        let answer = with_fault(&mut cluster, asked(asking, tokens), after, |cluster, started| {
            std::thread::sleep(Duration::from_millis(pause));
            find(&mut cluster.experts, &started.expert).kill();
            cluster.experts.iter().for_each(|expert| expert.hang.set(false));
        })
        .await;
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text), "{tokens} tokens, killed after {after}");
        assert_eq!(answer.logprobs, calm.logprobs, "{tokens} tokens, killed after {after}");
        assert!(moves(&answer) >= 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_wait_for_a_full_expert_and_leave_those_inside_alone() {
    let mut plan = plan(1, 1, 4);
    plan.expert.engine.max_sessions = 2;
    let cluster = ToyCluster::start(plan).await;
    let asking = |seed| asked(parameters("speculative", 0.8, seed), 36);
    let mut alone = Vec::new();
    for seed in 0..6 {
        alone.push(cluster.generate(asking(seed)).await.expect("alone"));
    }
    let client = cluster.client().await;
    let crowd = join_all((0..6).map(|seed| collect(client.clone(), asking(seed)))).await;
    let crowd: Vec<Answer> = crowd.into_iter().map(|answer| answer.expect("its turn comes")).collect();
    for (answer, alone) in crowd.iter().zip(&alone) {
        assert_eq!((&answer.ids, &answer.text), (&alone.ids, &alone.text));
        assert!(answer.finished.as_ref().expect("finished").reproducible);
    }
    let undisturbed = crowd.iter().filter(|answer| moves(answer) == 0).count();
    assert!(undisturbed >= 2, "{undisturbed} of 6 sessions stayed where they were");
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_outgrows_its_expert_ends_there_and_disturbs_nobody() {
    let small_context = Plan { expert_context: 128, ..plan(1, 2, 2) };
    let mut few_pages = plan(1, 2, 2);
    few_pages.expert.engine.kv_pages = 12;
    for (plan, room) in [(small_context, 128), (few_pages, 12 * 16)] {
        let cluster = ToyCluster::start(plan).await;
        let client = cluster.client().await;
        let long = [
            parameters("speculative", 0.8, 90),
            cascade("token_v3", 0.5, 0.8, 90),
            v1::Parameters { alpha: Some(0.5), logprobs: Some(1), ..parameters("cascade_token", 0.8, 90) },
            parameters("expert", 0.8, 90),
        ];
        let long = long.map(|parameters| collect(client.clone(), asked(parameters, 400)));
        let short = (0..6).map(|seed| collect(client.clone(), asked(parameters("speculative", 0.8, seed), 30)));
        let (long, short) = tokio::join!(join_all(long), join_all(short));
        for answer in long {
            match answer {
                Ok(answer) => {
                    let prompt = answer.started.as_ref().expect("started").prompt_tokens as usize;
                    assert_eq!((answer.reason(), prompt + answer.ids.len()), (FinishReason::Length, room));
                }
                Err(refused) => {
                    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
                    assert!(refused.message().contains("context"), "{refused}");
                }
            }
        }
        for answer in short {
            let answer = answer.expect("a short session fits");
            assert_eq!((answer.ids.len(), moves(&answer)), (30, 0));
        }
        cluster.quiesce().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_computes_no_numbers_for_a_session_ends_it_and_disturbs_nobody() {
    let bell = text().encode("\u{7}", false).expect("a byte")[0];
    for (expert_overflows, drafter_overflows) in [(Some(bell), None), (None, Some(bell))] {
        let cluster = ToyCluster::start(Plan { expert_overflows, drafter_overflows, ..plan(2, 2, 2) }).await;
        let client = cluster.client().await;
        // Nor do they write it.
        let never = v1::LogitBias { token: bell, bias: -100.0 };
        let without = |seed| v1::Parameters { logit_bias: vec![never], ..parameters("speculative", 0.8, seed) };
        let calm: Vec<_> = (0..6).map(|seed| asked(without(seed), 30)).collect();
        let mut alone = Vec::new();
        for request in &calm {
            alone.push(cluster.generate(request.clone()).await.expect("numbers"));
        }
        let overflowing = [
            parameters("speculative", 0.8, 90),
            cascade("token_v3", 0.5, 0.8, 90),
            v1::Parameters { alpha: Some(0.5), logprobs: Some(1), ..parameters("cascade_token", 0.8, 90) },
            parameters(if expert_overflows.is_some() { "expert" } else { "drafter" }, 0.8, 90),
        ];
        let overflowing = overflowing.map(|parameters| {
            let prompt = request("Hello\u{7}", v1::Parameters::default()).prompt;
            collect(client.clone(), v1::GenerateRequest { prompt, ..asked(parameters, 30) })
        });
        let calm = calm.into_iter().map(|request| collect(client.clone(), request));
        let (overflown, calm) = tokio::join!(join_all(overflowing), join_all(calm));
        for answer in overflown {
            let refused = answer.expect_err("there are no numbers to draw from");
            assert_eq!(refused.code(), Code::DataLoss, "{refused}");
            assert!(refused.message().contains("not finite"), "{refused}");
        }
        for (answer, alone) in calm.into_iter().zip(alone) {
            let answer = answer.expect("numbers");
            assert_eq!((answer.ids.clone(), moves(&answer)), (alone.ids, 0));
        }
        cluster.quiesce().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_is_cut_to_the_room_a_prompt_leaves_and_a_wish_is_refused() {
    let cluster = ToyCluster::start(Plan { expert_context: 128, ..plan(1, 1, 0) }).await;
    let with = |max_tokens| v1::Parameters { max_tokens, ignore_eos: true, ..parameters("expert", 0.8, 3) };
    let ask = |max_tokens| cluster.generate(request(&"x".repeat(100), with(max_tokens)));
    let cut = ask(None).await.expect("the default asks for nothing");
    let prompt = cut.started.as_ref().expect("started").prompt_tokens as usize;
    assert_eq!((cut.reason(), prompt + cut.ids.len()), (FinishReason::Length, 128));
    let wished = ask(Some(cut.ids.len() as u32)).await.expect("there is room for so many");
    assert_eq!(cut.ids, wished.ids);
    let refused = ask(Some(cut.ids.len() as u32 + 1)).await.expect_err("there is no room for one more");
    assert!(cascadia_proto::refusal::is_too_long(&refused), "{refused:?}");
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_over_the_experts_context_is_refused_at_once() {
    let cluster = ToyCluster::start(Plan { expert_context: 128, ..plan(1, 2, 0) }).await;
    for strategy in ["speculative", "expert"] {
        let refused = cluster.generate(request(&"x".repeat(200), parameters(strategy, 0.8, 1))).await;
        let refused = refused.expect_err("it does not fit");
        assert_eq!(refused.code(), Code::InvalidArgument, "{strategy}: {refused}");
        assert!(refused.message().contains("context"), "{strategy}: {refused}");
        assert!(cascadia_proto::refusal::is_too_long(&refused), "{strategy}: {refused:?}");
    }
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_token_are_never_drawn() {
    let mut plan = plan(1, 1, 2);
    plan.expert_model.vocabulary += 8;
    let cluster = ToyCluster::start(plan).await;
    let client = cluster.client().await;
    for parameters in
        [parameters("expert", 1.0, 0), parameters("speculative", 1.0, 0), cascade("token_v3", 0.5, 1.0, 0)]
    {
        let seeded = (0..12).map(|seed| v1::Parameters { seed: Some(seed), ..parameters.clone() });
        for answer in join_all(seeded.map(|parameters| collect(client.clone(), asked(parameters, 40)))).await {
            let answer = answer.expect("an answer");
            assert_eq!(answer.ids.len(), 40);
            assert!(answer.ids.iter().all(|id| (*id as usize) < text().vocabulary()), "{:?}", answer.ids);
            assert_eq!(moves(&answer), 0);
        }
    }
}

/// A drafter's stream to an expert, by hand.
struct Stream {
    ask: mpsc::Sender<v1::VerifyRequest>,
    said: Streaming<v1::VerifyResponse>,
}

impl Stream {
    async fn open(address: &str, epoch: u64) -> Self {
        Self::open_in("default", address, epoch).await
    }

    async fn open_in(cluster: &str, address: &str, epoch: u64) -> Self {
        let (ask, asked) = mpsc::channel(8);
        let mut client =
            v1::verify_client::VerifyClient::connect(format!("http://{address}")).await.expect("the expert listens");
        let greedy =
            v1::Parameters { strategy: "speculative".into(), temperature: Some(0.0), ..v1::Parameters::default() };
        let open = v1::VerifyOpen {
            protocol: Some(cascadia_proto::range()),
            key: Some(v1::SessionKey { session: vec![7; 16], epoch, secret: Vec::new() }),
            model: MODEL.into(),
            resolved: Some(v1::Resolved { parameters: Some(greedy), seed: 1, choice: 0, default_max_tokens: false }),
            remaining_ms: 30_000,
            prompt_tokens: 2,
            history_tokens: 2,
            tokenizer_fingerprint: text().fingerprint().to_owned(),
            cluster: cluster.to_owned(),
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
        // A stream that was refused already takes none.
        let _ = self.ask.send(v1::VerifyRequest { message: Some(Ask::Block(block)) }).await;
    }

    async fn next(&mut self) -> Result<Said, Status> {
        Ok(self.said.message().await?.expect("the stream goes on").message.expect("a message"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_epoch_is_refused_and_the_first_session_goes_on() {
    let cluster = ToyCluster::start(plan(0, 1, 0)).await;
    let address = cluster.experts[0].address.clone();
    let mut first = Stream::open(&address, 1).await;
    assert!(matches!(first.next().await, Ok(Said::Held(_))));
    for _ in 0..3 {
        let mut second = Stream::open(&address, 1).await;
        second.draft(1, 9).await;
        let refused = second.next().await.expect_err("the epoch is taken");
        assert_eq!(refused.code(), Code::Aborted, "{refused}");
        assert!(refused.message().contains("epoch 1"), "{refused}");
    }
    // Neither closed nor fed by the others: the one answer is to its own block.
    first.draft(1, 8).await;
    let Ok(Said::Verdict(verdict)) = first.next().await else { panic!("the first session is served") };
    assert_eq!(verdict.epoch, 1);
    let more = tokio::time::timeout(Duration::from_millis(100), first.next()).await;
    assert!(more.is_err(), "one block has one answer: {more:?}");
    // A higher one takes over.
    let mut third = Stream::open(&address, 2).await;
    assert!(matches!(third.next().await, Ok(Said::Held(_))));
    assert_eq!(first.next().await.expect_err("it is stale").code(), Code::Aborted);
    drop((first, third));
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_refused_at_its_first_word() {
    let cluster = ToyCluster::start(plan(1, 1, 0)).await;
    let names_both = |refused: Status, code: Code| {
        assert_eq!(refused.code(), code, "{refused}");
        for word in ["\"another\"", "\"default\"", "--cluster-name"] {
            assert!(refused.message().contains(word), "{refused}");
        }
    };
    let expert = cluster.experts[0].address.clone();
    let mut stream = Stream::open_in("another", &expert, 1).await;
    // Whoever takes a session elsewhere takes this for a node that has gone.
    names_both(stream.next().await.expect_err("a refusal"), Code::Unavailable);
    let mut unnamed = Stream::open_in("", &expert, 1).await;
    let Ok(Said::Held(held)) = unnamed.next().await else { panic!("an older drafter is served") };
    assert_eq!(held.cluster, "default");
    drop(unnamed);
    for node in [&cluster.experts[0], &cluster.drafters[0], &cluster.router] {
        let address = format!("http://{}", node.address);
        let asked = v1::WatchRequest { watcher: "router-9".into(), cluster: "another".into() };
        let mut watcher = v1::node_client::NodeClient::connect(address.clone()).await.expect("the node listens");
        names_both(watcher.watch(asked).await.expect_err("a refusal"), Code::FailedPrecondition);
        if node.id == cluster.router.id {
            continue;
        }
        let open = v1::RunOpen {
            protocol: Some(cascadia_proto::range()),
            key: Some(v1::SessionKey { session: vec![8; 16], epoch: 1 << 32, ..Default::default() }),
            model: MODEL.into(),
            resolved: Some(v1::Resolved { parameters: Some(parameters("drafter", 0.0, 1)), ..Default::default() }),
            prompt: Some(v1::Prompt { kind: Some(v1::prompt::Kind::Text(PROMPT.into())) }),
            remaining_ms: 30_000,
            cluster: "another".into(),
            ..v1::RunOpen::default()
        };
        let open = v1::RunRequest { message: Some(v1::run_request::Message::Open(open)) };
        let mut owner = v1::session_client::SessionClient::connect(address).await.expect("the node listens");
        let mut said = owner.run(futures::stream::iter([open])).await.expect("a stream").into_inner();
        names_both(said.message().await.expect_err("a refusal"), Code::Unavailable);
    }
    cluster.quiesce().await;
}

fn scored_query(seed: u64) -> v1::Parameters {
    v1::Parameters { alpha: Some(-1e6), logprobs: Some(1), ..parameters("cascade_query", 0.8, seed) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_expert_does_not_keep_the_scores_of_a_query() {
    let cluster = ToyCluster::start(plan(1, 2, 0)).await;
    let client = cluster.client().await;
    let ask = || join_all((0..8).map(|seed| collect(client.clone(), asked(scored_query(seed), 40))));
    let calm = ask().await;
    cluster.experts[0].hang.set(true);
    for (answer, calm) in ask().await.into_iter().zip(calm) {
        let (answer, calm) = (answer.expect("the other expert scores"), calm.expect("calm"));
        assert_eq!((&answer.ids, &answer.logprobs), (&calm.ids, &calm.logprobs));
        assert!(answer.logprobs.iter().all(|scores| scores.expert.is_some()));
    }
    assert!(cluster.open_sessions().await > 0, "no session met the hung expert");
    cluster.experts[0].hang.set(false);
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_only_expert_is_dead_is_answered_without_scores() {
    // A drafter that names its model can also begin without any expert.
    let mut plan = plan(1, 1, 0);
    plan.drafter_step = Duration::from_millis(6);
    plan.drafter.served_model = vec![MODEL.into()];
    let mut cluster = ToyCluster::start(plan).await;
    let asking = v1::Parameters { on_expert_loss: v1::OnExpertLoss::Drafter.into(), ..scored_query(1) };
    let calm = cluster.generate(asked(asking.clone(), 40)).await.expect("calm");
    let while_drafting =
        with_fault(&mut cluster, asked(asking.clone(), 40), 0, |cluster, _| cluster.experts[0].kill()).await;
    let from_the_start = cluster.generate(asked(asking, 40)).await.expect("the drafter's answer");
    assert!(calm.finished.expect("finished").reproducible);
    for answer in [while_drafting, from_the_start] {
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
        assert!(answer.logprobs.iter().all(|scores| scores.expert.is_none()));
        assert!(!answer.finished.expect("finished").reproducible);
    }
}

/// Waits until a node holds no session, as the router hears it; a node that has ended holds none.
async fn emptied(cluster: &ToyCluster, node: &str) {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let status = cluster.status().await.expect("the router answers");
        let member = status.members.iter().find(|member| member.id == node);
        if member.is_none_or(|member| member.load.as_ref().is_some_and(|load| load.sessions == 0)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{node} still holds sessions: {:?}", cluster.status().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_leave_an_owner_that_drains() {
    for asking in [parameters("speculative", 0.8, 3), parameters("expert", 0.8, 3)] {
        let mut cluster = ToyCluster::start(plan(2, 2, 8)).await;
        let calm = cluster.generate(asked(asking.clone(), 200)).await.expect("calm");
        assert_eq!(moves(&calm), 0);
        let mut drained = String::new();
        let answer = with_fault(&mut cluster, asked(asking, 200), 10, |cluster, started| {
            let owner = match started.drafter.as_str() {
                "" => find(&mut cluster.experts, &started.expert),
                drafter => find(&mut cluster.drafters, drafter),
            };
            owner.shutdown.drain();
            drained.clone_from(&owner.id.0);
        })
        .await;
        assert_eq!((&answer.ids, &answer.text), (&calm.ids, &calm.text));
        assert!(answer.finished.as_ref().expect("finished").reproducible);
        assert!(moves(&answer) >= 1, "{drained} kept the session");
        emptied(&cluster, &drained).await;
    }
}
