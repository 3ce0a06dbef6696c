//! From what each client saw to figures: pure arithmetic.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use cascadia_proto::v1;

use crate::durations;

/// What drafters and experts did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Draft blocks verified.
    pub blocks: u64,
    /// Drafts in them: what was drafted and never judged is in no ratio.
    pub drafted: u64,
    /// Of these, accepted.
    pub accepted: u64,
    /// Accepted only thanks to the rule.
    pub relaxed: u64,
    /// Tokens that the drafter wrote without a verdict.
    pub unverified: u64,
    /// Tokens written by the expert.
    pub deferred: u64,
    /// Passes of the expert.
    pub expert_passes: u64,
    /// Times a session was placed again.
    pub moves: u64,
}

impl From<&v1::Speculation> for Speculation {
    fn from(told: &v1::Speculation) -> Self {
        let sum = |of: fn(&v1::BlockOutcome) -> u32| {
            told.outcomes.iter().map(|outcome| u64::from(of(outcome)) * outcome.blocks).sum()
        };
        let accepted: u64 = sum(|outcome| outcome.accepted);
        Self {
            blocks: told.outcomes.iter().map(|outcome| outcome.blocks).sum(),
            drafted: sum(|outcome| outcome.drafted),
            accepted,
            relaxed: told.relaxed,
            unverified: told.accepted.saturating_sub(accepted),
            deferred: told.deferred,
            expert_passes: told.expert_passes,
            moves: told.moves,
        }
    }
}

impl Speculation {
    fn and(self, other: Self) -> Self {
        Self {
            blocks: self.blocks + other.blocks,
            drafted: self.drafted + other.drafted,
            accepted: self.accepted + other.accepted,
            relaxed: self.relaxed + other.relaxed,
            unverified: self.unverified + other.unverified,
            deferred: self.deferred + other.deferred,
            expert_passes: self.expert_passes + other.expert_passes,
            moves: self.moves + other.moves,
        }
    }
}

/// One request as its client saw it; times since the run began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// When it was meant to be sent: latencies count from here, so a client that comes late hides nothing.
    pub due: Duration,
    /// When it was.
    pub sent: Duration,
    /// When it was over.
    pub end: Duration,
    /// When tokens came, and how many.
    pub pieces: Vec<(Duration, u32)>,
    /// Prompt tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// What drafter and expert did, where the server says so.
    pub speculation: Option<Speculation>,
    /// Whether the answer is right, where that is known.
    pub right: Option<bool>,
    /// Why it failed, in one word.
    pub error: Option<String>,
}

impl Record {
    fn first(&self) -> Option<Duration> {
        self.pieces.first().map(|(at, _)| at.saturating_sub(self.due))
    }

    fn whole(&self) -> Duration {
        self.end.saturating_sub(self.due)
    }

    /// Time a token after the first; one token has none.
    fn per_token(&self) -> Option<Duration> {
        let further = self.output.checked_sub(1).filter(|further| *further > 0)?;
        Some(self.whole().saturating_sub(self.first()?).div_f64(further as f64))
    }

    /// The wait for each token after the first message; the tokens of one message share theirs.
    fn gaps(&self) -> impl Iterator<Item = Duration> + '_ {
        self.pieces.windows(2).flat_map(|pair| {
            let [(before, _), (at, count)] = pair else { unreachable!("windows of two") };
            std::iter::repeat_n((*at - *before) / (*count).max(1), *count as usize)
        })
    }
}

/// What a request must keep to count as good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    ttft: Option<Duration>,
    tpot: Option<Duration>,
    e2el: Option<Duration>,
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut goal = Self::default();
        for pair in text.split(',').map(str::trim) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match key {
                "ttft" => &mut goal.ttft,
                "tpot" => &mut goal.tpot,
                "e2el" => &mut goal.e2el,
                _ => {
                    return Err(format!(
                        "{key:?} is no target; set some of ttft, tpot, e2el, as in ttft=200ms,tpot=50ms"
                    ));
                }
            };
            *field = Some(durations::parse(value).map_err(|reason| format!("{key}: {reason}"))?);
        }
        Ok(goal)
    }
}

impl Goal {
    /// Whether a request kept it. A failed one did not.
    #[must_use]
    pub fn is_met(&self, record: &Record) -> bool {
        let within = |bound: Option<Duration>, took: Option<Duration>| {
            bound.is_none_or(|bound| took.is_none_or(|took| took <= bound))
        };
        record.error.is_none()
            && within(self.ttft, record.first())
            && within(self.tpot, record.per_token())
            && within(self.e2el, Some(record.whole()))
    }
}

/// A distribution of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Their mean.
    pub mean: f64,
    /// Half are below.
    pub median: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// All but one in a hundred are below.
    pub p99: f64,
}

impl Latency {
    /// Of these durations; `None` where there are none.
    #[must_use]
    pub fn of(durations: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut ms: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
        if ms.is_empty() {
            return None;
        }
        ms.sort_unstable_by(f64::total_cmp);
        let mean = ms.iter().sum::<f64>() / ms.len() as f64;
        Some(Self { mean, median: percentile(&ms, 50.0), p90: percentile(&ms, 90.0), p99: percentile(&ms, 99.0) })
    }
}

/// The percentile of ascending values, interpolated between neighbours as numpy does; 0 of none.
#[must_use]
pub fn percentile(ascending: &[f64], percent: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return 0.0 };
    let place = percent / 100.0 * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    ascending[below] + part * (ascending[(below + 1).min(last)] - ascending[below])
}

/// The figures of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests answered to their end.
    pub completed: usize,
    /// Requests that failed, by kind.
    pub errors: BTreeMap<String, usize>,
    /// Requests that were open when the run was cut short.
    pub unfinished: usize,
    /// From the first request's time to the last one's end, seconds.
    pub duration: f64,
    /// Prompt tokens of completed requests.
    pub input: u64,
    /// Output tokens of completed requests.
    pub output: u64,
    /// Requests open at once at most.
    pub peak: usize,
    /// Requests that kept the goal, where one was set.
    pub good: Option<usize>,
    /// Time to the first token.
    pub ttft: Option<Latency>,
    /// Time per output token after the first.
    pub tpot: Option<Latency>,
    /// Inter-token latency.
    pub itl: Option<Latency>,
    /// End to end.
    pub e2el: Option<Latency>,
    /// How late the client sent.
    pub late: Option<Latency>,
    /// What drafters and experts did in all, where the server says so and knows all of it: where a session moves, what
    /// its lost owner did beyond the tokens that came is unknown.
    pub speculation: Option<Speculation>,
    /// Output tokens of these sessions.
    pub told: u64,
    /// Sessions that moved, which are not among these.
    pub moved: usize,
    /// How often they did.
    pub moves: u64,
    /// Right answers, and answers that are known.
    pub right: Option<(usize, usize)>,
}

impl Figures {
    /// Of these requests, and of so many that were still open.
    #[must_use]
    pub fn of(records: &[Record], unfinished: usize, goal: Option<&Goal>) -> Self {
        let done = || records.iter().filter(|record| record.error.is_none());
        let mut errors = BTreeMap::new();
        for error in records.iter().filter_map(|record| record.error.as_ref()) {
            *errors.entry(error.clone()).or_default() += 1;
        }
        let begin = records.iter().map(|record| record.due).min().unwrap_or_default();
        let end = records.iter().map(|record| record.end).max().unwrap_or_default();
        let known = done().filter_map(|record| record.right);
        let known = (known.clone().filter(|right| *right).count(), known.count());
        let told = || done().filter_map(|record| Some((record.speculation?, record.output)));
        let stayed = || told().filter(|(speculation, _)| speculation.moves == 0);
        Self {
            completed: done().count(),
            errors,
            unfinished,
            duration: end.saturating_sub(begin).as_secs_f64(),
            input: done().map(|record| record.input).sum(),
            output: done().map(|record| record.output).sum(),
            peak: peak(records),
            good: goal.map(|goal| records.iter().filter(|record| goal.is_met(record)).count()),
            ttft: Latency::of(done().filter_map(Record::first)),
            tpot: Latency::of(done().filter_map(Record::per_token)),
            itl: Latency::of(done().flat_map(Record::gaps)),
            e2el: Latency::of(done().map(Record::whole)),
            late: Latency::of(records.iter().map(|record| record.sent.saturating_sub(record.due))),
            speculation: stayed().map(|(speculation, _)| speculation).reduce(Speculation::and),
            told: stayed().map(|(_, output)| output).sum(),
            moved: told().count() - stayed().count(),
            moves: told().map(|(speculation, _)| speculation.moves).sum(),
            right: (known.1 > 0).then_some(known),
        }
    }

    /// All requests that came to an end.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.completed + self.errors.values().sum::<usize>()
    }
}

/// Requests open at once at most.
fn peak(records: &[Record]) -> usize {
    let mut events: Vec<(Duration, i32)> =
        records.iter().flat_map(|record| [(record.sent, 1), (record.end, -1)]).collect();
    // One that ends when another begins makes room for it.
    events.sort_unstable();
    let (mut open, mut most) = (0, 0);
    for (_, change) in events {
        open += change;
        most = most.max(open);
    }
    most as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn record() -> Record {
        Record {
            due: ms(100),
            sent: ms(110),
            end: ms(400),
            pieces: vec![(ms(200), 1), (ms(260), 3), (ms(400), 1)],
            input: 7,
            output: 5,
            ..Record::default()
        }
    }

    #[test]
    fn latencies_count_from_the_intended_time() {
        let record = record();
        assert_eq!((record.first(), record.whole(), record.per_token()), (Some(ms(100)), ms(300), Some(ms(50))));
        assert_eq!(record.gaps().collect::<Vec<_>>(), [ms(20), ms(20), ms(20), ms(140)]);
        let one = Record { output: 1, pieces: vec![(ms(200), 1)], ..record };
        assert_eq!((one.per_token(), one.gaps().count()), (None, 0));
    }

    #[test]
    fn percentiles_are_numpys() {
        let values: Vec<f64> = (1..=5).map(f64::from).collect();
        for (percent, value) in [(0.0, 1.0), (50.0, 3.0), (90.0, 4.6), (99.0, 4.96), (100.0, 5.0)] {
            assert!((percentile(&values, percent) - value).abs() < 1e-9, "{percent}");
        }
        assert_eq!((percentile(&[], 50.0), percentile(&[2.0], 99.0)), (0.0, 2.0));
    }

    #[test]
    fn a_goal_is_kept_by_requests_that_keep_all_of_it() {
        let good = |goal: &str, record: &Record| goal.parse::<Goal>().unwrap().is_met(record);
        assert!(good("ttft=100ms,tpot=50ms,e2el=300ms", &record()));
        assert!(!good("ttft=99ms", &record()) && !good("tpot=49ms", &record()) && !good("e2el=299ms", &record()));
        let failed = Record { error: Some("UNAVAILABLE".into()), ..record() };
        assert!(!good("ttft=1s", &failed));
        for (typed, says) in [("tft=1s", "\"tft\" is no target"), ("ttft=1", "ttft: "), ("", "\"\" is no target")] {
            let error = typed.parse::<Goal>().unwrap_err();
            assert!(error.starts_with(says), "{error}");
        }
    }

    #[test]
    fn drafts_without_a_verdict_are_in_no_ratio() {
        let outcome = |drafted, accepted, blocks| v1::BlockOutcome { drafted, accepted, blocks };
        let told = v1::Speculation {
            blocks: 5,
            drafted: 99,
            accepted: 20,
            outcomes: vec![outcome(4, 3, 2), outcome(2, 0, 1)],
            ..Default::default()
        };
        let read = Speculation::from(&told);
        assert_eq!((read.blocks, read.drafted, read.accepted, read.unverified), (3, 10, 6, 14));
    }

    #[test]
    fn sessions_that_moved_are_left_out_of_what_drafters_and_experts_did() {
        let of = |moves| Record {
            speculation: Some(Speculation { accepted: 3, drafted: 4, expert_passes: 2, moves, ..Default::default() }),
            ..record()
        };
        let figures = Figures::of(&[of(0), of(2)], 0, None);
        assert_eq!((figures.completed, figures.output, figures.told), (2, 10, 5));
        assert_eq!((figures.moved, figures.moves, figures.speculation), (1, 2, of(0).speculation));
        let figures = Figures::of(&[of(1)], 0, None);
        assert_eq!((figures.moved, figures.speculation), (1, None));
    }

    #[test]
    fn figures_add_up() {
        let speculation = |accepted| Some(Speculation { accepted, drafted: 9, expert_passes: 2, ..Default::default() });
        let records = [
            Record { speculation: speculation(3), right: Some(true), ..record() },
            Record {
                speculation: speculation(4),
                right: Some(false),
                due: ms(300),
                sent: ms(350),
                end: ms(900),
                ..record()
            },
            Record { error: Some("UNAVAILABLE".into()), due: ms(0), sent: ms(0), end: ms(50), ..Record::default() },
        ];
        let figures = Figures::of(&records, 2, Some(&"ttft=100ms".parse().unwrap()));
        assert_eq!((figures.completed, figures.ended(), figures.unfinished, figures.peak), (2, 3, 2, 2));
        assert_eq!(figures.errors, BTreeMap::from([("UNAVAILABLE".to_owned(), 1)]));
        assert_eq!((figures.input, figures.output, figures.duration), (14, 10, 0.9));
        assert_eq!((figures.good, figures.right), (Some(2), Some((1, 2))));
        let sum = figures.speculation.unwrap();
        assert_eq!((sum.accepted, sum.drafted, sum.expert_passes), (7, 18, 4));
        assert_eq!((figures.told, figures.moved, figures.moves), (10, 0, 0));
        assert_eq!(Figures::of(&[], 0, None), Figures::default());
    }
}
