//! Weights, paged KV, product and attention kernels, and one ragged forward over them.
//!
//! A checkpoint, a Hugging Face folder or a GGUF file, becomes [`Weights`], shared by any number of [`CpuEngine`]s, each with
//! its own KV pages and threads. The law is DESIGN section 5: **a row has one value**. Its bits, and the keys and values
//! written, depend on nothing but the tokens before it: not on the batch, the chunking, page boundaries, the number of
//! threads or the SIMD path. How each part keeps it:
//!
//! * a product has one chain of fused adds for each output, in the order of the inputs (`kernels/product.rs`);
//! * quantised blocks sum exactly in `i32`, are scaled by one `f32` product and added by one fused add;
//! * sums along a row (norm, softmax) have 16 lanes chosen by absolute index, and one tree at the end;
//! * `exp` is an own polynomial, sine and cosine are `libm`'s, the rest is IEEE;
//! * threads split outputs, heads and rows, never a sum.
//!
//! An engine elsewhere (`gpu/`) reads the same checkpoints as [`PlainWeights`], and its numbers as [`Config`].
//!
//! Absent on purpose: a tensor library (every operation has to be ours anyway, see ARCHITECTURE.md), environment
//! variables, clocks, randomness other than the seeded noise of [`pad()`].

mod arena;
mod checkpoint;
mod config;
mod engine;
mod error;
mod fingerprint;
mod folder;
mod forward;
mod kernels;
mod kv;
mod matrix;
mod names;
mod packed;
mod pad;
mod plan;
mod quant;
mod rope;
mod scratch;
mod threads;
mod weights;

pub use config::{Activation, BlockConfig, Config, Family, RopeConfig, RopeScaling};
pub use engine::{CpuEngine, EngineOptions};
pub use error::LoadError;
pub use kernels::{SimdPath, busy};
pub use kv::KvDtype;
pub use pad::{PadReport, pad, write_gguf};
pub use quant::Dtype;
pub use weights::{LoadOptions, PlainLayer, PlainWeights, Progress, Weights};
