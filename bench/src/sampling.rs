//! What a token costs beside the pass, at a large vocabulary.

use std::time::Instant;

use cascadia_core::decoding::{Coupling, Decoding, Sampling, Strategy};
use cascadia_core::drafting::{decode, draft};
use cascadia_core::verify::walk;

/// Tokens of Qwen's vocabulary, with what pads it.
pub const VOCABULARY: usize = 151_936;

/// Positions that are measured.
const POSITIONS: usize = 60;

/// Milliseconds at temperature 1 of a drawn token, and of a position that was tested and kept; one core.
#[must_use]
pub fn costs() -> (f64, f64) {
    let logits = logits();
    let mut decoding = Decoding {
        strategy: Strategy::Expert,
        sampling: Sampling { temperature: 1.0, ..Sampling::default() },
        seed: 7,
        choice: 0,
        draft_length: 8,
        strict_first_tokens: 0,
        stop_ids: vec![2],
        max_tokens: POSITIONS + 1,
        logprobs: None,
        prompt_length: 1,
    };
    let history = vec![1; POSITIONS];
    let (mut drawn, mut kept) = (Vec::new(), Vec::new());
    for position in 1..POSITIONS {
        let begun = Instant::now();
        std::hint::black_box(decode(&decoding, &history[..position], &logits));
        drawn.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    decoding.strategy = Strategy::Speculative { coupling: Coupling::Maximal };
    for position in 1..POSITIONS {
        let draft = draft(&decoding, &history[..position], &logits);
        let begun = Instant::now();
        let walked = walk(&decoding, &history[..position], &[draft], &[&logits]);
        let took = begun.elapsed().as_secs_f64() * 1e3;
        if walked.accepted == 1 {
            kept.push(took);
        }
    }
    let median = |values: &[f64]| crate::table::median(values).unwrap_or(f64::NAN);
    (median(&drawn), median(&kept))
}

/// Logits of a peaked row: sums of uniforms, and a few that stand out, so that drafts from the 64 likeliest are kept.
fn logits() -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let row = (0..VOCABULARY).map(|id| {
        let noise = (0..6).map(|_| uniform()).sum::<f32>() * 2.0;
        if id % 4001 == 17 { noise + 12.0 } else { noise }
    });
    row.collect()
}
