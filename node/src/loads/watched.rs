//! What is known of one followed node; pure, time is an argument.

use std::time::Duration;

use cascadia_core::limits::WATCH_SILENCE;
use cascadia_core::placement::{Load, NodeRecord, NodeState};
use cascadia_proto::convert;
use cascadia_proto::v1::NodeStatus;
use tokio::time::Instant;

/// A node with work that finishes no layer for less than this may only be slow.
const HUNG_AFTER: Duration = Duration::from_secs(2);

/// And for less than this many of its longest layer.
const HUNG_LAYERS: u32 = 8;

/// How long a node that failed a call is left alone at least.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// One start of a node.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    record: NodeRecord,
    /// When it became known.
    since: Instant,
    /// Whether a stream is open.
    connected: bool,
    /// Whether an attempt to open one has ended.
    tried: bool,
    /// What it last said, and when.
    status: Option<(NodeStatus, Instant)>,
    /// When it last finished a layer, or had nothing to do.
    moved: Instant,
    failed: Option<Instant>,
    /// Tokens placed before its last report, and since.
    placed: [u64; 2],
}

impl Watched {
    pub(super) fn new(record: NodeRecord, now: Instant) -> Self {
        Self {
            record,
            since: now,
            connected: false,
            tried: false,
            status: None,
            moved: now,
            failed: None,
            placed: [0; 2],
        }
    }

    pub(super) fn record(&self) -> &NodeRecord {
        &self.record
    }

    /// Takes a later record of the same start; false where it is of another.
    pub(super) fn renew(&mut self, record: &NodeRecord) -> bool {
        let is_same = self.record.instance == record.instance && self.record.address == record.address;
        if is_same {
            self.record = record.clone();
        }
        is_same
    }

    /// It said something.
    pub(super) fn heard(&mut self, status: NodeStatus, now: Instant) {
        if self.record.instance != 0 && status.instance != self.record.instance {
            // A last word of its former self, from a stream that is about to be dropped.
            return;
        }
        let idle = status.queued_tokens == 0;
        let progressed = self.status.is_none_or(|(last, _)| {
            last.progress != status.progress || last.instance != status.instance || last.queued_tokens == 0
        });
        if idle || progressed {
            self.moved = now;
        }
        self.status = Some((status, now));
        self.connected = true;
        self.tried = true;
        // A placement made while the report was on its way is not in it: each counts for two reports.
        self.placed = [self.placed[1], 0];
    }

    /// Nobody listened for so long.
    pub(super) fn forgive(&mut self, missed: Duration) {
        self.since += missed;
        self.moved += missed;
        if let Some((_, heard)) = &mut self.status {
            *heard += missed;
        }
    }

    /// Its stream ended, or could not be opened.
    pub(super) fn disconnected(&mut self) {
        self.connected = false;
        self.tried = true;
    }

    /// It failed a call.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failed = Some(now);
    }

    /// So many tokens were placed there.
    pub(super) fn placed(&mut self, tokens: u64) {
        self.placed[1] = self.placed[1].saturating_add(tokens);
    }

    /// Whether its stream is open and speaks.
    pub(super) fn is_living(&self, now: Instant) -> bool {
        self.living_status(now).is_some()
    }

    /// What it says, while it does.
    pub(super) fn living_status(&self, now: Instant) -> Option<&NodeStatus> {
        let (status, heard) = self.status.as_ref()?;
        (self.connected && now.duration_since(*heard) <= WATCH_SILENCE).then_some(status)
    }

    /// The state it says it is in, while it speaks; fresher than any record.
    pub(super) fn living_state(&self, now: Instant) -> Option<NodeState> {
        let status = self.living_status(now)?;
        Some(convert::node_state_of(status.state()).unwrap_or(self.record.state))
    }

    /// Whether it is hung, silent, cut off, or just failed somebody.
    pub(super) fn is_quarantined(&self, now: Instant) -> bool {
        let heard = self.status.as_ref().map(|(_, heard)| *heard);
        let has_failed = |failed: Instant| heard <= Some(failed) || now.duration_since(failed) < FAILED_FOR;
        self.is_gone(now) || self.failed.is_some_and(has_failed)
    }

    /// Whether it is hung, silent or cut off: what it holds is lost, also to those whom it has not failed yet.
    pub(super) fn is_gone(&self, now: Instant) -> bool {
        let Some(status) = self.living_status(now) else {
            // One that was never reached has the time of a first attempt.
            return self.tried || now.duration_since(self.since) > WATCH_SILENCE;
        };
        let layers = Duration::from_micros(status.longest_layer_us).saturating_mul(HUNG_LAYERS);
        status.queued_tokens > 0 && now.duration_since(self.moved) > HUNG_AFTER.max(layers)
    }

    pub(super) fn load(&self, now: Instant) -> Load {
        let said = self.status.map(|(status, _)| status).unwrap_or_default();
        Load {
            // Whoever comes now is served after those in the waiting queue.
            queued_tokens: said.queued_tokens.saturating_add(said.tokens_waiting),
            running_tokens: said.running_tokens,
            placed_tokens: self.placed[0].saturating_add(self.placed[1]),
            quarantined: self.is_quarantined(now),
            failing: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::record;
    use cascadia_core::placement::Role;

    fn busy(progress: u64, queued_tokens: u64) -> NodeStatus {
        let instance = record("e", Role::Expert).instance;
        NodeStatus { instance, progress, queued_tokens, longest_layer_us: 500_000, ..NodeStatus::default() }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn hung_is_no_layer_with_work_queued_and_slow_is_not() {
        let start = Instant::now();
        let mut node = Watched::new(record("e", Role::Expert), start);
        for quarter in 0..=20 {
            let now = start + seconds(0.25 * f64::from(quarter));
            node.heard(busy(7, 0), now);
            assert!(!node.is_quarantined(now), "an idle node is not hung");
        }
        let idle_until = start + seconds(5.0);
        for quarter in 1..=20 {
            let now = idle_until + seconds(0.25 * f64::from(quarter));
            node.heard(busy(7, 9), now);
            // Eight layers of half a second, counted from the last word without work.
            assert_eq!(node.is_quarantined(now), quarter > 17, "{quarter}");
        }
        let now = idle_until + seconds(5.25);
        node.heard(busy(8, 9), now);
        assert!(!node.is_quarantined(now), "a finished layer is progress");
    }

    #[test]
    fn silence_and_a_lost_stream_quarantine() {
        let start = Instant::now();
        let mut node = Watched::new(record("e", Role::Expert), start);
        assert!(!node.is_quarantined(start), "a new node has the time of an attempt");
        assert!(node.is_quarantined(start + seconds(3.1)));
        node.heard(busy(1, 0), start);
        assert!(!node.is_quarantined(start + seconds(3.0)) && node.is_living(start + seconds(3.0)));
        assert!(node.is_quarantined(start + seconds(3.1)) && !node.is_living(start + seconds(3.1)));
        node.heard(busy(1, 0), start + seconds(4.0));
        node.disconnected();
        assert!(node.is_quarantined(start + seconds(4.0)));
    }

    #[test]
    fn a_failed_node_must_speak_again_and_wait_a_second() {
        let start = Instant::now();
        let mut node = Watched::new(record("e", Role::Expert), start);
        node.heard(busy(1, 0), start);
        node.failed(start);
        assert!(node.is_quarantined(start + seconds(2.0)), "not a word since");
        node.heard(busy(1, 0), start + seconds(0.25));
        assert!(node.is_quarantined(start + seconds(0.9)));
        assert!(!node.is_quarantined(start + seconds(1.0)));
    }

    #[test]
    fn a_placement_counts_until_the_second_report() {
        let now = Instant::now();
        let mut node = Watched::new(record("e", Role::Expert), now);
        node.placed(5);
        node.placed(6);
        assert_eq!(node.load(now).placed_tokens, 11);
        node.heard(busy(1, 2), now);
        node.placed(1);
        assert_eq!((node.load(now).placed_tokens, node.load(now).queued_tokens), (12, 2));
        node.heard(busy(1, 2), now);
        assert_eq!(node.load(now).placed_tokens, 1);
    }
}
