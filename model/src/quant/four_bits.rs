//! Quantisation to Q4_K.

use half::f16;

use super::packed::{Block, SUPER};

/// Steps of a four-bit weight.
const STEPS: f32 = 15.0;
/// Steps of a block's scale and minimum.
const FINE: f32 = 63.0;

/// Quantises up to 256 weights; what is missing at the end counts as zero. `None` if a weight is not finite or a scale
/// does not fit binary16.
///
/// Each 32 weights get the scale and minimum that lose least among those that a small search meets; both are rounded to
/// six bits over the largest of the eight, and the weights are then rounded with what was kept.
pub(crate) fn quantise_four_bits(weights: &[f32]) -> Option<Block> {
    let mut all = [0.0; SUPER];
    all[..weights.len()].copy_from_slice(weights);
    if !all.iter().all(|w| w.is_finite()) {
        return None;
    }
    let mut fits = [(0.0, 0.0); 8];
    for (fit, weights) in fits.iter_mut().zip(all.chunks_exact(32)) {
        *fit = best_fit(weights);
    }
    let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let (scale, minimum) = (largest(|f| f.0), largest(|f| f.1));
    let (d, dmin) = (f16::from_f32(scale / FINE), f16::from_f32(minimum / FINE));
    if !d.is_finite() || !dmin.is_finite() {
        return None;
    }
    let mut block = Block { d, dmin, ..Block::ZERO };
    let steps = |value: f32, unit: f16| {
        let unit = unit.to_f32();
        if unit > 0.0 { (value / unit).round().clamp(0.0, FINE) } else { 0.0 }
    };
    for (i, weights) in all.chunks_exact(32).enumerate() {
        let (scale, minimum) = (steps(fits[i].0, d), steps(fits[i].1, dmin));
        (block.scales[i], block.minima[i]) = (scale as i8, minimum as u8);
        let (scale, minimum) = (scale * d.to_f32(), minimum * dmin.to_f32());
        for (q, &w) in block.q[i * 32..].iter_mut().zip(weights) {
            *q = if scale > 0.0 { ((w + minimum) / scale).round().clamp(0.0, STEPS) as u8 } else { 0 };
        }
    }
    Some(block)
}

/// Scale and minimum (both at least zero: a weight is `scale * q - minimum`) with the least weighted square error.
///
/// Rounds the weights with the scale of their range and with some narrower and wider ones, and takes for each the pair
/// that fits what was rounded best, by least squares. Large weights count more.
fn best_fit(weights: &[f32]) -> (f32, f32) {
    let low = weights.iter().copied().fold(0.0, f32::min);
    let high = weights.iter().copied().fold(f32::MIN, f32::max);
    if high - low <= 0.0 {
        return (0.0, -low);
    }
    let mean_square = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
    let usual = mean_square.sqrt();
    let (mut best, mut least) = (((high - low) / STEPS, -low), f32::INFINITY);
    for step in 0..=12 {
        let inverse = (STEPS - 0.9 + 0.15 * step as f32) / (high - low);
        // Weighted sums of: one, q, q squared, w, q w, w squared.
        let mut sums = [0.0_f32; 6];
        for &w in weights {
            // No weight is below `low`, so that cutting off after adding a half rounds.
            let q = (((w - low) * inverse + 0.5) as i32).min(15) as f32;
            let i = usual + w.abs();
            for (sum, x) in sums.iter_mut().zip([1.0, q, q * q, w, q * w, w * w]) {
                *sum += i * x;
            }
        }
        let [n, x, xx, y, xy, yy] = sums;
        let determinant = n * xx - x * x;
        // All rounded to one step: what is left is the rounding of the sums.
        if determinant <= 1e-5 * n * xx {
            continue;
        }
        let (mut scale, mut minimum) = ((n * xy - x * y) / determinant, (x * xy - xx * y) / determinant);
        if minimum < 0.0 {
            (scale, minimum) = (xy / xx, 0.0);
        }
        let error = scale * (scale * xx - 2.0 * minimum * x - 2.0 * xy) + minimum * (minimum * n + 2.0 * y) + yy;
        if scale > 0.0 && scale.is_finite() && error < least {
            (best, least) = ((scale, minimum), error);
        }
    }
    best
}
