use std::collections::BTreeMap;
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;

fn owner(row: u32) -> Owner {
    Owner { row, serial: row + 7 }
}

fn sessions() -> (OwnedFd, Sessions) {
    let memory = create().unwrap();
    let sessions = Sessions::open(memory.as_fd()).unwrap();
    (memory, sessions)
}

#[test]
fn what_is_too_long_or_not_ours_is_refused() {
    let (memory, mut sessions) = sessions();
    let longest = vec![7; MAX_SESSION];
    let handle = sessions.put(memory.as_fd(), owner(1), &longest).unwrap();
    assert_eq!(sessions.get(handle, owner(1)), Some(&*longest));
    let too_long = sessions.put(memory.as_fd(), owner(1), &vec![7; MAX_SESSION + 1]);
    assert!(matches!(too_long, Err(SessionError::TooLong { .. })));
    for (handle, of) in [(0, owner(1)), (handle, owner(2)), (handle + 1, owner(1)), (u32::MAX, owner(1))] {
        assert_eq!(sessions.get(handle, of), None);
        assert!(!sessions.claim(handle, of));
    }
    let foreign = mapping::create("foreign", 9000).unwrap();
    assert!(Sessions::open(foreign.as_fd()).is_err());
    assert!(Sessions::open(mapping::create("short", 9).unwrap().as_fd()).is_err());
}

#[test]
fn memory_follows_use_and_goes_back_after_a_crowd() {
    let (memory, mut sessions) = sessions();
    let held = || nix::sys::stat::fstat(&memory).unwrap().st_blocks * 512;
    let handles: Vec<u32> =
        (0..10_000).map(|row| sessions.put(memory.as_fd(), owner(row), &[1; 40]).unwrap()).collect();
    // 64 bytes each with their head.
    assert!((640_000..720_000).contains(&held()), "{}", held());
    for &handle in &handles[1..] {
        sessions.free(handle);
    }
    sessions.give_back().unwrap();
    sessions.give_back().unwrap();
    assert!(held() <= 2 * 65_536, "{}", held());
    assert_eq!(sessions.get(handles[0], owner(0)), Some(&[1; 40][..]));
}

/// What a worker does with sessions.
#[derive(Debug, Clone)]
enum Step {
    Put(u32, Vec<u8>),
    /// Dies between the write and the store in the record.
    PutAndDie(u32, Vec<u8>),
    End(u32),
    Die,
    Tidy,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop_oneof![4 => prop::collection::vec(any::<u8>(), 0..200), 1 => prop::collection::vec(any::<u8>(), 0..9000)];
    prop_oneof![
        6 => (0..40_u32, bytes()).prop_map(|(row, bytes)| Step::Put(row, bytes)),
        1 => (0..40_u32, bytes()).prop_map(|(row, bytes)| Step::PutAndDie(row, bytes)),
        3 => (0..40_u32).prop_map(Step::End),
        1 => Just(Step::Die),
        1 => Just(Step::Tidy),
    ]
}

proptest! {
    #[test]
    fn every_session_is_there_as_it_was_last_put_whoever_dies(steps in prop::collection::vec(step(), 0..120)) {
        let (memory, mut sessions) = sessions();
        // The records: a handle, and what the session ought to be.
        let mut records: BTreeMap<u32, (u32, Vec<u8>)> = BTreeMap::new();
        for step in steps {
            let dies = matches!(step, Step::Die | Step::PutAndDie(..));
            match step {
                Step::Put(row, bytes) => {
                    let handle = sessions.put(memory.as_fd(), owner(row), &bytes).unwrap();
                    if let Some((before, _)) = records.insert(row, (handle, bytes)) {
                        sessions.free(before);
                    }
                }
                Step::PutAndDie(row, bytes) => {
                    sessions.put(memory.as_fd(), owner(row), &bytes).unwrap();
                }
                Step::End(row) => {
                    if let Some((handle, _)) = records.remove(&row) {
                        sessions.free(handle);
                    }
                }
                Step::Die => {}
                Step::Tidy => sessions.give_back().unwrap(),
            }
            if dies {
                sessions = Sessions::open(memory.as_fd()).unwrap();
                for (&row, (handle, _)) in &records {
                    prop_assert!(sessions.claim(*handle, owner(row)));
                }
            }
            for (&row, (handle, bytes)) in &records {
                prop_assert_eq!(sessions.get(*handle, owner(row)), Some(&**bytes));
            }
        }
    }

    #[test]
    fn damaged_memory_is_read_without_a_panic(
        damage in prop::collection::vec((0..2000_usize, any::<u8>()), 1..60),
        handles in prop::collection::vec(any::<u32>(), 0..20),
    ) {
        let (memory, mut sessions) = sessions();
        let live: Vec<u32> = (0..30).map(|row| sessions.put(memory.as_fd(), owner(row), &[9; 30]).unwrap()).collect();
        for (at, byte) in damage {
            sessions.memory.items_mut()[at] = byte;
        }
        let mut found = Sessions::open(memory.as_fd()).unwrap();
        for (row, handle) in (0..).zip(live.into_iter().chain(handles)) {
            let is_there = found.get(handle, owner(row)).is_some();
            prop_assert!(!found.claim(handle, owner(row)) || is_there);
        }
        found.put(memory.as_fd(), owner(99), &[1; 5000]).unwrap();
    }
}
