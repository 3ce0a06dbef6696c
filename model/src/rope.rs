//! Rotary positions: a table of cosines and sines, one row for each position.

use crate::config::{Config, RopeScaling};

/// Frequencies of a model.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &Config) -> Self {
        let dim = config.head_dim as f32;
        let plain = (0..config.head_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / dim;
            1.0 / (libm::pow(config.rope_theta, f64::from(exponent)) as f32)
        });
        let frequencies = match config.rope_scaling {
            None => plain.collect(),
            Some(scaling) => plain.map(|f| scaled(f, scaling)).collect(),
        };
        Self { frequencies }
    }

    /// Values in a row of the table: `head_dim / 2` cosines, then as many sines.
    pub(crate) fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Appends the rows of `table` up to `positions`. The angle is an `f32` product, as transformers has it.
    pub(crate) fn extend(&self, table: &mut Vec<f32>, positions: usize) {
        for position in table.len() / self.width().max(1)..positions {
            let angle = |f: &f32| position as f32 * f;
            table.extend(self.frequencies.iter().map(|f| libm::cosf(angle(f))));
            table.extend(self.frequencies.iter().map(|f| libm::sinf(angle(f))));
        }
    }
}

/// `llama3`: long waves slowed by `factor`, short ones kept, a blend between.
fn scaled(frequency: f32, s: RopeScaling) -> f32 {
    let old = s.original_context as f32;
    let wave = 2.0 * std::f32::consts::PI / frequency;
    if wave > old / s.low_freq_factor {
        return frequency / s.factor;
    }
    if wave < old / s.high_freq_factor {
        return frequency;
    }
    let smooth = (old / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    (1.0 - smooth) * frequency / s.factor + smooth * frequency
}
