//! Bringing a table back to life: what a new worker does with the connections of a dead one. The same path
//! serves the first worker of a slot, which finds none.
//!
//! A record tells whether its connection can go on: all there is to know is in it, unless it says `UNSAVED`
//! (half a message, or queued output, was on the dead worker's heap) or `BUSY` (the worker died in the middle
//! of it). A worker that left on purpose has saved what was on its heap, so that all of its connections go on.
//! And each is marked while it is dealt with, so that one that kills its new worker too is not dealt with for
//! ever.
//!
//! Those who were active last are watched again first, and served while the others follow: a client that waits
//! for an answer is kept waiting for a slice, not for everybody.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::counters::Counters;
use holdfast_shared::ipc::message::{DeathCause, MAX_BATCH, WorkerMessage};
use holdfast_shared::reason::CloseReason;
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Flags, Phase, Record};
use log::Level;
use mio::Events;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::connection::{Key, descriptor_of};
use crate::life::event_loop::Worker;
use crate::life::run::Predecessor;
use crate::serve::EVENTS_PER_TURN;
use crate::test_hooks::crash_if_asked;

/// Connections that are watched again before those that are ready are served.
const SLICE: usize = 512;

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
    CrashSuspect,
    /// Over: only its application has yet to be told.
    Untold,
    /// Over, and the last worker crashed while its application was told.
    Told,
    /// The descriptor was closed before the record was freed: only the record is left.
    Vanished,
}

/// `has_state` says that what `UNSAVED` speaks of was saved and has been taken up.
fn fate(record: &Record, descriptor_is_open: bool, has_state: bool, predecessor: Predecessor) -> Fate {
    if !descriptor_is_open {
        return Fate::Vanished;
    }
    if record.flags.contains(Flags::RESUMING) && has_crashed(predecessor) {
        return Fate::CrashSuspect;
    }
    if record.phase() == Phase::Ended {
        let killed_its_worker = record.flags.contains(Flags::BUSY) && has_crashed(predecessor);
        return if killed_its_worker { Fate::Told } else { Fate::Untold };
    }
    let broken = record.flags.contains(Flags::BUSY) || record.flags.contains(Flags::UNSAVED) && !has_state;
    match (record.phase(), broken) {
        (Phase::Open, true) => Fate::Lost,
        (
            Phase::Handshake | Phase::AwaitingAdmission | Phase::Refusing | Phase::Closing | Phase::Lingering,
            true,
        ) => Fate::Dropped,
        (Phase::AwaitingAdmission, false) => Fate::AskedAgain,
        (Phase::Free | Phase::Ended, _) => Fate::Vanished,
        (Phase::Handshake | Phase::Refusing | Phase::Open | Phase::Closing | Phase::Lingering, false) => {
            Fate::Resumed
        }
    }
}

/// Closes every descriptor that nobody owns: the dead worker's epoll instance, and a client it had accepted
/// and not yet recorded. To be called before the new worker opens anything. Returns the descriptors that
/// stay.
pub(crate) fn close_strays(
    owned: impl Iterator<Item = RawFd>,
    records: &[Record],
) -> io::Result<HashSet<RawFd>> {
    let owned: HashSet<RawFd> = owned.collect();
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
    /// Takes over every connection in the table and tells the supervisor what is held.
    ///
    /// # Errors
    /// When the kernel's readiness can no longer be had.
    pub(crate) fn resume(&mut self, open: &HashSet<RawFd>, predecessor: Predecessor) -> io::Result<()> {
        let began = clock::now();
        self.update_availability();
        let connections = &mut self.server.clients.connections;
        let mut keys: Vec<Key> = connections.table.used().filter_map(|row| connections.key_at(row)).collect();
        let before = keys.len();
        keys.retain(|&key| !connections.drop_in_transit(key, open.contains(&descriptor_of(key))));
        if keys.len() < before {
            log::warn!("{} connections were between two slots; the other one has them", before - keys.len());
        }
        for &key in &keys {
            self.server.clients.connections.take_over(key.row);
            if !has_crashed(predecessor) {
                self.server.clients.connections.set_resuming(key, false);
            }
        }
        let stopped = self.take_up();
        let mut staying = Vec::new();
        let mut lost = 0;
        for key in keys {
            let Some(&record) = self.server.clients.connections.record_of(key) else { continue };
            let is_open = open.contains(&descriptor_of(key));
            let fate = fate(&record, is_open, record.heap_state != 0, predecessor);
            self.server.clients.connections.set_resuming(key, true);
            match fate {
                // The number may be somebody else's by now, our own epoll instance's even.
                Fate::Vanished => self.server.clients.connections.forget(key),
                Fate::Dropped => self.server.clients.connections.end(key),
                Fate::Untold => self.server.clients.connections.ended.push(key),
                Fate::Told => self.server.clients.connections.finish_end(key),
                fate @ (Fate::Resumed | Fate::AskedAgain) => {
                    staying.push((key, fate, record.last_active_ms()));
                }
                Fate::Lost => {
                    lost += 1;
                    self.say_lost(key, &record, predecessor);
                }
                Fate::CrashSuspect => {
                    lost += u32::from(record.phase() == Phase::Open);
                    self.abandon(key, &record);
                }
            }
            self.server.clients.connections.set_resuming(key, false);
        }
        // Those who stay first: who is told that others left may have something to say to them.
        for &(key, ..) in &staying {
            self.server.clients.connections.set_resuming(key, true);
            self.server.clients.resume(key);
            self.server.clients.connections.set_resuming(key, false);
        }
        self.server.clients.finish_ended();
        // The places of those that ended just now are not among the holdings, so there is nothing to give
        // back.
        self.server.clients.connections.released.clear();
        self.server.clients.connections.reconcile();
        self.tell_holdings();
        // As of the holdings: whoever ends from now on is given back.
        let counters = Box::new(*self.server.clients.connections.table.counters());
        let resumed = self.go_on_in_slices(staying)?;
        let took = clock::now().saturating_sub(stopped.unwrap_or(began));
        self.announce(resumed, lost, took, predecessor, counters);
        Ok(())
    }

    fn announce(
        &mut self,
        resumed: u32,
        lost: u32,
        took: Duration,
        predecessor: Predecessor,
        mut counters: Box<Counters>,
    ) {
        let what_happened = match predecessor {
            Predecessor::Nobody => None,
            Predecessor::Died(cause) => Some((Level::Warn, format!("one that died of {cause}"))),
            Predecessor::HandedOver => Some((Level::Info, "one that handed over".to_owned())),
        };
        if let Some((level, last)) = what_happened {
            self.server.clients.connections.table.counters().resumed += u64::from(resumed);
            counters.resumed += u64::from(resumed);
            log::log!(
                level,
                "worker {} takes over from {last}: {resumed} connections kept, {lost} lost, in {took:?}",
                self.incarnation
            );
        }
        self.server.clients.connections.table.header_mut().ready_incarnation = self.incarnation.0;
        self.tell(WorkerMessage::Ready { resumed, lost, took, counters });
    }

    /// Goes on with all of `staying`, those first who were active last. Returns how many established ones go
    /// on.
    fn go_on_in_slices(&mut self, mut staying: Vec<(Key, Fate, u64)>) -> io::Result<u32> {
        staying.sort_unstable_by_key(|&(_, _, active_ms)| Reverse(active_ms));
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        let mut resumed = 0;
        for slice in staying.chunks(SLICE) {
            for &(key, fate, _) in slice {
                self.server.clients.connections.set_resuming(key, true);
                resumed += u32::from(self.go_on(key, fate));
                self.server.clients.connections.set_resuming(key, false);
            }
            self.server.serve_ready(&mut events, Some(Duration::ZERO))?;
            self.server.clients.continue_reading();
        }
        // Whoever came first and has said least makes room first.
        let connections = &self.server.clients.connections;
        let came_at = |key: &Key| connections.get(*key).map(|record| record.opened_ms);
        self.server.handshakes.make_contiguous().sort_by_key(came_at);
        Ok(resumed)
    }

    /// Says whether an established connection goes on.
    fn go_on(&mut self, key: Key, fate: Fate) -> bool {
        let Some(&record) = self.server.clients.connections.get(key) else { return false };
        if let Err(error) = self.server.register(key) {
            log::error!("cannot watch the connection on descriptor {}: {error}", key.row);
            self.server.clients.connections.end(key);
            return false;
        }
        match record.phase() {
            Phase::Open => self.server.clients.connections.arm_resumed(key),
            phase => self.server.clients.connections.enter(key, phase, record.deadline_ms),
        }
        if record.phase().is_pending() {
            self.server.handshakes.push_back(key);
        }
        if fate == Fate::AskedAgain {
            self.server.admission.ask(key, record.address(), self.server.now);
        }
        record.flags.contains(Flags::ADMITTED)
    }

    /// Tells the client, if its stream allows another frame, and lets it go.
    fn say_lost(&mut self, key: Key, record: &Record, predecessor: Predecessor) {
        crash_if_asked("close");
        if let Err(error) = self.server.register(key) {
            log::error!("cannot watch the connection on descriptor {}: {error}", key.row);
        }
        self.server.clients.connections.mark_ending(key, CloseReason::WorkerLost);
        self.server.clients.connections.table.counters().lost += 1;
        if record.flags.contains(Flags::FRAME_CUT) {
            // Half a frame is on the wire: a close frame would be read as its other half.
            self.server.clients.connections.enter(
                key,
                Phase::Lingering,
                self.server.clients.connections.close_deadline_ms(),
            );
        }
        let crashed_in_it = record.flags.contains(Flags::BUSY) && has_crashed(predecessor);
        let (code, text) = match crashed_in_it {
            true => (CloseCode::Error, "The message could not be processed"),
            false => (CloseCode::Restart, "Worker restarted"),
        };
        self.server.clients.connections.finish_close(key, Some(code), text, CloseReason::WorkerLost);
        self.server.clients.connections.settle(key);
    }

    /// Lets it go without touching what it has to say or hear.
    fn abandon(&mut self, key: Key, record: &Record) {
        log::error!("closing connection {}, since a worker crashed while it took it over", record.id);
        if record.phase() == Phase::Open {
            self.server.clients.connections.table.counters().lost += 1;
            self.server.clients.connections.mark_ending(key, CloseReason::WorkerLost);
            self.server.clients.connections.enter(
                key,
                Phase::Lingering,
                self.server.clients.connections.close_deadline_ms(),
            );
        }
        self.server.clients.connections.end(key);
    }

    /// Tells the supervisor who is in, by address.
    pub(crate) fn tell_holdings(&mut self) {
        let mut holdings = BTreeMap::<IpAddr, u32>::new();
        for row in self.server.clients.connections.occupied_rows(0) {
            if let Some(record) = self.server.clients.connections.table.records().get(row as usize)
                && record.flags.contains(Flags::ADMITTED)
            {
                *holdings.entry(record.address()).or_default() += 1;
            }
        }
        let holdings: Vec<(IpAddr, u32)> = holdings.into_iter().collect();
        for batch in holdings.chunks(MAX_BATCH) {
            self.tell(WorkerMessage::Holdings { addresses: batch.to_vec() });
        }
    }
}

/// Did the worker die of something it did itself, as opposed to something done to it?
fn has_crashed(predecessor: Predecessor) -> bool {
    let Predecessor::Died(cause) = predecessor else { return false };
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

    const KILLED: Predecessor = Predecessor::Died(DeathCause::Signal(Signal::SIGKILL as i32));

    const LIVE: [Phase; 6] = [
        Phase::Handshake,
        Phase::AwaitingAdmission,
        Phase::Refusing,
        Phase::Open,
        Phase::Closing,
        Phase::Lingering,
    ];

    fn record(phase: Phase, flags: Flags) -> Record {
        let mut record = Record::zeroed();
        record.begin(1, 1, "::1".parse().unwrap(), 0, 0);
        record.set_phase(phase);
        record.flags = flags;
        record
    }

    #[test]
    fn what_is_whole_goes_on_and_what_is_not_is_never_guessed_at() {
        for phase in LIVE {
            for broken in [Flags::BUSY, Flags::UNSAVED, Flags::BUSY.union(Flags::UNSAVED)] {
                let expected = if phase == Phase::Open { Fate::Lost } else { Fate::Dropped };
                assert_eq!(fate(&record(phase, broken), true, false, KILLED), expected);
            }
            let expected = if phase == Phase::AwaitingAdmission { Fate::AskedAgain } else { Fate::Resumed };
            assert_eq!(fate(&record(phase, Flags::UNSAVED), true, true, KILLED), expected);
            assert_eq!(fate(&record(phase, Flags::ADMITTED), true, false, KILLED), expected);
            assert_eq!(fate(&record(phase, Flags::NONE), false, false, KILLED), Fate::Vanished);
        }
    }

    #[test]
    fn an_application_is_told_of_an_end_unless_that_is_what_killed_the_worker() {
        let crashed = Predecessor::Died(DeathCause::Signal(Signal::SIGSEGV as i32));
        for (flags, predecessor, expected) in [
            (Flags::NONE, crashed, Fate::Untold),
            (Flags::BUSY, KILLED, Fate::Untold),
            (Flags::BUSY, crashed, Fate::Told),
        ] {
            assert_eq!(fate(&record(Phase::Ended, flags), true, false, predecessor), expected);
        }
    }

    #[test]
    fn what_a_worker_crashed_on_taking_it_over_is_not_tried_again_and_what_it_was_killed_on_is() {
        let crashed = Predecessor::Died(DeathCause::Signal(Signal::SIGSEGV as i32));
        for phase in LIVE {
            for flags in [Flags::NONE, Flags::BUSY, Flags::UNSAVED] {
                let (fresh, marked) = (record(phase, flags), record(phase, flags.union(Flags::RESUMING)));
                assert_eq!(fate(&marked, true, false, crashed), Fate::CrashSuspect);
                assert_eq!(fate(&marked, true, false, KILLED), fate(&fresh, true, false, KILLED));
                assert_eq!(fate(&fresh, true, false, crashed), fate(&fresh, true, false, KILLED));
                assert_eq!(fate(&marked, false, false, crashed), Fate::Vanished);
            }
        }
    }
}
