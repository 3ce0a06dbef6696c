//! The decoder block of `model/` over tensors: the engine for cards.
//!
//! [`TensorEngine`] computes what [`cascadia_model::CpuEngine`] computes, for every family, on whatever device candle has.
//! It runs on candle's own CPU device too, slowly, and there the tests compare it with transformers and with the CPU engine;
//! that is all the evidence there is without a card. See README.md for what has run where.
//!
//! It is not row-exact: libraries choose the order of their sums by the shape of a batch, so the last bits of a row depend
//! on what it was batched with, and responses say `reproducible: false`.

mod attention;
mod device;
mod engine;
mod fault;
mod forward;
mod plan;
mod weights;

pub use attention::Attention;
pub use device::{Device, DeviceError};
pub use engine::{TensorEngine, TensorOptions};
pub use weights::{TensorType, TensorWeights};
