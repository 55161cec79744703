//! The harness itself, held against a server that is not ours: tungstenite, a thread per connection.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, End, Group, Role};
use holdfast_tests::frame::{self, FIN, PING, PONG};
use holdfast_tests::kernel;
use holdfast_tests::watch::Watched;
use tungstenite::Message;

/// Echoes text and binary; the text "close" is answered by a close frame with code 1012, "cut" by end of
/// file.
fn reference_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let Ok(mut socket) = tungstenite::accept(stream) else { return };
                while let Ok(message) = socket.read() {
                    let sent = match message {
                        Message::Text(_) | Message::Binary(_) => socket.send(message),
                        _ => Ok(()),
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn it_is_counted_what_happens_to_many_clients() {
    let server = reference_server();
    let mut clients = Clients::new(server);
    let idle = clients.add(Group::new(40, Role::Idle).from((0..4).map(loopback)).at_once());
    let echo = clients.add(Group::new(10, Role::Echo { in_flight: 3, size: 1000 }));
    clients
        .run_until("all are in", |clients| clients.stats(idle).open == 40 && clients.stats(echo).open == 10);
    clients.run_until("every byte comes back", |clients| clients.stats(echo).echoes > 1000);
    clients.leave(idle, 7);
    clients.run_until("some leave", |clients| clients.stats(idle).left() == 7);
    clients.vanish(idle, 3);
    assert_eq!((clients.stats(idle).open, clients.stats(idle).left()), (30, 10));
    assert_eq!(clients.retry(idle, |end| end == End::Left), 10);
    clients.run_until("they come again", |clients| clients.stats(idle).open == 40);
    assert_eq!(clients.stats(echo).lost() + clients.stats(idle).lost() + clients.stats(idle).failed(), 0);
}

#[test]
fn the_kernels_table_shows_what_each_connection_was_sent() {
    let server = reference_server();
    let mut clients: Vec<RawClient> = (0..20).map(|_| RawClient::connect(server)).collect();
    for client in &mut clients[..15] {
        assert_eq!(client.upgrade("").status, 101);
    }
    let first = kernel::established(server.port());
    let second = kernel::established(server.port());
    let sent: Vec<u64> = kernel::in_both(&first, &second).iter().map(|socket| socket.bytes_sent).collect();
    assert_eq!(sent.len(), 20);
    assert_eq!(sent.iter().filter(|bytes| **bytes == 0).count(), 5, "{sent:?}");
    let upgraded = sent.iter().max().unwrap();
    assert_eq!(sent.iter().filter(|bytes| *bytes == upgraded).count(), 15, "{sent:?}");
    clients[0].send(&frame::masked(FIN | PING, b"12345")).unwrap();
    let pong = clients[0].frame();
    assert_eq!((pong.opcode(), &pong.payload[..]), (PONG, &b"12345"[..]));
    assert_eq!(kernel::established(server.port())[&clients[0].local_addr()].bytes_sent, upgraded + 7);
}

#[test]
fn a_wait_fails_at_once_when_the_process_ends() {
    let process = Watched::spawn(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]));
    assert_eq!(process.wait_for_line("tw"), "two");
    assert_eq!(process.wait_for_exit().code(), Some(3));
    let failed = std::panic::catch_unwind(|| process.wait_for_line("three")).unwrap_err();
    let message = failed.downcast_ref::<String>().unwrap();
    assert!(message.contains("exit status: 3") && message.contains("two"), "{message}");
}
