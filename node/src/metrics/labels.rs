//! Labels: few names, and of each only so many values, whatever clients send.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::family::{Family, MetricConstructor};
use tokio::time::Instant;

/// What a value is called that came when all places were taken.
pub const OTHER: &str = "other";

pub(super) type LabelSet<const N: usize> = [(&'static str, String); N];

pub(super) fn label_set<const N: usize>(keys: [&'static str; N], values: [String; N]) -> LabelSet<N> {
    let mut values = values.into_iter();
    keys.map(|key| (key, values.next().unwrap_or_default()))
}

/// Metrics of one name, one for each set of label values that was asked for.
pub struct Labelled<M, const N: usize> {
    keys: [&'static str; N],
    family: Family<LabelSet<N>, M, Make<M>>,
}

impl<M, const N: usize> fmt::Debug for Labelled<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Labelled").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<M: Clone, const N: usize> Labelled<M, N> {
    pub(super) fn new(keys: [&'static str; N], make: impl Fn() -> M + Send + Sync + 'static) -> Self {
        Self { keys, family: Family::new_with_constructor(Make(Arc::new(make))) }
    }

    pub(super) fn family(&self) -> Family<LabelSet<N>, M, Make<M>> {
        self.family.clone()
    }

    /// Takes the metric of these values off the page; who still holds it counts for nobody.
    pub fn forget(&self, values: [&str; N]) {
        self.family.remove(&label_set(self.keys, values.map(str::to_owned)));
    }

    /// The metric of these values; it stands on the page from then on. Takes a lock: hot paths keep what it returns.
    pub fn of(&self, values: [&str; N]) -> M {
        self.family.get_or_create_owned(&label_set(self.keys, values.map(str::to_owned)))
    }
}

pub(super) struct Make<M>(Arc<dyn Fn() -> M + Send + Sync>);

impl<M> Clone for Make<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> MetricConstructor<M> for Make<M> {
    fn new_metric(&self) -> M {
        (self.0)()
    }
}

/// The values a label may have: the first so many, then [`OTHER`].
#[derive(Debug)]
pub struct Values {
    limit: usize,
    /// With when each was last admitted.
    known: Mutex<BTreeMap<String, Instant>>,
}

impl Values {
    /// Room for so many.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, known: Mutex::default() }
    }

    /// The value itself if it has a place or there is one, else [`OTHER`].
    pub fn admit<'a>(&self, value: &'a str) -> &'a str {
        self.admit_for(value, |_, _| false).0
    }

    /// The same, where a value that may go (so it was last admitted then) leaves its place to one that comes: of several the
    /// one that was not admitted for longest. Returns the one that went, too.
    pub fn admit_for<'a>(&self, value: &'a str, may_go: impl Fn(&str, Instant) -> bool) -> (&'a str, Option<String>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(last) = known.get_mut(value) {
            *last = now;
            return (value, None);
        }
        let mut gone = None;
        if known.len() >= self.limit {
            let may_go = known.iter().filter(|(value, last)| may_go(value, **last));
            let Some((oldest, _)) = may_go.min_by_key(|(_, last)| **last) else { return (OTHER, None) };
            let oldest = oldest.clone();
            known.remove(&oldest);
            gone = Some(oldest);
        }
        known.insert(value.to_owned(), now);
        (value, gone)
    }

    /// The value itself if it has a place, else [`OTHER`]: for what was refused and must not take one.
    pub fn known<'a>(&self, value: &'a str) -> &'a str {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains_key(value) { value } else { OTHER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn whatever_is_sent_a_label_has_so_many_values_and_one_for_the_rest() {
        let mut registry = Registry::default();
        let counters = registry.counters("requests", "Requests", ["tenant"]);
        let tenants = Values::new(3);
        for request in 0..1_000 {
            counters.of([tenants.admit(&format!("tenant-{}", request % 100))]).inc();
        }
        let (_, page) = registry.page().render("");
        let series: Vec<&str> = page.lines().filter(|line| line.starts_with("cascadia_requests_total{")).collect();
        assert_eq!(series.len(), 4, "{page}");
        for (tenant, count) in [("tenant-0", 10), ("tenant-2", 10), ("other", 970)] {
            let line = format!("cascadia_requests_total{{tenant=\"{tenant}\"}} {count}");
            assert!(series.contains(&line.as_str()), "{line} is missing in\n{page}");
        }
    }
}
