//! The wire: messages, services, and conversions to and from core types.

#![forbid(unsafe_code)]

/// Generated from `cascadia/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("cascadia.v1");
}

/// For gRPC reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("cascadia");
