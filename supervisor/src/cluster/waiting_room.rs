//! Clients that wait for a place because the cap is reached: first come, first served over all slots, for a bounded time.
//! Keeps the order and the time; whether there is a place, the ledger knows. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId, Ticket};

/// One client that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) slot: SlotId,
    /// The worker that asked for it.
    pub(super) incarnation: Incarnation,
    pub(super) ticket: Ticket,
    pub(super) address: IpAddr,
    /// Since when.
    pub(super) since: Duration,
}

/// Who waits, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct WaitingRoom {
    places: usize,
    timeout: Duration,
    queue: BTreeMap<u64, Waiting>,
    numbers: HashMap<(SlotId, Incarnation, Ticket), u64>,
    last: u64,
}

impl WaitingRoom {
    /// So many may wait, for so long. Returns those who are too many now: those who came last.
    pub(super) fn set(&mut self, places: usize, timeout: Duration) -> Vec<Waiting> {
        (self.places, self.timeout) = (places, timeout);
        let mut surplus = Vec::new();
        while self.queue.len() > places {
            let last = self.queue.last_key_value().map(|(&number, _)| number);
            surplus.extend(last.and_then(|number| self.take(number)));
        }
        surplus
    }

    /// How many may wait.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// One more waits; false if there is no place.
    #[must_use]
    pub(super) fn enter(&mut self, waiting: Waiting) -> bool {
        if self.queue.len() >= self.places {
            return false;
        }
        self.last += 1;
        self.numbers.insert((waiting.slot, waiting.incarnation, waiting.ticket), self.last);
        self.queue.insert(self.last, waiting);
        true
    }

    /// Who has waited longest.
    pub(super) fn head(&self) -> Option<&Waiting> {
        self.queue.first_key_value().map(|(_, waiting)| waiting)
    }

    /// Who has waited longest leaves.
    pub(super) fn take_head(&mut self) -> Option<Waiting> {
        let (&number, _) = self.queue.first_key_value()?;
        self.take(number)
    }

    /// This client waits no longer. `None` if it did not.
    pub(super) fn leave(
        &mut self,
        slot: SlotId,
        incarnation: Incarnation,
        ticket: Ticket,
    ) -> Option<Waiting> {
        let number = *self.numbers.get(&(slot, incarnation, ticket))?;
        self.take(number)
    }

    /// Workers of `slot` before `newest` are gone: nobody of theirs waits here. The next worker asks again for those whom it
    /// takes over.
    pub(super) fn leave_slot(&mut self, slot: SlotId, newest: Incarnation) {
        self.queue.retain(|_, waiting| waiting.slot != slot || waiting.incarnation >= newest);
        self.numbers.retain(|&(of, incarnation, _), _| of != slot || incarnation >= newest);
    }

    /// Takes whoever has waited long enough.
    pub(super) fn take_late(&mut self, now: Duration) -> Option<Waiting> {
        self.head().filter(|head| head.since + self.timeout <= now)?;
        self.take_head()
    }

    /// When the next one will have waited long enough.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.head().map(|head| head.since + self.timeout)
    }

    fn take(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.queue.remove(&number)?;
        self.numbers.remove(&(waiting.slot, waiting.incarnation, waiting.ticket));
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn waiting(slot: u16, incarnation: u32, ticket: u64, since_ms: u64) -> Waiting {
        Waiting {
            slot: SlotId(slot),
            incarnation: Incarnation(incarnation),
            ticket: Ticket(ticket),
            address: IpAddr::from([192, 0, 2, 1]),
            since: Duration::from_millis(since_ms),
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Enter { slot: u16 },
        Head,
        Leave { place: prop::sample::Index },
        Death { slot: u16 },
        Pass { ms: u64 },
        Places { places: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_u16).prop_map(|slot| Step::Enter { slot }),
            2 => Just(Step::Head),
            2 => any::<prop::sample::Index>().prop_map(|place| Step::Leave { place }),
            1 => (0..3_u16).prop_map(|slot| Step::Death { slot }),
            2 => (0..400_u64).prop_map(|ms| Step::Pass { ms }),
            1 => (0..12_usize).prop_map(|places| Step::Places { places }),
        ]
    }

    proptest! {
        /// Against the plainest queue there is.
        #[test]
        fn who_comes_first_is_served_first(steps in prop::collection::vec(step(), 1..200)) {
            const TIMEOUT: Duration = Duration::from_millis(1_000);
            let mut room = WaitingRoom::default();
            let (mut model, mut places) = (VecDeque::new(), 10);
            prop_assert_eq!(room.set(places, TIMEOUT), []);
            let (mut now_ms, mut tickets, mut incarnations) = (0, 0, [1_u32; 3]);
            for step in steps {
                match step {
                    Step::Enter { slot } => {
                        tickets += 1;
                        let one = waiting(slot, incarnations[usize::from(slot)], tickets, now_ms);
                        prop_assert_eq!(room.enter(one), model.len() < places);
                        if model.len() < places {
                            model.push_back(one);
                        }
                    }
                    Step::Head => prop_assert_eq!(room.take_head(), model.pop_front()),
                    Step::Leave { place } => {
                        if !model.is_empty() {
                            let gone: Waiting = model.remove(place.index(model.len())).unwrap();
                            prop_assert_eq!(room.leave(gone.slot, gone.incarnation, gone.ticket), Some(gone));
                            prop_assert_eq!(room.leave(gone.slot, gone.incarnation, gone.ticket), None);
                        }
                    }
                    Step::Death { slot } => {
                        incarnations[usize::from(slot)] += 1;
                        room.leave_slot(SlotId(slot), Incarnation(incarnations[usize::from(slot)]));
                        model.retain(|one| one.slot != SlotId(slot));
                    }
                    Step::Pass { ms } => {
                        now_ms += ms;
                        let now = Duration::from_millis(now_ms);
                        while let Some(late) = room.take_late(now) {
                            prop_assert_eq!(Some(late), model.pop_front());
                        }
                        prop_assert!(model.front().is_none_or(|head| head.since + TIMEOUT > now));
                    }
                    Step::Places { places: next } => {
                        places = next;
                        let mut surplus = Vec::new();
                        while model.len() > places {
                            surplus.extend(model.pop_back());
                        }
                        prop_assert_eq!(room.set(places, TIMEOUT), surplus);
                    }
                }
                prop_assert_eq!(room.len(), model.len());
                prop_assert_eq!(room.numbers.len(), model.len());
                prop_assert_eq!(room.head(), model.front());
                prop_assert_eq!(room.deadline(), model.front().map(|head| head.since + TIMEOUT));
            }
        }
    }
}
