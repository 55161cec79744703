//! Nobody is let in before every adopted slot has said whom it holds: until then the count is below the
//! truth, and the cap would be passed. Clients that ask meanwhile are kept here. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use holdfast_shared::id::{Incarnation, Ticket};

/// Tickets kept at most; clients behind them are refused.
const MAX_HELD: usize = 256 * 1024;

/// Tickets that came before the gate was open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The slot's place.
    pub(crate) position: usize,
    /// The worker that asked.
    pub(crate) incarnation: Incarnation,
    /// Who asks.
    pub(crate) tickets: Vec<(Ticket, IpAddr)>,
}

/// The gate.
#[derive(Debug, Default)]
pub(crate) struct AdmissionHold {
    awaited: BTreeSet<usize>,
    held: Vec<Held>,
    tickets: usize,
}

impl AdmissionHold {
    /// A gate that opens when the slots at all of these places have reported.
    pub(crate) fn new(awaited: impl IntoIterator<Item = usize>) -> Self {
        Self { awaited: awaited.into_iter().collect(), held: Vec::new(), tickets: 0 }
    }

    /// May clients be let in?
    pub(crate) fn is_open(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Has the slot at `position` yet to report?
    pub(crate) fn awaits(&self, position: usize) -> bool {
        self.awaited.contains(&position)
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

    /// The slot at `position` has reported, or holds nothing any more. `Some` if it was the last awaited:
    /// these tickets are to be answered now, in this order.
    pub(crate) fn reported(&mut self, position: usize) -> Option<Vec<Held>> {
        if !self.awaited.remove(&position) || !self.awaited.is_empty() {
            return None;
        }
        self.tickets = 0;
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(position: usize, tickets: usize) -> Held {
        let ticket = (Ticket(1), IpAddr::from([192, 0, 2, 1]));
        Held { position, incarnation: Incarnation(1), tickets: vec![ticket; tickets] }
    }

    #[test]
    fn it_opens_once_with_the_last_report_and_keeps_the_order() {
        let mut gate = AdmissionHold::new([0, 2]);
        assert!(!gate.is_open() && gate.awaits(2) && !gate.awaits(1));
        assert_eq!((gate.hold(held(1, 1)), gate.hold(held(0, 2))), (Ok(()), Ok(())));
        assert_eq!(gate.reported(1), None);
        assert_eq!(gate.reported(2), None);
        assert_eq!(gate.reported(2), None);
        assert_eq!(gate.reported(0), Some(vec![held(1, 1), held(0, 2)]));
        assert!(gate.is_open());
        assert_eq!(gate.reported(0), None);
    }

    #[test]
    fn without_adopted_slots_it_is_open() {
        assert!(AdmissionHold::default().is_open());
        assert_eq!(AdmissionHold::default().reported(0), None);
    }

    #[test]
    fn what_it_keeps_is_bounded() {
        let mut gate = AdmissionHold::new([0]);
        assert_eq!(gate.hold(held(0, MAX_HELD)), Ok(()));
        assert_eq!(gate.hold(held(0, 1)), Err(held(0, 1)));
        assert_eq!(gate.reported(0).map(|all| all.len()), Some(1));
    }
}
