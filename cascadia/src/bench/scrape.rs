//! What a node's admin page says, read as Prometheus reads it.

use std::collections::BTreeMap;

use super::openai;
use crate::terminal::Failure;

/// The samples of one page; series of one name are added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    values: BTreeMap<String, f64>,
    /// By the histogram's name: upper bounds, ascending, and how many observations are at most so large.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Scrape {
    /// Reads the page of the admin listener at `address`.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn of(address: &str) -> Result<Self, Failure> {
        Ok(Self::parse(&openai::get(&openai::client(), &format!("http://{address}/metrics")).await?))
    }

    /// Reads a page; lines that are no samples are passed over.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        let mut scrape = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            *scrape.values.entry(name.to_owned()).or_default() += value;
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).and_then(bound);
            if let (Some(histogram), Some(bound)) = (name.strip_suffix("_bucket"), bound) {
                let buckets = scrape.buckets.entry(histogram.to_owned()).or_default();
                match buckets.iter_mut().find(|(other, _)| *other == bound) {
                    Some((_, count)) => *count += value,
                    None => buckets.push((bound, value)),
                }
            }
        }
        for buckets in scrape.buckets.values_mut() {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        scrape
    }

    /// A sample; 0 where there is none.
    #[must_use]
    pub fn value(&self, name: &str) -> f64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    /// What was observed between an earlier reading and this one.
    #[must_use]
    pub fn since(&self, earlier: &Self, histogram: &str) -> Observations {
        let before = |bound: f64| {
            let buckets = earlier.buckets.get(histogram).into_iter().flatten();
            buckets.clone().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count)
        };
        let buckets = self.buckets.get(histogram).into_iter().flatten();
        Observations { buckets: buckets.map(|(bound, count)| (*bound, count - before(*bound))).collect() }
    }
}

fn bound(text: &str) -> Option<f64> {
    if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() }
}

/// Observations of a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Observations {
    /// Upper bounds, ascending, and how many observations are at most so large.
    buckets: Vec<(f64, f64)>,
}

impl Observations {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// The share of those that are at most `bound`, which is one of the histogram's.
    #[must_use]
    pub fn share_within(&self, bound: f64) -> Option<f64> {
        let within = self.buckets.iter().find(|(other, _)| *other == bound)?.1;
        (self.count() > 0.0).then(|| within / self.count())
    }

    /// The percentile, interpolated inside its bucket as Prometheus does.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let rank = percent / 100.0 * self.count();
        let index = self.buckets.iter().position(|(_, count)| *count >= rank && *count > 0.0)?;
        let (bound, count) = self.buckets[index];
        let (below, already) = index.checked_sub(1).map_or((0.0, 0.0), |before| self.buckets[before]);
        if bound.is_infinite() || count == already {
            return Some(below);
        }
        Some(below + (bound - below) * (rank - already) / (count - already))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE a_seconds histogram\n\
        a_seconds_bucket{model=\"x\",le=\"0.001\"} 5\n\
        a_seconds_bucket{model=\"x\",le=\"0.01\"} 9\n\
        a_seconds_bucket{model=\"x\",le=\"+Inf\"} 10\n\
        a_seconds_bucket{le=\"0.001\",model=\"y\"} 5\n\
        a_seconds_bucket{le=\"0.01\",model=\"y\"} 10\n\
        a_seconds_bucket{le=\"+Inf\",model=\"y\"} 10\n\
        tokens_total{model=\"x\"} 3\n\
        tokens_total{model=\"y\"} 4\n\
        process_cpu_seconds_total 1.5\n";

    #[test]
    fn series_of_one_name_add_up() {
        let scrape = Scrape::parse(PAGE);
        assert_eq!((scrape.value("tokens_total"), scrape.value("process_cpu_seconds_total")), (7.0, 1.5));
        assert_eq!(scrape.value("nothing"), 0.0);
    }

    #[test]
    fn percentiles_are_those_of_the_window() {
        let (begin, end) = (Scrape::default(), Scrape::parse(PAGE));
        let all = end.since(&begin, "a_seconds");
        assert_eq!((all.count(), all.share_within(0.01), all.share_within(0.5)), (20.0, Some(0.95), None));
        assert_eq!(all.percentile(50.0), Some(0.001));
        assert!((all.percentile(95.0).unwrap() - 0.01).abs() < 1e-12);
        // Nobody knows how large the largest are.
        assert_eq!(all.percentile(99.0), Some(0.01));
        let none = end.since(&end, "a_seconds");
        assert_eq!((none.count(), none.percentile(99.0), none.share_within(0.01)), (0.0, None, None));
    }
}
