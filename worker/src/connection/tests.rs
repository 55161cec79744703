//! An application as it sees its clients, over real sockets.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::route::{Route, Subprotocols};
use holdfast_shared::sys::mapping;
use holdfast_shared::table::{self, Phase, Table};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Clients, Connections, Key};
use crate::app::{
    App, CloseReason, ConnectionId, Context, Message, MessageKind, Program, Protocol, Refusal, Request,
    Status,
};

mod subprotocols;

/// More than the descriptors of all tests of this process together.
const ROWS: u32 = 32 * 1024;
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Says what it is told.
struct Teller;

impl App for Teller {
    fn request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Refusal> {
        match request.query() {
            Some("second") => {
                context.choose_subprotocol(request.subprotocols().get(1).map_or("none", |name| name));
                Ok(())
            }
            Some("no") => Err(Refusal::of_request(Status::Unauthorized, "Not you")),
            name => context
                .set_session(name.unwrap_or_default().as_bytes())
                .map_err(|_| Refusal::of_request(Status::ServiceUnavailable, "No memory")),
        }
    }

    fn opened(&mut self, context: &mut Context<'_>) {
        let greeting = [b"hello ", context.session()].concat();
        context.send(MessageKind::Text, &greeting);
    }

    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        match message.payload().split_at(1) {
            (b"x", reason) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                context.close(4001, &reason);
            }
            (b"t", _) => context.set_timer(Some(Duration::from_millis(1))),
            (b"@", rest) => {
                let id = ConnectionId(String::from_utf8_lossy(rest).parse().unwrap());
                let found =
                    context.find(id).is_some_and(|to| context.send_to(to, MessageKind::Text, b"psst"));
                context.send(MessageKind::Text, if found { b"sent" } else { b"gone" });
            }
            _ => context.send_back(message),
        }
    }

    fn closed(&mut self, reason: CloseReason, context: &mut Context<'_>) {
        assert!(context.session().starts_with(b"n") && reason != CloseReason::Error);
        CLOSED.fetch_add(1, Ordering::Relaxed);
    }

    fn resumed(&mut self, context: &mut Context<'_>) {
        let greeting = [b"again ", context.session()].concat();
        context.send(MessageKind::Text, &greeting);
    }

    fn timer(&mut self, context: &mut Context<'_>) {
        context.send(MessageKind::Text, b"time");
    }
}

pub(super) fn clients() -> Clients {
    let memory = mapping::create("table", table::size(ROWS)).unwrap();
    serving(Table::format(memory.as_fd(), SlotId(3), ROWS).unwrap())
}

fn serving(table: Table) -> Clients {
    let route = Route {
        path: "/".to_owned(),
        protocol: "teller".to_owned(),
        subprotocols: Subprotocols::Any,
        ..Route::default()
    };
    let settings = Settings {
        routes: vec![route],
        max_pending_handshakes: 100,
        path: "/".to_owned(),
        max_message_size: 1000,
        max_queued_output: 100_000,
        handshake_timeout: Duration::from_secs(5),
        close_timeout: Duration::from_secs(5),
        ..Settings::default()
    };
    let program =
        Program { version: "0", protocols: &[Protocol { name: "teller", app: || Box::new(Teller) }] };
    Clients::new(Connections::new(SlotId(3), table, settings, 1000), program)
}

pub(super) struct Peer {
    pub(super) key: Key,
    pub(super) socket: UnixStream,
}

impl Peer {
    /// Connects and asks to be let in.
    fn ask(clients: &mut Clients, query: &str) -> Self {
        Self::ask_with(clients, query, "")
    }

    /// With more header lines.
    fn ask_with(clients: &mut Clients, query: &str, extra: &str) -> Self {
        let (ours, socket) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let key = clients.connections.begin(ours.into(), IpAddr::from([127, 0, 0, 1])).unwrap();
        let mut peer = Self { key, socket };
        let request = format!(
            "GET /?{query} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
        );
        peer.write(clients, request.as_bytes());
        peer
    }

    pub(super) fn open(clients: &mut Clients, query: &str) -> Self {
        let mut peer = Self::ask(clients, query);
        assert_eq!(clients.take_asking(), [peer.key]);
        clients.admit(peer.key);
        let answer = peer.read();
        assert!(
            answer.starts_with("HTTP/1.1 101 ") && answer.ends_with(&format!("hello {query}")),
            "{answer}"
        );
        peer
    }

    fn write(&mut self, clients: &mut Clients, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
        clients.on_ready(self.key, true, false, false);
    }

    pub(super) fn say(&mut self, clients: &mut Clients, text: &str) -> String {
        let header = [0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        self.write(clients, &[&header, text.as_bytes()].concat());
        self.read()
    }

    pub(super) fn read(&mut self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.read(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

#[test]
fn an_application_refuses_greets_answers_closes_and_reaches_others() {
    let mut clients = clients();
    let mut refused = Peer::ask(&mut clients, "no");
    assert!(refused.read().starts_with("HTTP/1.1 401 ") && clients.take_asking().is_empty());

    let mut ann = Peer::open(&mut clients, "nann");
    let mut bob = Peer::open(&mut clients, "nbob");
    assert!(ann.say(&mut clients, "hi").ends_with("hi"));
    let id = clients.connections.get(bob.key).unwrap().id;
    assert!(ann.say(&mut clients, &format!("@{id}")).ends_with("sent"));
    assert!(bob.read().ends_with("psst"));

    ann.say(&mut clients, "t");
    clients.connections.now_ms += 200;
    clients.expire_timers();
    assert!(ann.read().ends_with("time"));
    clients.connections.now_ms += 200;
    clients.expire_timers();
    assert!(ann.read().is_empty(), "once");

    // The code is no UTF-8.
    assert!(bob.say(&mut clients, "xbye").ends_with("bye"));
    assert!(bob.say(&mut clients, "more").is_empty(), "nobody listens any more");
    bob.write(&mut clients, &[0x88, 0x80, 0, 0, 0, 0]);
    drop(bob.socket);
    clients.on_ready(bob.key, true, false, true);
    let before = CLOSED.load(Ordering::Relaxed);
    assert_eq!(clients.connections.record_of(bob.key).unwrap().phase(), Phase::Ended);
    clients.finish_ended();
    assert_eq!(CLOSED.load(Ordering::Relaxed), before + 1);
    assert!(clients.connections.record_of(bob.key).is_none());
    assert!(ann.say(&mut clients, &format!("@{id}")).ends_with("gone"));
    clients.resume(ann.key);
    assert!(ann.read().ends_with("again nann"));
    assert_eq!(clients.connections.admitted(), 1);
}

const TICK_MS: u64 = 64;

/// Lets one ping interval pass, tick by tick. Returns the pings of each tick, as the other end of everybody's socket gets them.
fn pings_by_tick(clients: &mut Clients, others_end: &mut UnixStream, interval_ms: u64) -> Vec<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut tick = || {
        clients.connections.now_ms += TICK_MS;
        clients.expire_timers();
        let length = others_end.read(&mut buffer).unwrap_or(0);
        assert!(buffer[..length].chunks(6).all(|frame| frame[..2] == [0x89, 4]));
        length as u64 / 6
    };
    (0..=interval_ms / TICK_MS).map(|_| tick()).collect()
}

/// Mistake 8: all pings in one tick.
#[test]
fn no_tick_has_more_than_a_fair_share_of_the_pings_after_a_burst_and_after_a_workers_death() {
    const CLIENTS: u64 = 10_000;
    const INTERVAL_MS: u64 = 30_000;
    // Three times the mean, which chance does not reach.
    const MOST: u64 = 3 * CLIENTS * TICK_MS / INTERVAL_MS;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();

    // Descriptors of other tests of this process are among them.
    let rows = u32::try_from(CLIENTS + 5000).unwrap();
    let memory = mapping::create("table", table::size(rows)).unwrap();
    let mut clients = serving(Table::format(memory.as_fd(), SlotId(3), rows).unwrap());
    clients.connections.settings.ping_interval = Duration::from_millis(INTERVAL_MS);
    clients.connections.settings.pong_timeout = Duration::from_hours(1);
    let settings = clients.connections.settings.clone();
    // One socket for everybody: it is the descriptors that are many.
    let (ours, mut others_end) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    others_end.set_nonblocking(true).unwrap();
    for _ in 0..CLIENTS {
        let descriptor = ours.try_clone().unwrap().into();
        let key = clients.connections.begin(descriptor, IpAddr::from([127, 0, 0, 1])).unwrap();
        clients.connections.enter(key, Phase::AwaitingAdmission, u64::MAX);
        clients.admit(key);
        let _ = others_end.read(&mut [0; 4096]).unwrap();
    }
    // Twenty seconds later its worker is dead, and the next one goes on.
    let now_ms = clients.connections.now_ms + 20_000;
    drop(clients);
    let mut clients = serving(Table::open(memory.as_fd()).unwrap());
    (clients.connections.settings, clients.connections.now_ms) = (settings, now_ms);
    for row in 0..rows {
        if clients.connections.key_at(row).is_some() {
            let key = clients.connections.take_over(row);
            clients.connections.arm_resumed(key);
        }
    }
    let pings = pings_by_tick(&mut clients, &mut others_end, INTERVAL_MS);
    assert_eq!(pings.iter().sum::<u64>(), CLIENTS);
    assert!(pings.iter().all(|&count| count <= MOST), "{:?} of {MOST}", pings.iter().max());

    // All answer at once, and their next pings are as far apart as the ones before.
    for row in 0..rows {
        if let Some(key) = clients.connections.key_at(row) {
            clients.connections.heard_from(key);
        }
    }
    let pings = pings_by_tick(&mut clients, &mut others_end, INTERVAL_MS);
    assert!(pings.iter().all(|&count| count <= MOST), "{:?} of {MOST}", pings.iter().max());
    for row in 0..rows {
        if let Some(key) = clients.connections.key_at(row) {
            clients.connections.finish_end(key);
        }
    }
}

#[test]
fn a_client_that_sends_faster_than_its_rate_gets_what_that_allows_and_1008() {
    for size in [1, 3, 7, 1000] {
        let mut clients = clients();
        clients.connections.settings.messages_per_second = 3;
        let mut ann = Peer::open(&mut clients, "nann");
        let messages = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'].repeat(5);
        for piece in messages.chunks(size) {
            ann.write(&mut clients, piece);
        }
        let answers = ann.read();
        assert_eq!(answers.matches("hi").count(), 3, "in reads of {size}");
        assert!(answers.ends_with("Too many messages"), "{answers}");
        let record = clients.connections.get(ann.key).unwrap();
        assert_eq!(usize::from(record.ending), CloseReason::MessageRate.index());
    }
}

#[test]
fn a_pong_says_how_long_it_took_once_and_data_in_between_does_not_matter() {
    let mut clients = clients();
    clients.connections.settings.ping_interval = Duration::from_secs(30);
    clients.connections.settings.pong_timeout = Duration::from_secs(30);
    let mut ann = Peer::open(&mut clients, "nann");
    let pong = |payload: &[u8]| [&[0x8a, 0x80 | 4, 0, 0, 0, 0][..], payload].concat();
    // Not asked for.
    ann.write(&mut clients, &pong(&[0, 0, 0, 1]));
    let mut ping = [0; 6];
    while ann.socket.read(&mut ping).is_err() {
        clients.connections.now_ms += TICK_MS;
        clients.expire_timers();
    }
    clients.connections.now_ms += 40;
    ann.write(&mut clients, &pong(&[0x80; 4]));
    assert!(ann.say(&mut clients, "hi").ends_with("hi"));
    for _ in 0..2 {
        ann.write(&mut clients, &pong(&ping[2..]));
    }
    let counted = clients.connections.table.counters().ping_rtt;
    assert_eq!((counted.count(), counted.sum_microseconds, counted.buckets[4]), (1, 40_000, 1));
}
