//! A running process follows its file: SIGHUP reads it at once, a change of its contents within seconds.
//!
//! Contents are compared, not times or inodes: a mounted ConfigMap changes by swapping links.

use std::path::Path;
use std::time::Duration;

use clap::FromArgMatches;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::settings::Settings;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// SIGHUPs of a process that has a file to follow.
#[derive(Debug)]
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// From now on one asks for the file to be read, as soon as it is followed, and ends nothing.
    #[must_use]
    pub fn listen(settings: &Settings) -> Self {
        let listen = |_: &Path| {
            signal(SignalKind::hangup())
                .inspect_err(
                    |error| tracing::warn!(%error, "cannot listen for SIGHUP; changes of the file are still seen"),
                )
                .ok()
        };
        Self(settings.path().and_then(listen))
    }
}

/// Follows the file of `settings`, if there is one, until `stopped`. What comes of a change goes to `apply` as the
/// command's arguments; it takes all of them or refuses with a sentence, and then, as with a file that cannot be used,
/// everything stays as it was.
pub fn spawn<A: FromArgMatches>(
    settings: Settings,
    hangups: Hangups,
    stopped: impl Future<Output = ()> + Send + 'static,
    apply: impl FnMut(A, &Settings) -> Result<(), String> + Send + 'static,
) {
    let Some(path) = settings.path().map(Path::to_owned) else { return };
    // Ends with the process.
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = stopped => {}
            () = follow(&path, settings, hangups.0, apply) => {}
        }
    });
}

async fn follow<A: FromArgMatches>(
    path: &Path,
    mut settings: Settings,
    mut hangups: Option<Signal>,
    mut apply: impl FnMut(A, &Settings) -> Result<(), String>,
) {
    let mut contents = Contents::new(settings.text());
    loop {
        let hangup = async {
            match &mut hangups {
                Some(hangups) => hangups.recv().await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            biased;
            _ = hangup => true,
            () = tokio::time::sleep(PERIOD) => false,
        };
        let text = match tokio::task::spawn_blocking({
            let path = path.to_owned();
            move || std::fs::read_to_string(path)
        })
        .await
        {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                if contents.lost() || asked {
                    let file = path.display();
                    tracing::warn!(%error, "cannot read {file}; the configuration stays as it is");
                }
                continue;
            }
            // The runtime is going.
            Err(_) => return,
        };
        if !contents.news(&text, asked) {
            continue;
        }
        match settings.reread(&text) {
            Err(problems) => problems.iter().for_each(|problem| kept(problem)),
            Ok(reread) => match reread.arguments().and_then(|arguments| apply(arguments, &reread.settings)) {
                Err(problem) => kept(&format!("{}: {problem}", path.display())),
                Ok(()) => {
                    for change in &reread.changed {
                        let (old, new) = (&change.old, &change.new);
                        tracing::info!(key = change.key, old, new, "changed for what comes from now on");
                    }
                    for change in &reread.held {
                        let (old, new) = (&change.old, &change.new);
                        tracing::warn!(key = change.key, old, new, "needs a restart: the old value stays in force");
                    }
                    let (changed, held) = (reread.changed.len(), reread.held.len());
                    tracing::info!(changed, held, "read {} again", path.display());
                    settings = reread.settings;
                }
            },
        }
    }
}

fn kept(problem: &str) {
    tracing::error!("{problem}; the configuration stays as it was");
}

/// What the file held, and when it holds something new.
#[derive(Debug)]
struct Contents {
    taken: String,
    /// New contents, seen once: the next look must find the same, so that a file is not read while it is written.
    seen: Option<String>,
    missing: bool,
}

impl Contents {
    fn new(taken: &str) -> Self {
        Self { taken: taken.to_owned(), seen: None, missing: false }
    }

    /// Whether this text is to be taken; whoever asks for it says that it is whole.
    fn news(&mut self, text: &str, asked: bool) -> bool {
        self.missing = false;
        let steady = self.seen.as_deref() == Some(text);
        if !asked && (text == self.taken || !steady) {
            self.seen = (text != self.taken).then(|| text.to_owned());
            return false;
        }
        self.seen = None;
        text.clone_into(&mut self.taken);
        true
    }

    /// The file cannot be read; whether that is new.
    fn lost(&mut self) -> bool {
        !std::mem::replace(&mut self.missing, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_when_it_is_whole() {
        let mut contents = Contents::new("a");
        assert!(!contents.news("a", false));
        // Half written.
        assert!(!contents.news("b", false));
        assert!(!contents.news("bc", false));
        assert!(contents.news("bc", false));
        assert!(!contents.news("bc", false));
        // A change that was taken back is none.
        assert!(!contents.news("d", false));
        assert!(!contents.news("bc", false));
        assert!(!contents.news("d", false));
        // Who asks is answered, also where nothing changed.
        assert!(contents.news("d", true));
        assert!(contents.news("d", true));
    }

    #[test]
    fn a_lost_file_is_said_once() {
        let mut contents = Contents::new("a");
        assert!(contents.lost() && !contents.lost());
        assert!(!contents.news("a", false));
        assert!(contents.lost());
    }
}
