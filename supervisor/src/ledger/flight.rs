//! Connections on their way from one slot to another. They are counted as held by the flight: by neither slot
//! alone, for nobody knows which of the two will have them, and by both together once. So the count is the
//! truth throughout, whatever becomes of either slot meanwhile.

use std::net::IpAddr;

use holdfast_shared::id::{Incarnation, SlotId};

use super::holdings::Holdings;
use super::{Ledger, Phase};

/// Where they are kept among what slots hold. No slot has this number.
const FLIGHT: SlotId = SlotId(u16::MAX);

impl Ledger {
    /// A connection of `address` is about to leave `slot`. One that is not held there is an anomaly. Ignored
    /// from a worker that no longer fills the slot.
    pub fn give(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr) {
        let account = self.accounts.get_mut(&slot).filter(|account| account.newest == incarnation);
        let Some(account) = account else { return };
        if matches!(account.phase, Phase::Serving) && self.held.remove(slot, address) {
            account.held = account.held.saturating_sub(1);
            self.held.add(FLIGHT, address, 1);
            self.flying += 1;
        } else {
            self.note_anomaly();
        }
    }

    /// A connection of `address` that was in flight has arrived in `slot`, or has never left it. Ignored from
    /// a worker that no longer fills the slot: its successor reports what it has. One that was not in flight
    /// is counted from now on, and an anomaly.
    pub fn land(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr) {
        let account = self.accounts.get_mut(&slot).filter(|account| account.newest == incarnation);
        let Some(account) = account.filter(|account| matches!(account.phase, Phase::Serving)) else { return };
        account.held += 1;
        self.held.add(slot, address, 1);
        if self.held.remove(FLIGHT, address) {
            self.flying = self.flying.saturating_sub(1);
        } else {
            self.connections += 1;
            self.note_anomaly();
        }
    }

    /// Both slots have said whom they hold since: who is still in flight is held by one of them, or by nobody.
    /// Returns how many those were.
    pub fn end_flight(&mut self) -> u64 {
        let left = std::mem::take(&mut self.flying);
        if left > 0 {
            self.connections = self.connections.saturating_sub(left);
            self.held.replace(FLIGHT, &Holdings::default());
        }
        left
    }

    /// Connections on their way from one slot to another.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.flying
    }
}
