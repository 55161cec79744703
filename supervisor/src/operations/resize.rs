//! How many slots there are, changed while they serve. New ones join the groups of listeners and fill up. Those
//! that are too many, always the highest, retire: they get no new clients, let in who was on the way, pass their
//! connections to the others, and leave when they are empty. Not a client of theirs notices.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_shared::id::SlotId;

use crate::cluster::lifecycle::{Event, Lifecycle, State};
use crate::cluster::listeners::ListenError;
use crate::cluster::slot::Slot;
use crate::cluster::state::StateError;
use crate::cluster::steering::Steering;
use crate::supervisor::{Stage, Supervisor};

/// How long a slot that gets no new clients waits for those whose first packet has reached it: their handshake
/// takes a round trip, or, if an answer to it got lost, the second after which the kernel sends another.
const LAST_CALL: Duration = Duration::from_millis(1500);

/// Slots that are wanted, and those that are too many.
#[derive(Debug, Default)]
pub(crate) struct Scale {
    wanted: usize,
    retiring: BTreeMap<usize, Retirement>,
    /// New slots are to be filled from the others as soon as all serve.
    fill: bool,
}

/// A slot on its way out.
#[derive(Debug)]
struct Retirement {
    since: Duration,
    /// It is empty, and was told to leave.
    is_leaving: bool,
}

/// Why slots could not be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScaleError {
    /// Their listeners.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The memory of what must outlive the supervisor.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Scale {
    /// So many slots are wanted.
    pub(crate) fn new(wanted: u16) -> Self {
        Self { wanted: wanted.into(), ..Self::default() }
    }

    /// How many are wanted.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Is any on its way out?
    pub(crate) fn is_retiring(&self) -> bool {
        !self.retiring.is_empty()
    }

    /// Is this one?
    pub(crate) fn retires(&self, position: usize) -> bool {
        self.retiring.contains_key(&position)
    }
}

impl Supervisor {
    /// Makes what `wanted` slots need, as far as that can fail: listeners, and room to remember them.
    /// Returns how many listeners were added, to be taken back with [`Supervisor::close_listeners`].
    pub(crate) fn open_listeners(&mut self, wanted: u16, backlog: u32) -> Result<usize, ScaleError> {
        self.state.make_room(wanted.into())?;
        let more = usize::from(wanted).saturating_sub(self.slots.len());
        self.listeners.open(more, backlog)?;
        Ok(more)
    }

    /// Closes the listeners of the last `count` slots.
    pub(crate) fn close_listeners(&mut self, count: usize) {
        for _ in 0..count {
            self.listeners.close_last();
        }
    }

    /// From now on so many slots are wanted; there are listeners for all of them.
    pub(crate) fn scale_to(&mut self, wanted: u16) {
        self.scale.wanted = wanted.into();
        if self.slots.len() < self.scale.wanted {
            log::info!("{} slots become {wanted}", self.slots.len());
            self.add_slots();
        }
    }

    /// Does what can be done now; to be called in every turn.
    pub(crate) fn continue_scaling(&mut self) {
        if self.stage != Stage::Running || !self.admission_hold.is_open() {
            return;
        }
        self.begin_retirements();
        self.let_the_empty_leave();
        self.close_the_left();
        let serve = |seat: &Slot| matches!(seat.machine.state(), State::Ready(_));
        if self.scale.fill && self.slots.iter().all(serve) {
            self.scale.fill = false;
            self.rebalance(None);
        }
    }

    fn begin_retirements(&mut self) {
        let (now, wanted) = (self.now, self.scale.wanted);
        // One that is wanted again stays, unless it has been told to leave.
        self.scale.retiring.retain(|&position, retirement| position >= wanted || retirement.is_leaving);
        for position in wanted..self.slots.len() {
            if self.scale.retires(position) {
                continue;
            }
            let slot = self.slots[position].id;
            log::info!("slot {slot} retires with {} connections", self.ledger.held_by(slot));
            self.scale.retiring.insert(position, Retirement { since: now, is_leaving: false });
        }
    }

    fn let_the_empty_leave(&mut self) {
        let waiting = self.scale.retiring.iter().filter(|(_, retirement)| !retirement.is_leaving);
        let empty: Vec<usize> = waiting
            .filter(|&(&position, retirement)| {
                self.now >= retirement.since + LAST_CALL && self.can_leave(position)
            })
            .map(|(&position, _)| position)
            .collect();
        for position in empty {
            if let Some(retirement) = self.scale.retiring.get_mut(&position) {
                retirement.is_leaving = true;
            }
            self.step(position, Event::Drain);
        }
    }

    /// Is nobody left in it, or on the way into it?
    fn can_leave(&self, position: usize) -> bool {
        let seat = &self.slots[position];
        let is_empty = self.ledger.held_by(seat.id) == 0 && self.listeners.accept_queue(position).length == 0;
        let is_free = !self.moving.involves(position) && !self.is_replacing();
        is_empty
            && is_free
            && match seat.machine.state() {
                State::Ready(_) => seat.connections_now() == Some(0),
                State::Empty | State::BackingOff { .. } => true,
                State::Spawning
                | State::Starting(_)
                | State::WorkerDown(_)
                | State::Draining(_)
                | State::KeeperDown(_)
                | State::Left => false,
            }
    }

    /// Closes the listeners of slots that have left, the last first; one that is wanted again begins anew.
    fn close_the_left(&mut self) {
        let left: Vec<usize> = self
            .scale
            .retiring
            .keys()
            .copied()
            .filter(|&position| matches!(self.slots[position].machine.state(), State::Left))
            .collect();
        for position in left.into_iter().rev() {
            if position < self.scale.wanted {
                self.scale.retiring.remove(&position);
                self.slots[position].machine = Lifecycle::default();
            } else if position + 1 == self.slots.len() {
                self.scale.retiring.remove(&position);
                let Some(seat) = self.slots.pop() else { return };
                log::info!("slot {} is closed", seat.id);
                self.state.remember(position, &seat, 0);
                self.retired.push(seat);
                self.listeners.close_last();
                self.note_new_groups();
            }
        }
    }

    fn add_slots(&mut self) {
        while self.slots.len() < self.scale.wanted {
            let Ok(number) = u16::try_from(self.slots.len()) else { break };
            // One that was there before goes on counting.
            let mut seat = self.retired.pop().unwrap_or_else(|| Slot::new(SlotId(number)));
            seat.machine = Lifecycle::default();
            self.slots.push(seat);
            self.remember(usize::from(number));
        }
        self.scale.fill = true;
        self.note_new_groups();
    }

    /// The groups of listeners have changed.
    fn note_new_groups(&mut self) {
        self.state.set_places(self.listeners.places());
        let admitted = self.slots.iter().map(|seat| seat.admitted.accepted).sum();
        self.steering = Steering::new(self.listeners.places(), admitted);
    }
}
