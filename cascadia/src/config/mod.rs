//! Configuration: flags, variables and one TOML file for several commands become one typed command.
//!
//! [`layout`] is what a program says of its file's sections. [`schema`] reads from the commands themselves what can be
//! set. [`file`] turns TOML into entries that fit it, or says all that is wrong. [`layers`] decides who has the last word.
//! [`settings`] is what came of it, and what comes of it when the file changes; [`reload`] notices that. [`print`] writes
//! it down.
//!
//! Absent on purpose: any list of settings, and any command by its name. A field of a command's clap struct with a flag
//! and a variable is a key, with its help, its type, its default; `add = Reloads` beside it says that a running process
//! takes it up.

pub mod file;
pub mod layers;
pub mod layout;
mod nearest;
pub mod print;
pub mod reload;
pub mod schema;
pub mod settings;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::Args;

pub use layout::{Layout, Part, Section};
pub use settings::{Refusal, Settings, read};

/// How a command is configured by a file.
#[derive(Args, Clone, Debug)]
pub struct FileArgs {
    /// TOML file with settings for any command of a cluster; flags and variables are stronger.
    #[arg(long, value_name = "FILE", env = "CASCADIA_CONFIG", help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Check the configuration without listening, asking anyone or loading weights; print one line, and end: 0 if it is
    /// fine, else 2.
    #[arg(long, help_heading = "Configuration")]
    pub check: bool,

    /// Print every setting with its value and where it comes from, as a file for --config, and end.
    #[arg(long, help_heading = "Configuration", conflicts_with = "check")]
    pub print_config: bool,
}
