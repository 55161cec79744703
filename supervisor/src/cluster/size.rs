//! How many slots there are: what a new one needs, and what is left of one that is closed. When to do which is an
//! operation's business.

use std::io;

use holdfast_shared::id::SlotId;

use super::Cluster;
use super::lifecycle::{Event, Lifecycle, State};
use super::listeners::ListenError;
use super::slot::Slot;
use super::state::StateError;
use super::steering::Steering;

/// Why slots could not be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl Cluster {
    /// Sets how many clients each listener may queue.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        self.listeners.set_backlog(backlog)
    }

    /// How many slots are wanted.
    pub(crate) fn wanted(&self) -> u16 {
        self.wanted
    }

    /// Makes what `wanted` slots need, as far as that can fail: listeners, and room to remember them. Returns how
    /// many listeners were added, to be taken back with [`Cluster::close_listeners`].
    ///
    /// # Errors
    /// Nothing has changed.
    pub(crate) fn open_listeners(&mut self, wanted: u16, backlog: u32) -> Result<usize, ResizeError> {
        self.state.make_room(wanted.into())?;
        let more = usize::from(wanted).saturating_sub(self.slots.0.len());
        self.listeners.open(more, backlog)?;
        Ok(more)
    }

    /// Closes the listeners of the last `count` slots.
    pub(crate) fn close_listeners(&mut self, count: usize) {
        for _ in 0..count {
            self.listeners.close_last();
        }
    }

    /// From now on so many slots are wanted; there are listeners for all of them. Says whether any were added.
    pub(crate) fn want(&mut self, wanted: u16) -> bool {
        self.wanted = wanted;
        let before = self.slots.0.len();
        if before >= usize::from(wanted) {
            return false;
        }
        log::info!("{before} slots become {wanted}");
        while let Ok(number) = u16::try_from(self.slots.0.len())
            && number < wanted
        {
            // One that was there before goes on counting.
            let mut slot = self.retired.pop().unwrap_or_else(|| Slot::new(SlotId(number)));
            slot.life = Lifecycle::default();
            self.slots.0.push(slot);
            self.remember(SlotId(number));
        }
        self.note_new_groups();
        true
    }

    /// The slot gets no new clients any more, or gets them again.
    pub(crate) fn set_retiring(&mut self, slot: SlotId, retires: bool) {
        self.slots[slot].retires = retires;
    }

    /// Is nobody left in it, or on the way into it?
    pub(crate) fn is_deserted(&self, id: SlotId) -> bool {
        let slot = &self.slots[id];
        self.ledger.held_by(id) == 0
            && self.listeners.accept_queue(id).length == 0
            && match slot.state() {
                State::Ready(_) => slot.connections_now() == Some(0),
                State::Empty | State::BackingOff { .. } => true,
                State::Spawning
                | State::Starting(_)
                | State::WorkerDown(_)
                | State::Draining(_)
                | State::KeeperDown(_)
                | State::Left => false,
            }
    }

    /// The slot finishes what it has, and leaves.
    pub(crate) fn let_leave(&mut self, slot: SlotId) {
        self.step(slot, Event::Drain);
    }

    /// A slot that has left begins anew, or, if it is the last and too many, is closed. Says whether it could be.
    pub(crate) fn close_left(&mut self, id: SlotId) -> bool {
        if id.0 < self.wanted {
            self.slots[id].life = Lifecycle::default();
            self.slots[id].retires = false;
            return true;
        }
        let Some(mut slot) = self.slots.0.pop_if(|last| last.id == id) else { return false };
        log::info!("slot {id} is closed");
        self.lose_way(id);
        slot.retires = false;
        self.state.remember(&slot, 0);
        self.retired.push(slot);
        self.listeners.close_last();
        self.note_new_groups();
        true
    }

    /// The groups of listeners have changed.
    fn note_new_groups(&mut self) {
        self.state.set_places(self.listeners.places());
        let admitted = self.slots().map(|slot| slot.book.accepted()).sum();
        self.steering = Steering::new(self.listeners.places(), admitted);
    }
}
