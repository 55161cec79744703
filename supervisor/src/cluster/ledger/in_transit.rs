//! Connections on their way from one slot to another. They are counted as held by the flight: by neither slot
//! alone, for nobody knows which of the two will have them, and by both together once. So the count is the
//! truth throughout, whatever becomes of either slot meanwhile.

use std::net::IpAddr;

use holdfast_shared::id::{Incarnation, SlotId};

use super::holdings::Holdings;
use super::{Ledger, Phase};

/// Where they are kept among what slots hold. No slot has this number.
const IN_TRANSIT: SlotId = SlotId(u16::MAX);

impl Ledger {
    /// A connection of `address` is about to leave `slot`. One that is not held there is an anomaly. Ignored
    /// from a worker that no longer fills the slot.
    pub fn give(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr) {
        let account = self.accounts.get_mut(&slot).filter(|account| account.newest == incarnation);
        let Some(account) = account else { return };
        if matches!(account.phase, Phase::Serving) && self.held.remove(slot, address) {
            account.held = account.held.saturating_sub(1);
            self.held.add(IN_TRANSIT, address, 1);
            self.in_transit += 1;
        } else {
            self.note_anomaly();
        }
    }

    /// A connection of `address` that was in flight has arrived in `slot`, or has never left it. Ignored from
    /// a worker that no longer fills the slot: its successor reports what it has. One that was not in flight
    /// is counted from now on, and an anomaly.
    pub fn arrived(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr) {
        let account = self.accounts.get_mut(&slot).filter(|account| account.newest == incarnation);
        let Some(account) = account.filter(|account| matches!(account.phase, Phase::Serving)) else { return };
        account.held += 1;
        self.held.add(slot, address, 1);
        if self.held.remove(IN_TRANSIT, address) {
            self.in_transit = self.in_transit.saturating_sub(1);
        } else {
            self.connections += 1;
            self.note_anomaly();
        }
    }

    /// Both slots have said whom they hold since: who is still in flight is held by one of them, or by nobody.
    /// Returns how many those were.
    pub fn end_transit(&mut self) -> u64 {
        let left = std::mem::take(&mut self.in_transit);
        if left > 0 {
            self.connections = self.connections.saturating_sub(left);
            self.held.replace(IN_TRANSIT, &Holdings::default());
        }
        left
    }

    /// Connections on their way from one slot to another.
    #[must_use]
    pub fn in_transit(&self) -> u64 {
        self.in_transit
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::super::{Admission, LedgerLimits};
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const CAP: u64 = 12;

    /// What happens to connections that move from slot 0 to slot 1.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A client asks a slot.
        Ask(usize),
        /// The giver names so many; the supervisor counts them.
        Name(usize),
        /// The giver sends what was counted.
        Send,
        /// The taker has it.
        Take,
        /// The taker hangs up on it.
        HangUp,
        /// So many messages of a slot arrive.
        Deliver(usize, usize),
        /// A worker dies, and with it, in the worst case, what is on its way; the next one reports.
        Die(usize),
    }

    #[derive(Debug, Clone, Copy)]
    enum Message {
        Landed(u64),
        Begin,
        Add(u64),
        Finish,
    }

    struct World {
        ledger: Ledger,
        incarnations: [Incarnation; 2],
        queues: [VecDeque<(Incarnation, Message)>; 2],
        /// Connections that exist, by slot; those that are marked in a table of the giver are in `sent`.
        real: [u64; 2],
        named: u64,
        sent: u64,
    }

    fn slot(place: usize) -> SlotId {
        SlotId(u16::try_from(place).unwrap())
    }

    impl World {
        fn new() -> Self {
            let limits = LedgerLimits {
                connect_rate: 0,
                connect_rate_per_address: 0,
                max_connections: CAP,
                max_connections_per_address: 0,
                ipv6_prefix: 64,
                exempt: Vec::new(),
            };
            let mut ledger = Ledger::new(limits);
            for place in 0..2 {
                ledger.resync_begin(slot(place), Incarnation(1));
                ledger.resync_finish(slot(place), Incarnation(1));
            }
            let incarnations = [Incarnation(1); 2];
            Self { ledger, incarnations, queues: Default::default(), real: [0; 2], named: 0, sent: 0 }
        }

        fn say(&mut self, place: usize, message: Message) {
            self.queues[place].push_back((self.incarnations[place], message));
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Ask(place) => {
                    let answer = self.ledger.admit(slot(place), self.incarnations[place], CLIENT);
                    self.real[place] += u64::from(answer == Admission::Granted);
                }
                Step::Name(most) if self.named == 0 && self.sent == 0 && self.queues[0].is_empty() => {
                    self.named = self.real[0].min(most as u64);
                    for _ in 0..self.named {
                        self.ledger.give(slot(0), self.incarnations[0], CLIENT);
                    }
                }
                Step::Send => self.sent += std::mem::take(&mut self.named),
                Step::Take if self.sent > 0 => {
                    let taken = std::mem::take(&mut self.sent);
                    self.real[0] -= taken;
                    self.real[1] += taken;
                    self.say(1, Message::Landed(taken));
                }
                Step::HangUp if self.sent > 0 => {
                    let kept = std::mem::take(&mut self.sent);
                    self.say(0, Message::Landed(kept));
                }
                Step::Deliver(place, most) => (0..most).for_each(|_| self.deliver(place)),
                Step::Die(place) => self.die(place),
                Step::Name(_) | Step::Take | Step::HangUp => {}
            }
        }

        fn die(&mut self, place: usize) {
            if place == 0 {
                // What was sent is let go of by whoever comes next; what was only named is as ever.
                self.real[0] -= std::mem::take(&mut self.sent);
                self.named = 0;
            } else if self.sent > 0 {
                self.take(Step::HangUp);
            }
            self.incarnations[place] = self.incarnations[place].next();
            self.say(place, Message::Begin);
            self.say(place, Message::Add(self.real[place]));
            self.say(place, Message::Finish);
        }

        fn deliver(&mut self, place: usize) {
            let Some((from, message)) = self.queues[place].pop_front() else { return };
            let id = slot(place);
            match message {
                Message::Landed(count) => (0..count).for_each(|_| self.ledger.arrived(id, from, CLIENT)),
                Message::Begin => self.ledger.resync_begin(id, from),
                Message::Add(count) => {
                    self.ledger.resync_add(id, from, CLIENT, u32::try_from(count).unwrap());
                }
                Message::Finish => self.ledger.resync_finish(id, from),
            }
        }

        fn settle(&mut self) {
            self.take(Step::HangUp);
            if self.named > 0 {
                self.take(Step::Send);
                self.take(Step::HangUp);
            }
            for place in 0..2 {
                while !self.queues[place].is_empty() {
                    self.deliver(place);
                }
            }
            self.ledger.end_transit();
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let place = || 0..2_usize;
        let step = prop_oneof![
            8 => place().prop_map(Step::Ask),
            6 => (1..5_usize).prop_map(Step::Name),
            6 => Just(Step::Send),
            4 => Just(Step::Take),
            2 => Just(Step::HangUp),
            8 => (place(), 1..4_usize).prop_map(|(place, most)| Step::Deliver(place, most)),
            1 => place().prop_map(Step::Die),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn whatever_moves_is_counted_and_in_the_end_the_count_is_the_truth(steps in steps()) {
            let mut world = World::new();
            for step in steps {
                world.take(step);
                let real: u64 = world.real.iter().sum();
                prop_assert!(real <= world.ledger.connections(), "a connection is not counted");
                prop_assert!(world.ledger.connections() <= CAP + world.ledger.in_transit());
                prop_assert!(real <= CAP, "above the cap");
            }
            world.settle();
            for place in 0..2 {
                prop_assert_eq!(world.ledger.held_by(slot(place)), world.real[place]);
            }
            prop_assert_eq!(world.ledger.connections(), world.real.iter().sum::<u64>());
        }
    }
}
