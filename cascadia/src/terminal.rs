//! How a command speaks to whoever started it: lines, a progress bar, and the sentence with which it fails.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Why a command failed: one sentence with the cure.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a command ends.
pub type Outcome = Result<(), Failure>;

/// What was typed cannot be meant: the process ends as it does for an unknown flag.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

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

/// A progress bar on standard error; hidden where that is no terminal.
///
/// # Panics
/// When the template is none: templates are constants.
#[must_use]
pub fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(template).expect("templates are constants").progress_chars("=> "));
    bar
}
