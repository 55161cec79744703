//! What clients must not be able to do: each test ends with a well-behaved client that notices nothing.

use super::*;
use crate::host::http::{Peer, Service};
use crate::operator::control::routes::Routes;
use crate::operator::control::server::BOUNDS;

fn assert_undisturbed(rig: &Rig) {
    assert_eq!(rig.client().ask("GET", "/totals").status, 200);
}

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn ten_megabytes_of_headers_are_431() {
    let rig = Rig::answering();
    let client = rig.client();
    let mut writer = client.0.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let _ = writer.write_all(b"GET /totals HTTP/1.1\r\n");
        let line = format!("X-Filler: {}\r\n", "x".repeat(1000));
        // Ends with an error as soon as the server closes.
        (0..10_000).all(|_| writer.write_all(line.as_bytes()).is_ok())
    });
    let answer = client.rest();
    assert!(!flood.join().unwrap(), "the server read it all");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_undisturbed(&rig);
}

#[test]
fn a_head_just_above_the_limit_is_431() {
    let rig = Rig::answering();
    let mut client = rig.client();
    client.send(format!("GET /totals HTTP/1.1\r\nX: {}", "x".repeat(BOUNDS.head)).as_bytes());
    assert!(client.rest().starts_with("HTTP/1.1 431"));
    assert_undisturbed(&rig);
}

#[test]
fn garbage_is_400_or_closed() {
    let rig = Rig::answering();
    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n";
    for garbage in [&client_hello[..], b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET /totals HTTP/9.9\r\n\r\n"] {
        let mut client = rig.client();
        client.send(garbage);
        let answer = client.rest();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_undisturbed(&rig);
}

#[test]
fn a_long_body_is_413_however_it_is_sent() {
    let rig = Rig::answering();
    let length = BOUNDS.body + 1;
    let mut client = rig.client();
    client.send(format!("POST /drain HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").as_bytes());
    // May fail when the server has already answered and closed.
    let _ = client.0.write_all(&vec![b'x'; length]);
    assert_eq!(client.reply().status, 413);

    let mut client = rig.client();
    client.send(b"POST /drain HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    let _ = client.0.write_all(format!("{length:x}\r\n{}\r\n", "x".repeat(length)).as_bytes());
    assert_eq!(client.reply().status, 413);
    assert_undisturbed(&rig);
}

#[test]
fn a_body_or_a_field_that_nobody_reads_is_400() {
    let rig = Rig::answering();
    let mut client = rig.client();
    client.send(b"POST /drain HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}");
    let reply = client.reply();
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (400, "/drain takes no body, and this one has 2 bytes")
    );
    for (method, path) in [("GET", "/totals"), ("POST", "/stop"), ("GET", "/workers"), ("POST", "/upgrade")] {
        let reply = client.ask(method, &format!("{path}?slot=1"));
        assert_eq!((reply.status, reply.error()), (400, format!("{path}?slot: it takes no such field")));
    }
    for path in ["/health", "/metrics"] {
        let (plain, more) =
            (client.ask("GET", path).status, client.ask("GET", &format!("{path}?who=me")).status);
        assert_eq!(plain, more, "{path}");
        assert_ne!(more, 400, "{path}");
    }
}

#[test]
fn a_head_that_does_not_end_is_closed_at_the_deadline() {
    let deadlines = Deadlines { head: SHORT, ..Deadlines::default() };
    let rig = Rig::new(QUEUE, deadlines).with_loop(canned);
    let mut slow = rig.client();
    // May fail if we were the slow ones.
    let _ = slow.0.write_all(b"GET /totals HTT");
    assert_eq!(slow.rest(), "");
    assert_eq!(rig.client().rest(), "", "and so is a connection that says nothing");
}

#[test]
fn an_idle_connection_is_closed_at_the_deadline() {
    let deadlines = Deadlines { head: SHORT, ..Deadlines::default() };
    let rig = Rig::new(QUEUE, deadlines).with_loop(canned);
    // Again if we did not get the request out before the deadline.
    let answer = loop {
        let mut client = rig.client();
        let _ = client.0.write_all(b"GET /limits HTTP/1.1\r\n\r\n");
        match client.rest() {
            nothing if nothing.is_empty() => {}
            answer => break answer,
        }
    };
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("connection: close"), "{answer}");
}

#[test]
fn a_body_that_does_not_end_is_408() {
    let deadlines = Deadlines { body: SHORT, ..Deadlines::default() };
    let rig = Rig::new(QUEUE, deadlines).with_loop(canned);
    let mut client = rig.client();
    client.send(b"POST /stop HTTP/1.1\r\nContent-Length: 5\r\n\r\nab");
    assert_eq!(client.reply().status, 408);
    assert_undisturbed(&rig);
}

#[test]
fn a_client_that_never_reads_loses_its_place() {
    let deadlines = Deadlines { write: SHORT, ..Deadlines::default() };
    let rig = Rig::new(QUEUE, deadlines).with_loop(|command| match command {
        Command::Config => {
            let long = ConfigEntry { source: "x".repeat(1 << 20), ..ConfigEntry::default() };
            Ok(Answer::Config(vec![long]))
        }
        other => canned(other),
    });
    let mut client = rig.client();
    // Blocks once the server stops reading, because nobody reads its answers, and fails when it gives up.
    let error = loop {
        if let Err(error) = client.0.write_all(b"GET /config HTTP/1.1\r\n\r\n") {
            break error;
        }
    };
    assert!(
        matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
        "closed by the server, not by our own deadline: {error}"
    );
    assert_undisturbed(&rig);
}

#[test]
fn connections_are_bounded_per_listener() {
    let mut rig = Rig::new(QUEUE, Deadlines::default());
    let mut waiting: Vec<_> = (0..BOUNDS.connections).map(|_| rig.waiting_client()).collect();
    let refused = rig.client().rest();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{refused}");
    assert!(serde_json::from_str::<Failure>(body).unwrap().error.contains("too many connections"));
    assert_eq!(rig.admin_client().ask("GET", "/").status, 200, "the other listener has its own bound");

    let (mut client, request) = waiting.swap_remove(0);
    request.reply.send(canned(Command::Totals));
    assert_eq!(client.reply().status, 200, "who is in is served");
    let rig = rig.with_loop(canned);
    assert_undisturbed(&rig);
    assert_eq!(client.rest(), "", "who is silent makes room");
    drop(waiting);
}

#[test]
fn silent_connections_keep_nobody_out() {
    let rig = Rig::answering();
    let idle: Vec<_> = (0..3 * BOUNDS.connections).map(|_| rig.client()).collect();
    assert_undisturbed(&rig);
    for client in idle.into_iter().take(2 * BOUNDS.connections) {
        assert_eq!(client.rest(), "", "the first are closed");
    }
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let rig = Rig::new(QUEUE, Deadlines::default());
    let mut client = rig.client();
    client.send(b"GET /totals HTTP/1.1\r\n\r\n");
    let request = rig.take();
    assert!(!request.reply.is_abandoned());
    drop(client);
    while !request.reply.is_abandoned() {
        std::thread::yield_now();
    }
    request.reply.send(canned(Command::Totals));
    let rig = rig.with_loop(canned);
    assert_undisturbed(&rig);
}

#[test]
fn a_stranger_hears_403() {
    let rig = Rig::new(QUEUE, Deadlines::default());
    let supervisor = Loop::new(crossbeam_channel::bounded(1).0, Arc::clone(&rig.waker), "1.2.3", None);
    let (head, ()) = http::Request::new(()).into_parts();
    let refusal = Routes::control(supervisor).admit(Peer::Unknown, &head).unwrap_err();
    assert_eq!(refusal.status(), 403);
}
