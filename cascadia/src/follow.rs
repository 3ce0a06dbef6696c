//! A running command follows its file: it logs as the file says now, and takes up of it what it can.

use cascadia_node::lifecycle::Shutdown;
use cascadia_node::telemetry::{Logs, check_filter};
use clap::FromArgMatches;

use crate::config::Settings;
use crate::config::reload::{self, Hangups};

/// A command's settings, and the logs that follow them.
#[derive(Debug)]
pub struct Followed {
    settings: Settings,
    logs: Logs,
    filter: &'static str,
}

impl Followed {
    /// `filter` says what is logged where the settings do not.
    #[must_use]
    pub fn new(settings: Settings, logs: Logs, filter: &'static str) -> Self {
        Self { settings, logs, filter }
    }

    /// What is in force, and why.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// From now on SIGHUP asks for the file to be read, and ends nothing.
    #[must_use]
    pub fn listening(self) -> Following {
        Following { hangups: Hangups::listen(&self.settings), followed: self }
    }
}

/// Settings whose file is about to be followed.
#[derive(Debug)]
pub struct Following {
    followed: Followed,
    hangups: Hangups,
}

impl Following {
    /// Follows the file until the process is to be gone. `apply` gets the command's arguments as they would have to be
    /// typed now, and takes all of them or refuses with a sentence.
    pub fn spawn<A: FromArgMatches>(
        self,
        shutdown: &Shutdown,
        mut apply: impl FnMut(A, &Settings) -> Result<(), String> + Send + 'static,
    ) {
        let Followed { settings, logs, filter: unless_set } = self.followed;
        reload::spawn(settings, self.hangups, shutdown.stopped(), move |arguments, settings: &Settings| {
            let filter = settings.value("log").unwrap_or_else(|| unless_set.to_owned());
            check_filter(&filter).map_err(|error| error.to_string())?;
            apply(arguments, settings)?;
            logs.filter(&filter).map_err(|error| error.to_string())
        });
    }
}
