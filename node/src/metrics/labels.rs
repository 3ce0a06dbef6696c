//! Labels: few names, and of each only so many values, whatever clients send.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::family::{Family, MetricConstructor};

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
    known: Mutex<BTreeSet<String>>,
}

impl Values {
    /// Room for so many.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, known: Mutex::default() }
    }

    /// The value itself if it has a place or there is one, else [`OTHER`].
    pub fn admit<'a>(&self, value: &'a str) -> &'a str {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(value) {
            return value;
        }
        if known.len() >= self.limit {
            return OTHER;
        }
        known.insert(value.to_owned());
        value
    }

    /// The value itself if it has a place, else [`OTHER`]: for what was refused and must not take one.
    pub fn known<'a>(&self, value: &'a str) -> &'a str {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(value) { value } else { OTHER }
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
