//! The engine, rule by rule of RFC 6455, and the property that reads may cut the stream anywhere.

mod streams;

use std::ops::ControlFlow;

use holdfast_shared::reason::CloseReason;
use holdfast_worker::websocket::assembly::Assembly;
use holdfast_worker::websocket::engine::{Engine, Event};
use holdfast_worker::websocket::violation::Violation;
use proptest::prelude::*;
use streams::{MAX_MESSAGE_SIZE, Outcome, Seen, frame, generate, run};

const CONTINUE: u8 = 0x00;
const TEXT: u8 = 0x01;
const BINARY: u8 = 0x02;
const FIN: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

fn text(text: &str) -> Seen {
    Seen::Text(text.to_owned())
}

/// The outcome of a stream, all at once and byte by byte, which must be the same.
fn outcome(frames: &[Vec<u8>]) -> Outcome {
    let stream = frames.concat();
    let whole = run(&stream, &[]);
    assert_eq!(whole, run(&stream, &[1]), "byte by byte");
    whole
}

fn assert_events(frames: &[Vec<u8>], events: &[Seen]) {
    assert_eq!(outcome(frames), Outcome { events: events.to_vec(), violation: None, idle: true });
}

fn assert_violation(frames: &[Vec<u8>], violation: Violation) {
    let outcome = outcome(frames);
    assert_eq!(outcome.violation, Some(violation), "{frames:x?}");
}

#[test]
fn messages_of_every_length_form_come_through() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, MAX_MESSAGE_SIZE] {
        let payload: Vec<u8> = (0..=250).cycle().take(length).collect();
        assert_events(&[frame(FIN | BINARY, &payload)], &[Seen::Binary(payload)]);
        let ascii = "x".repeat(length);
        assert_events(&[frame(FIN | TEXT, ascii.as_bytes())], &[text(&ascii)]);
    }
}

#[test]
fn many_messages_in_one_read_come_in_order() {
    let frames = [
        frame(FIN | TEXT, b"one"),
        frame(PING, b"p"),
        frame(FIN | BINARY, &[2]),
        frame(PONG, b""),
        frame(FIN | TEXT, "drei €".as_bytes()),
    ];
    let events = [
        text("one"),
        Seen::Ping(b"p".to_vec()),
        Seen::Binary(vec![2]),
        Seen::Pong(Vec::new()),
        text("drei €"),
    ];
    assert_events(&frames, &events);
}

#[test]
fn fragments_make_one_message_with_control_frames_between() {
    let crab = "🦀".as_bytes();
    let frames = [
        frame(TEXT, b"a"),
        frame(PING, &[7; 125]),
        frame(CONTINUE, &crab[..1]),
        frame(CONTINUE, b""),
        frame(PONG, b""),
        frame(CONTINUE, &crab[1..3]),
        frame(FIN | CONTINUE, &crab[3..]),
        frame(FIN | TEXT, b"next"),
    ];
    let events = [Seen::Ping(vec![7; 125]), Seen::Pong(Vec::new()), text("a🦀"), text("next")];
    assert_events(&frames, &events);
    assert_events(&[frame(BINARY, b""), frame(FIN | CONTINUE, b"")], &[Seen::Binary(Vec::new())]);
}

#[test]
fn frames_that_break_a_rule_end_the_stream() {
    let unmasked = vec![FIN | TEXT, 2, b'h', b'i'];
    let half_open = frame(TEXT, b"half");
    for (frames, violation) in [
        (vec![unmasked], Violation::Unmasked),
        (vec![frame(0xc1, b"")], Violation::ReservedBits),
        (vec![frame(0xb9, b"")], Violation::ReservedBits),
        (vec![frame(0x83, b"")], Violation::ReservedOpcode),
        (vec![frame(0x8b, b"")], Violation::ReservedOpcode),
        (vec![frame(0x09, b"")], Violation::FragmentedControl),
        (vec![frame(PING, &[0; 126])], Violation::ControlTooLong),
        (vec![frame(CLOSE, &[0; 126])], Violation::ControlTooLong),
        (vec![frame(FIN | CONTINUE, b"")], Violation::NothingToContinue),
        (vec![frame(FIN | TEXT, b"whole"), frame(CONTINUE, b"")], Violation::NothingToContinue),
        (vec![half_open.clone(), frame(FIN | TEXT, b"")], Violation::MessageUnfinished),
        (vec![half_open, frame(PING, b""), frame(BINARY, b"")], Violation::MessageUnfinished),
        (vec![vec![0x82, 0xfe, 0, 1]], Violation::LengthNotMinimal),
        (vec![vec![0x82, 0xff, 0x80]], Violation::LengthTopBit),
    ] {
        assert_eq!(violation.reason(), CloseReason::ProtocolError);
        assert_violation(&frames, violation);
    }
}

#[test]
fn events_before_a_violation_are_delivered() {
    let outcome = outcome(&[frame(FIN | TEXT, b"good"), frame(PING, b""), frame(0xf1, b"")]);
    assert_eq!(outcome.events, [text("good"), Seen::Ping(Vec::new())]);
    assert_eq!(outcome.violation, Some(Violation::ReservedBits));
}

#[test]
fn bad_text_is_found_in_the_byte_that_breaks_it() {
    for (prefix, bad) in [
        (&b"ok"[..], &b"\xff"[..]),
        (b"", b"\xc0"),
        (b"\xf4", b"\x90"),
        (b"\xed", b"\xa0"),
        (b"\xe0", b"\x80"),
        (b"\xce\xba\xe1\xbd\xb9", b"\x80"),
    ] {
        // A frame that announces more than will ever come.
        let header = vec![FIN | TEXT, 0x80 | 100, 0, 0, 0, 0];
        let good = outcome(&[header.clone(), prefix.to_vec()]);
        assert_eq!(good, Outcome { events: vec![], violation: None, idle: false }, "{prefix:x?}");
        assert_violation(&[header, prefix.to_vec(), bad.to_vec()], Violation::TextNotUtf8);
        // Across fragments, and whole.
        assert_violation(&[frame(TEXT, prefix), frame(FIN | CONTINUE, bad)], Violation::TextNotUtf8);
        assert_violation(&[frame(FIN | TEXT, &[prefix, bad].concat())], Violation::TextNotUtf8);
    }
}

#[test]
fn text_must_not_end_within_a_code_point() {
    for cut in [&b"\xc3"[..], b"\xe2\x82", b"\xf0\x9f\xa6"] {
        assert_violation(&[frame(FIN | TEXT, cut)], Violation::TextNotUtf8);
        assert_violation(&[frame(TEXT, cut), frame(FIN | CONTINUE, b"")], Violation::TextNotUtf8);
    }
    assert_events(&[frame(FIN | BINARY, b"\xc3")], &[Seen::Binary(vec![0xc3])]);
}

#[test]
fn the_size_limit_holds_before_the_payload_comes() {
    let most = MAX_MESSAGE_SIZE;
    let header = frame(FIN | BINARY, &vec![0; most + 1])[..10].to_vec();
    assert_violation(&[header], Violation::MessageTooBig);
    let fragments = [frame(BINARY, &vec![0; most - 5]), frame(CONTINUE, &[1; 5])];
    assert!(outcome(&fragments).violation.is_none());
    assert_violation(
        &[fragments.concat(), frame(FIN | CONTINUE, &[1])[..2].to_vec()],
        Violation::MessageTooBig,
    );
}

#[test]
fn close_frames_are_read_and_end_the_stream() {
    let after = frame(FIN | TEXT, b"ignored");
    for (payload, seen) in [
        (&b""[..], None),
        (b"\x03\xe8", Some((1000, ""))),
        (b"\x03\xe9going", Some((1001, "going"))),
        (b"\x03\xf6", Some((1014, ""))),
        (b"\x0b\xb8", Some((3000, ""))),
        (b"\x13\x87\xe2\x82\xac", Some((4999, "€"))),
    ] {
        let outcome = outcome(&[frame(CLOSE, payload), after.clone()]);
        let seen = seen.map(|(code, reason)| (code, reason.to_owned()));
        assert_eq!(outcome, Outcome { events: vec![Seen::Close(seen)], violation: None, idle: false });
    }
}

#[test]
fn close_frames_that_break_a_rule() {
    assert_violation(&[frame(CLOSE, &[3])], Violation::CloseCodeCut);
    for code in [0u16, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_violation(&[frame(CLOSE, &code.to_be_bytes())], Violation::CloseCodeNotAllowed);
    }
    assert_violation(&[frame(CLOSE, b"\x03\xe8\xff")], Violation::CloseReasonNotUtf8);
    assert_violation(&[frame(CLOSE, b"\x03\xe8\xe2\x82")], Violation::CloseReasonNotUtf8);
}

#[test]
fn a_break_ends_the_feed() {
    let mut stream = [frame(FIN | TEXT, b"1"), frame(FIN | TEXT, b"2"), frame(0xff, b"")].concat();
    let mut seen = 0;
    let fed =
        Engine::default().feed(&mut stream, &mut Assembly::new(MAX_MESSAGE_SIZE), &mut |_: Event<'_>| {
            seen += 1;
            if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    assert_eq!((fed, seen), (Ok(()), 2));
}

#[test]
fn an_echo_is_a_server_frame_however_the_message_came() {
    for length in [0, 5, 125, 126, 65_535, 65_536] {
        let payload = vec![b'e'; length];
        let mut expected = Vec::new();
        holdfast_worker::websocket::frame::append_frame(&mut expected, 1.into(), &payload);
        let stream = frame(FIN | TEXT, &payload);
        let fragments = [frame(TEXT, &payload[..length / 2]), frame(FIN | CONTINUE, &payload[length / 2..])];
        for (stream, size) in [(stream.clone(), stream.len()), (stream, 7), (fragments.concat(), usize::MAX)]
        {
            let (mut engine, mut reply) = (Engine::default(), Vec::new());
            for piece in stream.chunks(size.min(stream.len())) {
                let fed = engine.feed(
                    &mut piece.to_vec(),
                    &mut Assembly::new(MAX_MESSAGE_SIZE),
                    &mut |event: Event<'_>| {
                        let Event::Message(message) = event else { panic!("{event:?}") };
                        reply.extend_from_slice(message.into_reply());
                        ControlFlow::Continue(())
                    },
                );
                assert_eq!(fed, Ok(()));
            }
            assert_eq!(reply, expected, "{length} bytes");
        }
    }
}

#[test]
fn nothing_is_kept_between_messages() {
    let stream = [frame(BINARY, b"abc"), frame(PING, b"x"), frame(FIN | CONTINUE, b"")].concat();
    let mut engine = Engine::default();
    for (at, byte) in stream.iter().enumerate() {
        assert_eq!(engine.is_idle(), at == 0, "after {at} bytes");
        engine
            .feed(&mut [*byte], &mut Assembly::new(MAX_MESSAGE_SIZE), &mut |_: Event<'_>| {
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    assert!(engine.is_idle());
}

proptest! {
    #[test]
    fn valid_streams_break_no_rule(stream in generate::valid()) {
        let outcome = run(&stream, &[]);
        prop_assert_eq!(outcome.violation, None);
        prop_assert!(outcome.idle || matches!(outcome.events.last(), Some(Seen::Close(_))));
    }

    #[test]
    fn reads_may_cut_the_stream_anywhere(stream in generate::valid(), sizes in generate::read_sizes()) {
        prop_assert_eq!(run(&stream, &sizes), run(&stream, &[]));
    }

    #[test]
    fn reads_may_cut_a_broken_stream_anywhere(stream in generate::mutated(), sizes in generate::read_sizes()) {
        prop_assert_eq!(run(&stream, &sizes), run(&stream, &[]));
    }

    #[test]
    fn any_bytes_are_survived(
        stream in prop::collection::vec(any::<u8>(), 0..300),
        sizes in generate::read_sizes(),
    ) {
        prop_assert_eq!(run(&stream, &sizes), run(&stream, &[]));
    }
}
