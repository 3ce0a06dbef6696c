//! `bench` against a synthetic cluster: its counts add up, in every mode.

use std::sync::Arc;
use std::time::Duration;

use cascadia::bench::drive::{Arrivals, Load, Outcome};
use cascadia::bench::measure::Figures;
use cascadia::bench::target::{Ask, Router, Target};
use cascadia::bench::workload::{self, Item};
use cascadia::cluster::{ClusterConfig, LocalCluster};
use cascadia::synthetic::Synthetic;
use indicatif::ProgressBar;
use tokio::sync::watch;

async fn cluster(typed: &str, mut config: ClusterConfig) -> LocalCluster {
    let synthetic: Synthetic = typed.parse().expect("parameters");
    synthetic.configure_drafter(&mut config.drafter);
    synthetic.configure_expert(&mut config.expert);
    let models = synthetic.models(&config.drafter, &config.expert);
    LocalCluster::start(config, models).await.expect("it starts")
}

fn items() -> Vec<Item> {
    let item = |number| Item { prompt: workload::words(5, number), answer: Some(0), output: 20, exact: true };
    (0..7).map(item).collect()
}

async fn load(cluster: &LocalCluster, ask: Ask, arrivals: Arrivals, requests: usize) -> Load {
    let router = Router::connect(cluster.address()).await.expect("the router is there");
    Load {
        target: Arc::new(Target::Router(router)),
        ask,
        items: Arc::new(items()),
        arrivals,
        requests,
        duration: None,
        salt: Some("test".into()),
    }
}

async fn run(load: Load) -> Outcome {
    let (_never, cut) = watch::channel(false);
    load.run(&ProgressBar::hidden(), cut).await
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_add_up_in_both_loops_and_under_every_strategy() {
    let cluster = cluster("acceptance=0.8,step=1ms", ClusterConfig::default()).await;
    let open = Arrivals::Open((0..25).map(|number| Duration::from_millis(10 * number)).collect());
    for (strategy, arrivals) in
        [("expert", Arrivals::Closed(4)), ("speculative", Arrivals::Closed(4)), ("token_v3@0.3", open)]
    {
        let contender = strategy.parse().expect(strategy);
        let ask = Ask { contender: Some(contender), temperature: Some(0.0), ..Ask::default() };
        let outcome = run(load(&cluster, ask, arrivals.clone(), 25).await).await;
        let figures = Figures::of(&outcome.records, outcome.unfinished, Some(&"e2el=60s".parse().expect("a goal")));
        assert_eq!((figures.completed, figures.unfinished, figures.output), (25, 0, 500), "{:?}", outcome.sentences);
        assert_eq!((figures.good, figures.right.map(|right| right.1)), (Some(25), Some(25)));
        for record in &outcome.records {
            assert!(record.due <= record.sent && record.sent <= record.end);
            assert_eq!(record.pieces.iter().map(|piece| u64::from(piece.1)).sum::<u64>(), record.output);
        }
        let done = figures.speculation.expect("the router says so");
        assert_eq!(done.accepted + done.deferred, figures.output, "{strategy}");
        assert_eq!(done.drafted > 0, strategy != "expert");
        if let Arrivals::Closed(concurrency) = arrivals {
            assert!(figures.peak <= concurrency);
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_kind_and_a_cut_run_says_what_was_open() {
    let config = ClusterConfig::default();
    let cluster = cluster("step=20ms,length=none", config).await;
    let ask = Ask { model: "another".into(), ..Ask::default() };
    let outcome = run(load(&cluster, ask, Arrivals::Closed(3), 9).await).await;
    let figures = Figures::of(&outcome.records, outcome.unfinished, None);
    assert_eq!((figures.completed, figures.errors.get("NOT_FOUND")), (0, Some(&9)), "{figures:?}");
    assert_eq!(outcome.sentences.len(), 1);

    let (cut, cut_short) = watch::channel(false);
    let mut endless = load(&cluster, Ask::default(), Arrivals::Closed(5), usize::MAX).await;
    endless.duration = Some(Duration::from_secs(3600));
    let bar = ProgressBar::hidden();
    let running = tokio::spawn({
        let bar = bar.clone();
        async move { endless.run(&bar, cut_short).await }
    });
    while bar.position() < 5 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cut.send(true).expect("it listens");
    let outcome = running.await.expect("no panic");
    assert!(outcome.records.len() >= 5 && outcome.unfinished <= 5, "{}", outcome.records.len());
    cluster.stop().await;
}
