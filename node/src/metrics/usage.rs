//! What this process takes of the machine, as the system accounts for it, under the names that all exporters use.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::labels::LabelSet;

/// Clock ticks a second in `/proc`: part of Linux's interface, the same on every architecture we run on.
const TICKS: f64 = 100.0;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Processor time of all threads, user and system, since the start.
    pub cpu_seconds: f64,
    /// Memory that is really there.
    pub resident_bytes: f64,
    /// Open files and sockets.
    pub open_fds: f64,
}

impl Usage {
    /// Of this process now; nothing where the system has no `/proc`.
    #[must_use]
    pub fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        // The listing is an open file itself.
        let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
        Some(Self {
            cpu_seconds: cpu_seconds(&stat)?,
            resident_bytes: resident_bytes(&status)?,
            open_fds: open_fds as f64,
        })
    }
}

/// Registers them; they have no prefix of ours.
pub(super) fn register(registry: &mut Registry) {
    let counter = Reading { of: |usage| usage.cpu_seconds, kind: MetricType::Counter };
    registry.register("process_cpu_seconds", "User and system processor time", counter);
    let resident = Reading { of: |usage| usage.resident_bytes, kind: MetricType::Gauge };
    registry.register("process_resident_memory_bytes", "Resident memory", resident);
    let open_fds = Reading { of: |usage| usage.open_fds, kind: MetricType::Gauge };
    registry.register("process_open_fds", "Open files and sockets", open_fds);
}

/// One number of the process, read when the page is.
#[derive(Debug)]
struct Reading {
    of: fn(&Usage) -> f64,
    kind: MetricType,
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Some(usage) = Usage::now() else { return Ok(()) };
        let value = (self.of)(&usage);
        match self.kind {
            MetricType::Counter => encoder.encode_counter::<LabelSet<0>, _, u64>(&value, None),
            _ => encoder.encode_gauge(&value),
        }
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The second field is the program's name and may hold anything, also spaces and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<f64>);
    Some((fields.next()?.ok()? + fields.next()?.ok()?) / TICKS)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_writes_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10 18446744073709551615";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        let now = Usage::now().expect("the tests run on Linux");
        assert!(now.resident_bytes > 0.0 && now.open_fds >= 3.0);
    }
}
