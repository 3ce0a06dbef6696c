//! The one binary, and what its parts offer to tests: a whole cluster in one process ([`cluster`]), loading a model
//! folder ([`load`]), a client of the router ([`client`]).
//!
//! `main` parses ([`cli`]) and dispatches; every command is one module with a `run`. Nothing here decides anything about
//! tokens: that is `cascadia-core`, and the nodes that carry it.

#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod colours;
pub mod columns;
pub mod config;
pub mod contender;
pub mod demo;
pub mod device;
pub mod drain;
pub mod durations;
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
pub mod signals;
pub mod static_list;
pub mod status;
pub mod synthetic;
pub mod up;

use std::io::Write;

/// Why a command failed: one sentence with the cure.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a command ends.
pub type Outcome = Result<(), Failure>;

/// Prints to standard output; unlike `print!`, a closed pipe is an error that can be handled.
///
/// # Errors
/// When standard output is closed or full.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| std::io::Error::new(error.kind(), format!("standard output takes no more: {error}")))
}

/// Prints a line to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub fn print_line(text: &str) -> std::io::Result<()> {
    print(&format!("{text}\n"))
}

/// Says a line on standard error; unlike with `eprintln!`, it is no matter where nobody is left to be told.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
