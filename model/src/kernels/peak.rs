//! What the arithmetic units can do at most: chains of the Q8_0 product's own instruction, out of registers.

use super::lanes::Lanes;
use crate::matrix::TILE;

/// Chains that never meet: more than a unit's latency times its width.
const CHAINS: usize = 12;

/// How long the chains are.
#[derive(Clone, Copy)]
pub(crate) struct Peak {
    pub rounds: u64,
    /// Room for [`TILE`] values, so that nothing can be left out.
    pub out: *mut f32,
}

impl Peak {
    /// Multiplications and additions of all chains.
    pub(crate) fn operations(rounds: u64) -> u64 {
        rounds * (CHAINS * TILE * 4 * 2) as u64
    }
}

/// Runs the chains.
#[inline(always)]
pub(crate) unsafe fn peak<L: Lanes>(args: &Peak) {
    let (bytes, signed) = ([3_u8; 4 * TILE], [5_i8; 4]);
    let (weights, x) = (L::weights(bytes.as_ptr()), L::bytes(signed.as_ptr()));
    let mut sums = [L::int_splat(0); CHAINS];
    for _ in 0..args.rounds {
        for sum in &mut sums {
            *sum = L::dot4(*sum, weights, x);
        }
    }
    let all = sums.iter().fold(L::splat(0.0), |all, &sum| L::add(all, L::int_to_float(sum)));
    L::store(args.out, all);
}
