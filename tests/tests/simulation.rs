//! A simulated cluster under turmoil: simulated network and time, one seed, one log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cascadia_core::commit::Text;
use cascadia_core::ids::NodeId;
use cascadia_core::toy::ToyEngine;
use cascadia_core::waiting_queue::LEAVES_AFTER;
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::NodeEnv;
use cascadia_node::engine_thread::Executor;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_node::membership::Membership;
use cascadia_node::net::{BoxIo, Connector, Listener};
use cascadia_proto::v1;
use cascadia_proto::v1::generate_response::Event;
use cascadia_proto::v1::inference_client::InferenceClient;
use cascadia_proto::v1::verify_client::VerifyClient;
use cascadia_proto::v1::verify_request::Message as Ask;
use cascadia_proto::v1::verify_response::Message as Said;
use cascadia_router::{IdSource, RouterConfig};
use cascadia_tests::{MODEL, cascade, drafter_model, expert_model, parameters, request, text};

const PORT: u16 = 50_051;

fn connector() -> Connector {
    Connector::from_fn(|uri| {
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().to_owned();
            let stream = turmoil::net::TcpStream::connect((host, uri.port_u16().unwrap_or(PORT))).await?;
            Ok(BoxIo::new(stream))
        })
    })
}

async fn listener(name: &str) -> Listener {
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await.expect("a simulated port");
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    Listener::from_stream(format!("{name}:{PORT}"), incoming)
}

async fn env(name: &str, membership: Membership) -> NodeEnv {
    NodeEnv {
        id: NodeId(name.into()),
        listener: listener(name).await,
        admin: None,
        connector: connector(),
        membership,
        shutdown: Shutdown::new(),
        telemetry: Default::default(),
    }
}

fn toy_text() -> Arc<dyn Text> {
    Arc::new(text())
}

/// One simulation of this process at a time, and each begins where the runtime's shards of tasks do.
///
/// A host that crashes drops its tasks shard by shard, and a task's shard is its number, which counts in the whole process: the
/// order in which a crash breaks connections, and with it their delays, would be another in each run.
fn alone() -> MutexGuard<'static, ()> {
    /// The shards of a runtime are a power of two, and not so many.
    const SHARDS: u64 = 64;
    static ONE: Mutex<()> = Mutex::new(());
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let number = || runtime.spawn(async {}).id().to_string().parse::<u64>().expect("a task has a number");
    while number() % SHARDS != SHARDS - 1 {}
    alone
}

/// Everything a client saw, with simulated times; and the ids of each answer.
struct Seen {
    log: Vec<String>,
    answers: Vec<Vec<u32>>,
}

/// One run: three requests; `lost` takes the expert of the second one away while it streams.
fn run(seed: u64, lost: bool) -> Seen {
    let _alone = alone();
    let mut sim = turmoil::Builder::new()
        .simulation_duration(Duration::from_secs(120))
        .tick_duration(Duration::from_millis(1))
        .rng_seed(seed)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .tcp_capacity(4_096)
        .build();
    let membership = Membership::embedded();
    for name in ["expert-1", "expert-2"] {
        let membership = membership.clone();
        sim.host(name, move || {
            let membership = membership.clone();
            async move {
                let engine = Box::new(ToyEngine::new(expert_model(), 2_048, 512));
                let config = ExpertConfig { served_model: vec![MODEL.into()], ..ExpertConfig::default() };
                let parts = LoadedModel { engine, text: toy_text() };
                Ok(cascadia_expert_node::run(config, env(name, membership).await, parts, Executor::Task).await?)
            }
        });
    }
    for name in ["drafter-1", "drafter-2"] {
        let membership = membership.clone();
        sim.host(name, move || {
            let membership = membership.clone();
            async move {
                let engine = Box::new(ToyEngine::new(drafter_model(), 2_048, 512));
                let parts = LoadedModel { engine, text: toy_text() };
                let env = env(name, membership).await;
                Ok(cascadia_drafter_node::run(DrafterConfig::default(), env, parts, Executor::Task).await?)
            }
        });
    }
    let shared = membership.clone();
    sim.host("router", move || {
        let membership = shared.clone();
        async move {
            let config = RouterConfig { ids: IdSource::seeded(seed), ..RouterConfig::default() };
            Ok(cascadia_router::run(config, env("router", membership).await, None).await?)
        }
    });
    let seen = Arc::new(Mutex::new(Seen { log: Vec::new(), answers: Vec::new() }));
    let victim: Arc<Mutex<Option<String>>> = Arc::default();
    let (client_seen, client_victim) = (seen.clone(), victim.clone());
    sim.client("client", async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let channel = connector().channel(&format!("router:{PORT}"));
        let mut client = InferenceClient::new(channel);
        let long = |p: v1::Parameters| v1::Parameters { max_tokens: Some(60), ignore_eos: true, ..p };
        for (number, asked) in
            [parameters("speculative", 0.8, 5), cascade("token_v3", 0.5, 0.8, 6), parameters("expert", 0.8, 7)]
                .into_iter()
                .enumerate()
        {
            let mut stream = client.generate(request("Hello world. the", long(asked))).await?.into_inner();
            let (mut ids, mut expert) = (Vec::new(), String::new());
            while let Some(response) = stream.message().await? {
                let event = response.event.expect("an event");
                let line = format!("{:?} {event:?}", turmoil::elapsed());
                client_seen.lock().expect("one thread").log.push(line);
                match event {
                    Event::Started(started) => expert = started.expert,
                    Event::Tokens(tokens) => ids.extend(tokens.ids),
                    Event::Finished(_) => {}
                }
                if lost && number == 1 && ids.len() > 15 {
                    *client_victim.lock().expect("one thread") = Some(expert.clone());
                }
            }
            client_seen.lock().expect("one thread").answers.push(ids);
        }
        Ok(())
    });
    let mut crashed = false;
    while !sim.step().expect("the simulation goes on") {
        let fall = victim.lock().expect("one thread").take();
        if let (Some(expert), false) = (fall, crashed) {
            sim.crash(expert.as_str());
            crashed = true;
        }
    }
    assert_eq!(crashed, lost, "the expert fell while its session ran");
    drop(sim);
    Arc::into_inner(seen).expect("the simulation is over").into_inner().expect("one thread")
}

#[test]
fn a_seed_repeats_itself_and_a_lost_expert_changes_no_text() {
    let calm = run(1, false);
    assert_eq!(calm.log, run(1, false).log, "one seed, one log");
    assert!(calm.answers.iter().all(|ids| ids.len() == 60));
    let faulty = run(1, true);
    assert_eq!(faulty.log, run(1, true).log, "one seed, one log, also with a fault");
    assert_eq!(faulty.answers, calm.answers);
    assert_ne!(faulty.log, calm.log);
}

/// Streams that hold every slot of the only expert and wait for more, and never send a block; and one request.
#[test]
fn who_holds_slots_and_does_nothing_keeps_no_request_out() {
    let _alone = alone();
    let mut sim = turmoil::Builder::new()
        .simulation_duration(Duration::from_secs(400))
        .tick_duration(Duration::from_millis(10))
        .rng_seed(1)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .tcp_capacity(4_096)
        .build();
    let membership = Membership::embedded();
    let shared = membership.clone();
    sim.host("expert-1", move || {
        let membership = shared.clone();
        async move {
            let engine = Box::new(ToyEngine::new(expert_model(), 2_048, 512));
            let mut config = ExpertConfig { served_model: vec![MODEL.into()], ..ExpertConfig::default() };
            config.engine.max_sessions = 2;
            let parts = LoadedModel { engine, text: toy_text() };
            Ok(cascadia_expert_node::run(config, env("expert-1", membership).await, parts, Executor::Task).await?)
        }
    });
    let shared = membership.clone();
    sim.host("drafter-1", move || {
        let membership = shared.clone();
        async move {
            let parts = LoadedModel { engine: Box::new(ToyEngine::new(drafter_model(), 2_048, 512)), text: toy_text() };
            let env = env("drafter-1", membership).await;
            Ok(cascadia_drafter_node::run(DrafterConfig::default(), env, parts, Executor::Task).await?)
        }
    });
    sim.host("router", move || {
        let membership = membership.clone();
        async move {
            let config = RouterConfig { ids: IdSource::seeded(1), ..RouterConfig::default() };
            Ok(cascadia_router::run(config, env("router", membership).await, None).await?)
        }
    });
    sim.client("client", async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut client = InferenceClient::new(connector().channel(&format!("router:{PORT}")));
        let exactly = v1::Parameters { max_tokens: Some(20), ignore_eos: true, ..parameters("speculative", 0.8, 5) };
        let calm = ids(client.generate(request("Hello world. the", exactly.clone())).await?.into_inner()).await?;

        let mut expert = VerifyClient::new(connector().channel(&format!("expert-1:{PORT}")));
        let mut holding = Vec::new();
        for number in 1..=4 {
            let (ask, asked) = tokio::sync::mpsc::channel(4);
            let open = v1::VerifyOpen {
                protocol: Some(cascadia_proto::range()),
                key: Some(v1::SessionKey { session: vec![number; 16], epoch: 1, secret: Vec::new() }),
                model: MODEL.into(),
                resolved: Some(v1::Resolved { parameters: Some(exactly.clone()), seed: 1, ..Default::default() }),
                priority: i32::MAX,
                remaining_ms: u64::MAX,
                age_ms: u64::MAX,
                prompt_tokens: 2,
                history_tokens: 2,
                tokenizer_fingerprint: toy_text().fingerprint().to_owned(),
                ..v1::VerifyOpen::default()
            };
            for message in [Ask::Open(open), Ask::History(v1::History { ids: vec![5, 6] })] {
                ask.send(v1::VerifyRequest { message: Some(message) }).await?;
            }
            let said = expert.stream(tokio_stream::wrappers::ReceiverStream::new(asked)).await?.into_inner();
            holding.push((ask, said));
        }
        let began = tokio::time::Instant::now();
        let late = ids(client.generate(request("Hello world. the", exactly)).await?.into_inner()).await?;
        assert_eq!(late, calm, "it came in, and no text tells of it");
        // The first two were let in at once and the others after them, each for as long as anyone may do nothing.
        let waited = LEAVES_AFTER * 2 - Duration::from_secs(1)..LEAVES_AFTER * 2 + Duration::from_secs(5);
        assert!(waited.contains(&began.elapsed()), "{:?}", began.elapsed());
        for (_, said) in &mut holding[..2] {
            assert!(matches!(said.message().await?.and_then(|said| said.message), Some(Said::Held(_))));
            assert!(matches!(said.message().await?.and_then(|said| said.message), Some(Said::Move(_))), "told to go");
            assert!(said.message().await?.is_none());
        }
        Ok(())
    });
    sim.run().expect("the simulation ends well");
}

/// The ids of an answer.
async fn ids(mut stream: tonic::Streaming<v1::GenerateResponse>) -> Result<Vec<u32>, tonic::Status> {
    let mut ids = Vec::new();
    while let Some(response) = stream.message().await? {
        if let Some(Event::Tokens(tokens)) = response.event {
            ids.extend(tokens.ids);
        }
    }
    Ok(ids)
}
