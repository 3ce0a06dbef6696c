//! Pauses that differ from node to node without ambient chance, so that a simulation repeats itself.

use std::time::Duration;

use cascadia_core::history::{hash_bytes, splitmix64};

/// A stream of pauses named by whoever pauses.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    /// Equal names pause alike.
    pub(crate) fn new(name: &str) -> Self {
        Self(hash_bytes(0, name.as_bytes()))
    }

    /// A pause between half of `whole` and `whole`.
    pub(crate) fn up_to(&mut self, whole: Duration) -> Duration {
        self.0 = splitmix64(self.0);
        let share = (self.0 >> 40) as f64 / (1_u64 << 24) as f64;
        whole.mul_f64(0.5 + share / 2.0)
    }
}

/// Doubling pauses between attempts, each with jitter.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    jitter: Jitter,
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at about `first` and never exceeds `most`.
    pub(crate) fn new(name: &str, first: Duration, most: Duration) -> Self {
        Self { jitter: Jitter::new(name), first, most, next: first }
    }

    /// An attempt succeeded: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to pause after another failure.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.jitter.up_to(self.next);
        self.next = (self.next * 2).min(self.most);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_most_and_repeat_by_name() {
        let most = Duration::from_secs(2);
        let mut backoff = Backoff::new("expert-1", Duration::from_millis(100), most);
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= Duration::from_millis(50) && pauses[0] <= Duration::from_millis(100));
        assert!(pauses[7] >= most / 2 && pauses[7] <= most);
        let mut again = Backoff::new("expert-1", Duration::from_millis(100), most);
        assert_eq!(pauses, (0..8).map(|_| again.pause()).collect::<Vec<_>>());
        let mut other = Backoff::new("expert-2", Duration::from_millis(100), most);
        assert_ne!(pauses, (0..8).map(|_| other.pause()).collect::<Vec<_>>());
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
