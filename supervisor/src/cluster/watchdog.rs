//! Watches over the workers' wakefulness: tells each slot's heartbeat what happens, and does what it asks
//! for.

use std::time::Duration;

use holdfast_shared::id::SlotId;
use nix::sys::signal::Signal;

use super::heartbeat::{Action, Event, Patience};
use super::lifecycle::{State, Worker};
use super::{Cluster, TICK};

impl Cluster {
    /// A slot's worker said something.
    pub(super) fn hear(&mut self, slot: SlotId) {
        self.beat(slot, Event::Heard);
    }

    /// Looks for workers that say nothing. Once a turn, after what they said was read.
    pub(super) fn watch_heartbeats(&mut self) {
        // A turn that lasted longer than the loop ever sleeps was no time of listening.
        let awake = self.now.saturating_sub(self.listened_until).min(TICK);
        self.listened_until = self.now;
        for slot in self.slots.ids() {
            let event = match self.watched(slot) {
                Some(_) => Event::Passed(awake),
                None => Event::Gone,
            };
            self.beat(slot, event);
        }
    }

    fn beat(&mut self, slot: SlotId, event: Event) {
        let worker = self.watched(slot);
        let record = &mut self.slots[slot];
        let patience = if record.answers() { Patience::SERVING } else { Patience::STARTING };
        let (next, action) = record.heartbeat.step(event, patience);
        record.heartbeat = next;
        let (Some(worker), Some(action)) = (worker, action) else { return };
        let name = format!("slot {slot}: worker {} (pid {})", worker.incarnation, worker.pid);
        match action {
            Action::SteerAway(silence) => {
                log::warn!("{name} has said nothing for {}: it gets no new clients", seconds(silence));
            }
            Action::Welcome(silence) => {
                log::info!("{name} speaks again after {}, and gets new clients", seconds(silence));
            }
            Action::Abort(silence) => {
                log::error!(
                    "{name} has said nothing for {}: aborting it, the next one takes over",
                    seconds(silence)
                );
                self.signal(slot, worker.pid, Signal::SIGABRT);
                // A process that is stopped dies of nothing but SIGKILL before it goes on.
                self.signal(slot, worker.pid, Signal::SIGCONT);
            }
            Action::Kill => {
                log::error!("{name} does not die of SIGABRT: killing it");
                self.signal(slot, worker.pid, Signal::SIGKILL);
            }
        }
    }

    /// The worker that should be heard of, if there is one: while its keeper lives, for only that can follow
    /// it up with another.
    fn watched(&self, slot: SlotId) -> Option<Worker> {
        match self.slots[slot].state() {
            State::Starting(life) | State::Ready(life) | State::WorkerDown(life) | State::Draining(life) => {
                life.worker
            }
            State::Empty
            | State::Spawning
            | State::KeeperDown(_)
            | State::BackingOff { .. }
            | State::Left => None,
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
