//! Nobody is let in before every adopted slot has said whom it holds: until then the count is below the
//! truth, and the cap would be passed. Clients that ask meanwhile are kept here. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use holdfast_shared::id::{Incarnation, SlotId, Ticket};

/// Tickets kept at most; clients behind them are refused.
const MAX_HELD: usize = 256 * 1024;

/// Tickets that came before clients were let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Where they came.
    pub(crate) slot: SlotId,
    /// The worker that asked.
    pub(crate) incarnation: Incarnation,
    /// Who asks.
    pub(crate) tickets: Vec<(Ticket, IpAddr)>,
}

/// The hold.
#[derive(Debug, Default)]
pub(crate) struct AdmissionHold {
    awaited: BTreeSet<SlotId>,
    held: Vec<Held>,
    tickets: usize,
}

impl AdmissionHold {
    /// A hold that ends when the all of these slots have reported.
    pub(crate) fn new(awaited: impl IntoIterator<Item = SlotId>) -> Self {
        Self { awaited: awaited.into_iter().collect(), held: Vec::new(), tickets: 0 }
    }

    /// May clients be let in?
    pub(crate) fn is_released(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Has `slot` yet to report?
    pub(crate) fn awaits(&self, slot: SlotId) -> bool {
        self.awaited.contains(&slot)
    }

    /// Keeps tickets for later. Gives them back if there is no room: somebody waits for each.
    pub(crate) fn hold(&mut self, held: Held) -> Result<(), Held> {
        let tickets = self.tickets + held.tickets.len();
        if tickets > MAX_HELD {
            return Err(held);
        }
        self.tickets = tickets;
        self.held.push(held);
        Ok(())
    }

    /// `slot` has reported, or holds nothing any more. `Some` if it was the last awaited:
    /// these tickets are to be answered now, in this order.
    pub(crate) fn reported(&mut self, slot: SlotId) -> Option<Vec<Held>> {
        if !self.awaited.remove(&slot) || !self.awaited.is_empty() {
            return None;
        }
        self.tickets = 0;
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(slot: SlotId, tickets: usize) -> Held {
        let ticket = (Ticket(1), IpAddr::from([192, 0, 2, 1]));
        Held { slot, incarnation: Incarnation(1), tickets: vec![ticket; tickets] }
    }

    #[test]
    fn it_ends_once_with_the_last_report_and_keeps_the_order() {
        let mut hold = AdmissionHold::new([SlotId(0), SlotId(2)]);
        assert!(!hold.is_released() && hold.awaits(SlotId(2)) && !hold.awaits(SlotId(1)));
        assert_eq!((hold.hold(held(SlotId(1), 1)), hold.hold(held(SlotId(0), 2))), (Ok(()), Ok(())));
        assert_eq!(hold.reported(SlotId(1)), None);
        assert_eq!(hold.reported(SlotId(2)), None);
        assert_eq!(hold.reported(SlotId(2)), None);
        assert_eq!(hold.reported(SlotId(0)), Some(vec![held(SlotId(1), 1), held(SlotId(0), 2)]));
        assert!(hold.is_released());
        assert_eq!(hold.reported(SlotId(0)), None);
    }

    #[test]
    fn without_adopted_slots_it_is_released() {
        assert!(AdmissionHold::default().is_released());
        assert_eq!(AdmissionHold::default().reported(SlotId(0)), None);
    }

    #[test]
    fn what_it_keeps_is_bounded() {
        let mut hold = AdmissionHold::new([SlotId(0)]);
        assert_eq!(hold.hold(held(SlotId(0), MAX_HELD)), Ok(()));
        assert_eq!(hold.hold(held(SlotId(0), 1)), Err(held(SlotId(0), 1)));
        assert_eq!(hold.reported(SlotId(0)).map(|all| all.len()), Some(1));
    }
}
