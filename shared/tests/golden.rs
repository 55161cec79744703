//! The bytes that outlive a binary: link messages and connection tables. When one of these tests fails, programs
//! before this one read what it writes differently. If something was appended as `ARCHITECTURE.md` says, raise the
//! format's `version` and accept the new bytes with `HOLDFAST_BLESS=1 cargo test -p holdfast-shared --test golden`.
//! Anything else ends live upgrades from programs before: undo it, or raise `reads_since` too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::counters::Counters;
use holdfast_shared::id::{ConnectionId, Incarnation, SlotId, Ticket};
use holdfast_shared::ipc::codec::{Message, decode, encode};
use holdfast_shared::ipc::message::{
    CloseTarget, DeathCause, Envelope, KeeperMessage, Report, ToSupervisor, ToWorker, Verdict, WorkerMessage,
};
use holdfast_shared::ipc::moving::{ToGiver, ToTaker};
use holdfast_shared::level::Level;
use holdfast_shared::reason::{CloseReason, Rejection};
use holdfast_shared::sys::mapping;
use holdfast_shared::table::{self, Flags, Phase, Table, TableError};

fn compare(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(golden == bytes, "{name} has changed:\n was {golden:02x?}\n  is {bytes:02x?}");
}

fn check<T: Message + PartialEq + std::fmt::Debug>(name: &str, message: T) {
    let incarnation = Incarnation(7);
    let bytes = encode(incarnation, &message).unwrap();
    compare(name, &bytes);
    assert_eq!(decode(&bytes).unwrap(), Envelope { incarnation, message });
}

fn check_keeper(name: &str, message: KeeperMessage) {
    check(name, ToSupervisor::from(message));
}

fn check_worker(name: &str, message: WorkerMessage) {
    check(name, ToSupervisor::from(message));
}

fn counters() -> Counters {
    let mut counters = Counters { accepted: 3, messages_received: 4, bytes_sent: 5, ..Counters::default() };
    counters.reject(Rejection::Draining);
    counters.close(CloseReason::Error, Duration::from_secs(2));
    counters.admission(Duration::from_millis(1));
    counters.pong(Duration::from_millis(30));
    counters
}

#[test]
fn messages_to_the_supervisor() {
    let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let second = Duration::from_millis(1500);
    check_keeper("keeper_started", KeeperMessage::Started { pid: 1234 });
    let cause = DeathCause::Signal(9);
    check_keeper("keeper_died", KeeperMessage::Died { cause, lived: second, pause: second });
    check_worker("worker_hello", WorkerMessage::Hello { pid: 1234, version: "1.2.3".to_owned(), knows: 11 });
    check_worker("worker_holdings", WorkerMessage::Holdings { addresses: vec![(v4, 2), (v6, 1)] });
    check_worker(
        "worker_ready",
        WorkerMessage::Ready { resumed: 3, lost: 1, took: second, counters: Box::new(counters()) },
    );
    let tickets = vec![(Ticket(1), v4), (Ticket(2), v6)];
    check_worker("worker_admit", WorkerMessage::Admit { tickets });
    check_worker(
        "worker_release",
        WorkerMessage::Release { closed: vec![(v4, CloseReason::Client), (v6, CloseReason::Drain)] },
    );
    let report =
        Box::new(Report { connections: 1, loop_lag: second, counters: counters(), ..Report::default() });
    check_worker("worker_report", WorkerMessage::Report { request: Some(9), report });
    check_worker("worker_applied", WorkerMessage::Applied { generation: 2 });
    check_worker("worker_draining", WorkerMessage::Draining { told: 3, untold: 4 });
    check_keeper("keeper_left", KeeperMessage::Left);
    check_keeper("keeper_handed_over", KeeperMessage::HandedOver);
    let reason = "no memory".to_owned();
    check_worker("worker_restart_refused", WorkerMessage::RestartRefused { reason });
    check_worker("worker_adopt", WorkerMessage::Adopt { slot: SlotId(3), pid: 1234, keeper: 1233 });
    let reason = "Exec format error".to_owned();
    check_keeper("keeper_program_refused", KeeperMessage::ProgramRefused { reason });
    let reason = "exit status 1".to_owned();
    check_keeper("keeper_went_back", KeeperMessage::WentBack { reason });
    check_keeper("keeper_keeper", KeeperMessage::Keeper { pid: 1233 });
    let (transfer, addresses) = (5, vec![v4, v6]);
    let named = addresses.clone();
    check_worker("worker_giving", WorkerMessage::Giving { transfer, addresses: named });
    let named = addresses.clone();
    check_worker("worker_kept", WorkerMessage::Kept { transfer, addresses: named });
    check_worker("worker_took", WorkerMessage::Took { transfer, addresses });
    let stopped = Some("no room".to_owned());
    check_worker("worker_give_ended", WorkerMessage::GiveEnded { transfer, moved: 2, stopped });
    check_worker("worker_take_ended", WorkerMessage::TakeEnded { transfer });
    check_worker("worker_withdraw", WorkerMessage::Withdraw { tickets: vec![Ticket(4), Ticket(9)] });
    check_worker("worker_told", WorkerMessage::Told { order: 3, named: 2, told: 1 });
}

#[test]
fn messages_to_a_worker() {
    check("to_worker_configure", ToWorker::Configure { generation: 1, knows: 15 });
    let verdicts =
        vec![(Ticket(1), Verdict::Granted), (Ticket(2), Verdict::Refused(Rejection::MaxConnections))];
    check("to_worker_verdicts", ToWorker::Verdicts { verdicts });
    check("to_worker_report_now", ToWorker::ReportNow { request: 9 });
    check("to_worker_state", ToWorker::State { full: true, level: Level::Degraded });
    check("to_worker_leave", ToWorker::Leave);
    check("to_worker_hold_drain", ToWorker::HoldDrain);
    check("to_worker_restart", ToWorker::Restart);
    check("to_worker_drain", ToWorker::Drain { duration: Duration::from_secs(30) });
    let transfer = 5;
    check("to_worker_give", ToWorker::Give { transfer, to: SlotId(2), count: 100 });
    check("to_worker_take", ToWorker::Take { transfer, from: SlotId(1) });
    check("to_worker_counted", ToWorker::Counted { transfer });
    let target = CloseTarget { row: 9, id: ConnectionId(77), idle_since_ms: 1000 };
    check(
        "to_worker_close",
        ToWorker::Close {
            order: 3,
            targets: vec![target],
            code: 1013,
            text: "later".to_owned(),
            reason: CloseReason::Shed,
        },
    );
}

#[test]
fn messages_between_workers() {
    let records = vec![1, 2, 3];
    check("to_taker_batch", ToTaker::Batch { layout: (3, 3), records, has_halves: true });
    check("to_giver_room", ToGiver::Room);
    check("to_giver_full", ToGiver::Full);
    check("to_giver_taken", ToGiver::Taken);
}

#[test]
fn the_connection_table() {
    let memory = mapping::create("golden", table::size(2)).unwrap();
    let mut table = Table::format(memory.as_fd(), SlotId(3), 2).unwrap();
    let header = table.header_mut();
    header.rows_used = 2;
    header.saved = 21;
    header.binary = 22;
    header.ready_incarnation = 6;
    header.sequence = 77;
    header.counters = counters();
    header.moved_in = 4;
    header.moved_out = 2;
    header.settings = 23;
    let record = &mut table.records_mut()[1];
    record.begin(0x0003_0000_0000_004d, 77, "192.0.2.1".parse().unwrap(), 1000, 3000);
    record.set_phase(Phase::Open);
    record.flags = Flags::ADMITTED.union(Flags::AWAITING_PONG);
    record.ping_due_ms = 2000;
    record.messages_received = 5;
    record.accept_key = *b"twenty bytes of SHA1";
    record.session = u32::from_le_bytes(*b"here");
    let mut bytes = Vec::new();
    fs::File::from(memory).read_to_end(&mut bytes).unwrap();
    // Only the used part of the header page: the rest is zeros.
    compare("table_header", &bytes[..1536]);
    compare("table_records", &bytes[4096..]);
}

/// A table that a Holdfast of another layout wrote is refused by its number, before anything of it is believed.
#[test]
fn a_table_of_an_earlier_layout_is_refused_by_name() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/table_header_layout_1");
    let memory = mapping::create("golden", table::size(2)).unwrap();
    let mut file = fs::File::from(memory);
    file.write_all(&fs::read(path).unwrap()).unwrap();
    assert!(matches!(Table::open(file.as_fd()), Err(TableError::Version { found: 1 })));
}
