//! A slot goes on with another program, or with the one it has when that does not work. The test is the
//! supervisor: it has a real keeper at the other end of the link, and one client.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::codec;
use holdfast_shared::ipc::link::{self, SupervisorEnd};
use holdfast_shared::ipc::message::{
    Envelope, KeeperMessage, ToSupervisor, ToWorker, Verdict, WorkerMessage,
};
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::ipc::settings_memory;
use holdfast_shared::sys::{descriptor, mapping};
use holdfast_shared::table::{self, Table};
use holdfast_supervisor::cluster::listeners::Listeners;
use holdfast_worker::keeper::KeeperStart;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast");
const ROWS: u32 = 64;

fn settings() -> Settings {
    let long = Duration::from_secs(600);
    Settings {
        rows: ROWS,
        max_pending_handshakes: 8,
        max_message_size: 1000,
        max_queued_output: 10_000,
        retry_after: long,
        handshake_timeout: long,
        ping_interval: long,
        pong_timeout: long,
        idle_timeout: long,
        close_timeout: Duration::from_millis(100),
        ..Settings::default()
    }
}

/// A keeper, and what its supervisor has of it.
struct Slot {
    keeper: Child,
    link: SupervisorEnd,
    address: SocketAddr,
    /// Whether the next worker gets its settings, without which it is not ready.
    serves: bool,
}

impl Slot {
    fn start() -> Self {
        let slot = SlotId(0);
        let table = mapping::create("table", table::size(ROWS)).unwrap();
        let settings = settings_memory::create(1, &settings()).unwrap();
        Table::format(table.as_fd(), slot, ROWS).unwrap().header_mut().set_settings(settings.as_raw_fd());
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 1, 16).unwrap();
        let listener = listeners.of_slot(SlotId(0)).next().unwrap();
        let lock = File::open("/dev/null").unwrap();
        let (link, slot_end) = link::pair().unwrap();
        let handed = [slot_end.as_fd(), table.as_fd(), settings.as_fd(), lock.as_fd(), listener];
        for one in handed {
            descriptor::set_inherited(one, true).unwrap();
        }
        let handover = KeeperStart {
            slot,
            last_incarnation: Incarnation(0),
            link: slot_end.as_raw_fd(),
            table: table.as_raw_fd(),
            lock: lock.as_raw_fd(),
            reconnect_socket: PathBuf::from("/nowhere"),
            listeners: vec![listener.as_raw_fd()],
            previous: None,
            went_back: None,
        };
        let keeper =
            Command::new(PROGRAM).args(handover.arguments().unwrap()).process_group(0).spawn().unwrap();
        Self { keeper, link, address: listeners.addresses()[0], serves: true }
    }

    /// Listens, and lets everybody in, until the slot says what is waited for.
    fn hear<T>(&mut self, mut wanted: impl FnMut(Incarnation, &ToSupervisor) -> Option<T>) -> T {
        loop {
            let Some(Envelope { incarnation, message }) = self.link.receive().unwrap() else {
                let mut watched = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
                assert!(
                    poll(&mut watched, PollTimeout::from(60_000_u16)).unwrap() > 0,
                    "the slot says nothing"
                );
                continue;
            };
            match &message {
                ToSupervisor::Worker(WorkerMessage::Hello { .. }) if self.serves => {
                    let settings = settings_memory::create(1, &settings()).unwrap();
                    let configure =
                        ToWorker::Configure { generation: 1, knows: codec::known::<WorkerMessage>() };
                    self.link.send_with(Incarnation::ANY, &configure, &[settings.as_fd()]).unwrap();
                }
                ToSupervisor::Worker(WorkerMessage::Admit { tickets }) => {
                    let verdicts = tickets.iter().map(|&(ticket, _)| (ticket, Verdict::Granted)).collect();
                    self.send(incarnation, &ToWorker::Verdicts { verdicts });
                }
                _ => {}
            }
            if let Some(found) = wanted(incarnation, &message) {
                return found;
            }
        }
    }

    fn send(&mut self, incarnation: Incarnation, message: &ToWorker) {
        self.link.send(incarnation, message).unwrap();
    }

    fn ready(&mut self, wanted: u32) -> u32 {
        self.hear(|incarnation, message| match message {
            ToSupervisor::Worker(WorkerMessage::Ready { resumed, .. }) => {
                assert_eq!(incarnation, Incarnation(wanted));
                Some(*resumed)
            }
            _ => None,
        })
    }

    fn restart(&mut self, program: BorrowedFd<'_>, worker: u32) {
        let asked = Incarnation(worker);
        self.link.send_with(asked, &ToWorker::Restart, &[program]).unwrap();
        let handed_over = ToSupervisor::Keeper(KeeperMessage::HandedOver);
        self.hear(|by, message| (by == asked && *message == handed_over).then_some(()));
    }

    /// Asks a worker that is dead to hand over, and hears from the one that lives that it stays.
    fn ask_the_dead(&mut self, dead: u32) {
        self.send(Incarnation(dead), &ToWorker::Restart);
        // Whoever hands over does so in the turn in which it was asked, so the second answer would be missing.
        for asked in [1, 2] {
            self.send(Incarnation::ANY, &ToWorker::ReportNow { request: asked });
            self.hear(|incarnation, message| match message {
                ToSupervisor::Keeper(KeeperMessage::HandedOver) => {
                    panic!("worker {incarnation} has handed over");
                }
                ToSupervisor::Worker(WorkerMessage::Report { request, .. }) => {
                    (*request == Some(asked)).then_some(())
                }
                _ => None,
            });
        }
    }

    /// Whether the slot has a program open.
    fn holds_program(&self) -> bool {
        let open = fs::read_dir(format!("/proc/{}/fd", self.keeper.id())).unwrap();
        let program = fs::canonicalize(PROGRAM).unwrap();
        open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).any(|target| target == program)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if matches!(self.keeper.try_wait(), Ok(Some(_))) {
            return;
        }
        // All at once: whoever is left would take the place of the others.
        let _ = killpg(Pid::from_raw(i32::try_from(self.keeper.id()).unwrap()), Signal::SIGKILL);
        let _ = self.keeper.wait();
    }
}

fn echoes(client: &mut TcpStream) {
    // RFC 6455 5.3: a mask of zeros leaves the payload as it is.
    client.write_all(b"\x82\x84\0\0\0\0kept").unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\x82\x04kept");
}

#[test]
fn a_slot_changes_its_program_or_keeps_the_one_it_has() {
    let mut slot = Slot::start();
    slot.ready(1);
    let mut client = TcpStream::connect(slot.address).unwrap();
    client
        .write_all(
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        )
        .unwrap();
    slot.hear(|_, message| {
        matches!(message, ToSupervisor::Worker(WorkerMessage::Admit { .. })).then_some(())
    });
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        response.push(byte[0]);
    }
    assert!(response.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&response));
    echoes(&mut client);

    let no_program = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    slot.restart(no_program.as_fd(), 1);
    let reason = slot.hear(|by, message| match message {
        ToSupervisor::Keeper(KeeperMessage::ProgramRefused { reason }) if by.0 == 1 => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("Permission denied"), "{reason}");
    assert_eq!(slot.ready(2), 1);
    assert!(!slot.holds_program());
    echoes(&mut client);

    let program = File::open(PROGRAM).unwrap();
    slot.serves = false;
    slot.ask_the_dead(1);
    slot.restart(program.as_fd(), 2);
    let worker = slot.hear(|by, message| match message {
        ToSupervisor::Keeper(KeeperMessage::Started { pid }) if by.0 == 3 => Some(Pid::from_raw(*pid)),
        _ => None,
    });
    assert!(slot.holds_program());
    kill(worker, Signal::SIGKILL).unwrap();
    slot.serves = true;
    let reason = slot.hear(|by, message| match message {
        ToSupervisor::Keeper(KeeperMessage::WentBack { reason }) if by.0 == 3 => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("SIGKILL"), "{reason}");
    assert_eq!(slot.ready(4), 1);
    assert!(!slot.holds_program());
    echoes(&mut client);

    slot.restart(program.as_fd(), 4);
    assert_eq!(slot.ready(5), 1);
    echoes(&mut client);
    assert!(!slot.holds_program());

    slot.send(Incarnation::ANY, &ToWorker::Leave);
    let left = ToSupervisor::Keeper(KeeperMessage::Left);
    slot.hear(|by, message| (by.0 == 5 && *message == left).then_some(()));
    assert!(slot.keeper.wait().unwrap().success());
}
