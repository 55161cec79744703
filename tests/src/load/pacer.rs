//! When messages are due at a fixed rate, whatever the server does: latency then counts the waiting too
//! ("coordinated omission" is what one measures otherwise). A timer descriptor wakes the event loop; epoll's
//! own timeout has only milliseconds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// How often due messages are looked for; they are counted as due when they are found.
const TICK: Duration = Duration::from_micros(200);

/// Gives out what is due at a rate.
#[derive(Debug)]
pub struct Pacer {
    timer: TimerFd,
    per_second: f64,
    started: u64,
    given: u64,
}

impl Pacer {
    /// `per_second` from `now` (nanoseconds) on.
    pub fn start(per_second: f64, now: u64) -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::Interval(TimeSpec::from_duration(TICK)), TimerSetTimeFlags::empty())?;
        Ok(Self { timer, per_second, started: now, given: 0 })
    }

    /// The timer to wait for.
    pub fn descriptor(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }

    /// Messages that have fallen due since the last call.
    pub fn due(&mut self, now: u64) -> u64 {
        // Fails when it has not expired since; that is no matter, the clock decides.
        let _ = self.timer.wait();
        let elapsed = Duration::from_nanos(now.saturating_sub(self.started)).as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive; whole messages"
        )]
        let total = (elapsed * self.per_second) as u64;
        let due = total.saturating_sub(self.given);
        self.given += due;
        due
    }
}
