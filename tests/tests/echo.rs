//! What a well-behaved client gets: every message back, byte for byte, however the network cuts it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{ACCEPT, RawClient, upgrade_request, websocket};
use holdfast_tests::frame::{self, BINARY, CONTINUATION, FIN, PING, PONG, TEXT};
use holdfast_tests::holdfast::Holdfast;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message};

const MIB: usize = 1024 * 1024;

#[test]
fn text_binary_empty_and_one_mebibyte_come_back_as_they_were() {
    let server = Holdfast::with("workers = 2");
    let mut socket = websocket(server.address());
    let large: Vec<u8> = (0..MIB).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let messages = [
        Message::text("hello"),
        Message::text("Grüße, 世界, 🦀"),
        Message::text(""),
        Message::binary(vec![0, 255, 10, 13]),
        Message::binary(Vec::new()),
        Message::binary(vec![7; 125]),
        Message::binary(vec![7; 126]),
        Message::binary(vec![7; 65_535]),
        Message::binary(vec![7; 65_536]),
        Message::binary(large),
        Message::text("é".repeat(MIB / 2)),
    ];
    for message in messages {
        socket.send(message.clone()).unwrap();
        let echo = socket.read().unwrap();
        assert!(echo == message, "{} bytes changed into {} bytes", message.len(), echo.len());
    }
    let totals =
        server.wait_until("the messages are counted", |totals| totals.number("messages_sent_total") == 11);
    assert_eq!(totals.number("messages_received_total"), 11);
    server.stop();
}

#[test]
fn the_answer_to_the_upgrade_is_the_one_of_the_rfc() {
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::connect(server.address());
    let response = client.upgrade(
        "Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    );
    assert_eq!(response.status, 101);
    assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
    assert_eq!(response.header("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    assert_eq!(response.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    // RFC 6455 section 4.2.2: what the server does not speak it does not name.
    assert_eq!(response.header("sec-websocket-protocol"), None);
    assert_eq!(response.header("sec-websocket-extensions"), None);
    server.stop();
}

#[test]
fn a_request_may_come_a_byte_at_a_time() {
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::connect(server.address());
    for byte in upgrade_request("X-Filler: one two three\r\n") {
        client.send(&[byte]).unwrap();
    }
    assert_eq!(client.response().status, 101);
    for byte in frame::masked(FIN | TEXT, b"a byte at a time") {
        client.send(&[byte]).unwrap();
    }
    assert_eq!(client.message(), b"a byte at a time");
    server.stop();
}

#[test]
fn frames_may_be_glued_to_the_request_and_to_each_other() {
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::connect(server.address());
    let mut bytes = upgrade_request("");
    let payload = |n: u32| format!("message {n}").into_bytes();
    for n in 0..1000 {
        bytes.extend(frame::masked(FIN | BINARY, &payload(n)));
    }
    client.send(&bytes).unwrap();
    assert_eq!(client.response().status, 101);
    for n in 0..1000 {
        assert_eq!(client.message(), payload(n));
    }
    server.stop();
}

#[test]
fn control_frames_may_come_between_fragments() {
    let server = Holdfast::with("workers = 1\ntimeouts.ping_interval = \"24h\"");
    let mut client = RawClient::open(server.address());
    // The two bytes of "é" come in different fragments.
    client.send(&frame::masked(TEXT, b"caf\xc3")).unwrap();
    client.send(&frame::masked(FIN | PING, b"are you there?")).unwrap();
    let pong = client.frame();
    assert_eq!((pong.first, &pong.payload[..]), (FIN | PONG, &b"are you there?"[..]));
    client.send(&frame::masked(CONTINUATION, b"")).unwrap();
    client.send(&frame::masked(FIN | PONG, b"nobody asked")).unwrap();
    client.send(&frame::masked(FIN | CONTINUATION, b"\xa9 au lait")).unwrap();
    let mut message = Vec::new();
    loop {
        let frame = client.frame();
        message.extend_from_slice(&frame.payload);
        if frame.first & FIN != 0 {
            break;
        }
    }
    assert_eq!(message, "café au lait".as_bytes());
    server.stop();
}

#[test]
fn a_close_is_answered_with_the_same_code() {
    let server = Holdfast::with("workers = 1");
    for code in [1000, 1001, 1003, 1011, 1013, 3000, 4999] {
        let mut socket = websocket(server.address());
        socket.close(Some(CloseFrame { code: CloseCode::from(code), reason: "done".into() })).unwrap();
        match socket.read().unwrap() {
            Message::Close(Some(answer)) => assert_eq!(u16::from(answer.code), code),
            other => panic!("{code} was answered with {other:?}"),
        }
        assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    }
    let mut client = RawClient::open(server.address());
    client.send(&frame::masked(FIN | frame::CLOSE, b"")).unwrap();
    assert_eq!(client.close_frame().0, 1005, "a close without a code is answered without one");
    let totals = server.wait_until("all have left", |totals| totals.number("closed_total.client") == 8);
    assert_eq!(totals.number("connections"), 0);
    server.stop();
}

#[test]
fn a_message_above_the_limit_gets_1009_before_it_has_come_in_whole() {
    let server = Holdfast::with("workers = 1\nlimits.max_message_size = \"1KiB\"");
    let mut at_the_limit = RawClient::open(server.address());
    at_the_limit.send(&frame::masked(FIN | BINARY, &[1; 1024])).unwrap();
    assert_eq!(at_the_limit.message(), [1; 1024]);

    let mut one_frame = RawClient::open(server.address());
    one_frame.send(&frame::promise(FIN | BINARY, 1025)).unwrap();
    assert_eq!(one_frame.close_frame().0, 1009);

    let mut fragments = RawClient::open(server.address());
    fragments.send(&frame::masked(BINARY, &[1; 1024])).unwrap();
    fragments.send(&frame::masked(CONTINUATION, &[1; 1])).unwrap();
    assert_eq!(fragments.close_frame().0, 1009);
    server.wait_until("both are counted", |totals| totals.number("closed_total.message_too_big") == 2);
    server.stop();
}
