//! The cluster of `up` and `demo`, in this process, with the shipped pair.

use cascadia::bench::problem::Problem;
use cascadia::client::Client;
use cascadia::cluster::{ClusterConfig, ClusterError, LocalCluster, Models};
use cascadia::demo::compare::{ALL, CASCADE, request};
use cascadia::demo::problems::held_out;
use cascadia::load::{Model, Pair, shipped_pair};
use cascadia_core::kv_memory::KvMemory;
use cascadia_node::engine_config::EngineConfig;

fn pair() -> Pair {
    let folder = shipped_pair().expect("a clone of the repository");
    let load = |name| Model::load(&folder.join(name), "q8_0").expect("the shipped models load");
    Pair::new(load("drafter"), load("expert")).expect("they are a pair")
}

async fn cluster(config: ClusterConfig) -> LocalCluster {
    let models = Models::of_pair(&pair(), &config.drafter, &config.expert, config.drafters + config.experts);
    LocalCluster::start(config, models).await.expect("it starts")
}

async fn text(client: &Client, problem: &Problem, salt: &str) -> String {
    client.answer(request(&CASCADE, problem, salt.into())).await.expect("an answer").text
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_and_die_and_the_text_stays() {
    let mut cluster =
        cluster(ClusterConfig { drafters: 1, experts: 1, isolated: true, ..ClusterConfig::default() }).await;
    let client = cluster.client().await.expect("the router is there");
    let problem = &held_out()[0];
    let before = text(&client, problem, "a").await;
    assert!(!before.is_empty());

    let drafter = cluster.add_drafter().await.expect("one more");
    let expert = cluster.add_expert().await.expect("one more");
    cluster.ready().await.expect("they are seen");
    let nodes = cluster.nodes();
    for node in nodes.iter().filter(|node| node.0 == "drafter-1" || node.0 == "expert-1") {
        cluster.kill(node);
        assert_eq!(text(&client, problem, &node.0).await, before, "without {node}");
    }
    let mut left = cluster.nodes();
    left.sort();
    assert_eq!(left, [drafter, expert, cascadia_core::ids::NodeId("router-1".into())]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_of_the_demo_answers() {
    let cluster = cluster(ClusterConfig::default()).await;
    let client = cluster.client().await.expect("the router is there");
    let problem = &held_out()[1];
    let mut texts = Vec::new();
    for spec in ALL {
        let answer = client.answer(request(&spec, problem, spec.strategy.to_string())).await.expect("an answer");
        assert_eq!(answer.token_ids.len(), answer.usage().completion_tokens as usize);
        assert!(answer.finished.reproducible, "{spec:?}");
        let drafted = answer.from_drafter();
        match &*spec.strategy {
            "expert" => assert_eq!(drafted, 0),
            "drafter" => assert_eq!((drafted, answer.speculation().expert_passes), (answer.token_ids.len(), 0)),
            _ => {}
        }
        texts.push((spec.strategy, answer.text));
    }
    let of = |strategy: &str| &texts.iter().find(|(name, _)| *name == strategy).expect("all were asked").1;
    assert_eq!(of("speculative"), of("expert"), "exact");
    cluster.stop().await;
}

/// Twelve sessions at once where two or three have room, over a cache of each type.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_a_few_sessions_gives_the_texts_of_a_large_one() {
    let models = pair();
    for dtype in ["f32", "f16"] {
        let mut texts = Vec::new();
        // Pages of the longest session, with some to spare; and the default.
        for pages in [30, 0] {
            let memory = |model: &Model| match pages {
                0 => EngineConfig::default().kv_memory,
                pages => KvMemory::Bytes((pages * model.weights.page_bytes(dtype).expect("a type")) as u64),
            };
            let mut config = ClusterConfig { drafters: 1, experts: 1, ..ClusterConfig::default() };
            let engine = &mut config.drafter.engine;
            (engine.kv_memory, engine.kv_dtype) = (memory(&models.drafter), dtype.into());
            let engine = &mut config.expert.engine;
            (engine.kv_memory, engine.kv_dtype) = (memory(&models.expert), dtype.into());
            let parts = Models::of_pair(&models, &config.drafter, &config.expert, 2);
            let cluster = LocalCluster::start(config, parts).await.expect("it starts");
            let client = cluster.client().await.expect("the router is there");
            let problems = held_out();
            let asked = problems[..12].iter().enumerate().map(|(i, problem)| text(&client, problem, ["a", "b"][i % 2]));
            texts.push(futures::future::join_all(asked).await);
            cluster.stop().await;
        }
        assert_eq!(texts[0], texts[1], "{dtype}");
        assert!(texts[0].iter().all(|text| !text.is_empty()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_said() {
    let busy = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listen = busy.local_addr().expect("bound").to_string();
    let config = ClusterConfig { listen: listen.clone(), ..ClusterConfig::default() };
    let models = Models::of_pair(&pair(), &config.drafter, &config.expert, config.drafters + config.experts);
    let error = LocalCluster::start(config, models).await.expect_err("the port is taken");
    assert!(matches!(&error, ClusterError::Net(_)) && error.to_string().contains(&listen), "{error}");
}
