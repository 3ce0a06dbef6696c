//! How far loading a model has come: for a node's status, for a terminal, and for a log.

use cascadia_model::Progress;
use indicatif::ProgressBar;

/// What hears how far a load has come: the stage, bytes done, bytes in all.
pub type Report<'a> = dyn FnMut(&str, u64, u64) + Send + 'a;

/// Moves a bar to where the work is.
pub fn follow(bar: &ProgressBar, progress: Progress<'_>) {
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

/// What of a load has been logged.
#[derive(Debug, Default)]
pub struct Stages {
    stage: String,
    quarters: u64,
}

impl Stages {
    /// A line for each quarter of the bytes: a large model takes minutes, and a log has no bar.
    pub fn log(&mut self, stage: &str, done: u64, total: u64) {
        if self.stage != stage {
            *self = Self { stage: stage.to_owned(), quarters: 0 };
        }
        let quarters = done.saturating_mul(4) / total.max(1);
        if quarters > self.quarters {
            self.quarters = quarters;
            tracing::info!(stage, bytes = done, of = total, "loading");
        }
    }
}
