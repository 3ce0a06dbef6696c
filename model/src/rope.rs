//! Rotary positions: a table of cosines and sines, one row for each position.

use crate::config::{Config, RopeConfig, RopeScaling};

/// Frequencies of a model, or of some of its blocks.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
    factor: f32,
}

impl Rope {
    /// The frequencies for a model that is served with `context` positions.
    pub(crate) fn new(config: &RopeConfig, context: usize) -> Self {
        let dims = config.dims as f32;
        let wave = |i: usize| libm::pow(config.theta, f64::from((2 * i) as f32 / dims)) as f32;
        let plain = (0..config.dims / 2).map(wave);
        let frequencies = match &config.scaling {
            RopeScaling::None => plain.map(|w| 1.0 / w).collect(),
            RopeScaling::Linear(factor) => plain.map(|w| 1.0 / w / factor).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(w, factor)| 1.0 / w / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let bands = (*low_freq_factor, *high_freq_factor);
                plain.map(|w| stretched(1.0 / w, *factor, bands, *original_context as f32)).collect()
            }
            RopeScaling::Long { short, long, original_context } => {
                let factors = if context > *original_context { long } else { short };
                plain.zip(factors).map(|(w, factor)| 1.0 / (factor * w)).collect()
            }
        };
        Self { frequencies, factor: config.attention_factor }
    }

    /// Values in a row of the table: half as many cosines, then as many sines.
    pub(crate) fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Appends the rows of `table` up to `positions`. The angle is an `f32` product, as transformers has it.
    pub(crate) fn extend(&self, table: &mut Vec<f32>, positions: usize) {
        for position in table.len() / self.width().max(1)..positions {
            let angle = |f: &f32| position as f32 * f;
            table.extend(self.frequencies.iter().map(|f| libm::cosf(angle(f)) * self.factor));
            table.extend(self.frequencies.iter().map(|f| libm::sinf(angle(f)) * self.factor));
        }
    }
}

impl Config {
    /// For each position below `positions`, the cosines and then the sines that one of the ropes turns with; as many of
    /// each as half of its `dims`.
    #[must_use]
    pub fn angles(&self, rope: usize, positions: usize) -> Vec<f32> {
        let mut table = Vec::new();
        Rope::new(&self.ropes[rope], self.context).extend(&mut table, positions);
        table
    }
}

/// `llama3`: long waves slowed by `factor`, short ones kept, a blend between.
fn stretched(frequency: f32, factor: f32, (low, high): (f32, f32), original_context: f32) -> f32 {
    let wave = 2.0 * std::f32::consts::PI / frequency;
    if wave > original_context / low {
        return frequency / factor;
    }
    if wave < original_context / high {
        return frequency;
    }
    let smooth = (original_context / wave - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}
