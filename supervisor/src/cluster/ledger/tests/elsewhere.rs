//! What the ledger counts without any worker's word for it: connections in flight between slots, and what a slot
//! that cannot speak is charged with.

use super::*;

#[test]
fn what_a_slot_is_charged_with_counts_until_its_worker_has_reported() {
    let (mut ledger, silent, client) = (serving(limits(3, 2), 1), SlotId(1), address("192.0.2.1"));
    ledger.resync_begin(silent, FIRST);
    ledger.charge(silent, 2);
    assert_eq!(ledger.admit(SLOT, FIRST, client), Admission::Granted);
    assert_eq!(ledger.admit(SLOT, FIRST, address("192.0.2.2")), refused(Rejection::MaxConnections));
    let second = FIRST.next();
    ledger.resync_begin(silent, second);
    ledger.resync_add(silent, second, client, 1);
    assert_eq!((ledger.held_by(silent), ledger.connections()), (2, 3));
    ledger.resync_finish(silent, second);
    assert_eq!((ledger.held_by(silent), ledger.connections()), (1, 2));
    assert_eq!(ledger.admit(SLOT, FIRST, client), refused(Rejection::MaxConnectionsPerAddress));
    assert_eq!(ledger.admit(SLOT, FIRST, address("192.0.2.2")), Admission::Granted);

    let gone = SlotId(2);
    ledger.charge(gone, 5);
    assert_eq!(ledger.forget(gone), 5);
    assert_eq!((ledger.connections(), ledger.anomalies()), (3, 0));
}

#[test]
fn who_is_in_transit_is_counted_once_and_lands_once() {
    let mut ledger = serving(limits(2, 2), 2);
    let client = address("192.0.2.1");
    let (from, to) = (SlotId(0), SlotId(1));
    for _ in 0..2 {
        assert_eq!(ledger.admit(from, FIRST, client), Admission::Granted);
        ledger.give(from, FIRST, client);
    }
    assert_eq!((ledger.connections(), ledger.held_by(from), ledger.in_transit()), (2, 0, 2));
    assert_eq!(ledger.admit(to, FIRST, client), refused(Rejection::MaxConnectionsPerAddress));
    assert_eq!(ledger.admit(to, FIRST, address("192.0.2.2")), refused(Rejection::MaxConnections));
    ledger.arrived(to, FIRST, client);
    ledger.arrived(from, FIRST, client);
    assert_eq!((ledger.held_by(from), ledger.held_by(to), ledger.end_transit()), (1, 1, 0));
    ledger.give(from, FIRST, address("192.0.2.2"));
    ledger.give(from, Incarnation(9), client);
    assert_eq!((ledger.connections(), ledger.anomalies()), (2, 1));
    ledger.arrived(to, FIRST, address("192.0.2.2"));
    assert_eq!((ledger.connections(), ledger.held_by(to), ledger.anomalies()), (3, 2, 2));
    ledger.give(from, FIRST, client);
    assert_eq!((ledger.end_transit(), ledger.connections(), ledger.held_by_address(client)), (1, 2, 1));
}
