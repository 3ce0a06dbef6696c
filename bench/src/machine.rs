//! What this machine can do at most: how fast memory is read, and how fast the product's instruction runs.

use std::time::Instant;

/// What bounds a pass.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of weights that a pass reads.
    pub bytes: f64,
    /// Parameters.
    pub parameters: f64,
    /// Bytes a second, of a buffer as large as the weights.
    pub bandwidth: f64,
    /// Additions and multiplications a second.
    pub peak: f64,
}

impl Bounds {
    /// Measures them with `threads` threads.
    #[must_use]
    pub fn measure(bytes: u64, parameters: u64, threads: usize) -> Self {
        let (bandwidth, peak) = (bandwidth(bytes as usize, threads), peak(threads));
        Self { bytes: bytes as f64, parameters: parameters as f64, bandwidth, peak }
    }

    /// Tokens a second of passes over `tokens` tokens, at most.
    #[must_use]
    pub fn rate(&self, tokens: usize) -> f64 {
        let reading = self.bytes / self.bandwidth;
        let computing = 2.0 * self.parameters * tokens as f64 / self.peak;
        tokens as f64 / reading.max(computing)
    }
}

/// Runs `work` on `threads` threads at once, several times; the seconds of the fastest time.
fn fastest(threads: usize, times: usize, work: impl Fn(usize) + Sync) -> f64 {
    let once = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let work = &work;
                scope.spawn(move || work(thread));
            }
        });
        begun.elapsed().as_secs_f64()
    };
    (0..times).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn bandwidth(bytes: usize, threads: usize) -> f64 {
    /// Bytes read in all for one measurement: a small buffer is read again and again.
    const LEAST: usize = 1 << 29;
    let words = bytes / 8 / threads;
    let buffers: Vec<Vec<u64>> = (0..threads).map(|thread| vec![thread as u64 + 1; words]).collect();
    let passes = LEAST.div_ceil(bytes);
    let seconds = fastest(threads, 7, |thread| {
        for _ in 0..passes {
            let mut sums = [0_u64; 16];
            for chunk in std::hint::black_box(&buffers[thread]).chunks_exact(16) {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum ^= word;
                }
            }
            std::hint::black_box(sums);
        }
    });
    (words * 8 * threads * passes) as f64 / seconds
}

fn peak(threads: usize) -> f64 {
    const ROUNDS: u64 = 10_000_000;
    let operations = cascadia_model::busy(1) as f64 * ROUNDS as f64;
    let seconds = fastest(threads, 5, |_| {
        std::hint::black_box(cascadia_model::busy(ROUNDS));
    });
    operations * threads as f64 / seconds
}
