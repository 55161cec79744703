use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use holdfast_shared::channels::directory::epoch_text;
use holdfast_shared::channels::journal::Entry;
use holdfast_shared::channels::memory::{Word as Memory, create};
use holdfast_shared::channels::rules::{ChannelName, EVENTS, Pattern};
use holdfast_shared::channels::sleep;
use holdfast_shared::channels::up_ring::{
    self, Gone, Here, Joined, MessageHead, Refusal, Subscribe, UpRing, Verdict, Word,
};
use holdfast_shared::id::{ConnectionId, SlotId};
use holdfast_shared::sys::shared_memory::Access;
use proptest::prelude::*;

use super::*;
use crate::hub::api::{Answer, Command, Data, EventsQuery, HistoryQuery, Publish};
use crate::hub::rings::Rings;

const SLOTS: u16 = 2;
const CHANNELS: [&str; 3] = ["open:1", "open:2", "small:1"];

fn rules() -> Vec<Rule> {
    let rule = |pattern: &str| Rule { matches: Pattern(pattern.to_owned()), ..Rule::default() };
    vec![
        Rule { client_publish: true, history: 100, ..rule("open:*") },
        Rule { max_subscribers: 2, presence: true, ..rule("small:*") },
        Rule { client_subscribe: false, publish_rate: 2, ..rule("closed:*") },
    ]
}

/// What a worker has, as far as it has delivered the journal.
struct Slot {
    number: u16,
    descriptor: OwnedFd,
    ring: UpRing,
    delivered: u64,
    /// Each connection with the channels that the worker knows it to be in.
    here: BTreeMap<u64, Vec<u32>>,
}

/// A server without processes: a memory, rings, workers' halves and a hub that may die.
struct World {
    memory: OwnedFd,
    slots: Vec<Slot>,
    desk: Desk,
    rings: Rings,
    settings: DeskSettings,
    now: Now,
    connections: u64,
}

impl World {
    fn new(max_connections_per_user: u32) -> Self {
        let memory = create(1 << 20).unwrap();
        let settings = DeskSettings { rules: rules(), max_connections_per_user, has_events: true };
        let slots = (0..SLOTS)
            .map(|number| {
                let descriptor = up_ring::create(number, 8).unwrap();
                let ring = UpRing::map(descriptor.as_fd()).unwrap();
                Slot { number, descriptor, ring, delivered: 8, here: BTreeMap::new() }
            })
            .collect();
        let now = Now { wall_ms: 1_000_000, monotonic: Duration::from_secs(1000) };
        let desk = Desk::new(map(&memory), settings.clone(), now);
        let mut world = Self { memory, slots, desk, rings: Rings::default(), settings, now, connections: 0 };
        world.begin();
        world
    }

    /// A hub goes on.
    fn begin(&mut self) {
        self.desk = Desk::new(map(&self.memory), self.settings.clone(), self.now);
        self.desk.begin_generation();
        self.rings = Rings::default();
        for slot in &self.slots {
            let redone = self.desk.add_slot(slot.number);
            let ring = slot.descriptor.try_clone().unwrap();
            self.rings.add(slot.number, ring, sleep::bell().unwrap(), redone).unwrap();
        }
    }

    fn turn(&mut self) {
        self.rings.take(&mut self.desk);
        self.desk.commit();
        self.rings.store_positions();
    }

    /// The hub dies at one of the places where that leaves something undone.
    fn die(&mut self, place: usize) {
        match place {
            0 => {}
            1 => drop(self.rings.take(&mut self.desk)),
            2 => {
                self.rings.take(&mut self.desk);
                self.desk.writer.commit(&self.desk.memory);
            }
            _ => {
                self.rings.take(&mut self.desk);
                self.desk.commit();
            }
        }
        self.begin();
    }

    fn join(&mut self, slot: usize, channel: &str, user: Option<&str>) -> u64 {
        self.connections += 1;
        let slot = &mut self.slots[slot];
        let connection = ConnectionId::new(SlotId(slot.number), self.connections).0;
        let subscribe = Subscribe { channel: channel.to_owned(), row: 7, ..Subscribe::default() };
        let joined = Joined {
            user: user.map(str::to_owned),
            subscribe: Some(subscribe),
            address: "192.0.2.7".to_owned(),
            ..Joined::default()
        };
        let bytes = serde_json::to_vec(&joined).unwrap();
        assert!(slot.ring.say_once((7, 1), MessageKind::Joined, connection, &bytes));
        slot.here.insert(connection, Vec::new());
        connection
    }

    fn leave(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        let Some((connection, channels)) = slot.here.pop_first() else { return };
        let gone = Gone { code: 1000, reason: "client".to_owned(), user: None, channels };
        assert!(slot.ring.say(MessageKind::Gone, 0, connection, 0, &serde_json::to_vec(&gone).unwrap()));
    }

    fn say(&mut self, slot: usize, connection: u64, channel: u32, data: &str) {
        let ring = &self.slots[slot].ring;
        assert!(ring.say(MessageKind::Publish, MessageHead::TEXT, connection, channel, data.as_bytes()));
    }

    /// The worker delivers all that is there.
    fn deliver(&mut self, slot: usize) {
        let entries = self.entries_from(self.slots[slot].delivered);
        let slot = &mut self.slots[slot];
        for entry in entries {
            slot.delivered = entry.end();
            if entry.kind() == Some(Kind::Subscribed)
                && let Some(channels) = slot.here.get_mut(&entry.head.connection)
            {
                channels.push(entry.head.channel);
            }
        }
        slot.ring.set(Word::Delivered, slot.delivered);
    }

    /// The worker names all that it has to a new hub.
    fn announce(&mut self, slot: usize) {
        let generation = self.desk.memory.get(Memory::Generation);
        if self.slots[slot].ring.get(Word::Announced) == generation {
            return;
        }
        self.deliver(slot);
        let slot = &self.slots[slot];
        slot.ring.say(MessageKind::AnnounceBegin, 0, 0, 0, &[]);
        for (&connection, channels) in &slot.here {
            let here = Here { channels: channels.clone(), row: 7, ..Here::default() };
            slot.ring.say(MessageKind::Here, 0, connection, 0, &serde_json::to_vec(&here).unwrap());
        }
        slot.ring.say(MessageKind::AnnounceEnd, 0, 0, 0, &[]);
        slot.ring.set(Word::Announced, generation);
    }

    fn settle(&mut self) {
        for slot in 0..self.slots.len() {
            self.announce(slot);
        }
        while self.rings.has_messages() {
            self.turn();
        }
    }

    /// Everything is known.
    fn know_all(&mut self) {
        self.settle();
        self.desk.set_all_slots();
        self.desk.commit();
        assert!(self.desk.knows_all);
    }

    fn entries_from(&self, position: u64) -> Vec<Entry> {
        let (mut entries, mut next) = (Vec::new(), position);
        while let Ok(entry) = self.desk.memory.entry(next) {
            next = entry.end();
            entries.push(entry);
        }
        entries
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries_from(self.desk.memory.get(Memory::First))
    }

    fn bytes(&self, entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.desk.memory.append_bytes(entry, &mut bytes).unwrap();
        bytes
    }

    fn verdicts(&self, of: u64) -> Vec<Verdict> {
        let is_verdict = |entry: &&Entry| {
            matches!(entry.kind(), Some(Kind::Subscribed | Kind::Refused)) && entry.head.connection == of
        };
        let entries = self.entries();
        let found = entries.iter().filter(is_verdict);
        found.map(|entry| serde_json::from_slice(&self.bytes(entry)).unwrap()).collect()
    }

    fn publish(&mut self, channel: &str, data: &str, key: Option<&str>) -> Result<u64, u16> {
        let publish = Command::Publish(Publish {
            channel: ChannelName::new(channel).unwrap(),
            data: Data::text(data.to_owned()),
            idempotency_key: key.map(str::to_owned),
            exclude: None,
        });
        match self.desk.execute(&publish) {
            Ok(Answer::Published(published)) => {
                self.desk.commit();
                Ok(published.offset)
            }
            Ok(_) => unreachable!(),
            Err(error) => Err(error.status),
        }
    }

    fn channel(&self, name: &str) -> u32 {
        self.desk.channels.find(name).unwrap()
    }

    fn events(&mut self, after: u64) -> Vec<String> {
        let query = EventsQuery { after, wait: Duration::ZERO, limit: 10_000 };
        let events = self.desk.read_events(&query).unwrap();
        assert_eq!(
            events.next,
            events.events.last().map_or(after.min(self.desk.last_event()), |last| last.seq()) + 1
        );
        events.events.iter().map(|event| event.json().to_owned()).collect()
    }

    fn subscribers(&self, name: &str) -> u64 {
        let number = self.desk.channels.find(name);
        number.and_then(|number| self.desk.memory.channel_state(number)).map_or(0, |state| state.subscribers)
    }
}

fn map(memory: &OwnedFd) -> ChannelMemory {
    ChannelMemory::map(memory.as_fd(), Access::Write).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Join(usize, usize),
    Leave(usize),
    Publish(usize, usize),
    Api(usize, u8),
    Turn,
    Deliver(usize),
    Announce(usize),
    Die(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..usize::from(SLOTS);
    prop_oneof![
        (slot.clone(), 0..CHANNELS.len()).prop_map(|(slot, channel)| Step::Join(slot, channel)),
        slot.clone().prop_map(Step::Leave),
        (slot.clone(), 0..2_usize).prop_map(|(slot, channel)| Step::Publish(slot, channel)),
        (0..CHANNELS.len(), 0..4_u8).prop_map(|(channel, key)| Step::Api(channel, key)),
        Just(Step::Turn),
        slot.clone().prop_map(Step::Deliver),
        slot.prop_map(Step::Announce),
        (0..4_usize).prop_map(Step::Die),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_dies_each_message_counts_once(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new(0);
        let (mut joined, mut said, mut keys) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for channel in CHANNELS {
            world.publish(channel, "first", None).unwrap();
        }
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Join(slot, channel) => joined.push(world.join(slot, CHANNELS[channel], None)),
                Step::Leave(slot) => world.leave(slot),
                Step::Publish(slot, channel) => {
                    let data = format!("{number}");
                    world.say(slot, 1, world.channel(CHANNELS[channel]), &data);
                    said.insert(data, CHANNELS[channel]);
                }
                Step::Api(channel, key) => {
                    world.turn();
                    let key = key.to_string();
                    let offset = world.publish(CHANNELS[channel], "api", Some(&key)).unwrap();
                    let first = *keys.entry((channel, key)).or_insert(offset);
                    prop_assert_eq!(offset, first);
                }
                Step::Turn => world.turn(),
                Step::Deliver(slot) => world.deliver(slot),
                Step::Announce(slot) => world.announce(slot),
                Step::Die(place) => world.die(place),
            }
        }
        world.settle();

        // Offsets have no gap, and each publication is there once, and is linked to the next.
        let mut published = Vec::new();
        for name in CHANNELS.into_iter().chain([EVENTS]) {
            let number = world.channel(name);
            let all = world.entries();
            let of_channel = |entry: &&Entry| {
                entry.kind() == Some(Kind::Publication) && entry.head.channel == number
            };
            let entries: Vec<&Entry> = all.iter().filter(of_channel).collect();
            let offsets: Vec<u64> = entries.iter().map(|entry| entry.head.offset).collect();
            prop_assert_eq!(&offsets, &(1..=offsets.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(world.desk.memory.channel_state(number).unwrap().offset, offsets.len() as u64);
            for pair in entries.windows(2) {
                prop_assert_eq!(world.desk.memory.next_in_channel(pair[0]), Some(pair[1].position));
            }
            if name != EVENTS {
                published.extend(entries.iter().map(|entry| (name, world.bytes(entry))));
            }
        }
        for (data, channel) in &said {
            let mut frame = Vec::new();
            holdfast_worker::websocket::frame::append_message(
                &mut frame, holdfast_worker::websocket::MessageKind::Text, data.as_bytes());
            prop_assert_eq!(published.iter().filter(|of| **of == (channel, frame.clone())).count(), 1);
        }
        let api = published.iter().filter(|(_, frame)| frame.ends_with(b"api")).count();
        prop_assert_eq!(api, keys.len());

        // Each who asked has one answer, and counts are those of who is there.
        let mut there: BTreeMap<String, u64> = BTreeMap::new();
        let here: BTreeSet<u64> = world.slots.iter().flat_map(|slot| slot.here.keys().copied()).collect();
        for &connection in &joined {
            let verdicts = world.verdicts(connection);
            prop_assert_eq!(verdicts.len(), 1);
            if here.contains(&connection) && verdicts[0].reason.is_none() {
                *there.entry(verdicts[0].channel.clone()).or_default() += 1;
            }
        }
        for channel in CHANNELS {
            prop_assert_eq!(world.subscribers(channel), there.get(channel).copied().unwrap_or_default());
        }

        // Events are told once, in order.
        let events = world.events(0);
        let count = |name: &str| events.iter().filter(|json| json.contains(&format!("\"name\":\"{name}\""))).count();
        prop_assert_eq!(count("connected"), joined.len());
        prop_assert_eq!(count("disconnected"), joined.len() - here.len());
        prop_assert_eq!(world.events(3), &events[events.len().min(3)..]);
        let before = world.entries().len();
        world.know_all();
        prop_assert_eq!(world.entries().len(), before);
    }
}

#[test]
fn who_comes_back_gets_what_was_missed_or_is_told() {
    let mut world = World::new(0);
    for number in 0..150 {
        world.publish("open:1", &number.to_string(), None).unwrap();
    }
    let channel = world.channel("open:1");
    let state = world.desk.memory.channel_state(channel).unwrap();
    let epoch = epoch_text(state.epoch);
    let recovered = |since, epoch: &str| world.desk.recover(channel, Some(since), Some(epoch));
    assert_eq!(recovered(150, &epoch), Some(Some(0)));
    for since in [50, 149] {
        let position = recovered(since, &epoch).unwrap().unwrap();
        assert_eq!(world.desk.memory.entry(position).unwrap().head.offset, since + 1);
    }
    for (since, of) in [(49, &*epoch), (151, &epoch), (149, "other")] {
        assert_eq!(recovered(since, of), Some(None), "{since} {of}");
    }
    assert_eq!(world.desk.recover(channel, None, None), None);
    let query = HistoryQuery {
        channel: ChannelName::new("open:1").unwrap(),
        since: Some(147),
        epoch: Some(epoch),
        limit: 2,
    };
    let history = world.desk.read_history(&query).unwrap();
    let offsets: Vec<u64> = history.publications.iter().map(|publication| publication.offset).collect();
    assert_eq!((offsets, history.recovered, history.offset), (vec![148, 149], true, 150));
    assert_eq!(history.publications[0].data, Data::text("147".to_owned()));
}

#[test]
fn each_limit_refuses_by_its_name() {
    let mut world = World::new(2);
    let asked = world.join(0, "open:1", Some("56"));
    world.turn();
    assert_eq!(world.verdicts(asked)[0].reason, Some(Refusal::AskAgain));
    world.know_all();
    let all: Vec<u64> = (0..3).map(|slot| world.join(slot % 2, "open:1", Some("57"))).collect();
    let small: Vec<u64> = (0..3).map(|slot| world.join(slot % 2, "small:1", None)).collect();
    let others = ["closed:1", "nothing", "@events", "a b"].map(|name| world.join(0, name, None));
    world.settle();
    let reasons = |world: &World, of: &[u64]| -> Vec<Option<Refusal>> {
        of.iter().flat_map(|&connection| world.verdicts(connection)).map(|verdict| verdict.reason).collect()
    };
    let refused =
        |reasons: &[Option<Refusal>]| -> Vec<Refusal> { reasons.iter().flatten().copied().collect() };
    assert_eq!(refused(&reasons(&world, &all)), [Refusal::MaxConnectionsPerUser]);
    assert_eq!(refused(&reasons(&world, &small)), [Refusal::MaxSubscribers]);
    assert_eq!(reasons(&world, &others), [Some(Refusal::Forbidden); 4]);
    assert_eq!((world.subscribers("open:1"), world.subscribers("small:1")), (2, 2));
    let published: Vec<_> = (0..3).map(|_| world.publish("closed:1", "x", None)).collect();
    assert_eq!(published, [Ok(1), Ok(2), Err(429)]);
    // A client that may not publish is closed, and told by which rule.
    world.say(0, small[0], world.channel("small:1"), "x");
    world.turn();
    let last = world.entries().pop().unwrap();
    assert_eq!((last.kind(), last.head.connection, last.head.channel), (Some(Kind::Disconnect), small[0], 8));
    assert_eq!((last.head.argument, world.bytes(&last)), (1008, b"client_publish".to_vec()));
}

#[test]
fn a_slot_that_is_lost_takes_its_connections_with_it() {
    let mut world = World::new(0);
    world.know_all();
    for slot in [0, 0, 1] {
        world.join(slot, "open:1", None);
    }
    world.turn();
    assert_eq!(world.subscribers("open:1"), 3);
    world.rings.take_all(0, &mut world.desk);
    world.rings.remove(0);
    world.desk.lose_slot(0);
    assert_eq!(world.subscribers("open:1"), 1);
    let lost = world.events(0).iter().filter(|json| json.contains("worker_lost")).count();
    assert_eq!(lost, 2);
}

#[test]
fn what_cannot_be_in_a_ring_is_passed_over() {
    let mut world = World::new(0);
    world.know_all();
    let ring = &world.slots[0].ring;
    for kind in [MessageKind::Joined, MessageKind::Gone, MessageKind::Here, MessageKind::Subscribe] {
        ring.say(kind, 0, 1, 9, b"{nonsense");
    }
    for kind in [MessageKind::Unsubscribe, MessageKind::Publish, MessageKind::MovedIn] {
        ring.say(kind, u16::MAX, u64::MAX, u32::MAX, b"x");
    }
    world.settle();
    let written = ring_end(&world);
    world.slots[0].ring.set(Word::Written, written + 4);
    world.turn();
    assert_eq!((world.rings.broken(), world.rings.queued_bytes()), (1, 0));
    let joined = world.join(1, "open:1", None);
    world.turn();
    assert_eq!(world.verdicts(joined).len(), 1);
}

fn ring_end(world: &World) -> u64 {
    world.slots[0].ring.get(Word::Written)
}
