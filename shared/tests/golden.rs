//! The bytes that outlive a binary: link messages and connection tables. When one of these tests fails,
//! processes of the version before would misread this one. Either undo the change, or raise
//! `codec::PROTOCOL_VERSION` or `table::LAYOUT_VERSION` and accept the new bytes with `HOLDFAST_BLESS=1 cargo
//! test -p holdfast-shared --test golden`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::counters::Counters;
use holdfast_shared::id::{Incarnation, SlotId, Ticket};
use holdfast_shared::ipc::codec::{decode, encode};
use holdfast_shared::ipc::message::{DeathCause, Report, ToSupervisor, ToWorker, Verdict};
use holdfast_shared::ipc::moving::{ToGiver, ToTaker};
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::reason::{CloseReason, Rejection};
use holdfast_shared::sys::mapping;
use holdfast_shared::table::{self, Flags, Phase, Table, TableError};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn compare(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(golden == bytes, "{name} has changed:\n was {golden:02x?}\n  is {bytes:02x?}");
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, message: &T) {
    let bytes = encode(message).unwrap();
    compare(name, &bytes);
    assert_eq!(&decode::<T>(&bytes).unwrap(), message);
}

fn counters() -> Counters {
    let mut counters = Counters { accepted: 3, messages_received: 4, bytes_sent: 5, ..Counters::default() };
    counters.reject(Rejection::Draining);
    counters.close(CloseReason::Error, Duration::from_secs(2));
    counters.admission(Duration::from_millis(1));
    counters
}

#[test]
fn messages_to_the_supervisor() {
    let incarnation = Incarnation(7);
    let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let second = Duration::from_millis(1500);
    check("to_supervisor_started", &ToSupervisor::Started { incarnation, pid: 1234 });
    let cause = DeathCause::Signal(9);
    check("to_supervisor_died", &ToSupervisor::Died { incarnation, cause, lived: second, pause: second });
    check("to_supervisor_hello", &ToSupervisor::Hello { incarnation, pid: 1234 });
    check(
        "to_supervisor_holdings",
        &ToSupervisor::Holdings { incarnation, addresses: vec![(v4, 2), (v6, 1)] },
    );
    check(
        "to_supervisor_ready",
        &ToSupervisor::Ready {
            incarnation,
            resumed: 3,
            lost: 1,
            took: second,
            counters: Box::new(counters()),
        },
    );
    let tickets = vec![(Ticket(1), v4), (Ticket(2), v6)];
    check("to_supervisor_admit", &ToSupervisor::Admit { incarnation, tickets });
    check(
        "to_supervisor_release",
        &ToSupervisor::Release {
            incarnation,
            closed: vec![(v4, CloseReason::Client), (v6, CloseReason::Drain)],
        },
    );
    let report =
        Box::new(Report { connections: 1, loop_lag: second, counters: counters(), ..Report::default() });
    check("to_supervisor_report", &ToSupervisor::Report { incarnation, request: Some(9), report });
    check("to_supervisor_applied", &ToSupervisor::Applied { incarnation, generation: 2 });
    check("to_supervisor_draining", &ToSupervisor::Draining { incarnation, told: 3, untold: 4 });
    check("to_supervisor_left", &ToSupervisor::Left { incarnation });
    check("to_supervisor_version", &ToSupervisor::Version { incarnation, version: "1.2.3".to_owned() });
    check("to_supervisor_handed_over", &ToSupervisor::HandedOver { incarnation });
    let reason = "no memory".to_owned();
    check("to_supervisor_restart_refused", &ToSupervisor::RestartRefused { incarnation, reason });
    check(
        "to_supervisor_adopt",
        &ToSupervisor::Adopt { slot: SlotId(3), incarnation, pid: 1234, keeper: 1233 },
    );
    let reason = "Exec format error".to_owned();
    check("to_supervisor_program_refused", &ToSupervisor::ProgramRefused { incarnation, reason });
    let reason = "exit status 1".to_owned();
    check("to_supervisor_went_back", &ToSupervisor::WentBack { incarnation, reason });
    check("to_supervisor_keeper", &ToSupervisor::Keeper { incarnation, pid: 1233 });
    let (transfer, addresses) = (5, vec![v4, v6]);
    let named = addresses.clone();
    check("to_supervisor_giving", &ToSupervisor::Giving { incarnation, transfer, addresses: named });
    let named = addresses.clone();
    check("to_supervisor_kept", &ToSupervisor::Kept { incarnation, transfer, addresses: named });
    check("to_supervisor_took", &ToSupervisor::Took { incarnation, transfer, addresses });
    let stopped = Some("no room".to_owned());
    check("to_supervisor_give_ended", &ToSupervisor::GiveEnded { incarnation, transfer, moved: 2, stopped });
    check("to_supervisor_take_ended", &ToSupervisor::TakeEnded { incarnation, transfer });
}

#[test]
fn messages_to_a_worker() {
    let settings = Box::new(Settings {
        rows: 1,
        max_pending_handshakes: 2,
        max_message_size: 3,
        max_queued_output: 4,
        retry_after: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(6),
        ping_interval: Duration::from_secs(7),
        pong_timeout: Duration::from_secs(8),
        idle_timeout: Duration::from_secs(9),
        close_timeout: Duration::from_secs(10),
        path: "/chat".to_owned(),
        allowed_origins: vec!["https://example.org".to_owned()],
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
    });
    check("to_worker_configure", &ToWorker::Configure { generation: 1, settings });
    let verdicts =
        vec![(Ticket(1), Verdict::Granted), (Ticket(2), Verdict::Refused(Rejection::MaxConnections))];
    check("to_worker_verdicts", &ToWorker::Verdicts { incarnation: Incarnation(7), verdicts });
    check("to_worker_report_now", &ToWorker::ReportNow { request: 9 });
    check("to_worker_state", &ToWorker::State { full: true });
    check("to_worker_leave", &ToWorker::Leave);
    check("to_worker_hold_drain", &ToWorker::HoldDrain);
    check("to_worker_restart", &ToWorker::Restart { incarnation: Incarnation(7) });
    check("to_worker_drain", &ToWorker::Drain { duration: Duration::from_secs(30) });
    let (incarnation, transfer) = (Incarnation(7), 5);
    check("to_worker_give", &ToWorker::Give { incarnation, transfer, to: SlotId(2), count: 100 });
    check("to_worker_take", &ToWorker::Take { incarnation, transfer, from: SlotId(1) });
    check("to_worker_counted", &ToWorker::Counted { transfer: 5 });
}

#[test]
fn messages_between_workers() {
    let records = vec![1, 2, 3];
    check("to_taker_batch", &ToTaker::Batch { layout: 2, records, has_halves: true });
    check("to_giver_room", &ToGiver::Room);
    check("to_giver_full", &ToGiver::Full);
    check("to_giver_taken", &ToGiver::Taken);
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
    let record = &mut table.records_mut()[1];
    record.begin(0x0003_0000_0000_004d, 77, "192.0.2.1".parse().unwrap(), 1000, 3000);
    record.set_phase(Phase::Open);
    record.flags = Flags::ADMITTED.union(Flags::AWAITING_PONG);
    record.ping_due_ms = 2000;
    record.messages_received = 5;
    record.scratch = *b"the application's own bytes ";
    record.session = u32::from_le_bytes(*b"here");
    let mut bytes = Vec::new();
    fs::File::from(memory).read_to_end(&mut bytes).unwrap();
    // Only the used part of the header page: the rest is zeros.
    compare("table_header", &bytes[..1024]);
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
