//! Clients in a process of their own, for tests that need more clients than one process may have descriptors.
//!
//! `holdfast-clients SERVER CLIENTS ROLE FIRST_SOURCE SOURCES` says where its clients are, one JSON object a
//! line, whenever that changes, and ends with its standard input.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_tests::client::loopback;
use holdfast_tests::clients::{Clients, Group, Role};

/// Longest silence of the event loop; also how soon the end of standard input is noticed.
const TURN: Duration = Duration::from_millis(20);

#[allow(clippy::print_stdout, reason = "standard output is the report")]
#[allow(clippy::expect_used, reason = "what was asked for wrongly must fail loudly")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, count, role, first_source, sources] = &arguments[..] else {
        panic!("usage: holdfast-clients SERVER CLIENTS ROLE FIRST_SOURCE SOURCES");
    };
    let role = match role.split_once(':') {
        None if role == "silent" => Role::Silent,
        None if role == "idle" => Role::Idle,
        Some(("flood", size)) => Role::Flood { size: size.parse().expect("a message size") },
        _ => panic!("no such role: {role}"),
    };
    let first: u16 = first_source.parse().expect("a number");
    let sources = first..first + sources.parse::<u16>().expect("a number");
    let mut clients = Clients::new(server.parse().expect("a server address"));
    let group = clients.add(Group::new(count.parse().expect("a number"), role).from(sources.map(loopback)));
    let ended = end_of_input();
    let mut said = None;
    while !ended.load(Ordering::Relaxed) {
        clients.turn(TURN);
        let now = clients.stats(group).to_json();
        if said.as_ref() != Some(&now) {
            println!("{now}");
            said = Some(now);
        }
    }
}

/// Becomes true when whoever started us closes our standard input, also by dying.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    std::thread::spawn(move || {
        // Whatever ends the input, an error too, is the end.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    ended
}
