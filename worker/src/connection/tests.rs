//! An application as it sees its clients, over real sockets.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::sys::mapping;
use holdfast_shared::table::{self, Phase, Table};

use super::{Clients, Connections, Key};
use crate::app::{
    App, CloseReason, ConnectionId, Context, Message, MessageKind, Program, Protocol, Refusal, Request,
    Status,
};

const ROWS: u32 = 1024;
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Says what it is told.
struct Teller;

impl App for Teller {
    fn request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Refusal> {
        match request.query() {
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
    let table = Table::format(memory.as_fd(), SlotId(3), ROWS).unwrap();
    let settings = Settings {
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
        let (ours, socket) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let key = clients.connections.begin(ours.into(), IpAddr::from([127, 0, 0, 1])).unwrap();
        let mut peer = Self { key, socket };
        let request = format!(
            "GET /?{query} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
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
