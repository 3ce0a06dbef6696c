//! Weights on a device.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use cascadia_model::{Config, LoadError, PlainLayer, PlainWeights, Progress};

use crate::device::Device;

/// Changes whenever the arithmetic of a pass does.
const ARITHMETIC: &str = "cascadia-tensors-1";

/// What weights, or keys and values, are held in and multiplied in. Sums are `f32`, and so is the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorType {
    /// The upper half of an `f32`: what checkpoints are made in.
    #[default]
    BF16,
    /// Binary16: for cards before Ampere. Activations beyond 65,504 overflow; Gemma's do.
    F16,
    /// Twice the memory.
    F32,
}

impl TensorType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BF16, Self::F16, Self::F32];

    /// As settings name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    pub(crate) fn candle(self) -> DType {
        match self {
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TensorType {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| format!("{name:?} is not a type of tensors; choose bf16, f16 or f32"))
    }
}

/// A model on a device. Engines of one process share it.
pub struct TensorWeights {
    pub(crate) device: Device,
    pub(crate) dtype: TensorType,
    pub(crate) config: Config,
    pub(crate) embedding: Tensor,
    /// Where the embedding is the head, the same tensor.
    pub(crate) head: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// Cosines and sines of all positions, for each rope.
    pub(crate) angles: Vec<[Tensor; 2]>,
    /// What a head is multiplied with where the norm has no weights of its own.
    pub(crate) ones: Tensor,
    pub(crate) fingerprint: String,
}

/// One block. Norms are `f32`, matrices `outputs x inputs` of the weights' type.
pub(crate) struct Layer {
    pub(crate) attention_norm: Tensor,
    pub(crate) qkv: Tensor,
    pub(crate) qkv_bias: Option<Tensor>,
    /// `1 x (heads + kv heads) x head`: of queries and keys, one after the other.
    pub(crate) head_norms: Option<Tensor>,
    pub(crate) output: Tensor,
    pub(crate) output_bias: Option<Tensor>,
    pub(crate) mlp_norm: Tensor,
    pub(crate) gate_up: Tensor,
    pub(crate) down: Tensor,
    pub(crate) post_norms: Option<[Tensor; 2]>,
}

impl std::fmt::Debug for TensorWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorWeights")
            .field("config", &self.config)
            .field("dtype", &self.dtype)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl TensorWeights {
    /// Loads a Hugging Face folder or a GGUF file onto a device, quantised weights widened, served with at most `context`
    /// positions; `progress` is called after every tensor.
    ///
    /// # Errors
    /// When there is no checkpoint that can be computed, or the device has no room.
    pub fn load(
        path: &Path,
        device: &Device,
        dtype: TensorType,
        context: Option<usize>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> std::result::Result<Arc<Self>, LoadError> {
        let arithmetic = format!("{ARITHMETIC} {} {dtype}", device.kind());
        let mut place = |values: Vec<f32>, shape: &[usize]| {
            // Vectors are norms and biases, which are added and multiplied in `f32`.
            let held = if shape.len() == 1 { DType::F32 } else { dtype.candle() };
            let rounded = Tensor::from_vec(values, shape, &candle_core::Device::Cpu).and_then(|t| t.to_dtype(held));
            rounded.and_then(|tensor| tensor.to_device(&device.candle)).map_err(|error| error.to_string())
        };
        let plain = PlainWeights::load(path, context, &arithmetic, &mut place, progress)?;
        Self::new(plain, device.clone(), dtype).map(Arc::new).map_err(|error| LoadError::Place(error.to_string()))
    }

    /// A model of this shape whose weights are small random numbers, for measuring. No family's switches: plain blocks.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn random(config: Config, device: &Device, dtype: TensorType) -> Result<Self> {
        let c = &config;
        let matrix = |outputs: usize, inputs: usize| {
            let spread = 1.0 / (inputs as f32).sqrt();
            Tensor::randn(0.0, spread, (outputs, inputs), &device.candle)?.to_dtype(dtype.candle())
        };
        let norm = || Tensor::ones(c.hidden, DType::F32, &device.candle);
        let (attended, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layer = |_| {
            Ok(PlainLayer {
                attention_norm: norm()?,
                qkv: matrix(attended + 2 * keys, c.hidden)?,
                qkv_bias: None,
                head_norms: None,
                output: matrix(c.hidden, attended)?,
                output_bias: None,
                mlp_norm: norm()?,
                gate_up: matrix(2 * c.inner, c.hidden)?,
                down: matrix(c.hidden, c.inner)?,
                post_norms: None,
            })
        };
        let plain = PlainWeights {
            embedding: matrix(c.vocabulary, c.hidden)?,
            head: Some(matrix(c.vocabulary, c.hidden)?),
            layers: (0..c.blocks.len()).map(layer).collect::<Result<_>>()?,
            norm: norm()?,
            fingerprint: "random".into(),
            config: config.clone(),
        };
        Self::new(plain, device.clone(), dtype)
    }

    /// A model of tensors that are on the device already: matrices of `dtype`, vectors of `f32`.
    fn new(plain: PlainWeights<Tensor>, device: Device, dtype: TensorType) -> Result<Self> {
        let PlainWeights { config, embedding, head, layers, norm, fingerprint } = plain;
        let layers = layers.into_iter().map(|layer| Layer::new(layer, &config)).collect::<Result<_>>()?;
        let angles = |rope: usize| {
            let half = config.ropes[rope].dims / 2;
            let table = config.angles(rope, config.context);
            let table = Tensor::from_vec(table, (config.context, 2 * half), &device.candle)?;
            Ok([table.narrow(1, 0, half)?.contiguous()?, table.narrow(1, half, half)?.contiguous()?])
        };
        Ok(Self {
            angles: (0..config.ropes.len()).map(angles).collect::<Result<_>>()?,
            head: head.unwrap_or_else(|| embedding.clone()),
            ones: Tensor::ones(config.head_dim, DType::F32, &device.candle)?,
            device,
            dtype,
            embedding,
            layers,
            norm,
            fingerprint,
            config,
        })
    }

    /// The model's numbers.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it is.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the weights are held in.
    #[must_use]
    pub fn dtype(&self) -> TensorType {
        self.dtype
    }

    /// Bytes of the matrices that a pass multiplies with.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let blocks = self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.output, &layer.gate_up, &layer.down]);
        let numbers: usize = blocks.chain([&self.head]).map(Tensor::elem_count).sum();
        numbers * self.dtype.candle().size_in_bytes()
    }

    /// Bytes of KV that a page of 16 tokens takes.
    #[must_use]
    pub fn page_bytes(&self, kv_dtype: TensorType) -> usize {
        let c = &self.config;
        let slot = 2 * c.kv_heads * c.head_dim * kv_dtype.candle().size_in_bytes();
        c.blocks.len() * cascadia_core::limits::PAGE_TOKENS * slot
    }
}

impl Layer {
    fn new(plain: PlainLayer<Tensor>, config: &Config) -> Result<Self> {
        let spread = |[queries, keys]: [Tensor; 2]| {
            let rows = |norm: &Tensor, heads| norm.unsqueeze(0)?.broadcast_as((heads, config.head_dim));
            let both = [rows(&queries, config.heads)?, rows(&keys, config.kv_heads)?];
            Tensor::cat(&both, 0)?.unsqueeze(0)
        };
        Ok(Self {
            head_norms: plain.head_norms.map(spread).transpose()?,
            attention_norm: plain.attention_norm,
            qkv: plain.qkv,
            qkv_bias: plain.qkv_bias,
            output: plain.output,
            output_bias: plain.output_bias,
            mlp_norm: plain.mlp_norm,
            gate_up: plain.gate_up,
            down: plain.down,
            post_norms: plain.post_norms,
        })
    }
}
