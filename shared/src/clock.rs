//! The one clock of the cluster: CLOCK_MONOTONIC in milliseconds. All processes of a host see the same
//! values, so times in the connection table stay true across worker deaths; a wall clock that jumps moves
//! nothing.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Milliseconds of the monotonic clock.
#[must_use]
pub fn now_ms() -> u64 {
    milliseconds(now())
}

/// The monotonic clock's reading, since boot.
#[must_use]
pub fn now() -> Duration {
    // CLOCK_MONOTONIC exists on every Linux; a failure would be a broken kernel, and time standing still is
    // the mildest answer to that.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// A duration in whole milliseconds; the longest representable one when it is longer than that.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
