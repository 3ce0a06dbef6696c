//! `bench` against a synthetic cluster: its counts add up, in every mode.

mod real;

use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cascadia::bench::drive::{Arrivals, Load, Outcome};
use cascadia::bench::measure::Figures;
use cascadia::bench::request::RunOptions;
use cascadia::bench::target::Target;
use cascadia::bench::workload::{self, Item};
use cascadia::cluster::{ClusterConfig, LocalCluster, Models};
use cascadia::synthetic::Synthetic;
use cascadia_core::placement::Role;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::sync::watch;

use real::{PATIENCE, Process};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn cluster(typed: &str, mut config: ClusterConfig) -> LocalCluster {
    let synthetic: Synthetic = typed.parse().expect("parameters");
    synthetic.configure(Role::Drafter, &mut config.drafter.engine);
    synthetic.configure(Role::Expert, &mut config.expert.engine);
    let models = Models::synthetic(&synthetic, &config.drafter, &config.expert);
    LocalCluster::start(config, models).await.expect("it starts")
}

fn items() -> Vec<Item> {
    let item = |number| Item { prompt: workload::words(5, number), answer: Some(0), output: 20, exact: true };
    (0..7).map(item).collect()
}

async fn load(cluster: &LocalCluster, ask: RunOptions, arrivals: Arrivals, requests: usize) -> Load {
    let target = Target::router(cluster.address()).await.expect("the router is there");
    Load {
        target: Arc::new(target),
        ask,
        items: Arc::new(items()),
        arrivals,
        requests,
        duration: None,
        salt: Some("test".into()),
        seed: Some(5),
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
    for (strategy, arrivals) in [
        ("expert", Arrivals::Closed(4)),
        ("speculative", Arrivals::Closed(4)),
        ("drafter", Arrivals::Closed(4)),
        ("token_v3@0.3", open),
    ] {
        let spec = strategy.parse().expect(strategy);
        let ask = RunOptions { spec: Some(spec), temperature: Some(0.0), ..RunOptions::default() };
        let outcome = run(load(&cluster, ask, arrivals.clone(), 25).await).await;
        let figures = Figures::of(&outcome.records, outcome.unfinished, Some(&"e2el=60s".parse().expect("a goal")));
        assert_eq!((figures.completed, figures.unfinished, figures.output), (25, 0, 500), "{:?}", outcome.sentences);
        // Nodes without weights answer nothing that could be right.
        assert_eq!((figures.good, figures.right), (Some(25), None));
        for record in &outcome.records {
            assert!(record.due <= record.sent && record.sent <= record.end);
            assert_eq!(record.pieces.iter().map(|piece| u64::from(piece.1)).sum::<u64>(), record.output);
        }
        let done = figures.speculation.expect("the router says so");
        assert_eq!(done.accepted + done.unverified + done.deferred, figures.output, "{strategy}");
        assert_eq!(done.drafted > 0, ["speculative", "token_v3@0.3"].contains(&strategy), "{strategy}");
        assert_eq!(done.unverified > 0, strategy == "drafter", "{strategy}");
        if let Arrivals::Closed(concurrency) = arrivals {
            assert!(figures.peak <= concurrency);
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_seeds_give_equal_runs_above_temperature_0() {
    let cluster = cluster("acceptance=0.8,step=0s,length=30", ClusterConfig::default()).await;
    let mut told = Vec::new();
    for (strategy, seed) in [("expert", 3), ("expert", 3), ("speculative", 3), ("expert", 1000)] {
        let spec = strategy.parse().expect(strategy);
        let ask = RunOptions { spec: Some(spec), temperature: Some(1.0), ..RunOptions::default() };
        let mut load = load(&cluster, ask, Arrivals::Closed(4), 12).await;
        let item = |item: Item| Item { output: 200, exact: false, ..item };
        load.items = Arc::new(items().into_iter().map(item).collect());
        load.seed = Some(seed);
        let outcome = run(load).await;
        let mut lengths: Vec<u64> = outcome.records.iter().map(|record| record.output).collect();
        lengths.sort_unstable();
        assert_eq!(lengths.len(), 12, "{:?}", outcome.sentences);
        told.push(lengths);
    }
    assert!(told[0] == told[1] && told[0] == told[2], "{told:?}");
    assert_ne!(told[0], told[3]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_measured_where_the_model_has_little_room_and_nothing_answered_is_an_error() {
    // Five to eight bytes a word, a token each: 272 words have no room in 512 positions.
    let cluster = cluster("step=0s,context=512,length=none", ClusterConfig::default()).await;
    let bench = |more: &[&str]| {
        let mut command = real::cascadia();
        command.args(["bench", "--json", "-n", "4", "--output-len", "10", "--server", cluster.address()]).args(more);
        tokio::task::spawn_blocking(move || command.output().expect("the binary runs"))
    };
    let fits = bench(&["--input-len", "200"]).await.expect("no panic");
    let json: Value = serde_json::from_slice(&fits.stdout).unwrap_or_else(|_| panic!("{}", text(&fits.stderr)));
    let run = &json["runs"][0];
    assert_eq!((run["completed"].as_u64(), run["failed"].as_u64()), (Some(4), Some(0)), "{run}");
    let input = run["total_input_tokens"].as_u64().expect("a count");
    assert!((700..=900).contains(&input), "{input}");

    for (more, kind) in
        [(["--input-len=600", "--warmup=1"], "INVALID_ARGUMENT"), (["--model=nope", "--warmup=0"], "NOT_FOUND")]
    {
        let none = bench(&more).await.expect("no panic");
        let json: Value = serde_json::from_slice(&none.stdout).unwrap_or_else(|_| panic!("{}", text(&none.stderr)));
        assert_eq!(json["runs"][0]["errors"][kind].as_u64(), Some(4), "{json}");
        assert!(!none.status.success());
        assert!(
            text(&none.stderr).ends_with(
                "error: no request was answered under default
"
            ),
            "{}",
            text(&none.stderr)
        );
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_kind_and_a_cut_run_says_what_was_open() {
    let config = ClusterConfig::default();
    let cluster = cluster("step=20ms,length=none", config).await;
    let ask = RunOptions { model: "another".into(), ..RunOptions::default() };
    let outcome = run(load(&cluster, ask, Arrivals::Closed(3), 9).await).await;
    let figures = Figures::of(&outcome.records, outcome.unfinished, None);
    assert_eq!((figures.completed, figures.errors.get("NOT_FOUND")), (0, Some(&9)), "{figures:?}");
    assert_eq!(outcome.sentences.len(), 1);

    let (cut, cut_short) = watch::channel(false);
    let mut endless = load(&cluster, RunOptions::default(), Arrivals::Closed(5), usize::MAX).await;
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

/// The processes that a process has started and that are still there.
fn children(parent: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).expect("it runs");
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let all: String = threads.flatten().map(of).collect();
    all.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn an_interrupted_experiment_leaves_no_process_behind() {
    for signal in ["TERM", "INT"] {
        let mut command = real::cascadia();
        command.args(["bench", "router", "--streams=2", "--experts=2", "--rate=1", "--window=600s"]);
        let bench = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut bench = Process(bench);
        let until = Instant::now() + PATIENCE;
        let started = loop {
            let children = children(bench.0.id());
            if children.len() == 3 {
                break children;
            }
            assert!(Instant::now() < until && bench.ended().is_none(), "{children:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        bench.signal(signal);
        assert!(!bench.wait(PATIENCE).success());
        let mut said = String::new();
        bench.0.stderr.take().expect("a pipe").read_to_string(&mut said).expect("UTF-8");
        assert!(said.ends_with("error: interrupted\n"), "{said}");
        for child in started {
            assert!(!std::path::Path::new(&format!("/proc/{child}")).exists(), "{child} is still there");
        }
    }
}

#[test]
fn a_typed_server_is_stronger_than_the_variable_of_the_other_kind() {
    let nobody = format!("http://{}/v1", real::free_address());
    let asked = real::cascadia().args(["bench", "--openai", &nobody]).env("CASCADIA_SERVER", "127.0.0.1:1").output();
    let said = text(&asked.expect("the binary runs").stderr);
    assert!(said.starts_with(&format!("error: nothing answers at {nobody}/models")), "{said}");
}

#[test]
fn numbers_out_of_bounds_are_refused_with_the_bound() {
    for (typed, bound) in [
        (["--rate", "1e-300"], "no number from 0.000001 to 1000000"),
        (["--rate", "1e300"], "no number from 0.000001 to 1000000"),
        (["--trace=t.csv", "--speedup=1e-30"], "no number from 0.000001 to 1000000"),
        (["--duration", "1e18s"], "at most 525600m"),
    ] {
        let refused = real::cascadia().arg("bench").args(typed).output().expect("the binary runs");
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(bound), "{typed:?}: {}", text(&refused.stderr));
    }
}
