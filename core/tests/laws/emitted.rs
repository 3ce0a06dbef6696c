//! Every emitted token follows `pi`: chi-square over many seeds, with a stop in the vocabulary.

use cascadia_core::block::Draft;
use cascadia_core::decoding::{Coupling, Decoding, Strategy as Plan};
use cascadia_core::drafting::draft;
use cascadia_core::ids::TokenId;
use cascadia_core::rule::Rule;
use cascadia_core::verify::{check, walk};

use crate::definitions::{law, penalised, rows, top_k, widened};
use crate::{DRAWS, PAIRS, decoding, rules};

/// One block of `block` drafts a seed on rows that do not change; counts every emitted token.
fn tally(decoding: &Decoding, history: &[TokenId], (q, p): (&[f32], &[f32]), block: usize) -> Vec<usize> {
    let mut decoding = decoding.clone();
    let mut counts = vec![0; q.len()];
    let mut emitted = 0;
    decoding.seed = 1_000;
    while emitted < DRAWS {
        decoding.seed += 1;
        let mut text = history.to_vec();
        let drafts: Vec<Draft> = (0..block)
            .map(|_| {
                let draft = draft(&decoding, &text, q);
                check(&decoding, q.len(), &draft).expect("our own drafts are valid");
                text.push(draft.token);
                draft
            })
            .collect();
        let walk = walk(&decoding, history, &drafts, &vec![p; block]);
        assert_eq!(walk.scores.len(), walk.accepted + usize::from(walk.replacement.is_some()));
        assert_eq!(walk.replacement.is_some(), walk.accepted < block);
        for token in drafts[..walk.accepted].iter().map(|draft| draft.token).chain(walk.replacement) {
            counts[token as usize] += 1;
            emitted += 1;
        }
    }
    counts
}

fn chi_square(counts: &[usize], law: &[f64]) -> f64 {
    let total: usize = counts.iter().sum();
    assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    let bins = counts.iter().zip(law).map(|(&count, &probability)| {
        let expected = probability * total as f64;
        match count as f64 {
            count if expected < 1e-9 => {
                if count > 0.0 {
                    f64::INFINITY
                } else {
                    0.0
                }
            }
            count => (count - expected).powi(2) / expected,
        }
    });
    bins.sum()
}

/// 1e-5 quantile at 7 degrees of freedom, rounded up; the seeds are fixed, so it passes always or never.
const CRITICAL: f64 = 37.5;

fn assert_follows(what: &str, counts: &[usize], law: &[f64]) {
    let distance = chi_square(counts, law);
    assert!(distance < CRITICAL, "{what}: chi-square {distance:.1}, counts {counts:?}, law {law:?}");
}

#[test]
fn every_rule_emits_its_law() {
    for temperature in [0.7, 1.3] {
        for (number, pair) in PAIRS.into_iter().enumerate() {
            for rule in rules() {
                let decoding = decoding(Plan::SpeculativeCascade { rule }, temperature);
                let counts = tally(&decoding, &[1, 2], (&pair.0, &pair.1), 3);
                let law = law(rule, &rows(&decoding.sampling, widened(pair)));
                assert_follows(&format!("{rule:?}, pair {number}, temperature {temperature}"), &counts, &law);
            }
        }
    }
}

#[test]
fn rules_decide_both_ways_in_these_tests() {
    // The laws above are worth little if nothing is ever deferred or ever kept.
    let decoding = decoding(Plan::Expert, 0.7);
    for name in Rule::NAMES {
        let of_name = rules().into_iter().filter(|rule| rule.name() == name);
        let laws: Vec<bool> = of_name
            .flat_map(|rule| {
                PAIRS.map(|pair| rows(&decoding.sampling, widened(pair))).map(|rows| law(rule, &rows) == rows.p)
            })
            .collect();
        let (exact, total) = (laws.iter().filter(|exact| **exact).count(), laws.len());
        assert!(exact < total, "{name} always defers");
        if matches!(name, "chow" | "diff" | "opt" | "chow_log" | "diff_log" | "opt_log" | "bild") {
            assert!(exact > 0, "{name} never defers");
        }
    }
}

#[test]
fn a_wrong_law_is_noticed() {
    let rule = Rule::TokenV3 { alpha: 0.5 };
    let decoding = decoding(Plan::SpeculativeCascade { rule }, 0.7);
    let counts = tally(&decoding, &[1, 2], (&PAIRS[0].0, &PAIRS[0].1), 3);
    let rows = rows(&decoding.sampling, widened(PAIRS[0]));
    assert!(chi_square(&counts, &rows.p) > 10.0 * CRITICAL);
    assert!(chi_square(&counts, &rows.q) > 10.0 * CRITICAL);
    assert!(chi_square(&counts, &law(Rule::TokenV3 { alpha: 0.3 }, &rows)) > CRITICAL);
}

#[test]
fn both_couplings_and_strict_beginnings_emit_the_experts_row() {
    let bild = Plan::SpeculativeCascade { rule: Rule::Bild { fallback: 0.0, rollback: 9.0 } };
    let chow = Plan::SpeculativeCascade { rule: Rule::Chow { alpha: 1.0 } };
    let token = Plan::SpeculativeCascade { rule: Rule::TokenV3 { alpha: 1.0 } };
    let maximal = Plan::Speculative { coupling: Coupling::Maximal };
    let gumbel = Plan::Speculative { coupling: Coupling::Gumbel };
    for strategy in [bild, chow, token, maximal, gumbel] {
        for pair in PAIRS {
            let mut decoding = decoding(strategy, 0.9);
            decoding.strict_first_tokens = 3;
            let counts = tally(&decoding, &[1, 2], (&pair.0, &pair.1), 3);
            assert_follows(&format!("{strategy:?}"), &counts, &rows(&decoding.sampling, widened(pair)).p);
        }
    }
}

#[test]
fn shaped_rows_go_into_the_law() {
    let history = [1, 2, 0, 0, 3, 1];
    for rule in rules() {
        let mut decoding = decoding(Plan::SpeculativeCascade { rule }, 0.8);
        decoding.sampling.repetition_penalty = 1.4;
        decoding.sampling.presence_penalty = 0.3;
        decoding.sampling.frequency_penalty = 0.2;
        decoding.sampling.top_k = 5;
        let counts = tally(&decoding, &history, (&PAIRS[0].0, &PAIRS[0].1), 1);
        let shape = |logits: &[f32]| penalised(logits, &decoding.sampling, &history, 2);
        let rows = rows(&decoding.sampling, (shape(&PAIRS[0].0), shape(&PAIRS[0].1)));
        assert_follows(&format!("{rule:?}"), &counts, &law(rule, &rows));
    }
}

#[test]
fn a_row_cut_for_the_wire_is_the_row_drawn_from() {
    // The law is that of the cut q, and the expert's own row is whole.
    for rule in [
        Rule::Diff { alpha: 1.0 },
        Rule::TokenV1 { alpha: 0.2 },
        Rule::Lenience { alpha: 0.3 },
        Rule::Chow { alpha: 1.0 },
    ] {
        let mut decoding = decoding(Plan::SpeculativeCascade { rule }, 0.8);
        decoding.sampling.wire_top_k = 3;
        let counts = tally(&decoding, &[1, 2], (&PAIRS[0].0, &PAIRS[0].1), 3);
        let mut rows = rows(&decoding.sampling, widened(PAIRS[0]));
        rows.q = top_k(&rows.q, 3);
        assert_follows(&format!("{rule:?}"), &counts, &law(rule, &rows));
    }
}
