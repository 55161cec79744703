//! Who is let in: tickets come from workers, the ledger decides, verdicts go back. Those for whom only a place is missing may
//! wait for one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId, Ticket};
use holdfast_shared::ipc::message::{MAX_BATCH, ToWorker, Verdict};
use holdfast_shared::reason::Rejection;

use super::Cluster;
use super::ledger::Admission;
use super::waiting_room::Waiting;

/// Between two looks for who waits, when a rate keeps them out although there are places.
const PAUSE: Duration = Duration::from_millis(50);

/// Verdicts that are ready, for the worker that asked.
type Verdicts = BTreeMap<(SlotId, Incarnation), Vec<(Ticket, Verdict)>>;

impl Cluster {
    /// Clients ask to be let in.
    pub(super) fn on_admit(
        &mut self,
        slot: SlotId,
        incarnation: Incarnation,
        tickets: Vec<(Ticket, IpAddr)>,
    ) {
        if !self.is_counted() {
            return self.hold(slot, incarnation, tickets);
        }
        // What became free since then is not theirs.
        self.admit_waiting();
        let mut verdicts = Verdicts::new();
        for (ticket, address) in tickets {
            let waiting = Waiting { slot, incarnation, ticket, address, since: self.now };
            match self.ledger.admit(slot, incarnation, address) {
                Admission::Granted => note(&mut verdicts, &waiting, Verdict::Granted),
                Admission::Refused(Rejection::MaxConnections) if self.waiting_room.enter(waiting) => {}
                Admission::Refused(reason) => note(&mut verdicts, &waiting, Verdict::Refused(reason)),
                Admission::Stale => {}
            }
        }
        self.send(verdicts);
    }

    /// Clients that wait have left.
    pub(super) fn on_withdraw(&mut self, slot: SlotId, incarnation: Incarnation, tickets: &[Ticket]) {
        let mut verdicts = Verdicts::new();
        for &ticket in tickets {
            // One that was answered meanwhile gets no second answer.
            if let Some(left) = self.waiting_room.leave(slot, incarnation, ticket) {
                note(&mut verdicts, &left, Verdict::Refused(Rejection::MaxConnections));
            }
        }
        self.send(verdicts);
    }

    /// Lets those in who wait, as far as there are places, and turns away who has waited long enough. Whoever may not come in
    /// for another reason when it is their turn hears that reason.
    pub(super) fn admit_waiting(&mut self) {
        let mut verdicts = Verdicts::new();
        while let Some(late) = self.waiting_room.take_late(self.now) {
            note(&mut verdicts, &late, Verdict::Refused(Rejection::MaxConnections));
        }
        while let Some(&head) = self.waiting_room.head() {
            match self.ledger.admit(head.slot, head.incarnation, head.address) {
                Admission::Refused(Rejection::MaxConnections | Rejection::ConnectRate) => break,
                Admission::Refused(reason) => note(&mut verdicts, &head, Verdict::Refused(reason)),
                Admission::Granted => note(&mut verdicts, &head, Verdict::Granted),
                Admission::Stale => {}
            }
            self.waiting_room.take_head();
        }
        self.send(verdicts);
    }

    /// Other limits hold: those who are too many in the waiting room are turned away, those for whom there are places are
    /// let in.
    pub(super) fn reconsider_waiting(&mut self) {
        let limits = &self.effective.config.limits;
        let places = usize::try_from(limits.waiting_room).unwrap_or(usize::MAX);
        let mut verdicts = Verdicts::new();
        for waiting in self.waiting_room.set(places, limits.waiting_room_timeout) {
            note(&mut verdicts, &waiting, Verdict::Refused(Rejection::MaxConnections));
        }
        self.send(verdicts);
        self.admit_waiting();
    }

    /// When somebody who waits has to be looked at, if nothing happens before.
    pub(super) fn waiting_deadline(&self) -> Option<Duration> {
        let late = self.waiting_room.deadline()?;
        let head = self.waiting_room.head()?;
        let is_held_by_rate = self.ledger.refusal(head.address) == Some(Rejection::ConnectRate);
        Some(if is_held_by_rate { late.min(self.now + PAUSE) } else { late })
    }

    fn send(&mut self, verdicts: Verdicts) {
        for ((slot, incarnation), verdicts) in verdicts {
            let granted = verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Granted).count();
            if let Some(record) = self.slots.get_mut(slot) {
                record.book.admit(granted as u64);
                // Before anybody hears of it: whoever adopts must not count fewer than were let in.
                self.remember(slot);
            }
            for verdicts in verdicts.chunks(MAX_BATCH) {
                let message = ToWorker::Verdicts { verdicts: verdicts.to_vec() };
                self.tell_worker(slot, incarnation, &message, &[]);
            }
        }
    }
}

fn note(verdicts: &mut Verdicts, waiting: &Waiting, verdict: Verdict) {
    verdicts.entry((waiting.slot, waiting.incarnation)).or_default().push((waiting.ticket, verdict));
}
