//! What all configurations have in common: defaults said once, settings that a running node takes up, and the
//! configuration in force.
//!
//! Where values come from (flags, variables, a file) is the binary's business.

use std::sync::Arc;

use clap::builder::{ArgExt, Resettable};
use tokio::sync::watch;

/// Marks a setting that a running node takes up when its configuration changes: `#[arg(.., add = Reloads)]`. Every other
/// one needs a restart.
#[derive(Clone, Copy, Debug)]
pub struct Reloads;

impl ArgExt for Reloads {}

/// The configuration that a command line of `given` alone means: no variable is read, so that it is the same everywhere.
///
/// # Panics
/// When `given` and the defaults are not a whole configuration; which they are is a property of the type.
#[must_use]
pub fn defaults_of<T: clap::Args>(given: &[&str]) -> T {
    let command = T::augment_args(clap::Command::new("defaults").no_binary_name(true));
    let matches = command.mut_args(|arg| arg.env(Resettable::Reset)).get_matches_from(given);
    T::from_arg_matches(&matches).expect("what was parsed is of its type")
}

/// The configuration in force. What is admitted takes it once and keeps it; what comes later may find another.
#[derive(Clone, Debug)]
pub struct Reloadable<T>(watch::Receiver<Arc<T>>);

impl<T> Reloadable<T> {
    /// A configuration, and the one place from which it can be replaced.
    #[must_use]
    pub fn new(config: T) -> (Self, ReloadHandle<T>) {
        let (sender, receiver) = watch::channel(Arc::new(config));
        (Self(receiver), ReloadHandle(sender))
    }

    /// The configuration now.
    #[must_use]
    pub fn now(&self) -> Arc<T> {
        self.0.borrow().clone()
    }
}

/// One that never changes.
impl<T> From<T> for Reloadable<T> {
    fn from(config: T) -> Self {
        Self::new(config).0
    }
}

/// Replaces a configuration in force.
#[derive(Debug)]
pub struct ReloadHandle<T>(watch::Sender<Arc<T>>);

impl<T> ReloadHandle<T> {
    /// What is asked from now on gets this one.
    pub fn with(&self, config: T) {
        self.0.send_replace(Arc::new(config));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Args, Debug, PartialEq)]
    struct Config {
        /// A number.
        #[arg(long, env = "PATH", default_value_t = 3)]
        number: u32,
        /// A text.
        #[arg(long)]
        text: String,
    }

    #[test]
    fn defaults_are_those_of_the_flags_and_of_no_variable() {
        assert_eq!(defaults_of::<Config>(&["--text=x"]), Config { number: 3, text: "x".into() });
    }

    #[test]
    fn what_was_taken_stays_what_comes_later_changes() {
        let (live, replace) = Reloadable::new(1);
        let (taken, other) = (live.now(), live.clone());
        replace.with(2);
        assert_eq!((*taken, *live.now(), *other.now()), (1, 2, 2));
        drop(replace);
        assert_eq!(*live.now(), 2);
        assert_eq!(*Reloadable::from(5).now(), 5);
    }
}
