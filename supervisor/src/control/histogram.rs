//! A histogram as plain data: counts per bucket, and the sum.
//! Knows nothing of Prometheus; `metrics` makes the cumulative text of it.

/// Observations counted in buckets by upper bound, inclusive.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty histogram with ascending upper `bounds`, such as those of `holdfast_shared::metric`.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// A histogram counted elsewhere: one count per bound and one for what is above all of them; `sum` is of the
    /// observations. Missing counts are 0, and what exceeds the buckets counts as above all bounds.
    #[must_use]
    pub fn from_counts(bounds: &'static [f64], counts: &[u64], sum: f64) -> Self {
        let mut histogram = Self::new(bounds);
        for (index, count) in counts.iter().enumerate() {
            let bucket = &mut histogram.counts[index.min(bounds.len())];
            *bucket = bucket.saturating_add(*count);
        }
        histogram.sum = sum;
        histogram
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
    fn counts_of_another_length_lose_nothing() {
        let longer = Histogram::from_counts(&[1.0], &[1, 2, 3], 9.0);
        assert_eq!((longer.cumulative().collect::<Vec<_>>(), longer.count()), (vec![(1.0, 1)], 6));
        let shorter = Histogram::from_counts(&[1.0, 5.0], &[1], 0.5);
        assert_eq!(
            (shorter.cumulative().collect::<Vec<_>>(), shorter.count()),
            (vec![(1.0, 1), (5.0, 1)], 1)
        );
    }
}
