use super::*;
use cascadia_core::decoding::Strategy;
use proptest::prelude::*;

fn asked() -> v1::Parameters {
    v1::Parameters::default()
}

fn strategy_of(name: &str) -> v1::Parameters {
    v1::Parameters { strategy: name.into(), ..asked() }
}

fn cascade(rule: &str) -> v1::Parameters {
    v1::Parameters { rule: rule.into(), ..strategy_of("speculative_cascade") }
}

fn resolved(asked: v1::Parameters) -> v1::Parameters {
    resolve(&asked, &Defaults::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(asked: v1::Parameters) -> (&'static str, String) {
    let error = resolve(&asked, &Defaults::default()).expect_err("this cannot be meant");
    (error.field, error.sentence)
}

fn decoded(parameters: v1::Parameters) -> Decoding {
    let resolved = v1::Resolved { parameters: Some(parameters), seed: 5, choice: 2, default_max_tokens: false };
    decoding(&resolved, 10, &[7, 3]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_empty_request_takes_every_default() {
    let resolved = resolved(asked());
    assert_eq!(
        (resolved.strategy.as_str(), resolved.coupling.as_str(), resolved.rule.as_str()),
        ("speculative", "gumbel", "")
    );
    assert_eq!((resolved.temperature, resolved.max_tokens, resolved.draft_length), (Some(1.0), Some(256), Some(6)));
    assert_eq!((resolved.alpha, resolved.seed, resolved.logprobs), (None, None, None));
    assert_eq!(resolved.on_expert_loss(), v1::OnExpertLoss::Wait);
    assert_eq!(resolved.on_drafter_loss(), v1::OnDrafterLoss::Expert);
    let decoding = decoded(resolved);
    assert_eq!(decoding.strategy, Strategy::Speculative { coupling: Coupling::Gumbel });
    assert_eq!((decoding.seed, decoding.choice, decoding.prompt_length), (5, 2, 10));
    assert_eq!(decoding.stop_ids, [3, 7]);
    assert_eq!(decoding.sampling, Sampling { temperature: 1.0, ..Sampling::default() });
}

#[test]
fn strategies_take_their_own_defaults() {
    assert_eq!(resolved(strategy_of("cascade_query")).alpha, Some(DEFAULT_CASCADE_QUERY_ALPHA));
    assert_eq!(resolved(strategy_of("cascade_token")).alpha, Some(DEFAULT_CASCADE_TOKEN_ALPHA));
    let lossy = resolved(strategy_of("speculative_cascade"));
    assert_eq!((lossy.rule.as_str(), lossy.alpha), ("token_v3", Some(DEFAULT_TOKEN_V3_ALPHA)));
    let typical = resolved(cascade("typical"));
    assert_eq!(typical.typical, Some(v1::TypicalParameters { epsilon: 0.09, delta: 0.3 }));
    for name in STRATEGIES {
        let _ = decoded(resolved(strategy_of(name)));
    }
    let defaults = Defaults {
        strategy: "speculative_cascade".into(),
        rule: "chow".into(),
        alpha: Some(0.2),
        ..Defaults::default()
    };
    let chow = resolve(&asked(), &defaults).unwrap();
    assert_eq!(decoded(chow).strategy, Strategy::SpeculativeCascade { rule: Rule::Chow { alpha: 0.2 } });
}

#[test]
fn every_rule_resolves_and_comes_back() {
    for name in Rule::NAMES {
        let mut asked = cascade(name);
        match name {
            "typical" => {}
            "bild" => asked.bild = Some(v1::BildParameters { fallback: 0.4, rollback: 3.0 }),
            _ => asked.alpha = Some(0.25),
        }
        let resolved = resolved(asked);
        let Strategy::SpeculativeCascade { rule } = decoded(resolved.clone()).strategy else { panic!("{name}") };
        assert_eq!((rule.name(), rule.parameters().alpha), (name, resolved.alpha));
    }
}

#[test]
fn what_means_nothing_is_refused_with_the_cure() {
    let with_alpha = |name| v1::Parameters { alpha: Some(0.1), ..strategy_of(name) };
    for name in ["expert", "drafter", "speculative"] {
        let (field, sentence) = refused(with_alpha(name));
        assert_eq!(field, "alpha");
        assert!(sentence.contains(name) && sentence.contains("leave alpha out"), "{sentence}");
    }
    let (field, sentence) = refused(v1::Parameters { rule: "chow".into(), ..asked() });
    assert_eq!(field, "rule");
    assert!(sentence.contains("set strategy to speculative_cascade"), "{sentence}");
    let (field, _) = refused(v1::Parameters { coupling: "gumbel".into(), ..strategy_of("expert") });
    assert_eq!(field, "coupling");
    let bild = Some(v1::BildParameters { fallback: 0.4, rollback: 3.0 });
    assert_eq!(refused(v1::Parameters { bild, ..asked() }).0, "bild");
    assert_eq!(refused(v1::Parameters { bild, ..cascade("token_v3") }).0, "bild");
    let (_, sentence) = refused(cascade("chow"));
    assert!(sentence.contains("chow needs alpha"), "{sentence}");
}

#[test]
fn unknown_names_list_the_known() {
    let (_, sentence) = refused(strategy_of("speculation"));
    assert!(STRATEGIES.iter().all(|name| sentence.contains(name)), "{sentence}");
    let (_, sentence) = refused(cascade("token_v4"));
    assert!(Rule::NAMES.iter().all(|name| sentence.contains(name)), "{sentence}");
    let (_, sentence) = refused(v1::Parameters { coupling: "wide".into(), ..asked() });
    assert!(COUPLINGS.iter().all(|name| sentence.contains(name)), "{sentence}");
    let only = Defaults { strategies: vec!["expert".into()], ..Defaults::default() };
    let sentence = resolve(&strategy_of("drafter"), &only).unwrap_err().sentence;
    assert!(sentence.ends_with("allowed are expert"), "{sentence}");
    assert!(resolve(&asked(), &only).is_ok(), "the operator's own default is allowed");
    assert_eq!(refused(v1::Parameters { on_expert_loss: 9, ..asked() }).0, "on_expert_loss");
    assert_eq!(refused(v1::Parameters { on_drafter_loss: -1, ..asked() }).0, "on_drafter_loss");
}

#[test]
fn numbers_out_of_bounds_are_refused_by_name() {
    type Case = (&'static str, fn(&mut v1::Parameters, f64), &'static [f64]);
    let cases: [Case; 7] = [
        ("temperature", |p, x| p.temperature = Some(x), &[-0.1, 100.1, f64::NAN, f64::INFINITY]),
        ("top_p", |p, x| p.top_p = Some(x), &[0.0, -0.1, 1.01, f64::NAN]),
        ("min_p", |p, x| p.min_p = Some(x), &[-0.1, 1.1, f64::NAN]),
        ("repetition_penalty", |p, x| p.repetition_penalty = Some(x), &[0.0, -1.0, f64::NAN, f64::INFINITY]),
        ("presence_penalty", |p, x| p.presence_penalty = Some(x), &[-2.1, 2.1, f64::NAN]),
        ("frequency_penalty", |p, x| p.frequency_penalty = Some(x), &[-2.1, 2.1, f64::NAN]),
        ("logit_bias", |p, x| p.logit_bias = vec![v1::LogitBias { token: 1, bias: x as f32 }], &[-101.0, f64::NAN]),
    ];
    for (field, set, values) in cases {
        for &value in values {
            let mut parameters = asked();
            set(&mut parameters, value);
            let (named, sentence) = refused(parameters);
            assert_eq!(named, field);
            assert!(sentence.contains(field), "{sentence}");
        }
    }
    for (name, alphas) in
        [("cascade_query", [0.1, f64::NAN, f64::NEG_INFINITY]), ("cascade_token", [-0.1, 1.1, f64::NAN])]
    {
        for alpha in alphas {
            assert_eq!(refused(v1::Parameters { alpha: Some(alpha), ..strategy_of(name) }).0, "alpha");
        }
    }
    assert_eq!(refused(v1::Parameters { alpha: Some(f64::NAN), ..cascade("token_v3") }).0, "alpha");
    assert_eq!(refused(cascade("token_v9")).0, "rule");
    let typical = Some(v1::TypicalParameters { epsilon: 2.0, delta: 0.3 });
    assert_eq!(refused(v1::Parameters { typical, ..cascade("typical") }).0, "typical");
}

#[test]
fn counts_out_of_bounds_are_refused_by_name() {
    type Case = (&'static str, fn(&mut v1::Parameters, u32), &'static [u32]);
    let cases: [Case; 4] = [
        ("max_tokens", |p, n| p.max_tokens = Some(n), &[0, (1 << 20) + 1]),
        ("draft_length", |p, n| p.draft_length = Some(n), &[0, 65]),
        ("logprobs", |p, n| p.logprobs = Some(n), &[21]),
        ("wire_top_k", |p, n| p.wire_top_k = Some(n), &[0, MOST_WIRE_TOP_K + 1]),
    ];
    for (field, set, values) in cases {
        for &value in values {
            let mut parameters = asked();
            set(&mut parameters, value);
            assert_eq!(refused(parameters).0, field);
        }
    }
    let many = MOST_IDS as u32 + 1;
    for stop in [vec!["x".to_owned(); 17], vec![String::new()], vec!["x".repeat(257)]] {
        assert_eq!(refused(v1::Parameters { stop, ..asked() }).0, "stop");
    }
    assert_eq!(refused(v1::Parameters { banned: (0..many).collect(), ..asked() }).0, "banned");
    assert_eq!(refused(v1::Parameters { stop_token_ids: (0..many).collect(), ..asked() }).0, "stop_token_ids");
    let twice = vec![v1::LogitBias { token: 1, bias: 1.0 }; 2];
    assert_eq!(refused(v1::Parameters { logit_bias: twice, ..asked() }).0, "logit_bias");
}

#[test]
fn edges_are_allowed() {
    let parameters =
        resolved(v1::Parameters { temperature: Some(1e-9), top_p: Some(1e-9), min_p: Some(1.0), ..asked() });
    assert_eq!(parameters.temperature, Some(LEAST_TEMPERATURE));
    let greedy = resolved(v1::Parameters { temperature: Some(-0.0), ..asked() });
    assert!(greedy.temperature.is_some_and(|t| t == 0.0 && t.is_sign_positive()));
    assert_eq!(resolved(v1::Parameters { banned: vec![5, 1, 5], ..asked() }).banned, [1, 5]);
}

#[test]
fn eos_joins_the_stop_ids_unless_ignored() {
    let stop_token_ids = vec![9, 3];
    let parameters = v1::Parameters { stop_token_ids, ..asked() };
    assert_eq!(decoded(parameters.clone()).stop_ids, [3, 7, 9]);
    assert_eq!(decoded(v1::Parameters { ignore_eos: true, ..parameters }).stop_ids, [3, 9]);
}

#[test]
fn a_peer_is_not_believed() {
    let bad = v1::Parameters { temperature: Some(f64::NAN), ..asked() };
    assert!(
        decoding(&v1::Resolved { parameters: Some(bad), seed: 0, choice: 0, default_max_tokens: false }, 0, &[])
            .is_err()
    );
    assert_eq!(decoding(&v1::Resolved::default(), 0, &[]).unwrap_err().field, "parameters");
}

#[test]
fn a_tenant_and_a_request_id_fix_the_seed_for_ever() {
    assert_ne!(seed_of("", "req-1"), seed_of("", "req-2"));
    assert_eq!(seed_of("", "req-1"), SEED_OF_REQ_1, "the same request id gives the same text in every release");
    assert_eq!(seed_of("acme", "req-1"), SEED_OF_ACMES_REQ_1);
    let others = [("", "req-1"), ("acme", "req-2"), ("globex", "req-1"), ("acm", "ereq-1"), ("req-1", "acme")];
    for (tenant, request) in others {
        assert_ne!(seed_of(tenant, request), SEED_OF_ACMES_REQ_1, "{tenant} {request}");
    }
}

const SEED_OF_REQ_1: u64 = 5_680_828_833_524_056_145;
const SEED_OF_ACMES_REQ_1: u64 = 3_030_694_282_796_580_952;

proptest! {
    /// Whatever a client sends, the answer is a refusal or something that resolves to itself.
    #[test]
    fn resolving_is_idempotent(
        strategy in prop::sample::select(STRATEGIES.to_vec()),
        rule in prop::option::of(prop::sample::select(Rule::NAMES.to_vec())),
        alpha in prop::option::of(-1.5_f64..1.5),
        temperature in prop::option::of(prop::num::f64::ANY),
        top_p in prop::option::of(0.0_f64..=1.0),
        numbers in prop::collection::vec(prop::option::of(0_u32..100), 4),
        ids in prop::collection::vec(any::<u32>(), 0..5),
    ) {
        let asked = v1::Parameters {
            strategy: strategy.into(),
            rule: rule.unwrap_or_default().into(),
            alpha,
            temperature,
            top_p,
            top_k: numbers[0],
            max_tokens: numbers[1],
            draft_length: numbers[2],
            logprobs: numbers[3],
            stop_token_ids: ids.clone(),
            banned: ids,
            ..v1::Parameters::default()
        };
        if let Ok(resolved) = resolve(&asked, &Defaults::default()) {
            prop_assert_eq!(&resolve(&resolved, &Defaults::default()).unwrap(), &resolved);
            let message = v1::Resolved { parameters: Some(resolved), seed: 1, choice: 0, default_max_tokens: false };
            prop_assert!(decoding(&message, 4, &[]).is_ok());
        }
    }
}

fn allowing(intervals: &[&str]) -> Defaults {
    let allowed = intervals.iter().map(|interval| interval.parse().unwrap_or_else(|error| panic!("{error}")));
    Defaults { allowed: allowed.collect(), ..Defaults::default() }
}

#[test]
fn an_operators_interval_holds_for_what_is_asked_and_for_what_is_not() {
    let operator = allowing(&["temperature=0..1.5", "draft_length=..8", "alpha=0.1..0.8", "token_v3.alpha=..0.5"]);
    let refused = |asked: v1::Parameters| resolve(&asked, &operator).expect_err("it lies outside");
    for (asked, field, says) in [
        (v1::Parameters { temperature: Some(2.0), ..asked() }, "temperature", "between 0 and 1.5 here, not 2"),
        (v1::Parameters { draft_length: Some(9), ..asked() }, "draft_length", "at most 8 here, not 9"),
        (v1::Parameters { alpha: Some(0.9), ..cascade("chow") }, "alpha", "alpha of chow must be between 0.1 and 0.8"),
        (v1::Parameters { alpha: Some(0.6), ..cascade("token_v3") }, "alpha", "alpha of token_v3 must be at most 0.5"),
        (v1::Parameters { alpha: Some(0.05), ..cascade("token_v3") }, "alpha", "alpha of token_v3 must be between 0.1"),
    ] {
        let error = refused(asked);
        assert_eq!(error.field, field);
        assert!(error.sentence.contains(says), "{error}");
    }
    for asked in [
        asked(),
        cascade("token_v3"),
        v1::Parameters { alpha: Some(0.8), ..cascade("chow") },
        // On another scale, and bounded by its own name only.
        strategy_of("cascade_query"),
        strategy_of("cascade_token"),
    ] {
        resolve(&asked, &operator).unwrap_or_else(|error| panic!("{error}"));
    }
    let error =
        resolve(&strategy_of("cascade_query"), &allowing(&["cascade_query.alpha=-0.5..0"])).expect_err("the default");
    assert!(error.sentence.contains("not -0.7, its default: give one that is"), "{error}");
    let bild = v1::Parameters { bild: Some(v1::BildParameters { fallback: 0.5, rollback: 1.0 }), ..cascade("bild") };
    let error = resolve(&bild, &allowing(&["bild.fallback=0.99..1"])).expect_err("it lies outside");
    assert_eq!(error.field, "bild");
    // Wherever a session was admitted, owners take it.
    assert_eq!(decoded(v1::Parameters { temperature: Some(2.0), ..asked() }).sampling.temperature, 2.0);
}

#[test]
fn intervals_are_read_as_they_are_written() {
    for text in ["temperature=0..1.5", "token_v3.alpha=..0.5", "bild.fallback=0.2..", "cascade_query.alpha=-2..-0.1"] {
        let allowed: Allowed = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(allowed.to_string(), text);
    }
    for (text, says) in [
        ("temperature", "no ="),
        ("temperature=1", "no .."),
        ("temperature=a..b", "\"a\" is no number"),
        ("temperature=2..1", "nothing lies between 2 and 1"),
        ("temperature=nan..1", "nothing lies between"),
        ("heat=0..1", "\"heat\" is no parameter; there are temperature"),
        ("bild.alpha=0..1", "is no parameter"),
        ("best.alpha=0..1", "is no parameter"),
        ("chow.temperature=0..1", "is no parameter"),
    ] {
        let error = text.parse::<Allowed>().expect_err(text);
        assert!(error.contains(says), "{error}");
    }
}
