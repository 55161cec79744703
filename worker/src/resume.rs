//! Bringing a table back to life: what a new worker does with the connections of a dead one. The same path
//! serves the first worker of a slot, which finds none.
//!
//! A record tells whether its connection can go on: all there is to know is in it, unless it says `UNSAVED`
//! (half a message, or queued output, was on the dead worker's heap) or `BUSY` (the worker died in the middle
//! of it). And each is marked while it is dealt with, so that one that kills its new worker too is not dealt
//! with for ever.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::ipc::message::{DeathCause, MAX_BATCH, ToSupervisor};
use holdfast_shared::reason::CloseReason;
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Flags, Phase, Record};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::connection::Key;
use crate::event_loop::Worker;
use crate::keeper::crash_if_asked;

/// What is to become of a connection whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Goes on as if nothing had happened.
    Resumed,
    /// Its request was read, its verdict not heard: the supervisor is asked again.
    AskedAgain,
    /// Established, but its stream state died: told so, closed and counted.
    Lost,
    /// On its way in or out, and what it needed died: closed.
    Dropped,
    /// The last worker crashed while it took this one over: closed without a word, which is all that was not
    /// tried yet.
    Deadly,
    /// The descriptor was closed before the record was freed: only the record is left.
    Vanished,
}

fn fate(record: &Record, descriptor_is_open: bool, cause: Option<DeathCause>) -> Fate {
    if !descriptor_is_open {
        return Fate::Vanished;
    }
    if record.flags.contains(Flags::RESUMING) && cause.is_some_and(is_crash) {
        return Fate::Deadly;
    }
    let broken = record.flags.intersects(Flags::BUSY.union(Flags::UNSAVED));
    match (record.phase(), broken) {
        (Phase::Open, true) => Fate::Lost,
        (Phase::Handshake | Phase::Parked | Phase::Refusing | Phase::Closing | Phase::Lingering, true) => {
            Fate::Dropped
        }
        (Phase::Parked, false) => Fate::AskedAgain,
        (Phase::Free, _) => Fate::Vanished,
        (Phase::Handshake | Phase::Refusing | Phase::Open | Phase::Closing | Phase::Lingering, false) => {
            Fate::Resumed
        }
    }
}

/// Closes every descriptor that nobody owns: the dead worker's epoll instance, and a client it had accepted
/// and not yet recorded. To be called before the new worker opens anything. Returns the descriptors that
/// stay.
pub(crate) fn close_strays(owned: &[RawFd], records: &[Record]) -> std::io::Result<HashSet<RawFd>> {
    let mut open: HashSet<RawFd> = descriptor::open_descriptors()?.into_iter().collect();
    open.retain(|&number| {
        let is_connection = usize::try_from(number)
            .ok()
            .and_then(|row| records.get(row))
            .is_some_and(|record| record.phase() != Phase::Free);
        let stays = is_connection || owned.contains(&number);
        if !stays {
            log::debug!("closing descriptor {number}, which nobody owns");
            let _ = nix::unistd::close(number);
        }
        stays
    });
    Ok(open)
}

impl Worker {
    /// Takes over every connection in the table and tells the supervisor what is held. `cause` is how the
    /// last worker died.
    pub(crate) fn resume(&mut self, open: &HashSet<RawFd>, cause: Option<DeathCause>) {
        let began = clock::now();
        let (mut resumed, mut lost) = (0, 0);
        for row in self.connections.table.used() {
            let Some(&record) = self.connections.table.records().get(row as usize) else { continue };
            if record.phase() == Phase::Free {
                continue;
            }
            let is_open = RawFd::try_from(row).is_ok_and(|descriptor| open.contains(&descriptor));
            let fate = fate(&record, is_open, cause);
            let key = self.connections.take_over(row);
            self.connections.set_resuming(key, true);
            match fate {
                // The number may be somebody else's by now, our own epoll instance's even.
                Fate::Vanished => self.connections.forget(key),
                Fate::Dropped => self.connections.end(key),
                Fate::Resumed | Fate::AskedAgain => resumed += u32::from(self.go_on(key, &record, fate)),
                Fate::Lost => {
                    lost += 1;
                    self.say_lost(key, &record, cause);
                }
                Fate::Deadly => {
                    lost += u32::from(record.phase() == Phase::Open);
                    self.abandon(key, &record);
                }
            }
            self.connections.set_resuming(key, false);
        }
        // The places of those that ended just now are not among the holdings, so there is nothing to give
        // back.
        self.connections.released.clear();
        self.connections.true_up();
        self.tell_holdings();
        let took = clock::now().saturating_sub(began);
        self.announce(resumed, lost, took, cause);
    }

    fn announce(&mut self, resumed: u32, lost: u32, took: Duration, cause: Option<DeathCause>) {
        if let Some(cause) = cause {
            self.connections.table.counters().resumed += u64::from(resumed);
            log::warn!(
                "worker {} takes over from one that died of {cause}: {resumed} connections kept, {lost} lost, in {took:?}",
                self.incarnation
            );
        }
        let counters = Box::new(*self.connections.table.counters());
        self.tell(&ToSupervisor::Ready { incarnation: self.incarnation, resumed, lost, took, counters });
    }

    /// Says whether an established connection goes on.
    fn go_on(&mut self, key: Key, record: &Record, fate: Fate) -> bool {
        if let Err(error) = self.register(key) {
            log::error!("cannot watch the connection on descriptor {}: {error}", key.row);
            self.connections.end(key);
            return false;
        }
        match record.phase() {
            Phase::Open => self.connections.arm_open(key),
            phase => self.connections.enter(key, phase, record.deadline_ms),
        }
        if record.phase().is_pending() {
            self.handshakes.push_back(key);
        }
        if fate == Fate::AskedAgain {
            self.admission.ask(key, record.address(), self.now);
        }
        record.flags.contains(Flags::ADMITTED)
    }

    /// Tells the client, if its stream allows another frame, and lets it go.
    fn say_lost(&mut self, key: Key, record: &Record, cause: Option<DeathCause>) {
        crash_if_asked("close");
        if let Err(error) = self.register(key) {
            log::error!("cannot watch the connection on descriptor {}: {error}", key.row);
        }
        self.connections.mark_ending(key, CloseReason::WorkerLost);
        self.connections.table.counters().lost += 1;
        if record.flags.contains(Flags::FRAME_CUT) {
            // Half a frame is on the wire: a close frame would be read as its other half.
            self.connections.enter(key, Phase::Lingering, self.connections.close_deadline_ms());
        }
        let crashed_in_it = record.flags.contains(Flags::BUSY) && cause.is_some_and(is_crash);
        let (code, text) = match crashed_in_it {
            true => (CloseCode::Error, "The message could not be processed"),
            false => (CloseCode::Restart, "Worker restarted"),
        };
        self.connections.finish_close(key, Some(code), text, CloseReason::WorkerLost);
        self.connections.settle(key);
    }

    /// Lets it go without touching what it has to say or hear.
    fn abandon(&mut self, key: Key, record: &Record) {
        log::error!("closing connection {}, since a worker crashed while it took it over", record.id);
        if record.phase() == Phase::Open {
            self.connections.table.counters().lost += 1;
            self.connections.mark_ending(key, CloseReason::WorkerLost);
            self.connections.enter(key, Phase::Lingering, self.connections.close_deadline_ms());
        }
        self.connections.end(key);
    }

    fn tell_holdings(&mut self) {
        let mut holdings = BTreeMap::<IpAddr, u32>::new();
        for row in self.connections.table.used() {
            if let Some(record) = self.connections.table.records().get(row as usize)
                && record.flags.contains(Flags::ADMITTED)
            {
                *holdings.entry(record.address()).or_default() += 1;
            }
        }
        let holdings: Vec<(IpAddr, u32)> = holdings.into_iter().collect();
        for batch in holdings.chunks(MAX_BATCH) {
            self.tell(&ToSupervisor::Holdings { incarnation: self.incarnation, addresses: batch.to_vec() });
        }
    }
}

/// Did the worker die of something it did itself, as opposed to something done to it?
fn is_crash(cause: DeathCause) -> bool {
    use nix::sys::signal::Signal;
    [Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE]
        .into_iter()
        .any(|signal| cause == DeathCause::Signal(signal as i32))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use nix::sys::signal::Signal;

    use super::*;

    const KILLED: Option<DeathCause> = Some(DeathCause::Signal(Signal::SIGKILL as i32));

    fn record(phase: Phase, flags: Flags) -> Record {
        let mut record = Record::zeroed();
        record.begin(1, 1, "::1".parse().unwrap(), 0, 0);
        record.set_phase(phase);
        record.flags = flags;
        record
    }

    #[test]
    fn what_is_whole_goes_on_and_what_is_not_is_never_guessed_at() {
        for phase in Phase::ALL.into_iter().filter(|&phase| phase != Phase::Free) {
            for broken in [Flags::BUSY, Flags::UNSAVED, Flags::BUSY.union(Flags::UNSAVED)] {
                let expected = if phase == Phase::Open { Fate::Lost } else { Fate::Dropped };
                assert_eq!(fate(&record(phase, broken), true, KILLED), expected);
            }
            let expected = if phase == Phase::Parked { Fate::AskedAgain } else { Fate::Resumed };
            assert_eq!(fate(&record(phase, Flags::ADMITTED), true, KILLED), expected);
            assert_eq!(fate(&record(phase, Flags::NONE), false, KILLED), Fate::Vanished);
        }
    }

    #[test]
    fn what_a_worker_crashed_on_taking_it_over_is_not_tried_again_and_what_it_was_killed_on_is() {
        let crashed = Some(DeathCause::Signal(Signal::SIGSEGV as i32));
        for phase in Phase::ALL.into_iter().filter(|&phase| phase != Phase::Free) {
            for flags in [Flags::NONE, Flags::BUSY, Flags::UNSAVED] {
                let (fresh, marked) = (record(phase, flags), record(phase, flags.union(Flags::RESUMING)));
                assert_eq!(fate(&marked, true, crashed), Fate::Deadly);
                assert_eq!(fate(&marked, true, KILLED), fate(&fresh, true, KILLED));
                assert_eq!(fate(&fresh, true, crashed), fate(&fresh, true, KILLED));
                assert_eq!(fate(&marked, false, crashed), Fate::Vanished);
            }
        }
    }
}
