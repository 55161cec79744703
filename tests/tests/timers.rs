//! Three timers with three meanings: handshake deadline, sign of life, application idleness.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::{Duration, Instant};

use holdfast_tests::client::{Ending, RawClient, upgrade_request};
use holdfast_tests::frame::{self, BINARY, FIN, PING, PONG, TEXT, masked, promise};
use holdfast_tests::holdfast::Holdfast;
use holdfast_tests::http::Response;

#[test]
fn a_client_that_only_answers_pings_is_idle() {
    // Mistake 7: pong counted as activity for the idle timer.
    let server = Holdfast::with("workers = 1\ntimeouts.ping_interval = \"200ms\"\ntimeouts.idle = \"2s\"");
    let mut client = RawClient::open(server.address());
    let mut pings = 0;
    let (code, reason) = loop {
        let frame = client.frame();
        match frame.opcode() {
            frame::CLOSE => {
                break (frame.close_code(), String::from_utf8(frame.payload[2..].to_vec()).unwrap());
            }
            PING => {
                pings += 1;
                client.send(&masked(FIN | PONG, &frame.payload)).unwrap();
            }
            other => panic!("opcode {other}"),
        }
    };
    assert_eq!((code, reason.as_str()), (1000, "Idle timeout"));
    assert!(pings > 0, "it was never pinged");
    let totals = server.wait_until("it is counted", |totals| totals.number("connections") == 0);
    assert_eq!((totals.number("closed_total.idle_timeout"), totals.sum("closed_total")), (1, 1));
    server.stop();
}

#[test]
fn data_keeps_a_connection_from_being_idle() {
    let server = Holdfast::with("workers = 1\ntimeouts.ping_interval = \"200ms\"\ntimeouts.idle = \"3s\"");
    let mut talker = RawClient::open(server.address());
    let mut quiet = RawClient::open(server.address());
    let quiet_end = std::thread::spawn(move || quiet.close_frame());
    // Every ping is an occasion to say something, so the talker says something five times a second.
    while !quiet_end.is_finished() {
        let frame = talker.frame();
        match frame.opcode() {
            PING => talker.send(&masked(FIN | TEXT, b"something")).unwrap(),
            TEXT => assert_eq!(frame.payload, b"something"),
            _ => panic!("{frame:?}"),
        }
    }
    assert_eq!(quiet_end.join().unwrap().0, 1000);
    talker.send(&masked(FIN | TEXT, b"goodbye")).unwrap();
    while talker.message() != b"goodbye" {}
    server.stop();
}

#[test]
fn a_client_that_gives_no_sign_of_life_is_closed() {
    let server = Holdfast::with(
        "workers = 1\ntimeouts.ping_interval = \"200ms\"\ntimeouts.pong = \"2s\"\ntimeouts.idle = \"0s\"",
    );
    let mut alive = RawClient::open(server.address());
    let mut dead = RawClient::open(server.address());
    // Any frame proves life, also a pong that answers nothing.
    let answering = std::thread::spawn(move || {
        while alive.frame().opcode() == PING {
            alive.send(&masked(FIN | PONG, b"unasked")).unwrap();
        }
    });
    let first = dead.frame();
    assert_eq!(first.opcode(), PING);
    let code = loop {
        let frame = dead.frame();
        match frame.opcode() {
            frame::CLOSE => break frame.close_code(),
            other => assert_eq!(other, PING),
        }
    };
    assert_eq!(code, 1001);
    let totals = server.wait_until("it is counted", |totals| totals.number("closed_total.ping_timeout") > 0);
    assert_eq!((totals.number("closed_total.ping_timeout"), totals.number("connections")), (1, 1));
    assert!(!answering.is_finished(), "the one that answers is closed too");
    server.stop();
    answering.join().unwrap();
}

#[test]
fn shortened_timeouts_hold_for_those_who_are_in() {
    let config = |pong: &str, idle: &str| {
        format!(
            "workers = 1
            timeouts.ping_interval = \"200ms\"
            timeouts.pong = \"{pong}\"
            timeouts.idle = \"{idle}\""
        )
    };
    let server = Holdfast::with(&config("1h", "1h"));
    let mut dead = RawClient::open(server.address());
    assert_eq!(dead.frame().opcode(), PING);
    // Its ping is out.
    assert_eq!(server.reload(&config("300ms", "1h")).status, 200);
    assert_eq!(dead.frame().close_code(), 1001);
    let mut quiet = RawClient::open(server.address());
    assert_eq!(quiet.frame().opcode(), PING);
    assert_eq!(server.reload(&config("1h", "300ms")).status, 200);
    assert_eq!(quiet.close_frame().0, 1000);
    server.stop();
}

#[test]
fn pings_keep_their_interval_however_long_a_pong_may_take() {
    let server = Holdfast::with(
        "workers = 1\ntimeouts.ping_interval = \"100ms\"\ntimeouts.pong = \"10m\"\ntimeouts.idle = \"0s\"",
    );
    let mut client = RawClient::open(server.address());
    for _ in 0..5 {
        let ping = client.frame();
        assert_eq!(ping.opcode(), PING);
        client.send(&masked(FIN | PONG, &ping.payload)).unwrap();
    }
    server.stop();
}

#[test]
fn a_message_has_a_deadline_however_it_drips() {
    let config = |deadline: &str| {
        format!(
            "workers = 1
            limits.max_message_size = \"1GiB\"
            timeouts.ping_interval = \"24h\"
            timeouts.idle = \"0s\"
            timeouts.close = \"60s\"
            timeouts.message = \"{deadline}\""
        )
    };
    let server = Holdfast::with(&config("1s"));
    let mut steady = RawClient::open(server.address());
    let (whole, half) = (masked(FIN | TEXT, b"something"), masked(TEXT, b"half"));
    // Neither its pieces nor pings between them give a message more time.
    let more = [masked(0, b""), masked(FIN | PING, b"")].concat();
    for (first, next) in [(promise(FIN | BINARY, 1 << 29), b"x".to_vec()), (half.clone(), more)] {
        let mut drip = RawClient::open(server.address());
        drip.send(&first).unwrap();
        let sender = drip.keep_sending(next);
        let end = std::thread::spawn(move || {
            let end = drip.close_frame();
            drip.finish_sending();
            end
        });
        // Whoever is always in the middle of a message, and always of another, is well.
        steady.send(&whole[..3]).unwrap();
        while !end.is_finished() {
            steady.send(&[&whole[3..], &whole[..3]].concat()).unwrap();
            assert_eq!(steady.message(), b"something");
        }
        steady.send(&whole[3..]).unwrap();
        assert_eq!(steady.message(), b"something");
        assert_eq!(end.join().unwrap(), (1008, "Message timeout".to_owned()));
        sender.join().unwrap();
    }
    server.wait_until("both are counted", |totals| totals.number("closed_total.message_timeout") == 2);

    // A shorter deadline holds for what has begun.
    assert_eq!(server.reload(&config("24h")).status, 200);
    let mut begun = RawClient::open(server.address());
    begun.send(&[&half[..], &masked(FIN | PING, b"it is read")].concat()).unwrap();
    assert_eq!(begun.frame().opcode(), PONG);
    assert_eq!(server.reload(&config("200ms")).status, 200);
    assert_eq!(begun.close_frame().0, 1008);
    server.stop();
}

#[test]
fn a_request_that_does_not_come_whole_in_time_gets_408() {
    let server = Holdfast::with("workers = 1\ntimeouts.handshake = \"500ms\"");
    let request = upgrade_request("");
    let mut partial = RawClient::connect(server.address());
    partial.send(&request[..40]).unwrap();
    partial.response().assert_refusal(408, "handshake_timeout");
    assert_eq!(partial.ending(), Ending::Closed(Vec::new()));

    let mut silent = RawClient::connect(server.address());
    match silent.ending() {
        Ending::Closed(bytes) if bytes.is_empty() => {}
        Ending::Closed(bytes) => {
            let (response, _) = Response::parse(&bytes).expect("a complete response");
            response.assert_refusal(408, "handshake_timeout");
        }
        Ending::Reset(_) => panic!("reset"),
    }

    // A byte now and then does not buy time: the deadline counts from the beginning.
    let mut drip = RawClient::connect(server.address());
    drip.send(&request[..request.len() - 2]).unwrap();
    drip.send(b"X-Endless: ").unwrap();
    while server.totals().number("rejected_total.handshake_timeout") < 3 && drip.send(b"x").is_ok() {
        server.process().pause(Duration::from_millis(1), "the deadline");
    }
    drip.response().assert_refusal(408, "handshake_timeout");
    drop((partial, silent, drip));
    server.wait_until("nothing of them is left", |totals| {
        totals.number("rejected_total.handshake_timeout") == 3 && totals.number("pending_handshakes") == 0
    });
    server.stop();
}

#[test]
fn pings_are_spread_over_the_interval() {
    // Mistake 8: all pings in one tick.
    let server = Holdfast::with("workers = 1\ntimeouts.ping_interval = \"2s\"\ntimeouts.idle = \"0s\"");
    let mut clients: Vec<RawClient> = (0..60).map(|_| RawClient::open(server.address())).collect();
    let arrivals: Vec<Instant> = std::thread::scope(|scope| {
        let readers: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    assert_eq!(client.frame().opcode(), PING);
                    Instant::now()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let (first, last) = (arrivals.iter().min().unwrap(), arrivals.iter().max().unwrap());
    assert!(last.duration_since(*first) > Duration::from_millis(500), "all pings came together");
    server.stop();
}
