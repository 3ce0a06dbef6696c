//! A cluster of real nodes over loopback, toy models: strategies, stopping, cancelling, bounds.

use std::time::Duration;

use cascadia_proto::v1::{self, FinishReason, Provenance};
use cascadia_tests::{MODEL, PATIENCE, Plan, ToyCluster, cascade, collect, parameters, request};
use tonic::Code;

const PROMPT: &str = "Hello world. the the";

fn prompt(i: u64) -> String {
    format!("{PROMPT} {i}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_answers_and_says_what_it_used() {
    let cluster = ToyCluster::start(Plan::default()).await;
    let mut asked = vec![
        parameters("expert", 0.8, 1),
        parameters("drafter", 0.8, 1),
        parameters("speculative", 0.8, 1),
        v1::Parameters { coupling: "maximal".into(), ..parameters("speculative", 0.8, 1) },
        v1::Parameters { alpha: Some(0.5), ..parameters("cascade_token", 0.8, 1) },
        v1::Parameters { alpha: Some(-100.0), ..parameters("cascade_query", 0.8, 1) },
        v1::Parameters {
            typical: Some(v1::TypicalParameters { epsilon: 0.09, delta: 0.3 }),
            ..cascade("typical", 0.0, 0.8, 1)
        },
        v1::Parameters {
            bild: Some(v1::BildParameters { fallback: 0.3, rollback: 2.0 }),
            ..cascade("bild", 0.0, 0.8, 1)
        },
    ];
    for rule in [
        "chow", "diff", "opt", "chow_log", "diff_log", "opt_log", "token_v1", "token_v2", "token_v3", "lenience",
        "mentored",
    ] {
        asked.push(cascade(rule, 0.4, 0.8, 1));
    }
    for mut parameters in asked {
        if matches!(parameters.rule.as_str(), "typical" | "bild") {
            parameters.alpha = None;
        }
        let answer = cluster.generate(request(PROMPT, parameters.clone())).await.expect("an answer");
        let started = answer.started.as_ref().expect("started");
        let used = started.parameters.as_ref().expect("the parameters used");
        assert_eq!(
            (used.strategy.as_str(), used.rule.as_str()),
            (parameters.strategy.as_str(), parameters.rule.as_str())
        );
        assert_eq!((started.seed, started.model.as_str()), (1, MODEL));
        assert!(!answer.ids.is_empty() && answer.ids.len() <= 60);
        let finished = answer.finished.as_ref().expect("finished");
        assert!(finished.reproducible, "{parameters:?}");
        let accepted = answer.provenance.iter().filter(|&&p| p != Provenance::Deferred as i32).count() as u64;
        let speculation = finished.speculation.as_ref().expect("statistics");
        match parameters.strategy.as_str() {
            "expert" => assert_eq!((accepted, speculation.expert_passes), (0, answer.ids.len() as u64)),
            "drafter" | "cascade_query" => {
                assert_eq!((accepted, speculation.expert_passes), (answer.ids.len() as u64, 0));
            }
            _ => assert!(speculation.drafted > 0 && speculation.accepted >= accepted, "{speculation:?}"),
        }
    }
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_text() {
    let cluster = ToyCluster::start(Plan::default()).await;
    for temperature in [0.0, 0.7, 1.0] {
        for seed in 0..6 {
            let alone = cluster
                .generate(request(&prompt(seed), parameters("expert", temperature, seed)))
                .await
                .expect("expert");
            for draft_length in [1, 2, 5, 8] {
                let parameters =
                    v1::Parameters { draft_length: Some(draft_length), ..parameters("speculative", temperature, seed) };
                let answer = cluster.generate(request(&prompt(seed), parameters)).await.expect("speculative");
                assert_eq!((answer.ids, &answer.text), (alone.ids.clone(), &alone.text), "T={temperature} seed={seed}");
            }
            let chow =
                cluster.generate(request(&prompt(seed), cascade("chow", 0.5, temperature, seed))).await.expect("chow");
            let token = v1::Parameters { alpha: Some(0.5), ..parameters("cascade_token", temperature, seed) };
            let token = cluster.generate(request(&prompt(seed), token)).await.expect("cascade_token");
            assert_eq!(chow.ids, token.ids);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_in_flight_do_not_change_the_text() {
    let mut plan = Plan::default();
    plan.drafter.pipeline_depth = 3;
    plan.expert.slots = 3;
    let ahead = ToyCluster::start(plan).await;
    let waiting = ToyCluster::start(Plan::default()).await;
    let mut stale = 0;
    for seed in 0..10 {
        for asked in [parameters("speculative", 0.9, seed), cascade("token_v3", 0.6, 0.9, seed)] {
            let asked = v1::Parameters { draft_length: Some(3), ..asked };
            let a = ahead.generate(request(&prompt(seed), asked.clone())).await.expect("an answer");
            let b = waiting.generate(request(&prompt(seed), asked)).await.expect("an answer");
            assert_eq!(a.ids, b.ids);
            stale += a.finished.expect("finished").speculation.expect("statistics").stale_blocks;
        }
    }
    assert!(stale > 0, "no block was ever ahead of a rejection");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_share_batches_and_get_their_own_text() {
    let cluster = ToyCluster::start(Plan::default()).await;
    let mut alone = Vec::new();
    for seed in 0..48 {
        alone.push(
            cluster.generate(request(&prompt(seed), cascade("token_v3", 0.5, 0.8, seed))).await.expect("alone").ids,
        );
    }
    let client = cluster.client().await;
    let together =
        (0..48).map(|seed| collect(client.clone(), request(&prompt(seed), cascade("token_v3", 0.5, 0.8, seed))));
    let together = futures::future::join_all(together).await;
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(alone, &together.expect("together").ids);
    }
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_score_hands_the_query_over_to_the_expert() {
    let cluster = ToyCluster::start(Plan::default()).await;
    for seed in 0..4 {
        let query = |alpha| v1::Parameters { alpha: Some(alpha), ..parameters("cascade_query", 0.7, seed) };
        let kept = cluster.generate(request(&prompt(seed), query(-1e6))).await.expect("kept");
        let drafter =
            cluster.generate(request(&prompt(seed), parameters("drafter", 0.7, seed))).await.expect("drafter");
        assert_eq!(kept.ids, drafter.ids);
        let handed = cluster.generate(request(&prompt(seed), query(0.0))).await.expect("handed over");
        let expert = cluster.generate(request(&prompt(seed), parameters("expert", 0.7, seed))).await.expect("expert");
        assert_eq!(handed.ids, expert.ids);
        assert!(handed.finished.expect("finished").speculation.expect("statistics").score.expect("a score") < 0.0);
    }
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_trim_tokens_text_and_usage_together() {
    let cluster = ToyCluster::start(Plan::default()).await;
    for seed in 0..8 {
        let whole = parameters("expert", 0.8, seed);
        let whole = cluster
            .generate(request(&prompt(seed), v1::Parameters { ignore_eos: true, ..whole }))
            .await
            .expect("whole");
        assert_eq!((whole.ids.len(), whole.reason()), (60, FinishReason::Length));
        for strategy in ["expert", "speculative"] {
            let base = v1::Parameters {
                ignore_eos: true,
                draft_length: Some(7),
                logprobs: Some(1),
                ..parameters(strategy, 0.8, seed)
            };
            // A stop id in the middle of the text.
            let stop_at = 20;
            let stop_id = whole.ids[stop_at];
            let first = whole.ids.iter().position(|&id| id == stop_id).expect("it is there");
            let asked = v1::Parameters { stop_token_ids: vec![stop_id], ..base.clone() };
            let answer = cluster.generate(request(&prompt(seed), asked)).await.expect("an answer");
            assert_eq!((&answer.ids[..], answer.reason()), (&whole.ids[..=first], FinishReason::Stop));
            assert_eq!(answer.logprobs.len(), answer.ids.len());
            assert!(answer.logprobs.iter().all(|l| l.expert.is_some() && l.top.len() == 1));
            // A stop string: the text ends before it, whatever the tokens.
            let (start, _) = whole.text.char_indices().nth(whole.text.chars().count() / 2).expect("a text");
            let stop: String = whole.text[start..].chars().take(3).collect();
            let end = whole.text.find(&stop).expect("it is there");
            let asked = v1::Parameters { stop: vec![stop], ..base.clone() };
            let answer = cluster.generate(request(&prompt(seed), asked)).await.expect("an answer");
            assert_eq!((answer.text.as_str(), answer.reason()), (&whole.text[..end], FinishReason::Stop));
            assert_eq!(answer.ids[..], whole.ids[..answer.ids.len()]);
            assert_eq!(answer.logprobs.len(), answer.ids.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_come_with_every_token_of_every_strategy() {
    let cluster = ToyCluster::start(Plan::default()).await;
    for asked in [
        parameters("expert", 0.8, 5),
        parameters("speculative", 0.8, 5),
        cascade("token_v3", 0.6, 0.8, 5),
        cascade("chow", 0.6, 0.8, 5),
        v1::Parameters { alpha: Some(0.9), ..parameters("cascade_token", 0.8, 5) },
        v1::Parameters { alpha: Some(-1e6), ..parameters("cascade_query", 0.8, 5) },
        parameters("drafter", 0.8, 5),
    ] {
        let drafter = asked.strategy == "drafter";
        let silent = cluster.generate(request(PROMPT, asked.clone())).await.expect("an answer");
        let answer = cluster
            .generate(request(PROMPT, v1::Parameters { logprobs: Some(3), ..asked.clone() }))
            .await
            .expect("an answer");
        assert_eq!(answer.ids, silent.ids, "asking does not change the text: {asked:?}");
        assert_eq!(answer.logprobs.len(), answer.ids.len());
        for logprobs in &answer.logprobs {
            assert_eq!((logprobs.expert.is_some(), logprobs.drafter.is_some()), (!drafter, drafter), "{asked:?}");
            assert!(logprobs.top.len() == 3 && logprobs.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_stops_the_work_in_all_three_tiers() {
    let (expert_step, drafter_step) = (Duration::from_millis(100), Duration::from_millis(50));
    let cluster = ToyCluster::start(Plan { expert_step, drafter_step, ..Plan::default() }).await;
    for strategy in ["speculative", "expert", "drafter", "cascade_token"] {
        let asked = v1::Parameters {
            max_tokens: Some(1_900),
            draft_length: Some(1),
            ignore_eos: true,
            ..parameters(strategy, 1.0, 9)
        };
        // Left alone it takes longer than anybody waits here.
        assert!(drafter_step * 1_900 > PATIENCE);
        let mut stream = cluster.client().await.generate(request(PROMPT, asked)).await.expect("a stream").into_inner();
        for _ in 0..3 {
            stream.message().await.expect("it streams").expect("it goes on");
        }
        drop(stream);
        cluster.quiesce().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_client_delays_nobody() {
    let cluster = ToyCluster::start(Plan { drafters: 1, experts: 1, ..Plan::default() }).await;
    let client = cluster.client().await;
    let endless = v1::Parameters { max_tokens: Some(1_500), ignore_eos: true, ..parameters("speculative", 1.0, 1) };
    // One client that never reads, on the connection of all the others.
    let mut stalled = client.clone();
    let unread = stalled.generate(request(PROMPT, endless)).await.expect("a stream").into_inner();
    let others =
        (0..100).map(|seed| collect(client.clone(), request(&prompt(seed), parameters("speculative", 0.8, seed))));
    let answers = tokio::time::timeout(PATIENCE, futures::future::join_all(others)).await.expect("nobody waits");
    assert!(answers.iter().all(Result::is_ok));
    drop(unread);
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_one_clear_sentence_and_disturbs_nobody() {
    let cluster = ToyCluster::start(Plan::default()).await;
    let client = cluster.client().await;
    let undisturbed = tokio::spawn(collect(client.clone(), request(PROMPT, parameters("speculative", 0.8, 3))));
    let base = || parameters("speculative", 0.8, 1);
    let of = |parameters| request(PROMPT, parameters);
    let cases: Vec<(&str, v1::GenerateRequest, Code)> = vec![
        ("prompt", request("", base()), Code::InvalidArgument),
        ("context", request(&"x".repeat(4_000), base()), Code::InvalidArgument),
        ("max_tokens", of(v1::Parameters { max_tokens: Some(0), ..base() }), Code::InvalidArgument),
        ("temperature", of(v1::Parameters { temperature: Some(f64::NAN), ..base() }), Code::InvalidArgument),
        ("temperature", of(v1::Parameters { temperature: Some(-1.0), ..base() }), Code::InvalidArgument),
        ("top_p", of(v1::Parameters { top_p: Some(1.5), ..base() }), Code::InvalidArgument),
        ("min_p", of(v1::Parameters { min_p: Some(-0.1), ..base() }), Code::InvalidArgument),
        ("repetition_penalty", of(v1::Parameters { repetition_penalty: Some(0.0), ..base() }), Code::InvalidArgument),
        ("draft_length", of(v1::Parameters { draft_length: Some(0), ..base() }), Code::InvalidArgument),
        ("strategy", of(v1::Parameters { strategy: "telepathy".into(), ..base() }), Code::InvalidArgument),
        ("token_v3", of(cascade("token_v9", 0.1, 0.8, 1)), Code::InvalidArgument),
        ("alpha", of(cascade("chow", 1.5, 0.8, 1)), Code::InvalidArgument),
        ("alpha", of(cascade("token_v3", f64::NAN, 0.8, 1)), Code::InvalidArgument),
        ("toy", v1::GenerateRequest { model: "gpt-9".into(), ..of(base()) }, Code::NotFound),
    ];
    for (word, bad, code) in cases {
        let status = cluster.generate(bad.clone()).await.expect_err("it is refused");
        assert_eq!(status.code(), code, "{bad:?}: {status}");
        assert!(status.message().contains(word), "{word} is not named in: {}", status.message());
        assert!(!status.message().contains('\n'), "{}", status.message());
    }
    undisturbed.await.expect("joined").expect("the other session goes on");
    cluster.quiesce().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_work() {
    let plan = Plan { expert_step: Duration::from_millis(50), ..Plan::default() };
    let asked = v1::Parameters {
        max_tokens: Some(1_900),
        draft_length: Some(1),
        ignore_eos: true,
        ..parameters("speculative", 1.0, 2)
    };
    assert!(plan.expert_step * 1_900 > PATIENCE, "left alone it takes longer than anybody waits here");
    let cluster = ToyCluster::start(plan).await;
    let asked = v1::GenerateRequest { timeout_ms: Some(700), ..request(PROMPT, asked) };
    let status = cluster.generate(asked).await.expect_err("too slow");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    cluster.quiesce().await;
}
