//! More messages than a connection may send in a second.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::frame::{CLOSE, FIN, PING, TEXT, masked};
use holdfast_tests::holdfast::Holdfast;

#[test]
fn who_sends_too_many_is_told_1008_and_nobody_else_notices_also_after_a_reload() {
    let server = Holdfast::with("workers = 1");
    let mut hasty = RawClient::open(server.address());
    let mut slow = RawClient::open(server.address());
    let messages = |count| masked(FIN | TEXT, b"message").repeat(count);
    hasty.send(&messages(1000)).unwrap();
    for _ in 0..1000 {
        assert_eq!(hasty.message(), b"message");
    }
    assert_eq!(server.reload("workers = 1\nlimits.messages_per_second = 100").status, 200);
    // A second's worth at once is well.
    slow.send(&messages(100)).unwrap();
    for _ in 0..100 {
        assert_eq!(slow.message(), b"message");
    }
    hasty.send(&messages(100_000)).unwrap();
    let mut echoes = 0;
    let end = loop {
        let frame = hasty.frame();
        match frame.opcode() {
            TEXT => echoes += 1,
            CLOSE => break (frame.close_code(), String::from_utf8(frame.payload[2..].to_vec()).unwrap()),
            other => assert_eq!(other, PING),
        }
    };
    assert_eq!(end, (1008, "Too many messages".to_owned()));
    assert!(echoes >= 100, "{echoes}");
    drop(hasty);
    let totals = server.wait_until("it is counted", |totals| totals.number("connections") == 1);
    assert_eq!(
        (totals.number("closed_total.message_rate"), totals.sum("closed_total")),
        (1, 1),
        "{totals:?}"
    );
    server.stop();
}

#[test]
fn a_degraded_server_takes_fewer_messages_of_those_who_are_in() {
    let server = Holdfast::with("workers = 1\ndegraded.messages_per_second = 100");
    let mut hasty = RawClient::open(server.address());
    let sender = hasty.keep_sending(masked(FIN | TEXT, b"message"));
    assert_eq!(hasty.frame().opcode(), TEXT);
    let simulate = serde_json::json!({"simulate": "degraded"});
    let response = server.control().request_with("PATCH", "/limits", &simulate);
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(hasty.close_frame().0, 1008);
    hasty.finish_sending();
    sender.join().unwrap();
    server.stop();
}
