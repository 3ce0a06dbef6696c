//! Every decision of the cluster, and nothing else.
//!
//! Absent on purpose: I/O, async, clocks, ambient chance, tensors. Time and chance are arguments; rows of logits
//! arrive as plain `f32` slices. The crate's dependency list keeps that promise.
//!
//! Reading order: [`rule`] (a deferral rule is a function `(q, p) -> pi`), [`verify`] (one walk for every rule),
//! [`stepper`] (one ragged batch for every kind of work), [`session`] (the owner's blocks in flight).

#![forbid(unsafe_code)]

mod answers;
pub mod block;
pub mod chance;
pub mod commit;
mod decider;
pub mod decoding;
pub mod distribution;
pub mod draft_length;
pub mod drafting;
pub mod engine;
mod exponential;
pub mod history;
pub mod ids;
pub mod kv_memory;
pub mod limits;
pub mod pages;
pub mod pipeline;
pub mod placement;
pub mod quarantine;
pub mod rule;
pub mod scheduler;
pub mod session;
pub mod shaping;
pub mod slots;
pub mod stepper;
pub mod synthetic;
pub mod tasks;
pub mod toy;
pub mod verify;
pub mod waiting_queue;
