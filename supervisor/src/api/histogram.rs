//! A histogram as plain data: counts per bucket, and the sum.
//! Knows nothing of Prometheus; `metrics` makes the cumulative text of it.

use holdfast_shared::counters::{
    self, ADMISSION_EDGES_MICROSECONDS, DURATION_EDGES_SECONDS, PING_EDGES_MICROSECONDS,
};

/// In a second.
const MICROSECONDS: f64 = 1e6;

/// Observations counted in buckets by upper bound, inclusive.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// One for each bound, and one for what is above all of them.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty histogram with ascending upper `bounds`.
    #[must_use]
    pub fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// How long connections were open, in seconds, as the workers counted it.
    #[must_use]
    pub fn durations(counted: &counters::Histogram) -> Self {
        Self::counted(counted, &DURATION_EDGES_SECONDS, 1.0)
    }

    /// How long upgrade requests waited, in seconds, as the workers counted it.
    #[must_use]
    pub fn admission_waits(counted: &counters::Histogram) -> Self {
        Self::counted(counted, &ADMISSION_EDGES_MICROSECONDS, MICROSECONDS)
    }

    /// How long pongs took, in seconds, as the workers counted it.
    #[must_use]
    pub fn ping_rtts(counted: &counters::Histogram) -> Self {
        Self::counted(counted, &PING_EDGES_MICROSECONDS, MICROSECONDS)
    }

    fn counted(counted: &counters::Histogram, edges: &[u64; 10], edges_per_second: f64) -> Self {
        Self {
            bounds: edges.iter().map(|edge| *edge as f64 / edges_per_second).collect(),
            counts: counted.buckets.to_vec(),
            sum: counted.sum_microseconds as f64 / MICROSECONDS,
        }
    }

    /// Counts one observation.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
            self.sum += value;
        }
    }

    /// Each upper bound with the number of observations at or below it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().zip(&self.counts).scan(0_u64, |total, (bound, count)| {
            *total = total.saturating_add(*count);
            Some((*bound, *total))
        })
    }

    /// How many were observed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().copied().fold(0, u64::saturating_add)
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

impl Default for Histogram {
    /// Without bounds: only the sum and the count.
    fn default() -> Self {
        Self::new(&[])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_shared::counters::Counters;
    use holdfast_shared::reason::CloseReason;

    use super::*;

    #[test]
    fn bounds_are_inclusive_and_counts_cumulative() {
        let mut histogram = Histogram::new(&[1.0, 5.0]);
        for value in [0.5, 1.0, 1.5, 5.0, 5.5] {
            histogram.observe(value);
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(1.0, 2), (5.0, 4)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 13.5));
    }

    #[test]
    fn the_workers_counts_are_shown_in_seconds() {
        let mut counters = Counters::default();
        counters.close(CloseReason::Client, Duration::from_millis(1500));
        counters.admission(Duration::from_micros(120));
        let durations = Histogram::durations(&counters.duration);
        assert_eq!(durations.cumulative().take(2).collect::<Vec<_>>(), [(1.0, 0), (5.0, 1)]);
        assert_eq!((durations.count(), durations.sum()), (1, 1.5));
        let waits = Histogram::admission_waits(&counters.admission_wait);
        assert_eq!(waits.cumulative().take(2).collect::<Vec<_>>(), [(0.0001, 0), (0.000_25, 1)]);
        assert_eq!((waits.count(), waits.sum()), (1, 0.000_12));
    }
}
