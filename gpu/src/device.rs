//! Where tensors are, and how much memory is left there.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use candle_core::{DType, Device as Candle, Tensor};

/// A device. Copies share its stream, and passes on it take turns.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) candle: Candle,
    pub(crate) turn: Arc<Mutex<()>>,
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver or the card refused.
    #[error("cuda:{ordinal} cannot be used ({problem}); `nvidia-smi` lists the cards that the driver sees")]
    Refused {
        /// Which card.
        ordinal: usize,
        /// What the driver said.
        problem: String,
    },
    /// Not compiled in.
    #[error("this binary was built without CUDA; build it with `--features cuda` (gpu/README.md says what that needs)")]
    NotBuilt,
}

impl Device {
    /// The processor, through candle: for tests and for comparing.
    #[must_use]
    pub fn cpu() -> Self {
        Self { candle: Candle::Cpu, turn: Arc::default() }
    }

    /// Card `ordinal`, as the driver counts them.
    ///
    /// # Errors
    /// When the binary was built without CUDA, or there is no such card.
    pub fn cuda(ordinal: usize) -> Result<Self, DeviceError> {
        if !candle_core::utils::cuda_is_available() {
            return Err(DeviceError::NotBuilt);
        }
        // A stream of its own: candle's default one is another for each thread, and weights are written by the thread that
        // loads and read by the one that computes.
        match Candle::new_cuda_with_stream(ordinal) {
            Ok(candle) => Ok(Self { candle, turn: Arc::default() }),
            Err(error) => Err(DeviceError::Refused { ordinal, problem: error.to_string() }),
        }
    }

    /// Its kind, as fingerprints have it: cards of one kind may stand in for each other.
    pub(crate) fn kind(&self) -> &'static str {
        if self.candle.is_cuda() { "cuda" } else { "cpu" }
    }

    /// Has a number brought to the device and back: after an error that leaves the process without the device, this fails
    /// as everything does.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn answers(&self) -> candle_core::Result<()> {
        Tensor::new(&[1f32], &self.candle)?.to_vec1::<f32>().map(drop)
    }

    /// Bytes a second that the device moves when it copies a tensor of so many: read and written. The best of ten times.
    ///
    /// # Errors
    /// When it has no room for the two.
    pub fn bandwidth(&self, bytes: usize) -> candle_core::Result<f64> {
        let from = Tensor::zeros(bytes / 4, DType::F32, &self.candle)?;
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            self.candle.synchronize()?;
            let begun = Instant::now();
            let to = from.copy()?;
            self.candle.synchronize()?;
            best = best.min(begun.elapsed().as_secs_f64());
            drop(to);
        }
        Ok(2.0 * bytes as f64 / best)
    }

    /// Bytes that are free on a card; `None` for the processor.
    #[must_use]
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Candle::Cuda(device) = &self.candle {
            return device.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free as u64);
        }
        None
    }
}
