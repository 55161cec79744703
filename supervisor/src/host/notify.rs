//! Telling the service manager where we stand (Type=notify-reload). Without one, nothing happens.

use std::time::Duration;

use holdfast_shared::clock;
use sd_notify::NotifyState;

/// Every slot serves.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The config is being read again; `ready` follows.
pub fn reloading() {
    // The manager compares this with its own clock to tell this reload from an earlier one.
    let microseconds = i128::try_from(clock::now().as_micros()).unwrap_or_default();
    send(&[NotifyState::Reloading, NotifyState::MonotonicUsec(microseconds)]);
}

/// The end has begun.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// The end takes longer: the manager is to wait at least `patience` from now.
pub fn still_stopping(status: &str, patience: Duration) {
    let microseconds = u32::try_from(patience.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::Stopping, NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(microseconds)]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot tell the service manager {states:?}: {error}");
    }
}
