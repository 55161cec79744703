//! An engine that is saved and restored in the middle of a stream sees what one sees that never was; and
//! bytes that are no saved engine make none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod streams;

use std::ops::ControlFlow;

use holdfast_shared::ipc::codec::{append_bare, read_bare};
use holdfast_worker::websocket::assembly::Assembly;
use holdfast_worker::websocket::engine::{Engine, Event};
use holdfast_worker::websocket::saved::SavedEngine;
use proptest::prelude::*;
use streams::{MAX_MESSAGE_SIZE, Outcome, Seen, generate, run};

fn moved(engine: &Engine) -> Engine {
    let mut bytes = Vec::new();
    append_bare(&engine.save(), &mut bytes).unwrap();
    read_bare::<SavedEngine>(&bytes).unwrap().restore().unwrap()
}

/// As [`run`], but where `moves` says so after a read the engine is saved, and another one, with other
/// buffers, goes on.
fn run_with_moves(stream: &[u8], sizes: &[usize], moves: &[bool]) -> Outcome {
    let (mut events, mut engine) = (Vec::new(), Engine::default());
    let mut assembly = Assembly::new(MAX_MESSAGE_SIZE);
    let mut steps = sizes.iter().cycle().zip(moves.iter().cycle());
    let mut rest = stream;
    while !rest.is_empty() {
        let (&size, &is_moved) = steps.next().unwrap();
        let mut size = size.clamp(1, rest.len());
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
        if is_moved {
            engine = moved(&engine);
            assembly = Assembly::new(MAX_MESSAGE_SIZE);
        }
    }
    Outcome { events, violation: None, idle: engine.is_idle() }
}

/// Feeds whatever an engine may be fed, for the sake of what must not happen.
fn exercise(mut engine: Engine) {
    let mut assembly = Assembly::new(MAX_MESSAGE_SIZE);
    let mut sink = |_: Event<'_>| ControlFlow::Continue(());
    if let Some(vacant) = engine.vacant(&mut assembly) {
        let room = vacant.len();
        let _ = engine.filled(room, &mut assembly, &mut sink);
    }
    let _ = engine.feed(&mut [0x81, 0x80, 1, 2, 3, 4, 0x00].repeat(40), &mut assembly, &mut sink);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_moved_engine_goes_on_where_it_was(
        stream in generate::valid(),
        sizes in generate::read_sizes(),
        moves in prop::collection::vec(any::<bool>(), 1..10),
    ) {
        prop_assert_eq!(run_with_moves(&stream, &sizes, &moves), run(&stream, &[]));
    }

    #[test]
    fn a_moved_engine_finds_the_same_violation(stream in generate::mutated(), sizes in generate::read_sizes()) {
        prop_assert_eq!(run_with_moves(&stream, &sizes, &[true]), run(&stream, &[]));
    }

    #[test]
    fn garbage_makes_no_engine_that_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(saved) = read_bare::<SavedEngine>(&bytes)
            && let Some(engine) = saved.restore()
        {
            exercise(engine);
        }
    }

    #[test]
    fn a_damaged_engine_does_not_panic(
        stream in generate::valid(),
        cut in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut assembly = Assembly::new(MAX_MESSAGE_SIZE);
        let mut engine = Engine::default();
        let mut begun = stream[..cut.index(stream.len() + 1)].to_vec();
        if engine.feed(&mut begun, &mut assembly, &mut |_: Event<'_>| ControlFlow::Continue(())).is_ok() {
            let mut bytes = Vec::new();
            append_bare(&engine.save(), &mut bytes).unwrap();
            for (at, byte) in damage {
                let early = at.index(bytes.len().min(40));
                bytes[early] = byte;
            }
            if let Ok(saved) = read_bare::<SavedEngine>(&bytes)
                && let Some(engine) = saved.restore()
            {
                exercise(engine);
            }
        }
    }
}
