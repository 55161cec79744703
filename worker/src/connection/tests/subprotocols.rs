//! Subprotocols: who chooses, and that the choice outlives the worker.

use std::os::fd::AsFd;
use std::time::Duration;

use holdfast_shared::id::SlotId;
use holdfast_shared::sys::mapping;
use holdfast_shared::table::{self, Table};

use super::{Peer, ROWS, clients, serving};
use crate::connection::saved::{Reader, Writer};

/// The subprotocol in an answer that opens the connection.
fn subprotocol(answer: &str) -> Option<&str> {
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    answer.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "))
}

#[test]
fn an_application_chooses_among_what_is_offered() {
    for (query, offer, expected) in [
        ("n", "a, b", Some("a")),
        ("second", "a, b", Some("b")),
        // It chooses what is not offered: the route's choice stands.
        ("second", "a", Some("a")),
        ("n", "", None),
    ] {
        let mut clients = clients();
        let mut peer = Peer::ask_with(&mut clients, query, &format!("Sec-WebSocket-Protocol: {offer}\r\n"));
        clients.admit(peer.key);
        assert_eq!(subprotocol(&peer.read()), expected, "{query}, {offer}");
    }
}

#[test]
fn the_next_worker_answers_with_the_subprotocol_that_was_chosen() {
    let long = "x".repeat(100);
    for (name, is_saved) in [("graphql-transport-ws", false), ("mqtt", true), (&*long, true)] {
        let memory = mapping::create("table", table::size(ROWS)).unwrap();
        let mut old = serving(Table::format(memory.as_fd(), SlotId(3), ROWS).unwrap());
        let mut peer = Peer::ask_with(&mut old, "n", &format!("Sec-WebSocket-Protocol: {name}\r\n"));
        assert_eq!(old.take_asking(), [peer.key]);
        let mut writer = Writer::new().unwrap();
        old.connections.save_heap_states(&mut writer).unwrap();
        let saved = writer.finish(Duration::ZERO).unwrap();
        std::mem::forget(old);

        let mut new = serving(Table::open(memory.as_fd()).unwrap());
        assert_eq!(new.connections.take_over(peer.key.row), peer.key);
        let mut reader = Reader::new(saved.as_fd()).unwrap();
        while is_saved && let Some(state) = reader.next_state().unwrap() {
            assert!(new.connections.put_back(&state));
        }
        new.admit(peer.key);
        assert_eq!(subprotocol(&peer.read()), Some(name));
        let record = *new.connections.get(peer.key).unwrap();
        assert_eq!((record.subprotocol(), record.seen_ms), (None, 1000), "its times are its times again");
        assert_eq!(record.heap_state, 0);
    }
}
