//! A cluster whose expert computes as a card does, on the processor: the texts of one on the CPU, and what it may not promise.

use cascadia::cluster::{ClusterConfig, LocalCluster, Models};
use cascadia::demo::compare::request;
use cascadia::demo::problems::held_out;
use cascadia::load::{Model, Pair, shipped_pair};
use cascadia::strategy_spec::StrategySpec;

/// The answers of two strategies to one problem, and whether they could be had again, with the expert on `device`.
async fn answers(device: &str) -> Vec<(String, bool)> {
    let folder = shipped_pair().expect("a clone of the repository");
    let mut config = ClusterConfig { drafters: 1, experts: 1, ..ClusterConfig::default() };
    let expert = &mut config.expert.engine;
    (expert.device, expert.dtype) = (device.into(), "f32".into());
    expert.kv_memory = "16MiB".parse().expect("an amount");
    // The small model in both roles: candle on the processor, unoptimised, is slow.
    (config.drafter.engine.model, expert.model) = (folder.join("drafter"), folder.join("drafter"));
    let load = |config| Model::configured(config, &mut |_, _, _| {}).expect("the shipped models load");
    let pair = Pair::new(load(&config.drafter.engine), load(&config.expert.engine)).expect("they are a pair");
    let models = Models::of_pair(&pair, &config.drafter, &config.expert, 2);
    let cluster = LocalCluster::start(config, models).await.expect("it starts");
    let client = cluster.client().await.expect("the router is there");
    let mut all = Vec::new();
    for strategy in ["expert", "speculative"] {
        let mut asked = request(&StrategySpec::new(strategy), &held_out()[0], strategy.into());
        asked.parameters.as_mut().expect("there are some").max_tokens = Some(12);
        let answer = client.answer(asked).await.expect("an answer");
        all.push((answer.text, answer.finished.reproducible));
    }
    cluster.stop().await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_of_tensors_gives_the_texts_and_not_the_promise() {
    let (ours, tensors) = (answers("cpu").await, answers("tensors").await);
    assert!(!ours[0].0.is_empty() && ours[0].0 == ours[1].0 && ours.iter().all(|(_, reproducible)| *reproducible));
    let texts = |answers: &[(String, bool)]| answers.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&ours), texts(&tensors));
    assert!(tensors.iter().all(|(_, reproducible)| !reproducible));
}
