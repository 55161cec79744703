//! Watches over the workers' wakefulness: tells each slot's heartbeat what happens, and does what it asks
//! for.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cluster::heartbeat::{Action, Event, Patience};
use crate::cluster::lifecycle::{State, Worker};
use crate::supervisor::{Supervisor, TICK};

impl Supervisor {
    /// A slot's worker said something.
    pub(crate) fn hear(&mut self, position: usize) {
        self.beat(position, Event::Heard);
    }

    /// Looks for workers that say nothing. Once a turn, after what they said was read.
    pub(crate) fn watch_heartbeats(&mut self) {
        // A turn that lasted longer than the loop ever sleeps was no time of listening.
        let awake = self.now.saturating_sub(self.listened_until).min(TICK);
        self.listened_until = self.now;
        for position in 0..self.slots.len() {
            let event = match self.watched(position) {
                Some(_) => Event::Passed(awake),
                None => Event::Gone,
            };
            self.beat(position, event);
        }
    }

    fn beat(&mut self, position: usize, event: Event) {
        let worker = self.watched(position);
        let seat = &mut self.slots[position];
        let patience = if seat.ready_since.is_some() { Patience::SERVING } else { Patience::STARTING };
        let (next, action) = seat.heartbeat.step(event, patience);
        seat.heartbeat = next;
        let (Some(worker), Some(action)) = (worker, action) else { return };
        let name = format!("slot {}: worker {} (pid {})", seat.id, worker.incarnation, worker.pid);
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
                self.signal(position, worker.pid, Signal::SIGABRT);
                // A process that is stopped dies of nothing but SIGKILL before it goes on.
                self.signal(position, worker.pid, Signal::SIGCONT);
            }
            Action::Kill => {
                log::error!("{name} does not die of SIGABRT: killing it");
                self.signal(position, worker.pid, Signal::SIGKILL);
            }
        }
    }

    /// The worker that should be heard of, if there is one: while its keeper lives, for only that can follow
    /// it up with another.
    fn watched(&self, position: usize) -> Option<Worker> {
        match self.slots[position].machine.state() {
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
