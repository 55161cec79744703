//! The engine against tungstenite, on the same streams: the same messages in the same order, and the same
//! class of close code at the end. Where the two may differ, [`agree`] says why.

mod streams;

use std::io::{self, Cursor, Read, Write};

use holdfast_worker::websocket::violation::Violation;
use proptest::prelude::*;
use streams::{MAX_MESSAGE_SIZE, Outcome, Seen, frame, generate, run};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

/// The longest header of a client's frame.
const MAX_HEADER: usize = 14;

/// A stream to read from; what is written is thrown away, and its end is "nothing yet", not the end.
struct Input(Cursor<Vec<u8>>);

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite's server makes of a stream: events, and the close code it fails with.
#[derive(Debug)]
struct Reference {
    events: Vec<Seen>,
    failure: Option<u16>,
}

fn reference_of(stream: &[u8]) -> Reference {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_SIZE))
        .max_frame_size(Some(MAX_MESSAGE_SIZE));
    let input = Input(Cursor::new(stream.to_vec()));
    let mut socket = WebSocket::from_raw_socket(input, Role::Server, Some(config));
    let mut events = Vec::new();
    loop {
        let failure = match socket.read() {
            Ok(message) => {
                events.push(match message {
                    Message::Text(text) => Seen::Text(text.to_string()),
                    Message::Binary(data) => Seen::Binary(data.to_vec()),
                    Message::Ping(data) => Seen::Ping(data.to_vec()),
                    Message::Pong(data) => Seen::Pong(data.to_vec()),
                    Message::Close(close) => {
                        Seen::Close(close.map(|close| (close.code.into(), close.reason.to_string())))
                    }
                    Message::Frame(frame) => panic!("tungstenite never reads {frame}"),
                });
                continue;
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(Error::ConnectionClosed) => None,
            Err(Error::Protocol(_)) => Some(1002),
            Err(Error::Utf8(_)) => Some(1007),
            Err(Error::Capacity(_)) => Some(1009),
            Err(error) => panic!("{error:?} is no verdict on a stream"),
        };
        return Reference { events, failure };
    }
}

/// Whether the two outcomes are the same, but for these differences:
///
/// 1. *Early verdicts.* tungstenite looks at a frame when its last byte has come, the engine at every byte.
///    Where the engine has a verdict and tungstenite none, tungstenite is given the rest of the frame, as
///    zeros.
/// 2. *First rule first.* On a frame that breaks two rules tungstenite finds 1009 first where the engine,
///    which goes by the order of the bytes, finds a reserved bit, a wrong sequence, a missing mask or a long
///    control frame.
/// 3. *Close codes.* tungstenite checks the reason's UTF-8 first, and then reports a code that must not be
///    sent as a close with 1002; the engine reports a violation, whose code is 1002.
/// 4. *Bad gateway.* tungstenite takes the registered close code 1014 for one that must not be sent.
/// 5. *Minimal lengths.* RFC 6455, section 5.2: "the minimal number of bytes MUST be used to encode the
///    length". tungstenite does not enforce it, and reads on. Autobahn has no case for it.
fn agree(stream: &[u8], sizes: &[usize]) -> Result<(), String> {
    let (ours, mut reference) = (run(stream, sizes), reference_of(stream));
    if ours.violation.is_some() && reference.failure.is_none() {
        let frame_rest = vec![0; MAX_MESSAGE_SIZE + MAX_HEADER];
        reference = reference_of(&[stream, &frame_rest].concat());
    }
    let same_events = reference.events == ours.events;
    let same = match (ours.violation, reference.failure) {
        (None, None) => same_events || is_bad_gateway(&ours, &reference),
        (None, Some(_)) => false,
        (Some(Violation::LengthNotMinimal), _) => reference.events.starts_with(&ours.events),
        (Some(Violation::CloseCodeNotAllowed), None) => {
            reference.events.split_last().is_some_and(|(last, before)| {
                matches!(last, Seen::Close(Some((1002, _)))) && before == ours.events
            })
        }
        (Some(Violation::CloseCodeNotAllowed), Some(code)) => same_events && code == 1007,
        (Some(violation), Some(code)) => {
            let our_code = u16::from(violation.code());
            same_events && (code == our_code || (our_code, code) == (1002, 1009))
        }
        (Some(_), None) => false,
    };
    if same { Ok(()) } else { Err(format!("engine: {ours:?}\ntungstenite: {reference:?}")) }
}

/// Difference 4: all the same up to a close with 1014.
fn is_bad_gateway(ours: &Outcome, reference: &Reference) -> bool {
    let (Some((last, before)), Some((reference_last, reference_before))) =
        (ours.events.split_last(), reference.events.split_last())
    else {
        return false;
    };
    matches!(last, Seen::Close(Some((1014, _))))
        && matches!(reference_last, Seen::Close(Some((1002, _))))
        && before == reference_before
}

/// One broken rule in a whole frame, so that differences 1 and 2 do not apply: the codes are the same.
#[test]
fn single_violations_have_the_same_close_code() {
    let start = frame(0x01, b"start");
    let too_long = vec![0; MAX_MESSAGE_SIZE];
    for stream in [
        vec![0x81, 2, b'h', b'i'],
        frame(0xc1, b"rsv"),
        frame(0xa2, b"rsv"),
        frame(0x9a, b"rsv"),
        frame(0x83, b"opcode"),
        frame(0x8f, b"opcode"),
        frame(0x09, b"fragmented"),
        frame(0x89, &[0; 126]),
        frame(0x88, &[3]),
        frame(0x88, b"\x03\xe8\xff"),
        frame(0x80, b"nothing to continue"),
        [start.clone(), frame(0x81, b"unfinished")].concat(),
        [start.clone(), frame(0x80, b"\xff")].concat(),
        [start, frame(0x00, &too_long)].concat(),
        frame(0x81, b"\xc3"),
        frame(0x81, b"\xf4\x90\x80\x80"),
        frame(0x82, &[&too_long[..], &[0]].concat()),
    ] {
        let (ours, reference) = (run(&stream, &[]), reference_of(&stream));
        let code = ours.violation.map(|violation| u16::from(violation.code()));
        assert!(code.is_some(), "{ours:?}");
        assert_eq!(code, reference.failure, "{ours:?}\n{reference:?}");
        assert_eq!(ours.events, reference.events);
    }
}

/// The differences that [`agree`] tolerates are real, or they would hide others.
#[test]
fn the_tolerated_differences_exist() {
    let not_minimal = [&[0x82, 0xfe, 0, 1, 0, 0, 0, 0, 7][..]].concat();
    assert_eq!(run(&not_minimal, &[]).violation, Some(Violation::LengthNotMinimal));
    assert_eq!(reference_of(&not_minimal).events, [Seen::Binary(vec![7])]);

    let not_allowed = frame(0x88, &1005u16.to_be_bytes());
    assert_eq!(run(&not_allowed, &[]).violation, Some(Violation::CloseCodeNotAllowed));
    assert!(matches!(reference_of(&not_allowed).events[..], [Seen::Close(Some((1002, _)))]));

    let bad_gateway = frame(0x88, &1014u16.to_be_bytes());
    assert!(is_bad_gateway(&run(&bad_gateway, &[]), &reference_of(&bad_gateway)));

    let cut = &frame(0x81, b"\xffmore")[..8];
    assert_eq!(run(cut, &[]).violation, Some(Violation::TextNotUtf8));
    assert_eq!(reference_of(cut).failure, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn valid_streams_mean_the_same(stream in generate::valid(), sizes in generate::read_sizes()) {
        let reference = reference_of(&stream);
        prop_assert_eq!(reference.failure, None);
        prop_assert_eq!(run(&stream, &sizes).events, reference.events);
    }

    #[test]
    fn mutated_streams_fail_alike(stream in generate::mutated(), sizes in generate::read_sizes()) {
        prop_assert_eq!(agree(&stream, &sizes), Ok(()));
    }
}
