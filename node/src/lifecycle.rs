//! How a node is told to stop: running, draining, stopped; never backwards.

use std::sync::Arc;

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Draining,
    Stopped,
}

/// A handle to one node's end; clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<Stage>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// Running, until someone says otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Stage::Running)))
    }

    /// Follows SIGTERM and Ctrl-C: the first drains, the second stops at once.
    #[must_use]
    pub fn on_signals() -> Self {
        let shutdown = Self::new();
        let told = shutdown.clone();
        // Ends when the node has stopped.
        tokio::spawn(async move {
            let mut signals = Signals::new();
            loop {
                tokio::select! {
                    biased;
                    name = signals.next() => {
                        if told.is_draining() {
                            tracing::warn!("{name} again: stopping at once");
                            told.stop();
                        } else {
                            tracing::info!("{name}: draining; once more stops at once");
                            told.drain();
                        }
                    }
                    () = told.stopped() => return,
                }
            }
        });
        shutdown
    }

    /// Take nothing new, finish or move what is open.
    pub fn drain(&self) {
        self.advance(Stage::Draining);
    }

    /// End now.
    pub fn stop(&self) {
        self.advance(Stage::Stopped);
    }

    /// Whether the end has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Stage::Draining
    }

    /// Whether the node is to be gone.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow() >= Stage::Stopped
    }

    /// Returns when the end has begun.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        self.reached(Stage::Draining)
    }

    /// Returns when the node is to be gone.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.reached(Stage::Stopped)
    }

    fn advance(&self, to: Stage) {
        self.0.send_if_modified(|stage| {
            let later = *stage < to;
            *stage = (*stage).max(to);
            later
        });
    }

    fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + 'static {
        // The handle travels along: a node without any would never be told.
        let (sender, mut receiver) = (self.0.clone(), self.0.subscribe());
        async move {
            // Fails only when every sender is gone, and one is here.
            let _ = receiver.wait_for(|now| *now >= stage).await;
            drop(sender);
        }
    }
}

/// The signals that end a process.
struct Signals {
    #[cfg(unix)]
    terminate: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> Self {
        Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .inspect_err(|error| tracing::warn!(%error, "cannot listen for SIGTERM; only Ctrl-C drains"))
                .ok(),
        }
    }

    #[cfg(unix)]
    async fn next(&mut self) -> &'static str {
        let terminated = async {
            match &mut self.terminate {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = terminated => "SIGTERM",
            _ = tokio::signal::ctrl_c() => "Ctrl-C",
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_only_advance() {
        let shutdown = Shutdown::new();
        let (draining, stopped) = (shutdown.draining(), shutdown.stopped());
        assert!(!shutdown.is_draining());
        let clone = shutdown.clone();
        clone.drain();
        draining.await;
        assert!(shutdown.is_draining() && !shutdown.is_stopped());
        shutdown.stop();
        stopped.await;
        shutdown.drain();
        assert!(clone.is_stopped());
        clone.draining().await;
    }
}
