//! The one binary, and what its parts offer to tests: a whole cluster in one process ([`cluster`]), loading a model
//! folder ([`load`]), a client of the router ([`client`]).
//!
//! `main` parses ([`cli`]) and dispatches; every command is one module with a `run`. Nothing here decides anything about
//! tokens: that is `cascadia-core`, and the nodes that carry it.

#![forbid(unsafe_code)]

pub mod bench;
pub mod check;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod cluster_file;
pub mod colours;
pub mod columns;
pub mod config;
pub mod demo;
pub mod device;
pub mod drain;
pub mod durations;
pub mod follow;
pub mod generate;
#[cfg(feature = "hub")]
pub mod hub;
pub mod load;
pub mod locate;
pub mod machine;
pub mod memory;
pub mod model_id;
pub mod nodes;
pub mod pad;
pub mod progress;
pub mod signals;
pub mod static_list;
pub mod status;
pub mod strategy_spec;
pub mod synthetic;
pub mod terminal;
pub mod up;

pub use terminal::{Failure, Outcome, print, print_line, tell};
