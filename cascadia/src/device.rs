//! Where a model computes, and what its numbers are held in there.

use std::path::Path;
use std::sync::Arc;

use cascadia_core::engine::Engine;
#[cfg(feature = "tensors")]
use cascadia_gpu::{TensorEngine, TensorOptions, TensorType, TensorWeights};
use cascadia_model::{Config, CpuEngine, Dtype, EngineOptions, KvDtype, LoadOptions, Progress, Weights};
use cascadia_node::engine_config::EngineConfig;

use crate::memory;
use crate::terminal::Failure;

/// What a setting says that leaves the choice to the device.
pub const AUTO: &str = "auto";

/// A device by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Cpu,
    /// What a card computes, on the processor.
    #[cfg(feature = "tensors")]
    Tensors,
    /// A card, as the driver counts them.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

impl Device {
    fn of(name: &str) -> Result<Self, Failure> {
        let card = name.strip_prefix("cuda").and_then(|rest| match rest.strip_prefix(':') {
            None if rest.is_empty() => Some(0),
            None => None,
            Some(number) => number.parse::<usize>().ok(),
        });
        match (name, card) {
            ("cpu", _) => Ok(Self::Cpu),
            #[cfg(feature = "tensors")]
            ("tensors", _) => Ok(Self::Tensors),
            #[cfg(feature = "cuda")]
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            #[cfg(not(feature = "cuda"))]
            (_, Some(_)) => Err(format!(
                "--device {name} needs a binary with CUDA, and this is one without; build it with `cargo build --release \
                 --features cuda` (gpu/README.md says what that needs), or leave --device out"
            )
            .into()),
            _ => Err(format!("{name:?} is no device; choose cpu, cuda or cuda:N with N = 0, 1, ...").into()),
        }
    }

    /// Where tensors are; `None`: our own kernels compute, on the processor.
    #[cfg(feature = "tensors")]
    fn tensors(self) -> Result<Option<cascadia_gpu::Device>, Failure> {
        match self {
            Self::Cpu => Ok(None),
            Self::Tensors => Ok(Some(cascadia_gpu::Device::cpu())),
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => Ok(Some(cascadia_gpu::Device::cuda(ordinal)?)),
        }
    }
}

/// A setting's value, or the device's own choice.
fn chosen<T: std::str::FromStr<Err = String>>(setting: &str, own: T) -> Result<T, Failure> {
    if setting == AUTO { Ok(own) } else { Ok(setting.parse()?) }
}

/// Whether what a node is told of its device can be meant; no device is asked.
///
/// # Errors
/// One sentence naming what cannot.
pub fn check(config: &EngineConfig) -> Result<(), Failure> {
    let EngineConfig { device, dtype, kv_dtype, attention, .. } = config;
    if !["plain", "paged"].contains(&attention.as_str()) {
        return Err(format!("{attention:?} is no way of attention; choose plain or paged").into());
    }
    match Device::of(device)? {
        Device::Cpu if attention == "paged" => {
            Err("--attention paged is a card's; leave it out, or choose a card with --device cuda".into())
        }
        Device::Cpu => {
            chosen(dtype, Dtype::default())?;
            chosen(kv_dtype, KvDtype::default())?;
            Ok(())
        }
        #[cfg(feature = "tensors")]
        _ => {
            chosen(kv_dtype, chosen(dtype, TensorType::default())?)?;
            Ok(())
        }
    }
}

/// The weights of a model where they compute.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// Packed for our own kernels.
    Cpu(Arc<Weights>),
    /// Tensors on a device.
    #[cfg(feature = "tensors")]
    Tensors(Arc<TensorWeights>),
}

impl Loaded {
    /// Loads a model of this machine.
    pub(crate) fn load(
        folder: &Path,
        config: &EngineConfig,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, Failure> {
        let context = (config.context > 0).then_some(config.context);
        let device = Device::of(&config.device)?;
        #[cfg(feature = "tensors")]
        if let Some(device) = device.tensors()? {
            let dtype = chosen(&config.dtype, TensorType::default())?;
            return Ok(Self::Tensors(TensorWeights::load(folder, &device, dtype, context, progress)?));
        }
        debug_assert_eq!(device, Device::Cpu);
        let options = LoadOptions { dtype: chosen(&config.dtype, Dtype::default())?, context };
        Ok(Self::Cpu(Weights::load(folder, options, progress)?))
    }

    /// The model's numbers.
    #[must_use]
    pub fn config(&self) -> &Config {
        match self {
            Self::Cpu(weights) => weights.config(),
            #[cfg(feature = "tensors")]
            Self::Tensors(weights) => weights.config(),
        }
    }

    /// What they are held in.
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::Cpu(weights) => weights.dtype().name(),
            #[cfg(feature = "tensors")]
            Self::Tensors(weights) => weights.dtype().name(),
        }
    }

    /// Bytes of KV that a page of 16 tokens takes.
    ///
    /// # Errors
    /// When there is no such type on this device.
    pub fn page_bytes(&self, kv_dtype: &str) -> Result<usize, Failure> {
        match self {
            Self::Cpu(weights) => Ok(weights.page_bytes(chosen(kv_dtype, KvDtype::default())?)),
            #[cfg(feature = "tensors")]
            Self::Tensors(weights) => Ok(weights.page_bytes(chosen(kv_dtype, weights.dtype())?)),
        }
    }

    /// Bytes that are left for KV pages, if anybody says.
    #[must_use]
    pub fn free_memory(&self) -> Option<u64> {
        match self {
            Self::Cpu(_) => memory::free(),
            #[cfg(feature = "tensors")]
            Self::Tensors(weights) => weights.device().free_memory().or_else(memory::free),
        }
    }

    /// An engine with so many KV pages of its own.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn engine(&self, pages: usize, config: &EngineConfig) -> Result<Box<dyn Engine>, Failure> {
        match self {
            Self::Cpu(weights) => {
                let kv_dtype = chosen(&config.kv_dtype, KvDtype::default())?;
                let threads = match config.threads {
                    // The engine itself uses one for passes that are too small to gain from more.
                    0 => std::thread::available_parallelism().map_or(1, usize::from),
                    threads => threads,
                };
                let options = EngineOptions { pages, kv_dtype, threads, ..EngineOptions::default() };
                let engine = CpuEngine::new(weights.clone(), options)?;
                if engine.portable() {
                    tracing::warn!(
                        "this CPU has no SIMD path of ours (AVX2 with FMA, AVX-512 or NEON); passes will be slow"
                    );
                }
                Ok(Box::new(engine))
            }
            #[cfg(feature = "tensors")]
            Self::Tensors(weights) => {
                let (kv_dtype, attention) = (chosen(&config.kv_dtype, weights.dtype())?, config.attention.parse()?);
                let engine = TensorEngine::new(weights.clone(), TensorOptions { pages, kv_dtype, attention })?;
                if let Some(reason) = engine.passed_over() {
                    tracing::warn!(
                        reason,
                        "the attention asked for is not what the plain one gives; the plain one is used"
                    );
                }
                Ok(Box::new(engine))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_meant() {
        let of = |change: &dyn Fn(&mut EngineConfig)| {
            let mut config = EngineConfig::default();
            change(&mut config);
            check(&config).map_err(|error| error.to_string())
        };
        for dtype in ["Q8_0", "q4_k", "f32", "auto"] {
            assert_eq!(of(&|c| c.dtype = dtype.into()), Ok(()));
        }
        let device = |name: &'static str| move |c: &mut EngineConfig| c.device = name.into();
        let attention = |name: &'static str| move |c: &mut EngineConfig| c.attention = name.into();
        for (checked, named) in [
            (of(&|c| c.dtype = "q4".into()), "choose q8_0, q4_k or f32"),
            (of(&|c| c.kv_dtype = "bf16".into()), "choose f32 or f16"),
            (of(&device("gpu")), "choose cpu, cuda or cuda:N"),
            (of(&device("cuda:one")), "choose cpu, cuda or cuda:N"),
            (of(&device("cudaX")), "choose cpu, cuda or cuda:N"),
            (of(&attention("flash")), "choose plain or paged"),
            (of(&attention("paged")), "--device cuda"),
        ] {
            assert!(checked.as_ref().is_err_and(|error| error.contains(named)), "{checked:?}");
        }
        for name in ["cuda", "cuda:3"] {
            let checked = of(&device(name));
            if cfg!(feature = "cuda") {
                assert_eq!(checked, Ok(()));
            } else {
                assert!(checked.is_err_and(|error| error.contains("--features cuda") && error.contains(name)));
            }
        }
    }
}
