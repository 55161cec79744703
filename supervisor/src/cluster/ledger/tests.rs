//! The ledger against a model of the truth: which connections really exist, and which messages are on their
//! way.

mod elsewhere;

use std::collections::VecDeque;

use holdfast_shared::address::AddressKey;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const SLOT: SlotId = SlotId(0);
const FIRST: Incarnation = Incarnation(1);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn limits(max_connections: u64, max_connections_per_address: u32) -> LedgerLimits {
    let exempt = vec!["10.0.0.0/8".parse().unwrap()];
    LedgerLimits {
        max_connections,
        max_connections_per_address,
        ipv6_prefix: 64,
        connect_rate: 0,
        connect_rate_per_address: 0,
        exempt,
    }
}

fn report_nothing(ledger: &mut Ledger, slot: SlotId, incarnation: Incarnation) {
    ledger.resync_begin(slot, incarnation);
    ledger.resync_finish(slot, incarnation);
}

/// A ledger whose first `slots` slots are served by their first workers.
fn serving(limits: LedgerLimits, slots: u16) -> Ledger {
    let mut ledger = Ledger::new(limits);
    (0..slots).for_each(|slot| report_nothing(&mut ledger, SlotId(slot), FIRST));
    ledger
}

fn refused(reason: Rejection) -> Admission {
    Admission::Refused(reason)
}

#[test]
fn the_per_address_limit_is_not_per_worker() {
    let mut ledger = serving(limits(100, 2), 4);
    let client = address("192.0.2.1");
    assert_eq!(ledger.admit(SlotId(0), FIRST, client), Admission::Granted);
    assert_eq!(ledger.admit(SlotId(1), FIRST, address("::ffff:192.0.2.1")), Admission::Granted);
    for slot in 0..4 {
        assert_eq!(ledger.admit(SlotId(slot), FIRST, client), refused(Rejection::MaxConnectionsPerAddress));
    }
    assert_eq!(ledger.admit(SlotId(2), FIRST, address("192.0.2.2")), Admission::Granted);
    ledger.release(SlotId(1), FIRST, client);
    assert_eq!(ledger.admit(SlotId(3), FIRST, client), Admission::Granted);
}

#[test]
fn the_cap_is_not_per_worker_and_one_place_admits_one() {
    let mut ledger = serving(limits(3, 0), 3);
    let client = address("192.0.2.1");
    for slot in 0..3 {
        assert_eq!(ledger.admit(SlotId(slot), FIRST, client), Admission::Granted);
    }
    assert_eq!(ledger.admit(SlotId(0), FIRST, client), refused(Rejection::MaxConnections));
    ledger.release(SlotId(2), FIRST, client);
    assert_eq!(ledger.admit(SlotId(0), FIRST, client), Admission::Granted);
    assert_eq!(ledger.admit(SlotId(2), FIRST, client), refused(Rejection::MaxConnections));
}

#[test]
fn an_address_at_its_limit_is_told_so_even_at_the_cap() {
    let mut ledger = serving(limits(1, 1), 1);
    assert_eq!(ledger.admit(SLOT, FIRST, address("192.0.2.1")), Admission::Granted);
    let at_its_limit = ledger.admit(SLOT, FIRST, address("192.0.2.1"));
    assert_eq!(at_its_limit, refused(Rejection::MaxConnectionsPerAddress));
    assert_eq!(ledger.admit(SLOT, FIRST, address("192.0.2.2")), refused(Rejection::MaxConnections));
    ledger.set_draining(true);
    assert_eq!(ledger.admit(SLOT, FIRST, address("192.0.2.1")), refused(Rejection::Draining));
}

#[test]
fn exempt_addresses_count_towards_the_cap_and_can_stop_being_exempt() {
    let mut ledger = serving(limits(3, 1), 1);
    let exempt = address("10.1.2.3");
    for _ in 0..3 {
        assert_eq!(ledger.admit(SLOT, FIRST, exempt), Admission::Granted);
    }
    assert_eq!(ledger.admit(SLOT, FIRST, exempt), refused(Rejection::MaxConnections));
    ledger.set_limits(LedgerLimits { exempt: Vec::new(), ..limits(10, 1) });
    assert_eq!(ledger.admit(SLOT, FIRST, exempt), refused(Rejection::MaxConnectionsPerAddress));
}

#[test]
fn the_loopback_prefix_does_not_contain_mapped_ipv4() {
    let mut ledger = serving(limits(10, 1), 1);
    assert_eq!(ledger.admit(SLOT, FIRST, address("127.0.0.1")), Admission::Granted);
    assert_eq!(ledger.admit(SLOT, FIRST, address("::1")), Admission::Granted);
    assert_eq!(ledger.held_by_address(address("::1")), 1);
}

#[test]
fn a_new_prefix_length_regroups_what_is_held() {
    let mut ledger = serving(limits(10, 2), 1);
    let near = [address("2001:db8:0:1::1"), address("2001:db8:0:1::2")];
    for client in near {
        assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    }
    assert_eq!(ledger.admit(SLOT, FIRST, near[0]), refused(Rejection::MaxConnectionsPerAddress));
    ledger.set_limits(LedgerLimits { ipv6_prefix: 128, ..limits(10, 2) });
    assert_eq!(ledger.admit(SLOT, FIRST, near[0]), Admission::Granted);
    ledger.set_limits(LedgerLimits { ipv6_prefix: 48, ..limits(10, 2) });
    assert_eq!(ledger.held_by_address(address("2001:db8:0:ffff::")), 3);
}

#[test]
fn a_lowered_cap_refuses_until_the_count_is_below() {
    let mut ledger = serving(limits(3, 0), 1);
    let client = address("192.0.2.1");
    for _ in 0..3 {
        assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    }
    ledger.set_limits(limits(2, 0));
    assert_eq!(ledger.connections(), 3);
    for _ in 0..2 {
        assert_eq!(ledger.admit(SLOT, FIRST, client), refused(Rejection::MaxConnections));
        ledger.release(SLOT, FIRST, client);
    }
    assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
}

#[test]
fn one_close_is_counted_once_and_unknown_ones_never() {
    let mut ledger = serving(limits(10, 0), 2);
    let client = address("192.0.2.1");
    assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    ledger.release(SlotId(1), FIRST, client);
    ledger.release(SLOT, FIRST, address("192.0.2.2"));
    ledger.release(SLOT, FIRST, client);
    ledger.release(SLOT, FIRST, client);
    ledger.release(SlotId(9), FIRST, client);
    ledger.release(SLOT, Incarnation(2), client);
    assert_eq!((ledger.connections(), ledger.anomalies()), (0, 5));
}

#[test]
fn holdings_of_the_dead_stay_counted_until_the_report_is_finished() {
    let mut ledger = serving(limits(3, 0), 1);
    let client = address("192.0.2.1");
    for _ in 0..3 {
        assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    }
    let (second, third) = (Incarnation(2), Incarnation(3));
    ledger.resync_begin(SLOT, second);
    ledger.resync_add(SLOT, second, client, 1);
    ledger.release(SLOT, FIRST, client);
    assert_eq!(ledger.admit(SLOT, second, client), refused(Rejection::MaxConnections));
    ledger.resync_begin(SLOT, third);
    ledger.resync_add(SLOT, third, client, 1);
    ledger.resync_add(SLOT, third, client, 1);
    assert_eq!(ledger.connections(), 3);
    ledger.resync_finish(SLOT, third);
    assert_eq!((ledger.connections(), ledger.held_by(SLOT), ledger.anomalies()), (2, 2, 0));
    assert_eq!(ledger.admit(SLOT, second, client), Admission::Stale);
    assert_eq!(ledger.admit(SLOT, third, client), Admission::Granted);
}

#[test]
fn a_worker_begins_its_report_once() {
    let mut ledger = serving(limits(3, 0), 1);
    let client = address("192.0.2.1");
    assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    ledger.resync_begin(SLOT, FIRST);
    ledger.resync_finish(SLOT, FIRST);
    assert_eq!((ledger.connections(), ledger.anomalies()), (1, 2));
    ledger.release(SLOT, FIRST, client);
    assert_eq!((ledger.connections(), ledger.anomalies()), (0, 2));
}

#[test]
fn a_forgotten_slot_gives_back_once_and_stays_vacant_until_the_next_report() {
    let mut ledger = serving(limits(2, 0), 2);
    let client = address("192.0.2.1");
    assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    assert_eq!(ledger.admit(SlotId(1), FIRST, client), Admission::Granted);
    assert_eq!((ledger.forget(SLOT), ledger.forget(SLOT), ledger.forget(SlotId(9))), (1, 0, 0));
    assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Stale);
    ledger.release(SLOT, FIRST, client);
    assert_eq!((ledger.connections(), ledger.held_by_address(client)), (1, 1));
    report_nothing(&mut ledger, SLOT, Incarnation(2));
    assert_eq!(ledger.admit(SLOT, Incarnation(2), client), Admission::Granted);
}

const SLOTS: usize = 3;

fn addresses() -> Vec<IpAddr> {
    let texts = [
        "192.0.2.1",
        "192.0.2.2",
        "::ffff:192.0.2.1",
        "10.9.9.9",
        "::1",
        "2001:db8:0:1::1",
        "2001:db8:0:1::2",
        "2001:db8:0:2::1",
    ];
    texts.map(address).to_vec()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A worker asks for admission.
    Ask(usize, IpAddr),
    /// A connection ends and its worker says so.
    Close(usize, Index),
    /// A worker that took over reports some more of it, or finishes.
    Report(usize, usize),
    /// So many messages of a slot arrive.
    Deliver(usize, usize),
    /// A worker dies; so many connections are lost with it, the next worker takes over the rest.
    WorkerDies(usize, usize),
    /// A keeper dies: all descriptors are closed, the link is read to its end, the slot is rebuilt.
    KeeperDies(usize),
    /// A message of a worker long dead arrives.
    Stale(usize, IpAddr),
    /// New limits: cap, per address, prefix length.
    Limits(u64, u32, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (slot, client) = (|| 0..SLOTS, || prop::sample::select(addresses()));
    let step = prop_oneof![
        12 => (slot(), client()).prop_map(|(slot, client)| Step::Ask(slot, client)),
        6 => (slot(), any::<Index>()).prop_map(|(slot, which)| Step::Close(slot, which)),
        4 => (slot(), 0..4_usize).prop_map(|(slot, most)| Step::Report(slot, most)),
        12 => (slot(), 1..5_usize).prop_map(|(slot, most)| Step::Deliver(slot, most)),
        1 => (slot(), 0..3_usize).prop_map(|(slot, lost)| Step::WorkerDies(slot, lost)),
        1 => slot().prop_map(Step::KeeperDies),
        1 => (slot(), client()).prop_map(|(slot, client)| Step::Stale(slot, client)),
        1 => (0..20_u64, 0..6_u32, prop::sample::select(vec![0_u8, 48, 64, 128]))
            .prop_map(|(max, per_address, prefix)| Step::Limits(max, per_address, prefix)),
    ];
    prop::collection::vec(step, 1..300)
}

#[derive(Debug, Clone, Copy)]
enum Message {
    Admit(IpAddr),
    Release(IpAddr),
    Begin,
    Add(IpAddr),
    Finish,
}

#[derive(Default)]
struct Slot {
    incarnation: Incarnation,
    /// The newest incarnation whose beginning the ledger has heard of.
    announced: Incarnation,
    queue: VecDeque<(Incarnation, Message)>,
    /// The connections that really exist, and whether the present worker has told the ledger.
    real: Vec<(IpAddr, bool)>,
    resuming: bool,
}

impl Slot {
    fn send(&mut self, message: Message) {
        self.queue.push_back((self.incarnation, message));
    }

    fn next_worker(&mut self) {
        self.incarnation = self.incarnation.next();
        self.resuming = true;
        self.real.iter_mut().for_each(|connection| connection.1 = false);
        self.send(Message::Begin);
    }

    fn report(&mut self, most: usize) {
        if !self.resuming {
            return;
        }
        let mut chunk = Vec::new();
        for connection in self.real.iter_mut().filter(|connection| !connection.1).take(most) {
            connection.1 = true;
            chunk.push(connection.0);
        }
        if chunk.is_empty() && self.real.iter().all(|connection| connection.1) {
            self.resuming = false;
            self.send(Message::Finish);
        }
        chunk.into_iter().for_each(|client| self.send(Message::Add(client)));
    }

    fn close(&mut self, which: Index) {
        let known: Vec<usize> = (0..self.real.len()).filter(|&place| self.real[place].1).collect();
        if !known.is_empty() {
            let (client, _) = self.real.swap_remove(*which.get(&known));
            self.send(Message::Release(client));
        }
    }
}

struct World {
    ledger: Ledger,
    slots: [Slot; SLOTS],
    /// The count may not be above this: the cap, or what was held when it was lowered and has not gone
    /// since.
    ceiling: u64,
    anomalies: u64,
}

impl World {
    fn new() -> Self {
        let ledger = Ledger::new(limits(12, 4));
        let mut slots = <[Slot; SLOTS]>::default();
        slots.iter_mut().for_each(Slot::next_worker);
        Self { ledger, slots, ceiling: 12, anomalies: 0 }
    }

    fn real_total(&self) -> u64 {
        self.slots.iter().map(|slot| slot.real.len() as u64).sum()
    }

    fn real_of_address(&self, client: IpAddr) -> u64 {
        let prefix = self.ledger.limits().ipv6_prefix;
        let key = AddressKey::new(client, prefix);
        // Only the ledger's own rule keeps ::/0 and the IPv4 addresses mapped into it apart.
        let same = |other: IpAddr| {
            other.to_canonical().is_ipv4() == client.to_canonical().is_ipv4()
                && AddressKey::new(other, prefix) == key
        };
        self.slots.iter().flat_map(|slot| &slot.real).filter(|connection| same(connection.0)).count() as u64
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Ask(slot, client) => self.slots[slot].send(Message::Admit(client)),
            Step::Close(slot, which) => self.slots[slot].close(which),
            Step::Report(slot, most) => self.slots[slot].report(most),
            Step::Deliver(slot, most) => (0..most).for_each(|_| self.deliver(slot)),
            Step::WorkerDies(slot, lost) => {
                let slot = &mut self.slots[slot];
                slot.real.truncate(slot.real.len().saturating_sub(lost));
                slot.next_worker();
            }
            Step::KeeperDies(slot) => self.keeper_dies(slot),
            Step::Stale(slot, client) => self.stale(slot, client),
            Step::Limits(max, per_address, ipv6_prefix) => {
                self.ceiling = max.max(self.ledger.connections());
                self.ledger.set_limits(LedgerLimits { ipv6_prefix, ..limits(max, per_address) });
            }
        }
    }

    fn deliver(&mut self, place: usize) {
        let (id, slot) = (SlotId(u16::try_from(place).unwrap()), &mut self.slots[place]);
        let Some((from, message)) = slot.queue.pop_front() else { return };
        match message {
            Message::Admit(client) => self.admit(place, from, client),
            Message::Release(client) => {
                self.ledger.release(id, from, client);
            }
            Message::Begin => {
                slot.announced = from;
                self.ledger.resync_begin(id, from);
            }
            Message::Add(client) => self.ledger.resync_add(id, from, client, 1),
            Message::Finish => self.ledger.resync_finish(id, from),
        }
    }

    fn admit(&mut self, place: usize, from: Incarnation, client: IpAddr) {
        let limits = self.ledger.limits().clone();
        let per_address = u64::from(limits.max_connections_per_address);
        let limited = per_address > 0 && !self.ledger.is_exempt(client);
        let (held, of_address) = (self.ledger.connections(), self.ledger.held_by_address(client));
        let room = (held < limits.max_connections, !limited || of_address < per_address);
        match self.ledger.admit(SlotId(u16::try_from(place).unwrap()), from, client) {
            Admission::Granted => {
                assert_eq!(room, (true, true));
                let slot = &mut self.slots[place];
                // A grant to a worker that died meanwhile makes no connection.
                if slot.incarnation == from {
                    slot.real.push((client, true));
                }
            }
            Admission::Refused(Rejection::MaxConnections) => assert_eq!(room, (false, true)),
            Admission::Refused(Rejection::MaxConnectionsPerAddress) => assert!(!room.1),
            other => panic!("{other:?} for a worker that fills its slot"),
        }
    }

    fn keeper_dies(&mut self, place: usize) {
        let id = SlotId(u16::try_from(place).unwrap());
        self.slots[place].real.clear();
        while !self.slots[place].queue.is_empty() {
            self.deliver(place);
            self.slots[place].real.clear();
        }
        let held = self.ledger.held_by(id);
        assert_eq!((self.ledger.forget(id), self.ledger.forget(id)), (held, 0));
        self.slots[place].next_worker();
    }

    fn stale(&mut self, place: usize, client: IpAddr) {
        let (id, announced) = (SlotId(u16::try_from(place).unwrap()), self.slots[place].announced);
        let Some(old) = announced.0.checked_sub(1).map(Incarnation) else { return };
        let state =
            |ledger: &Ledger| (ledger.connections(), ledger.held_by(id), ledger.held_by_address(client));
        let before = state(&self.ledger);
        assert_eq!(self.ledger.admit(id, old, client), Admission::Stale);
        self.ledger.release(id, old, client);
        self.ledger.resync_begin(id, old);
        self.ledger.resync_add(id, old, client, 5);
        self.ledger.resync_finish(id, old);
        self.anomalies += 3;
        assert_eq!(state(&self.ledger), before);
    }

    fn check(&mut self) {
        let counted = self.ledger.connections();
        assert!(self.real_total() <= counted, "a connection is not counted");
        assert!(counted <= self.ceiling, "above the cap");
        self.ceiling = self.ledger.limits().max_connections.max(counted);
        for client in addresses() {
            assert!(self.real_of_address(client) <= self.ledger.held_by_address(client));
        }
        assert_eq!(self.ledger.anomalies(), self.anomalies);
    }

    /// Lets everything that is on its way arrive: then the ledger must tell the truth.
    fn settle(&mut self) {
        for place in 0..SLOTS {
            while self.slots[place].resuming {
                self.slots[place].report(usize::MAX);
            }
            while !self.slots[place].queue.is_empty() {
                self.deliver(place);
            }
            let real = self.slots[place].real.len() as u64;
            assert_eq!(self.ledger.held_by(SlotId(u16::try_from(place).unwrap())), real);
        }
        assert_eq!(self.ledger.connections(), self.real_total());
        for client in addresses() {
            assert_eq!(self.ledger.held_by_address(client), self.real_of_address(client));
        }
        assert_eq!(self.ledger.anomalies(), self.anomalies);
    }
}

proptest! {
    #[test]
    fn never_above_never_refused_below_and_every_place_comes_back(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
        world.settle();
        for place in 0..SLOTS {
            while let Some((client, _)) = world.slots[place].real.pop() {
                world.slots[place].send(Message::Release(client));
            }
        }
        world.settle();
        prop_assert_eq!(world.ledger.connections(), 0);
    }
}
