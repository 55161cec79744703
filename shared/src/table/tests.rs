use std::os::fd::AsFd;

use super::*;

fn memory(rows: u32) -> std::os::fd::OwnedFd {
    mapping::create("table", size(rows)).unwrap()
}

#[test]
fn a_second_mapping_finds_what_the_first_wrote() {
    let memory = memory(16);
    let mut table = Table::format(memory.as_fd(), SlotId(3), 16).unwrap();
    table.records_mut()[7].begin(99, 1, "192.0.2.7".parse().unwrap(), 1234, 5678);
    table.counters().accepted = 5;
    let found = Table::open(memory.as_fd()).unwrap();
    let record = found.records()[7];
    assert_eq!((record.phase(), record.id), (Phase::Handshake, 99));
    assert_eq!((record.opened_ms, record.deadline_ms), (1234, 5678));
    assert_eq!(record.address(), "192.0.2.7".parse::<IpAddr>().unwrap());
    assert_eq!(found.header().counters.accepted, 5);
    assert_eq!(found.records().len(), 16);
}

#[test]
fn a_header_is_read_while_somebody_else_writes_it() {
    let memory = memory(16);
    let mut table = Table::format(memory.as_fd(), SlotId(3), 16).unwrap();
    table.header_mut().pending = 3;
    *table.counters() = Counters { accepted: 5, ..Counters::default() };
    table.counters().close(crate::reason::CloseReason::Client, std::time::Duration::ZERO);
    assert_eq!(Header::read(memory.as_fd()).unwrap().connections(), 4 + 3);
    assert!(Header::read(mapping::create("short", 8).unwrap().as_fd()).is_err());
}

#[test]
fn growing_keeps_what_is_there() {
    let memory = memory(4);
    let mut table = Table::format(memory.as_fd(), SlotId(0), 4).unwrap();
    table.records_mut()[3].begin(1, 1, "::1".parse().unwrap(), 1, 2);
    table.grow(memory.as_fd(), 1000).unwrap();
    table.grow(memory.as_fd(), 10).unwrap();
    assert_eq!(table.records().len(), 1000);
    assert_eq!(Table::open(memory.as_fd()).unwrap().records()[3].id, 1);
}

#[test]
fn what_is_not_ours_is_refused() {
    let foreign = memory(4);
    assert!(matches!(Table::open(foreign.as_fd()), Err(TableError::NotATable { found: 0 })));
    let newer = memory(4);
    let mut table = Table::format(newer.as_fd(), SlotId(0), 4).unwrap();
    table.header_mut().version = 77;
    assert!(owner(newer.as_fd()).is_ok(), "it fits, as far as it says");
    table.header_mut().reads_since = 77;
    assert!(matches!(Table::open(newer.as_fd()), Err(TableError::Version { found: 77 })));
    assert!(matches!(owner(newer.as_fd()), Err(TableError::Version { found: 77 })));
    assert!(matches!(owner(foreign.as_fd()), Err(TableError::NotATable { found: 0 })));
}

#[test]
fn whose_it_is_can_be_asked_and_a_size_that_is_not_there_is_not_believed() {
    let memory = memory(4);
    let mut table = Table::format(memory.as_fd(), SlotId(7), 4).unwrap();
    assert_eq!(owner(memory.as_fd()).unwrap(), SlotId(7));
    table.header_mut().rows = 1_000_000;
    assert!(owner(memory.as_fd()).is_err());
}

#[test]
fn a_reused_record_has_another_serial() {
    let mut record = Record::zeroed();
    record.begin(1, 1, "::1".parse().unwrap(), 1, 2);
    let first = record.serial;
    record.end();
    assert_eq!(record.phase(), Phase::Free);
    record.begin(2, 2, "::1".parse().unwrap(), 2, 3);
    assert_ne!(record.serial, first);
}

#[test]
fn what_a_program_does_not_know_is_left_alone_and_what_it_did_not_keep_is_zero() {
    let memory = memory(4);
    let mut table = Table::format(memory.as_fd(), SlotId(0), 4).unwrap();
    let header = table.header_mut();
    header.moved_out = 7;
    header.sequence = 8;
    header.reserved = [9; _];
    header.known_fields += 4;
    table.records_mut()[1].reserved = [5; _];
    let mut table = Table::open(memory.as_fd()).unwrap();
    let header = table.header_mut();
    assert_eq!((header.moved_out, header.sequence, header.reserved), (7, 8, [9; _]));
    assert_eq!(table.records()[1].reserved, [5; _]);
    // A program from before `moved_out` has written it since.
    table.header_mut().known_fields = u32::try_from(std::mem::offset_of!(Header, moved_out)).unwrap();
    let header = Header::read(memory.as_fd()).unwrap();
    assert_eq!((header.moved_out, header.sequence), (0, 8));
    let table = Table::open(memory.as_fd()).unwrap();
    assert_eq!((table.header().moved_out, table.header().sequence), (0, 8));
}
