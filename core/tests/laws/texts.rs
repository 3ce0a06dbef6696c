//! The text depends on the request alone, and on the drafter only where the rule says so.

use cascadia_core::decoding::{Coupling, Decoding, Strategy as Plan};
use cascadia_core::drafting::{decode, draft};
use cascadia_core::ids::TokenId;
use cascadia_core::rule::Rule;
use cascadia_core::verify::{check, walk};

use crate::{EOS, decoding, rules};

/// A model whose row depends on the last two tokens.
fn toy(history: &[TokenId], model: u64, own: f32) -> Vec<f32> {
    let mix = |model: u64, token: u64| {
        let last = history.iter().rev().take(2).fold(model, |hash, &token| hash.wrapping_mul(31) ^ u64::from(token));
        let mut z = last.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ token.wrapping_mul(0xD1B5_4A32_D192_ED03);
        z = (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z >> 40) as f32 / (1 << 24) as f32 - 0.5) * 6.0
    };
    (0..12).map(|token| (1.0 - own) * mix(7, token) + own * mix(model, token)).collect()
}

fn drafter(history: &[TokenId]) -> Vec<f32> {
    toy(history, 8, 0.4)
}

fn expert(history: &[TokenId]) -> Vec<f32> {
    toy(history, 9, 0.2)
}

/// Blocks of the given lengths, in turn, until `length` tokens are written.
fn generate(
    decoding: &Decoding,
    drafter: fn(&[TokenId]) -> Vec<f32>,
    lengths: &[usize],
    length: usize,
) -> Vec<TokenId> {
    let mut text = vec![3, 1];
    let mut lengths = lengths.iter().cycle();
    while text.len() < length {
        let mut ahead = text.clone();
        let mut drafts = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..*lengths.next().unwrap() {
            let draft = draft(decoding, &ahead, &drafter(&ahead));
            check(decoding, 12, &draft).unwrap();
            rows.push(expert(&ahead));
            ahead.push(draft.token);
            drafts.push(draft);
        }
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let walk = walk(decoding, &text, &drafts, &rows);
        text.extend(drafts[..walk.accepted].iter().map(|draft| draft.token).chain(walk.replacement));
    }
    text.truncate(length);
    text
}

fn alone(decoding: &Decoding, model: fn(&[TokenId]) -> Vec<f32>, length: usize) -> Vec<TokenId> {
    let mut text = vec![3, 1];
    while text.len() < length {
        let decoded = decode(decoding, &text, &model(&text));
        text.push(decoded.token);
    }
    text
}

fn with_penalties(mut decoding: Decoding) -> Decoding {
    decoding.sampling.repetition_penalty = 1.2;
    decoding.sampling.frequency_penalty = 0.1;
    decoding.sampling.top_p = 0.95;
    decoding.sampling.min_p = 0.01;
    decoding
}

#[test]
fn no_text_depends_on_the_draft_length() {
    let mut strategies: Vec<Plan> = rules().into_iter().map(|rule| Plan::SpeculativeCascade { rule }).collect();
    strategies.push(Plan::Speculative { coupling: Coupling::Maximal });
    strategies.push(Plan::Speculative { coupling: Coupling::Gumbel });
    for strategy in strategies {
        for temperature in [0.0, 0.7, 1.0] {
            let mut decoding = with_penalties(decoding(strategy, temperature));
            decoding.strict_first_tokens = 5;
            let one = generate(&decoding, drafter, &[1], 80);
            for lengths in [&[2][..], &[5], &[8], &[1, 7, 2, 4]] {
                assert_eq!(generate(&decoding, drafter, lengths, 80), one, "{strategy:?}, {temperature}, {lengths:?}");
            }
        }
    }
}

#[test]
fn speculative_writes_the_experts_text_with_any_drafter() {
    let plain = |_: &[TokenId]| vec![0.0; 12];
    let broken = |_: &[TokenId]| vec![f32::NAN; 12];
    for temperature in [0.0, 0.7, 1.0] {
        let mut decoding = with_penalties(decoding(Plan::Speculative { coupling: Coupling::Gumbel }, temperature));
        for seed in 0..20 {
            decoding.seed = seed;
            decoding.strict_first_tokens = seed as usize % 3;
            let wanted = alone(&Decoding { strategy: Plan::Expert, ..decoding.clone() }, expert, 60);
            for model in [drafter, expert, plain, broken] {
                assert_eq!(generate(&decoding, model, &[4], 60), wanted);
            }
        }
        // Greedy text is the expert's under the other coupling too.
        if temperature == 0.0 {
            decoding.strategy = Plan::Speculative { coupling: Coupling::Maximal };
            let wanted = alone(&Decoding { strategy: Plan::Expert, ..decoding.clone() }, expert, 60);
            assert_eq!(generate(&decoding, drafter, &[4], 60), wanted);
        }
    }
}

#[test]
fn choices_differ_and_repeat() {
    let mut decoding = decoding(Plan::Speculative { coupling: Coupling::Gumbel }, 1.0);
    let first = generate(&decoding, drafter, &[4], 60);
    assert_eq!(generate(&decoding, drafter, &[4], 60), first);
    decoding.choice = 1;
    assert_ne!(generate(&decoding, drafter, &[4], 60), first);
}

#[test]
fn a_sequential_cascade_writes_the_text_of_chow() {
    for temperature in [0.0, 0.8] {
        for alpha in [0.0, 0.4, 0.6, 1.0] {
            let token = with_penalties(decoding(Plan::CascadeToken { alpha }, temperature));
            let mut asked = 0;
            let mut text = vec![3, 1];
            while text.len() < 80 {
                let draft = draft(&token, &text, &drafter(&text));
                let walk = if draft.kept {
                    None
                } else {
                    Some(walk(&token, &text, std::slice::from_ref(&draft), &[&expert(&text)]))
                };
                asked += usize::from(walk.is_some());
                let token = walk.and_then(|walk| walk.replacement).unwrap_or(draft.token);
                assert!(!(draft.kept && token == EOS), "a stop is the expert's to write");
                text.push(token);
            }
            let rule = Rule::Chow { alpha };
            let block = Decoding { strategy: Plan::SpeculativeCascade { rule }, ..token };
            assert_eq!(generate(&block, drafter, &[4], 80), text);
            assert!(alpha > 0.0 || asked == 78, "alpha 0 always asks");
            assert!(alpha < 1.0 || asked < 78, "alpha 1 asks for stops only");
        }
    }
}

#[test]
fn exact_limits_write_the_experts_text_when_greedy() {
    let exact = [
        Rule::Opt { alpha: f64::NEG_INFINITY },
        Rule::TokenV3 { alpha: -1e-6 },
        Rule::Lenience { alpha: 0.5 },
        Rule::Mentored { alpha: 0.5 },
        Rule::ChowLog { alpha: -1.0 },
        Rule::Bild { fallback: 1.0, rollback: 0.0 },
    ];
    let wanted = alone(&decoding(Plan::Expert, 0.0), expert, 80);
    for rule in exact {
        assert_eq!(generate(&decoding(Plan::SpeculativeCascade { rule }, 0.0), drafter, &[4], 80), wanted, "{rule:?}");
    }
}
