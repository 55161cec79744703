//! What a slot counts. The counters live in the slot's connection table, so they survive its workers: a total
//! never goes backwards, and nothing counted between a report and a death is lost. Append only: part of the
//! table layout.

use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reason::{CloseReason, Rejection};

/// Upper edges of the connection duration histogram, in seconds.
pub const DURATION_EDGES_SECONDS: [u64; 10] = [1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600];

/// Upper edges of the admission wait histogram, in microseconds.
pub const ADMISSION_EDGES_MICROSECONDS: [u64; 10] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000];

/// Upper edges of the ping round-trip time histogram, in microseconds.
pub const PING_EDGES_MICROSECONDS: [u64; 10] =
    [1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

/// How many observations fell at or below each edge and above the one before; the last bucket has no edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Histogram {
    /// One count for each edge, and one for everything above the last.
    pub buckets: [u64; 11],
    /// The sum of all observations, in the unit of the edges' smallest part: microseconds.
    pub sum_microseconds: u64,
}

impl Histogram {
    fn observe(&mut self, value: u64, edges: &[u64; 10], microseconds: u64) {
        let bucket = edges.iter().position(|&edge| value <= edge).unwrap_or(edges.len());
        self.buckets[bucket] += 1;
        self.sum_microseconds = self.sum_microseconds.wrapping_add(microseconds);
    }

    /// How many observations there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// All counters of one slot. Plain `u64`s, so that they can lie in shared memory and be added up as a row of
/// numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// Clients let in: 101 was written.
    pub accepted: u64,
    /// Clients refused, by [`Rejection`].
    pub rejected: [u64; 16],
    /// Established connections ended, by [`CloseReason`].
    pub closed: [u64; 32],
    /// Complete messages from clients.
    pub messages_received: u64,
    /// Messages to clients.
    pub messages_sent: u64,
    /// Bytes read from clients, framing included.
    pub bytes_received: u64,
    /// Bytes the kernel took for clients, framing included.
    pub bytes_sent: u64,
    /// Connections a new worker took over from a dead one.
    pub resumed: u64,
    /// Connections closed because their worker died while their stream state was in flight.
    pub lost: u64,
    /// Times accepting had to pause because descriptors ran out.
    pub accept_pauses: u64,
    /// How long closed connections had lasted.
    pub duration: Histogram,
    /// How long admission took, from the request to the verdict.
    pub admission_wait: Histogram,
    /// Messages to the supervisor that were dropped since it did not read: reports, and nothing that it depends on.
    pub link_dropped: u64,
    /// Messages of the supervisor of a kind that the worker's program does not know.
    pub link_skipped: u64,
    /// From a ping to its pong.
    pub ping_rtt: Histogram,
}

const _: () = assert!(Rejection::COUNT <= 16 && CloseReason::COUNT <= 32);

impl Counters {
    /// Counts a refusal.
    pub fn reject(&mut self, reason: Rejection) {
        self.rejected[reason.index()] += 1;
    }

    /// Counts the end of an established connection that had lasted `lasted`.
    pub fn close(&mut self, reason: CloseReason, lasted: Duration) {
        self.closed[reason.index()] += 1;
        // Rounded up, so that 1.2 s is not counted as at most 1 s.
        let seconds = lasted.as_secs() + u64::from(lasted.subsec_nanos() > 0);
        self.duration.observe(seconds, &DURATION_EDGES_SECONDS, microseconds(lasted));
    }

    /// Counts a verdict that came after `waited`.
    pub fn admission(&mut self, waited: Duration) {
        let waited = microseconds(waited);
        self.admission_wait.observe(waited, &ADMISSION_EDGES_MICROSECONDS, waited);
    }

    /// Counts a pong that came `after` its ping.
    pub fn pong(&mut self, after: Duration) {
        let after = microseconds(after);
        self.ping_rtt.observe(after, &PING_EDGES_MICROSECONDS, after);
    }

    /// Refusals, all reasons together.
    #[must_use]
    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().sum()
    }

    /// Adds another slot's counters, or those of the same slot's earlier life.
    pub fn add(&mut self, other: &Self) {
        let mine: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(self));
        let others: &[u64] = bytemuck::cast_slice(std::slice::from_ref(other));
        for (mine, other) in mine.iter_mut().zip(others) {
            *mine = mine.wrapping_add(*other);
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::zeroed()
    }
}

impl Serialize for Counters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let numbers: &[u64] = bytemuck::cast_slice(std::slice::from_ref(self));
        numbers.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let numbers = Vec::<u64>::deserialize(deserializer)?;
        let mut counters = Self::default();
        let fields: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut counters));
        // Another program may count less, or more.
        for (field, number) in fields.iter_mut().zip(numbers) {
            *field = number;
        }
        Ok(counters)
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_at_or_below_their_edge() {
        let mut counters = Counters::default();
        for seconds in [0.2, 1.0, 1.2, 3600.0, 3600.1] {
            counters.close(CloseReason::Client, Duration::from_secs_f64(seconds));
        }
        assert_eq!(counters.duration.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(counters.duration.count(), counters.closed[CloseReason::Client.index()]);
    }

    #[test]
    fn addition_covers_every_field() {
        let mut one = Counters::default();
        one.reject(Rejection::Draining);
        one.admission(Duration::from_millis(3));
        one.lost = 7;
        let mut sum = one;
        sum.add(&one);
        assert_eq!(sum.rejected[Rejection::Draining.index()], 2);
        assert_eq!(sum.admission_wait.count(), 2);
        assert_eq!(sum.admission_wait.sum_microseconds, 6000);
        assert_eq!(sum.lost, 14);
    }
}
