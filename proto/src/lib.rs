//! The wire: messages, services, and conversions to and from core types.
//!
//! [`convert`] turns messages into core types and back, [`parameters`] turns what a request asks into what is meant,
//! [`refusal`] is what a status says beside its sentence, [`fault`] whose fault it is. [`mod@prompt`] and [`relay`] are for
//! routers, which pass on what they do not decode.

#![forbid(unsafe_code)]

pub mod convert;
pub mod fault;
pub mod parameters;
pub mod prompt;
mod protocol;
pub mod refusal;
pub mod relay;

/// Generated from `cascadia/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("cascadia.v1");
}

pub use protocol::{PROTOCOL, negotiate, range};

/// For gRPC reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("cascadia");
