//! Configuration: flags, variables and one TOML file for a whole cluster become one typed command.
//!
//! [`schema`] reads from the commands themselves what can be set. [`file`] turns TOML into entries that fit it, or says
//! all that is wrong. [`layers`] decides who has the last word. [`settings`] is what came of it, and what comes of it when
//! the file changes; [`follow`] notices that. [`print`] writes it down, [`check`] tries it without starting anything.
//!
//! Absent on purpose: any list of settings. A field of a node's clap struct with a flag and a variable is a key, with its
//! help, its type, its default; `add = Reloads` beside it says that a running node takes it up.

pub mod check;
pub mod file;
pub mod follow;
pub mod layers;
mod nearest;
pub mod print;
pub mod schema;
pub mod settings;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub use schema::Section;
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

/// Arguments of `config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Print a file for --config with all defaults, and what each setting means.
    #[arg(long, required = true)]
    pub print_defaults: bool,

    /// Only these sections.
    #[arg(value_enum)]
    pub sections: Vec<Section>,
}

impl ValueEnum for Section {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}
