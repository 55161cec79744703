//! Clients over real sockets, a journal and a ring in real memory, and a hub that answers as a test tells it to.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytemuck::Zeroable;
use holdfast_shared::channels::entry::{EntryHead, Kind, NO_SLOT};
use holdfast_shared::channels::journal::Writer;
use holdfast_shared::channels::memory::{self, ChannelMemory, Word as Memory};
use holdfast_shared::channels::rules::{Pattern, Rule};
use holdfast_shared::channels::sleep;
use holdfast_shared::channels::up_ring::{self, Joined, MessageKind, UpRing, Verdict, Word};
use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::settings::{ChannelSettings, Settings};
use holdfast_shared::route::Route;
use holdfast_shared::sys::mapping;
use holdfast_shared::sys::shared_memory::Access;
use holdfast_shared::table::{self, Phase, Subscriber, Table};
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::super::{Clients, Connections, Key};
use crate::app::Program;
use crate::channels::ChannelAccess;
use crate::websocket::frame;

const ROWS: u32 = 16 * 1024;
const SLOT: SlotId = SlotId(3);
const CHANNEL: u32 = 1;

/// What outlives a worker.
struct Ground {
    table: OwnedFd,
    channels: OwnedFd,
    ring: OwnedFd,
    bells: [OwnedFd; 2],
    max_lag: u64,
}

impl Ground {
    fn new() -> Self {
        let table = mapping::create("table", table::size(ROWS)).unwrap();
        Table::format(table.as_fd(), SLOT, ROWS).unwrap();
        Self {
            table,
            channels: memory::create(4 << 20).unwrap(),
            ring: up_ring::create(SLOT.0, 8).unwrap(),
            bells: [sleep::bell().unwrap(), sleep::bell().unwrap()],
            max_lag: 1 << 20,
        }
    }

    /// The next worker.
    fn worker(&self) -> Clients {
        let route = Route { path: "/ch".to_owned(), protocol: "channels".to_owned(), ..Route::default() };
        let rules = vec![Rule { matches: Pattern("*".to_owned()), client_publish: true, ..Rule::default() }];
        let channels = ChannelSettings { rules, max_lag: self.max_lag, ..ChannelSettings::default() };
        let settings = Settings {
            routes: vec![route],
            path: "/".to_owned(),
            max_pending_handshakes: 100,
            max_message_size: 100_000,
            max_queued_output: 1_000_000,
            handshake_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(5),
            channels: Some(channels),
            ..Settings::default()
        };
        let table = Table::open(self.table.as_fd()).unwrap();
        let mut connections = Connections::new(SLOT, table, settings, 1000);
        let access = ChannelAccess {
            memory: ChannelMemory::map(self.channels.as_fd(), Access::Read).unwrap(),
            ring: self.ring.as_raw_fd(),
            bell: self.bells[0].as_raw_fd(),
            hub_bell: self.bells[1].as_raw_fd(),
        };
        connections.open_feed(access).unwrap();
        for row in connections.table.used() {
            if connections.key_at(row).is_some() {
                connections.take_over(row);
            }
        }
        Clients::new(connections, Program::echo("0"))
    }
}

/// A hub with one channel, which lets everybody in.
struct Hub {
    memory: ChannelMemory,
    ring: UpRing,
    writer: Writer,
    offset: u64,
    last: u64,
    joined: u64,
    gone: Vec<u64>,
    /// Those that are named to it.
    here: Vec<u64>,
}

impl Hub {
    fn new(ground: &Ground) -> Self {
        let memory = ChannelMemory::map(ground.channels.as_fd(), Access::Write).unwrap();
        memory.add_channel(CHANNEL, "news", 36);
        let (ring, writer) = (UpRing::map(ground.ring.as_fd()).unwrap(), Writer::new(&memory));
        Self { memory, ring, writer, offset: 0, last: 0, joined: 0, gone: Vec::new(), here: Vec::new() }
    }

    fn publish(&mut self, data: &[u8], exclude: u64) {
        self.offset += 1;
        let mut bytes = Vec::new();
        frame::append_frame(&mut bytes, OpCode::Data(Data::Text), data);
        let head = EntryHead {
            kind: Kind::Publication.number(),
            flags: EntryHead::TEXT,
            channel: CHANNEL,
            offset: self.offset,
            previous: self.last,
            source: EntryHead::source_of(NO_SLOT, 0),
            connection: exclude,
            ..EntryHead::zeroed()
        };
        self.last = self.writer.append(&self.memory, head, &bytes);
        self.writer.commit(&self.memory);
    }

    fn tell(&mut self, kind: Kind, connection: u64, channel: u32, argument: u64, bytes: &[u8]) {
        let head = EntryHead { kind: kind.number(), connection, channel, argument, ..EntryHead::zeroed() };
        self.writer.append(&self.memory, head, bytes);
        self.writer.commit(&self.memory);
    }

    /// Carries out all that was said.
    fn turn(&mut self) {
        let mut bytes = Vec::new();
        while let Some(message) = self.ring.message(self.ring.get(Word::Read), &mut bytes).unwrap() {
            let id = message.head.connection;
            match message.kind.unwrap() {
                MessageKind::Joined => {
                    let joined: Joined = serde_json::from_slice(&bytes).unwrap();
                    let asked = joined.subscribe.unwrap();
                    self.joined += 1;
                    let begin = asked.since.map_or(0, |since| self.position_after(since));
                    let verdict = Verdict {
                        row: asked.row,
                        channel: asked.channel,
                        epoch: "10".to_owned(),
                        offset: self.offset,
                        recovered: asked.since.map(|_| true),
                        may_publish: true,
                        ..Verdict::default()
                    };
                    let verdict = serde_json::to_vec(&verdict).unwrap();
                    self.tell(Kind::Subscribed, id, CHANNEL, begin, &verdict);
                }
                MessageKind::Publish => {
                    assert_eq!(message.head.channel, CHANNEL);
                    self.publish(&bytes, id);
                }
                MessageKind::Gone => self.gone.push(id),
                MessageKind::AnnounceBegin => self.here.clear(),
                MessageKind::Here => self.here.push(id),
                kind => assert!(matches!(kind, MessageKind::AnnounceEnd), "{kind:?}"),
            }
            self.ring.set(Word::Read, message.end);
        }
    }

    /// Where the publication after `offset` lies; 0 if there is none.
    fn position_after(&self, offset: u64) -> u64 {
        let (mut position, mut found) = (self.last, 0);
        while position != 0 {
            let entry = self.memory.entry(position).unwrap();
            if entry.head.offset <= offset {
                break;
            }
            (found, position) = (position, entry.head.previous);
        }
        found
    }
}

struct Client {
    key: Key,
    id: u64,
    socket: UnixStream,
    read: Vec<u8>,
}

impl Client {
    fn join(clients: &mut Clients, query: &str) -> Self {
        let (ours, socket) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let key = clients.connections.begin(ours.into(), [127, 0, 0, 1].into()).unwrap();
        let request = format!(
            "GET /ch/news{query} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        let mut client = Self { key, id: 0, socket, read: Vec::new() };
        std::io::Write::write_all(&mut client.socket, request.as_bytes()).unwrap();
        clients.on_ready(key, true, false, false);
        assert_eq!(clients.take_asking(), [key]);
        clients.admit(key);
        client.id = clients.connections.get(key).unwrap().id;
        client.receive();
        let head = client.read.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert!(client.read.starts_with(b"HTTP/1.1 101 "));
        client.read.drain(..head);
        client
    }

    fn send(&mut self, clients: &mut Clients, text: &str) {
        let header = [0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        std::io::Write::write_all(&mut self.socket, &[&header, text.as_bytes()].concat()).unwrap();
        clients.on_ready(self.key, true, false, false);
    }

    fn receive(&mut self) {
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = self.socket.read(&mut buffer) {
            self.read.extend_from_slice(&buffer[..length]);
        }
    }

    /// All whole messages that have come, a close frame as its code.
    fn messages(&mut self) -> Vec<String> {
        self.receive();
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(head) = self.read.get(at..at + 2) {
            let (length, header) = match head[1] {
                126 => (usize::from(u16::from_be_bytes([self.read[at + 2], self.read[at + 3]])), 4),
                127 => panic!("no message is that long here"),
                length => (usize::from(length), 2),
            };
            let Some(payload) = self.read.get(at + header..at + header + length) else { break };
            messages.push(match head[0] & 0xf {
                8 => format!("closed {}", u16::from_be_bytes([payload[0], payload[1]])),
                9 => "ping".to_owned(),
                _ => String::from_utf8_lossy(payload).into_owned(),
            });
            at += header + length;
        }
        self.read.drain(..at);
        messages
    }
}

/// What the loop does in a turn.
fn step(clients: &mut Clients) {
    clients.connections.step_feed(Duration::from_secs(1));
    clients.finish_ended();
}

fn settle(clients: &mut Clients, hub: &mut Hub) {
    hub.turn();
    step(clients);
    while clients.connections.feed_has_work() {
        step(clients);
    }
}

#[test]
fn what_is_published_reaches_the_others_and_what_is_for_one_reaches_one() {
    let ground = Ground::new();
    let (mut clients, mut hub) = (ground.worker(), Hub::new(&ground));
    let mut ann = Client::join(&mut clients, "");
    let mut bob = Client::join(&mut clients, "?envelope=1");
    settle(&mut clients, &mut hub);
    assert_eq!(bob.messages(), [r#"{"subscribed":"news","offset":0,"epoch":"10"}"#]);
    ann.send(&mut clients, "hi");
    bob.send(&mut clients, r#"{"a": 1}"#);
    settle(&mut clients, &mut hub);
    assert_eq!(ann.messages(), [r#"{"a": 1}"#]);
    assert_eq!(bob.messages(), [r#"{"channel":"news","offset":1,"epoch":"10","data":"hi"}"#]);

    let mut direct = Vec::new();
    frame::append_frame(&mut direct, OpCode::Data(Data::Text), b"psst");
    hub.publish(b"before", 0);
    // Wherever it is thought to be.
    for row in [0, bob.key.row + 1] {
        hub.tell(Kind::Direct, bob.id, row, 0, &direct);
    }
    hub.publish(b"after", 0);
    settle(&mut clients, &mut hub);
    assert_eq!(ann.messages(), ["before", "after"]);
    let expected = ["before", "psst", "psst", "after"];
    for (message, expected) in bob.messages().iter().zip(expected) {
        assert!(message.contains(expected), "{message}");
    }
    hub.tell(Kind::Disconnect, ann.id, 0, 4001, b"bye");
    hub.tell(Kind::Unsubscribed, bob.id, CHANNEL, 0, b"");
    hub.publish(b"later", 0);
    settle(&mut clients, &mut hub);
    assert_eq!(ann.messages(), ["closed 4001"]);
    assert_eq!(bob.messages(), ["closed 1000"]);
}

#[test]
fn a_client_that_comes_back_gets_what_it_missed_and_what_comes_after() {
    let ground = Ground::new();
    let (mut clients, mut hub) = (ground.worker(), Hub::new(&ground));
    let mut other = Client::join(&mut clients, "");
    settle(&mut clients, &mut hub);
    for number in 1..=1000 {
        hub.publish(number.to_string().as_bytes(), 0);
    }
    settle(&mut clients, &mut hub);
    assert_eq!(other.messages().len(), 1000);
    let mut back = Client::join(&mut clients, "?since=3&epoch=10");
    hub.turn();
    hub.publish(b"1001", 0);
    settle(&mut clients, &mut hub);
    let expected: Vec<String> = (4..=1001).map(|number| number.to_string()).collect();
    assert_eq!(back.messages(), expected);
    assert_eq!(other.messages(), ["1001"]);
}

#[test]
fn a_slow_reader_costs_a_position_and_gets_everything_or_is_closed() {
    let ground = Ground::new();
    let (mut clients, mut hub) = (ground.worker(), Hub::new(&ground));
    let mut slow = Client::join(&mut clients, "");
    settle(&mut clients, &mut hub);
    let text = |number: u64| format!("{number} {}", "x".repeat(5000));
    let mut published = 0;
    while !clients.connections.lags(slow.key) {
        published += 1;
        hub.publish(text(published).as_bytes(), 0);
        settle(&mut clients, &mut hub);
    }
    for _ in 0..20 {
        published += 1;
        hub.publish(text(published).as_bytes(), 0);
        settle(&mut clients, &mut hub);
    }
    let record = clients.connections.get(slow.key).unwrap();
    assert_eq!((record.heap_state, record.queued), (0, 0), "nothing is queued");
    // The worker dies meanwhile, and something else is to be written in the middle of a frame.
    std::mem::forget(clients);
    let mut clients = ground.worker();
    clients.resume(slow.key);
    let is_cut = clients.connections.get(slow.key).unwrap().part() > 0;
    let mut ping = Vec::new();
    frame::append_frame(&mut ping, OpCode::Control(tungstenite::protocol::frame::coding::Control::Ping), b"");
    clients.connections.set_busy(slow.key);
    clients.connections.write(slow.key, &ping);
    clients.connections.settle(slow.key);
    assert_eq!(clients.connections.has_output(slow.key), is_cut || clients.connections.has_output(slow.key));
    let mut messages = Vec::new();
    for _ in 0..100 {
        messages.extend(slow.messages());
        clients.on_ready(slow.key, false, true, false);
        settle(&mut clients, &mut hub);
    }
    messages.extend(slow.messages());
    messages.retain(|message| message != "ping");
    assert_eq!(messages, (1..=published).map(text).collect::<Vec<_>>());
    assert!(!clients.connections.lags(slow.key));

    // One that does not read at all is closed.
    for _ in 0..400 {
        published += 1;
        hub.publish(text(published).as_bytes(), 0);
        settle(&mut clients, &mut hub);
    }
    assert!(!clients.connections.is_in(slow.key, Phase::Open));
    for _ in 0..10 {
        messages.extend(slow.messages());
        clients.on_ready(slow.key, false, true, false);
    }
    assert_eq!(messages.last().map(String::as_str), Some("closed 1013"));
    let whole = messages.len() - 1;
    assert_eq!(messages[..whole], (1..=whole as u64).map(text).collect::<Vec<_>>());
}

#[test]
fn whichever_worker_dies_between_which_steps_everybody_gets_everything_once() {
    const CLIENTS: usize = 700;
    let ground = Ground::new();
    let (mut clients, mut hub) = (ground.worker(), Hub::new(&ground));
    let mut all: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::join(&mut clients, if number % 50 == 0 { "?envelope=1" } else { "" }))
        .collect();
    settle(&mut clients, &mut hub);
    assert_eq!(hub.joined, CLIENTS as u64);
    for client in &mut all {
        client.messages();
    }
    let mut random = fastrand::Rng::with_seed(7);
    let mut received: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for number in 1..=200 {
        hub.publish(number.to_string().as_bytes(), 0);
        if random.bool() {
            clients.connections.step_feed(Duration::from_secs(1));
        }
        if random.u8(..) < 80 {
            std::mem::forget(clients);
            clients = ground.worker();
            for client in &all {
                clients.resume(client.key);
            }
        }
        if random.u8(..) < 20 {
            hub.memory.set(Memory::GenerationStart, hub.memory.get(Memory::Tail));
            hub.memory.set(Memory::Generation, number);
        }
    }
    settle(&mut clients, &mut hub);
    for client in &mut all {
        received.insert(client.id, client.messages());
    }
    for (place, (_, messages)) in received.iter().enumerate() {
        assert_eq!(messages.len(), 200, "client {place}");
        for (number, message) in (1..).zip(messages) {
            assert!(*message == number.to_string() || message.contains(&format!("\"offset\":{number},")));
        }
    }
    // All of them are named to a hub that is new, and each end is said once.
    hub.memory.set(Memory::Generation, 1000);
    settle(&mut clients, &mut hub);
    hub.turn();
    assert_eq!(hub.here.len(), CLIENTS);
    for client in all.drain(..) {
        drop(client.socket);
        clients.on_ready(client.key, true, false, true);
    }
    clients.finish_ended();
    std::mem::forget(clients);
    let mut clients = ground.worker();
    settle(&mut clients, &mut hub);
    hub.turn();
    hub.gone.sort_unstable();
    hub.gone.dedup();
    assert_eq!(hub.gone.len(), CLIENTS);
    let none = clients.connections.table.records().iter().all(|record| record.subscriber == Subscriber::NONE);
    assert!(none);
}
