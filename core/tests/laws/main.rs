//! What the decisions promise, tested through the public API: every emitted token follows `pi`, and the text depends
//! on nothing that is not part of the request.
//!
//! The expected laws are computed here once more, densely and straight from `algorithms.md`, so that a mistake in the
//! crate's sparse form shows.

mod definitions;
mod drafts;
mod emitted;
mod invariants;
mod texts;

use cascadia_core::decoding::{Decoding, Sampling, Strategy as Plan};
use cascadia_core::ids::TokenId;
use cascadia_core::rule::Rule;

const EOS: TokenId = 5;
const DRAWS: usize = 20_000;

/// Drafter's and expert's logits: near each other, and a drafter that is sure and wrong.
const PAIRS: [([f32; 8], [f32; 8]); 2] = [
    ([1.6, 0.9, 0.4, 0.1, -0.6, 0.8, -1.0, -2.5], [1.0, 1.5, 0.3, -0.2, -0.5, 0.2, -2.5, 0.0]),
    ([3.0, 0.5, 0.2, -0.5, -1.0, 1.4, 0.0, -3.0], [0.1, 1.9, 1.0, 0.6, -0.4, 0.7, -2.0, -1.0]),
];

fn decoding(strategy: Plan, temperature: f64) -> Decoding {
    Decoding {
        strategy,
        sampling: Sampling { temperature, ..Sampling::default() },
        seed: 1,
        choice: 0,
        draft_length: 3,
        strict_first_tokens: 0,
        stop_ids: vec![EOS],
        max_tokens: 1_000,
        logprobs: None,
        prompt_length: 2,
    }
}

fn rules() -> Vec<Rule> {
    vec![
        Rule::Chow { alpha: 0.2 },
        Rule::Chow { alpha: 0.7 },
        Rule::Diff { alpha: -0.3 },
        Rule::Diff { alpha: 0.05 },
        Rule::Opt { alpha: -0.4 },
        Rule::Opt { alpha: 0.3 },
        Rule::Opt { alpha: f64::INFINITY },
        Rule::Opt { alpha: f64::NEG_INFINITY },
        Rule::ChowLog { alpha: 1.0 },
        Rule::ChowLog { alpha: 2.0 },
        Rule::DiffLog { alpha: -0.6 },
        Rule::DiffLog { alpha: 0.2 },
        Rule::OptLog { alpha: -2.0 },
        Rule::OptLog { alpha: 0.5 },
        Rule::TokenV1 { alpha: 0.2 },
        Rule::TokenV2 { alpha: 0.2 },
        Rule::TokenV3 { alpha: 0.5 },
        Rule::TokenV3 { alpha: -0.1 },
        Rule::Lenience { alpha: 0.3 },
        Rule::Mentored { alpha: 0.3 },
        Rule::Typical { epsilon: 0.3, delta: 0.6 },
        Rule::Bild { fallback: 0.3, rollback: 1.0 },
        Rule::Bild { fallback: 0.9, rollback: 0.1 },
    ]
}
