//! Latencies of one process, as they are sent to another and added up there.

use std::fmt::{self, Debug, Formatter};

use hdrhistogram::Histogram;

/// Latencies above this are counted as this.
const LONGEST_LATENCY_NANOSECONDS: u64 = 600_000_000_000;

/// Latencies in nanoseconds, exact to three figures.
#[derive(Clone)]
pub struct Latencies(Histogram<u64>);

impl Debug for Latencies {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} up to {} ns", self.count(), self.longest())
    }
}

impl Default for Latencies {
    fn default() -> Self {
        // Fails only for more than five figures.
        match Histogram::new(3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("three figures: {error}"),
        }
    }
}

impl Latencies {
    /// `count` units took so long.
    pub fn record(&mut self, nanoseconds: u64, count: u64) {
        // It grows as far as the longest; that cannot fail.
        let _ = self.0.record_n(nanoseconds.min(LONGEST_LATENCY_NANOSECONDS), count);
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many.
    pub fn count(&self) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_survive_the_way_to_the_parent() {
        let mut child = Latencies::default();
        for n in 1..=10_000 {
            child.record(n * 1_000, 2);
        }
        let mut parent = Latencies::default();
        parent.add_pairs(&child.to_pairs());
        parent.add_pairs(&child.to_pairs());
        assert_eq!(parent.count(), 40_000);
        for quantile in [0.5, 0.99, 1.0] {
            assert_eq!(parent.quantile(quantile), child.quantile(quantile));
        }
    }
}
