//! What the engine's tests share: the client's side of the wire, and events one can compare.

// Each test binary uses its own part of this, and all of it is test code.
#![allow(dead_code, clippy::unwrap_used)]

use std::ops::ControlFlow;

use holdfast_worker::websocket::assembly::Assembly;
use holdfast_worker::websocket::engine::{Engine, Event, MessageKind};
use holdfast_worker::websocket::violation::Violation;

/// The size limit of all tests: small, so that generated messages cross it.
pub const MAX_MESSAGE_SIZE: usize = 70_000;

/// An event, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl Seen {
    pub fn from_event(event: &Event<'_>) -> Self {
        match event {
            Event::Message(message) => match message.kind() {
                MessageKind::Text => Self::Text(String::from_utf8(message.payload().to_vec()).unwrap()),
                MessageKind::Binary => Self::Binary(message.payload().to_vec()),
            },
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close(close) => {
                Self::Close(close.map(|(code, reason)| (u16::from(code), reason.to_owned())))
            }
        }
    }
}

/// Everything a stream led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Seen>,
    pub violation: Option<Violation>,
    /// Whether the stream ended between messages; `false` after a close or a violation.
    pub idle: bool,
}

/// Feeds `stream` in pieces of the given sizes, over and over; all at once without any. As the event loop
/// does, a long payload is put straight to where it stays, and an idle engine is thrown away between reads.
pub fn run(stream: &[u8], sizes: &[usize]) -> Outcome {
    let (mut events, mut engine) = (Vec::new(), Engine::default());
    let mut assembly = Assembly::new(MAX_MESSAGE_SIZE);
    let mut sizes = sizes.iter().cycle();
    let mut rest = stream;
    while !rest.is_empty() {
        let mut size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
        let mut sink = |event: Event<'_>| {
            events.push(Seen::from_event(&event));
            ControlFlow::Continue(())
        };
        let fed = match engine.vacant(&mut assembly) {
            Some(vacant) => {
                size = size.min(vacant.len());
                vacant[..size].copy_from_slice(&rest[..size]);
                engine.filled(size, &mut assembly, &mut sink)
            }
            None => engine.feed(&mut rest[..size].to_vec(), &mut assembly, &mut sink),
        };
        rest = &rest[size..];
        if let Err(violation) = fed {
            return Outcome { events, violation: Some(violation), idle: false };
        }
        if matches!(events.last(), Some(Seen::Close(_))) {
            return Outcome { events, violation: None, idle: false };
        }
        if engine.is_idle() {
            engine = Engine::default();
        }
    }
    Outcome { events, violation: None, idle: engine.is_idle() }
}

/// A client's frame in its shortest form.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked_frame(first, [0x37, 0xfa, 0x21, 0x3d], payload)
}

/// A client's frame in its shortest form, with the mask given.
pub fn masked_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend(u64::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Random streams.
pub mod generate {
    use proptest::prelude::*;

    use super::masked_frame;

    /// Text that mixes ASCII, which takes the fast way, with code points of every length.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "[ -~]{0,40}",
            3 => prop::collection::vec(any::<char>(), 0..60).prop_map(|chars| chars.into_iter().collect()),
            1 => "[a-zäöü€🦀]{100,400}",
        ]
        .prop_map(String::into_bytes)
    }

    fn binary() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => prop::collection::vec(any::<u8>(), 0..140),
            2 => prop::collection::vec(any::<u8>(), 120..2_000),
            1 => (65_000usize..70_001, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        ]
    }

    fn control() -> impl Strategy<Value = Vec<u8>> {
        (prop_oneof![Just(0x89), Just(0x8a)], any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..=125))
            .prop_map(|(first, mask, payload)| masked_frame(first, mask, &payload))
    }

    fn close() -> impl Strategy<Value = Vec<u8>> {
        let code = prop_oneof![1000u16..1004, 1007u16..1014, 3000u16..5000];
        let payload = prop_oneof![
            1 => Just(Vec::new()),
            3 => (code, "[a-zé]{0,50}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
        ];
        (any::<[u8; 4]>(), payload).prop_map(|(mask, payload)| masked_frame(0x88, mask, &payload))
    }

    /// A message in one frame or cut into fragments anywhere, with control frames between them.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let payload =
            prop_oneof![text().prop_map(|text| (0x01, text)), binary().prop_map(|data| (0x02, data))];
        let cuts = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(control())), 1..5)];
        (payload, cuts, any::<[u8; 4]>()).prop_map(|((opcode, payload), cuts, mask)| {
            let mut cuts: Vec<_> =
                cuts.into_iter().map(|(at, control)| (at.index(payload.len() + 1), control)).collect();
            cuts.sort_by_key(|(at, _)| *at);
            let (mut stream, mut first, mut from) = (Vec::new(), opcode, 0);
            for (at, control) in cuts {
                stream.extend(masked_frame(first, mask, &payload[from..at]));
                stream.extend(control.unwrap_or_default());
                (first, from) = (0x00, at);
            }
            stream.extend(masked_frame(0x80 | first, mask, &payload[from..]));
            stream
        })
    }

    /// Streams that break no rule; some end with a close frame.
    pub fn valid() -> impl Strategy<Value = Vec<u8>> {
        let units = prop::collection::vec(prop_oneof![3 => message(), 1 => control()], 0..7);
        (units, prop::option::weighted(0.3, close()))
            .prop_map(|(units, close)| [units.concat(), close.unwrap_or_default()].concat())
    }

    /// Valid streams with a few bytes changed, put in, taken out or cut off; most changes hit the first
    /// hundred bytes, where headers are dense.
    pub fn mutated() -> impl Strategy<Value = Vec<u8>> {
        let edit = (any::<prop::sample::Index>(), any::<bool>(), any::<u8>(), 0..4u8);
        (valid(), prop::collection::vec(edit, 1..4)).prop_map(|(mut stream, edits)| {
            for (at, early, byte, kind) in edits {
                let span = if early { stream.len().min(100) } else { stream.len() };
                let at = at.index(span + 1);
                match kind {
                    0 => stream.insert(at, byte),
                    1 => stream.truncate(at.max(2)),
                    _ if at >= stream.len() => stream.push(byte),
                    2 => stream[at] ^= 1 << (byte % 8),
                    _ => drop(stream.remove(at)),
                }
            }
            stream
        })
    }

    /// Sizes of reads, from single bytes up.
    pub fn read_sizes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(prop_oneof![3 => 1usize..4, 2 => 1usize..200, 1 => 1usize..40_000], 1..12)
    }
}
