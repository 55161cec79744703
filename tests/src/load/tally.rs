//! What the clients of one process have met: counts and latencies, as they are sent to the parent and added
//! up there.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::conversation::Heard;

/// Latencies above this are counted as this.
const LONGEST_LATENCY_NANOSECONDS: u64 = 600_000_000_000;

/// Counts that go up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Messages echoed, or handshakes done, or messages taken, as the mode has it.
    pub units: u64,
    /// Payload bytes of those messages.
    pub bytes: u64,
    /// Pings answered.
    pub pings: u64,
    /// Handshakes that ended in a status, 101 included.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections that came to nothing, by what happened.
    pub failures: BTreeMap<String, u64>,
    /// Open connections that were lost, by what happened.
    pub lost: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds another process's.
    pub fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.bytes += other.bytes;
        self.pings += other.pings;
        add_all(&mut self.statuses, &other.statuses);
        add_all(&mut self.failures, &other.failures);
        add_all(&mut self.lost, &other.lost);
    }
}

fn add_all<K: Ord + Clone>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *to.entry(key.clone()).or_default() += count;
    }
}

/// Latencies in nanoseconds, exact to three figures.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        // Fails only for more than five figures or a bound below two.
        match Histogram::new_with_bounds(1, LONGEST_LATENCY_NANOSECONDS, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("constant bounds: {error}"),
        }
    }

    /// `count` units took so long.
    pub fn record(&mut self, nanoseconds: u64, count: u64) {
        self.0.saturating_record_n(nanoseconds, count);
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// The longest of them, in nanoseconds.
    pub fn longest(&self) -> u64 {
        self.0.max()
    }

    /// The latency that this share of the units did not exceed, in nanoseconds.
    pub fn quantile(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// Value and count of each occupied bucket.
    pub fn to_pairs(&self) -> Vec<(u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    /// Adds what `to_pairs` gave.
    pub fn add_pairs(&mut self, pairs: &[(u64, u64)]) {
        for &(value, count) in pairs {
            self.record(value, count);
        }
    }
}

/// Counts and latencies of this process, and the clock they are measured with.
#[derive(Debug)]
pub struct Tally {
    /// The counts.
    pub counts: Counts,
    /// The latencies.
    pub latencies: Latencies,
    /// Nanoseconds at the current readiness.
    pub now: u64,
    /// Payload bytes of one message.
    message_size: u64,
}

impl Tally {
    /// All zero.
    pub fn new(message_size: u64) -> Self {
        Self { counts: Counts::default(), latencies: Latencies::new(), now: 0, message_size }
    }

    /// Payload bytes of one message.
    pub fn message_size(&self) -> u64 {
        self.message_size
    }

    /// Starts measuring: forgets units and latencies, keeps what happened to connections.
    pub fn start_measuring(&mut self) {
        self.counts.units = 0;
        self.counts.bytes = 0;
        self.latencies.clear();
    }

    /// A unit that began at `began` is done now.
    pub fn done(&mut self, began: u64) {
        self.counts.units += 1;
        self.latencies.record(self.now.saturating_sub(began), 1);
    }

    /// A connection attempt came to nothing.
    pub fn failed(&mut self, what: String) {
        *self.counts.failures.entry(what).or_default() += 1;
    }

    /// An open connection was lost.
    pub fn lost(&mut self, what: String) {
        *self.counts.lost.entry(what).or_default() += 1;
    }
}

impl Heard for Tally {
    fn echoes(&mut self, due: u64, count: u64) {
        self.counts.units += count;
        self.counts.bytes += count * self.message_size;
        self.latencies.record(self.now.saturating_sub(due), count);
    }

    fn ping(&mut self) {
        self.counts.pings += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_survive_the_way_to_the_parent() {
        let mut child = Latencies::new();
        for n in 1..=10_000 {
            child.record(n * 1_000, 2);
        }
        let mut parent = Latencies::new();
        parent.add_pairs(&child.to_pairs());
        parent.add_pairs(&child.to_pairs());
        assert_eq!(parent.len(), 40_000);
        for quantile in [0.5, 0.99, 1.0] {
            assert_eq!(parent.quantile(quantile), child.quantile(quantile));
        }
    }
}
