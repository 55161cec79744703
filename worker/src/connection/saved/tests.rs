use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;
use crate::websocket::engine::Engine;

/// A state as a test can keep it.
type Owned = (u32, u32, Vec<u8>, bool, Vec<u8>);

fn save(states: &[Owned]) -> File {
    let mut writer = Writer::new().unwrap();
    let engine = Engine::default();
    for (row, serial, request, has_engine, outbox) in states {
        let engine = has_engine.then(|| engine.save());
        writer
            .push(&SavedState {
                row: *row,
                serial: *serial,
                request,
                engine,
                outbox,
                message_since_ms: 0,
                subprotocol: "",
            })
            .unwrap();
    }
    writer.finish(std::time::Duration::from_millis(77)).unwrap().into()
}

/// Every state that can be read, and how many cannot, as far as that is known.
fn load(memory: &File) -> Result<(Vec<Owned>, u32), ReadError> {
    let mut reader = Reader::new(memory.as_fd())?;
    assert_eq!(reader.stopped().as_millis(), 77);
    let (mut states, mut broken) = (Vec::new(), 0);
    loop {
        match reader.next_state() {
            Ok(Some(state)) => {
                let (request, outbox) = (state.request.to_vec(), state.outbox.to_vec());
                states.push((state.row, state.serial, request, state.engine.is_some(), outbox));
            }
            Ok(None) => return Ok((states, broken)),
            Err(_) => broken += 1,
        }
    }
}

fn states() -> impl Strategy<Value = Vec<Owned>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    prop::collection::vec((any::<u32>(), any::<u32>(), bytes(), any::<bool>(), bytes()), 0..20)
}

#[test]
fn memory_without_a_head_is_refused() {
    let mut unfinished = Writer::new().unwrap();
    unfinished
        .push(&SavedState {
            row: 1,
            serial: 2,
            request: &[3; 100_000],
            engine: None,
            outbox: &[],
            message_since_ms: 0,
            subprotocol: "",
        })
        .unwrap();
    let mut memory = save(&[]);
    memory.seek(SeekFrom::Start(0)).unwrap();
    memory.write_all(&[0; 8]).unwrap();
    assert!(matches!(Reader::new(memory.as_fd()), Err(ReadError::NotSaved)));
    memory.set_len(10).unwrap();
    assert!(matches!(Reader::new(memory.as_fd()), Err(ReadError::NotSaved)));
}

#[test]
fn another_version_is_named() {
    let mut memory = save(&[(1, 2, vec![3], true, vec![4])]);
    memory.seek(SeekFrom::Start(8)).unwrap();
    memory.write_all(&1u32.to_le_bytes()).unwrap();
    assert!(matches!(Reader::new(memory.as_fd()), Err(ReadError::Version { found: 1 })));
}

#[test]
fn a_half_that_cannot_be_decoded_costs_no_other() {
    let all =
        [(1, 2, vec![3; 9], true, vec![]), (4, 5, vec![6], false, vec![7]), (8, 9, vec![], true, vec![1])];
    let mut memory = save(&all);
    // The length of the first one's request, behind its own length, row and serial: longer than all there is.
    memory.seek(SeekFrom::Start(HEAD_SIZE as u64 + 12)).unwrap();
    memory.write_all(&u64::MAX.to_le_bytes()).unwrap();
    assert_eq!(load(&memory).unwrap(), (all[1..].to_vec(), 1));
}

proptest! {
    #[test]
    fn what_is_saved_is_read_back(states in states()) {
        let memory = save(&states);
        prop_assert_eq!(load(&memory).unwrap(), (states.clone(), 0));
        // A worker that died while it read them leaves them to the next.
        prop_assert_eq!(load(&memory).unwrap(), (states, 0));
    }

    #[test]
    fn damaged_memory_is_read_without_a_panic(
        states in states(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut memory = save(&states);
        let size = usize::try_from(memory.metadata().unwrap().len()).unwrap();
        for (at, byte) in damage.iter().filter(|_| size > HEAD_SIZE) {
            let at = HEAD_SIZE + at.index(size - HEAD_SIZE);
            memory.seek(SeekFrom::Start(at as u64)).unwrap();
            memory.write_all(&[*byte]).unwrap();
        }
        memory.set_len((HEAD_SIZE + cut.index(size - HEAD_SIZE + 1)) as u64).unwrap();
        let (read, _) = load(&memory).unwrap();
        prop_assert!(read.len() <= states.len());
    }
}
