//! What a draft carries, what is refused, what a verdict says about a token.

use cascadia_core::block::Draft;
use cascadia_core::decoding::{Coupling, Decoding, Strategy as Plan};
use cascadia_core::drafting::{decode, draft};
use cascadia_core::rule::{Parameters, Rule};
use cascadia_core::verify::{check, score, walk};

use crate::definitions::{Rows, rows, softmax, widened};
use crate::{DRAWS, EOS, PAIRS, decoding, rules};

#[test]
fn drafts_carry_what_is_read_and_no_more() {
    let made = |strategy, temperature| draft(&decoding(strategy, temperature), &[1, 2], &PAIRS[0].0);
    let bare = |draft: &Draft| *draft == Draft::bare(draft.token);
    for strategy in [Plan::Expert, Plan::Drafter, Plan::Speculative { coupling: Coupling::Gumbel }] {
        assert!(bare(&made(strategy, 0.8)));
    }
    assert!(bare(&made(Plan::Speculative { coupling: Coupling::Maximal }, 0.0)));
    let maximal = made(Plan::Speculative { coupling: Coupling::Maximal }, 0.8);
    assert!(maximal.support.contains(&(maximal.token, maximal.q)) && maximal.max_q == 0.0);
    for rule in rules() {
        let (reads, strategy) = (rule.reads(), Plan::SpeculativeCascade { rule });
        for temperature in [0.0, 0.8] {
            let draft = made(strategy, temperature);
            assert_eq!(draft.max_q > 0.0, reads.max_q, "{rule:?}");
            assert_eq!(draft.entropy_q > 0.0, reads.entropy_q, "{rule:?}");
            assert_eq!(!draft.support.is_empty(), temperature > 0.0 && reads.support && !draft.kept, "{rule:?}");
            assert!(!draft.kept || reads.decided_by_drafter);
        }
    }
    let kept = made(Plan::CascadeToken { alpha: 1.0 }, 0.8);
    assert!(kept.kept && kept.support.is_empty() && kept.q < 1.0);
    // Where the drafter would rather stop, the expert is asked.
    let mut stopping = PAIRS[0].0;
    stopping[EOS as usize] = 9.0;
    assert!(!draft(&decoding(Plan::CascadeToken { alpha: 1.0 }, 0.8), &[1, 2], &stopping).kept);
    // Two logits that differ by less than exp can tell: the nucleus of the lower id holds nothing but the stop.
    let mut tied = Decoding { stop_ids: vec![0], ..decoding(Plan::CascadeToken { alpha: 1.0 }, 0.8) };
    tied.sampling.top_p = 0.1;
    let asked = draft(&tied, &[1, 2], &[0.0, f32::from_bits(1), -9.0]);
    assert!(!asked.kept && asked.support == [(0, 1.0)]);
    // In the strict beginning nothing is kept.
    let strict = Decoding { strict_first_tokens: 1, ..decoding(Plan::CascadeToken { alpha: 1.0 }, 0.8) };
    let asked = draft(&strict, &[1, 2], &PAIRS[0].0);
    assert!(!asked.kept && !asked.support.is_empty());
}

#[test]
fn relaxed_says_what_the_rule_let_through() {
    let expert = [0.0, 3.0, 0.0];
    let greedy = decoding(Plan::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 1.0 } }, 0.0);
    let relaxed = |decoding: &Decoding, logits: &[f32]| {
        let draft = draft(decoding, &[1, 2], logits);
        let walk = walk(decoding, &[1, 2], &[draft], &[&expert]);
        assert_eq!(walk.accepted, 1);
        walk.scores[0].relaxed
    };
    assert!(relaxed(&greedy, &[3.0, 0.0, 0.0]));
    assert!(!relaxed(&greedy, &[0.0, 2.0, 0.0]));
    let kept = decoding(Plan::SpeculativeCascade { rule: Rule::Chow { alpha: 1.0 } }, 0.0);
    assert!(relaxed(&kept, &[3.0, 0.0, 0.0]));
    assert!(!relaxed(&kept, &[0.0, 2.0, 0.0]));
    // How often: acceptance of pi less acceptance of p.
    for rule in [Rule::Diff { alpha: 1.0 }, Rule::Chow { alpha: 1.0 }] {
        let mut decoding = Decoding { stop_ids: Vec::new(), ..decoding(Plan::SpeculativeCascade { rule }, 1.0) };
        let mut count = 0;
        for seed in 0..DRAWS {
            decoding.seed = seed as u64;
            let draft = draft(&decoding, &[1, 2], &PAIRS[1].0);
            count += usize::from(walk(&decoding, &[1, 2], &[draft], &[&PAIRS[1].1]).scores[0].relaxed);
        }
        let Rows { q, p, .. } = rows(&decoding.sampling, widened(PAIRS[1]));
        let distance: f64 = q.iter().zip(&p).map(|(q, p)| (q - p).max(0.0)).sum();
        assert!((count as f64 / DRAWS as f64 - distance).abs() < 0.02, "{rule:?}");
    }
}

#[test]
fn logprobs_are_the_experts_before_penalties() {
    let mut decoding = decoding(Plan::Speculative { coupling: Coupling::Gumbel }, 0.0);
    decoding.logprobs = Some(2);
    decoding.sampling.repetition_penalty = 3.0;
    decoding.sampling.banned = vec![7];
    decoding.sampling.logit_bias = vec![(2, 0.5)];
    let logits = [2.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 9.0];
    let wanted = softmax(&[2.0, 1.0, 0.5, -1.0, 0.0, 0.0, 0.0, f64::NEG_INFINITY], 1.0);
    let history = [3, 0, 0];
    let drafts = [Draft::bare(1)];
    let walk = walk(&decoding, &history, &drafts, &[&logits]);
    assert_eq!((walk.accepted, walk.scores.len()), (1, 1));
    let got = &walk.scores[0];
    assert!((f64::from(got.logprob.unwrap()) - wanted[1].ln()).abs() < 1e-6);
    assert_eq!(got.top.iter().map(|entry| entry.0).collect::<Vec<_>>(), [0, 1]);
    assert!((f64::from(got.top[0].1) - wanted[0].ln()).abs() < 1e-6);
    assert_eq!(*got, score(&decoding, &history, &logits, 1));
    assert_eq!(*got, decode(&decoding, &history, &logits).score);
    // The handover's score reads the raw row, which has the penalties.
    decoding.strategy = Plan::CascadeQuery { alpha: -1.0 };
    let raw = softmax(&[2.0 / 3.0, 1.0, 0.5, -3.0, 0.0, 0.0, 0.0, f64::NEG_INFINITY], 1.0);
    let decoded = decode(&decoding, &history, &logits);
    assert_eq!(decoded.token, 1);
    assert!((decoded.raw_logprob - raw[1].ln()).abs() < 1e-12);
}

#[test]
fn a_bad_draft_is_refused_by_its_field() {
    let rule = |rule| decoding(Plan::SpeculativeCascade { rule }, 0.8);
    let diff = rule(Rule::Diff { alpha: 0.1 });
    let good = draft(&diff, &[1, 2], &PAIRS[0].0);
    assert_eq!(check(&diff, 8, &good), Ok(()));
    let refused = |decoding: &Decoding, change: &dyn Fn(&mut Draft)| {
        let mut bad = good.clone();
        change(&mut bad);
        check(decoding, 8, &bad).expect_err("a bad draft")
    };
    type Change = fn(&mut Draft);
    let cases: [(&str, Change); 16] = [
        ("token:", |d| d.token = 8),
        ("q:", |d| d.q = 0.0),
        ("q:", |d| d.q = f32::NAN),
        ("q:", |d| d.q = 1.5),
        ("max_q:", |d| d.max_q = f32::INFINITY),
        ("max_q:", |d| d.max_q = -0.1),
        ("max_q:", |d| d.max_q = 0.0),
        ("entropy_q:", |d| d.entropy_q = f32::NAN),
        ("entropy_q:", |d| d.entropy_q = -1.0),
        ("kept:", |d| d.kept = true),
        ("support:", |d| d.support.clear()),
        ("support:", |d| d.support[0].1 = f32::NAN),
        ("support:", |d| d.support[0].1 += 0.01),
        ("support:", |d| d.support.swap(1, 2)),
        ("support:", |d| d.support[7].0 = 8),
        ("support:", |d| d.support.retain(|entry| entry.0 != d.token)),
    ];
    for (field, change) in cases {
        let message = refused(&diff, &change);
        assert!(message.starts_with(field), "{message}");
    }
    let message = refused(&diff, &|d| {
        let drafted = d.token;
        let index = d.support.iter().position(|entry| entry.0 == drafted).unwrap();
        let other = (index + 1) % 8;
        d.support[other].1 += d.support[index].1;
        d.support[index].1 = 0.0;
    });
    assert!(message.starts_with("support:") && message.contains("probability 0"), "{message}");
    // What a rule does not read may be absent.
    assert_eq!(
        check(&rule(Rule::Bild { fallback: 0.1, rollback: 1.0 }), 8, &Draft { max_q: 0.5, ..Draft::bare(3) }),
        Ok(())
    );
    assert_eq!(check(&rule(Rule::Chow { alpha: 0.1 }), 8, &Draft { kept: true, ..Draft::bare(3) }), Ok(()));
    assert!(check(&rule(Rule::Chow { alpha: 0.1 }), 8, &Draft::bare(3)).is_err());
    assert_eq!(check(&decoding(Plan::Speculative { coupling: Coupling::Gumbel }, 0.8), 8, &Draft::bare(3)), Ok(()));
    assert_eq!(check(&decoding(Plan::Speculative { coupling: Coupling::Maximal }, 0.0), 8, &Draft::bare(3)), Ok(()));
    assert!(check(&decoding(Plan::Speculative { coupling: Coupling::Maximal }, 0.8), 8, &Draft::bare(3)).is_err());
}

#[test]
fn rules_are_parsed_with_clear_refusals() {
    for rule in rules() {
        assert_eq!(Rule::parse(rule.name(), rule.parameters()), Ok(rule));
    }
    let alpha = |alpha| Parameters { alpha: Some(alpha), ..Parameters::default() };
    let refused = |name: &str, parameters| Rule::parse(name, parameters).unwrap_err().sentence;
    let at_fault = |name: &str, parameters| Rule::parse(name, parameters).unwrap_err().parameter;
    assert_eq!(at_fault("tokenv3", alpha(0.1)), None);
    assert_eq!(at_fault("chow", alpha(1.5)), Some("alpha"));
    assert_eq!(at_fault("typical", alpha(0.5)), Some("alpha"));
    assert!(refused("tokenv3", alpha(0.1)).contains("token_v3"));
    assert_eq!(refused("chow", alpha(1.5)), "alpha of rule chow must be in [0, 1], not 1.5");
    assert_eq!(refused("diff", Parameters::default()), "rule diff needs alpha, in [-1, 1]");
    assert_eq!(refused("token_v3", alpha(1.1)), "alpha of rule token_v3 must be at most 1, not 1.1");
    assert_eq!(refused("lenience", alpha(1.0)), "alpha of rule lenience must be in [0, 1), not 1");
    assert_eq!(refused("typical", alpha(0.5)), "rule typical does not read alpha");
    for name in Rule::NAMES {
        let nan = Some(f64::NAN);
        let all = Parameters { alpha: nan, epsilon: nan, delta: nan, fallback: nan, rollback: nan };
        assert!(Rule::parse(name, all).is_err(), "{name}");
    }
    assert!(Rule::parse("opt", alpha(f64::NEG_INFINITY)).is_ok());
    assert!(Rule::parse("token_v3", alpha(f64::NEG_INFINITY)).is_ok());
    let bild =
        |fallback, rollback| Parameters { fallback: Some(fallback), rollback: Some(rollback), ..Parameters::default() };
    assert!(Rule::parse("bild", bild(0.5, 3.0)).is_ok());
    assert!(Rule::parse("bild", bild(1.5, 3.0)).is_err() && Rule::parse("bild", bild(0.5, -1.0)).is_err());
    assert_eq!(Rule::parse("typical", Parameters::default()), Ok(Rule::Typical { epsilon: 0.09, delta: 0.3 }));
}
