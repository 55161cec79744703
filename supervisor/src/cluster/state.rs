//! What must not begin at zero again when a supervisor dies, and is in no table: RUN_DIR/state, a small mapped
//! file. It is written as things happen, so there is no moment of saving; the next supervisor reads it if it
//! adopts, and begins an empty one if there is nobody to adopt.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use holdfast_shared::clock::milliseconds;
use holdfast_shared::counters::Counters;
use holdfast_shared::format::Format;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::level::Level;
use holdfast_shared::sys::mapping::Mapping;
use nix::fcntl::posix_fallocate;
use nix::unistd::ftruncate;

use super::slot::Slot;

/// Slots there can be: as many as the configuration allows workers.
pub(crate) const MAX_SLOTS: usize = 1024;

const NAME: &str = "state";
const MAGIC: u64 = u64::from_le_bytes(*b"hf-state");
/// The file of this program. Fields are appended in the reserves, so that zeros mean "none". Another one costs the
/// totals, not connections.
const FORMAT: Format = Format { name: "state", version: 4, reads_since: 3 };
/// What a slot takes: its own fields, and counters with room for as many again.
const SLOT_SIZE: usize = 4096;
const COUNTERS_SIZE: usize = 1400;
const HEAD_SIZE: usize = 4096;
/// Causes of ends that are counted apart; what does not fit is counted as the last of them.
const CAUSES: usize = 24;
const CAUSE_LENGTH: usize = 24;

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {source}; run_dir (--run-dir) must be writable and have room for it", path.display())]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

/// What belongs to the service rather than to one slot.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Head {
    magic: u64,
    version: u32,
    slot_size: u32,
    reads_since: u32,
    level: u32,
    generation: u64,
    started_ms: u64,
    /// How many places of `places` are known; 0 is none.
    places: u32,
    reserved: u32,
    /// The slot of each place in the groups of listeners.
    slot_of_place: [u16; MAX_SLOTS],
    /// How often each level was entered.
    level_entries: [u64; Level::ALL.len()],
    /// Log lines that nobody took, of this supervisor and those before it.
    log_lines_dropped: u64,
}

/// What belongs to a slot.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SlotState {
    /// What was counted under earlier keepers, whose tables are gone.
    pub(crate) base: Counters,
    more_base: [u8; COUNTERS_SIZE - size_of::<Counters>()],
    /// What the table had counted when that was last reported.
    pub(crate) reported: Counters,
    more_reported: [u8; COUNTERS_SIZE - size_of::<Counters>()],
    /// Connections let in, as the ledger saw it.
    pub(crate) accepted: u64,
    /// Connections ended, by reason, as the ledger saw it.
    pub(crate) closed: [u64; 32],
    /// The incarnation up to which ends are counted in `restarts`: a worker with a higher one has had
    /// predecessors that ended unseen.
    pub(crate) expected: u32,
    /// The newest incarnation heard of.
    pub(crate) newest: u32,
    /// Connections that went to other slots, less those that came from there: neither let in nor ended here.
    pub(crate) moved_away: i64,
    restarts: [Restarts; CAUSES],
    reserved: [u8; SLOT_SIZE - 2 * COUNTERS_SIZE - 1048],
}

const _: () = assert!(size_of::<SlotState>() == SLOT_SIZE);

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Restarts {
    /// The cause in words, padded with zeros; one without is unused.
    cause: [u8; CAUSE_LENGTH],
    count: u64,
}

type Memory = Mapping<Head, SlotState, HEAD_SIZE>;

/// The file, mapped.
#[derive(Debug)]
pub(crate) struct State {
    memory: Memory,
    path: PathBuf,
    /// What `log_lines_dropped` was before this process.
    log_lines_dropped_before: u64,
}

impl State {
    /// The state in `run_dir` for `slots`; what is there is kept if `adopting`, and is of this layout.
    ///
    /// # Errors
    /// When there is no room for it, or no right.
    pub(crate) fn open(run_dir: &Path, slots: usize, adopting: bool) -> Result<Self, StateError> {
        let path = run_dir.join(NAME);
        match map(&path, slots, adopting) {
            Ok(memory) => {
                let mut state = Self { memory, path, log_lines_dropped_before: 0 };
                if !state.is_ours() {
                    if adopting {
                        log::warn!("{}: of another layout; totals begin at zero", state.path.display());
                    }
                    state.begin(slots);
                }
                state.log_lines_dropped_before = state.log_lines_dropped();
                Ok(state)
            }
            Err(source) => Err(StateError { path, source }),
        }
    }

    /// When the service was started, by the monotonic clock; `now` if it is starting.
    pub(crate) fn started(&mut self, now: Duration) -> Duration {
        let head = self.memory.head_mut();
        if head.started_ms == 0 {
            head.started_ms = milliseconds(now);
        }
        Duration::from_millis(head.started_ms)
    }

    /// How full the cluster was.
    pub(crate) fn level(&self) -> Level {
        let level = usize::try_from(self.memory.head().level).unwrap_or_default();
        Level::ALL.get(level).copied().unwrap_or_default()
    }

    /// How full the cluster is.
    pub(crate) fn set_level(&mut self, level: Level) {
        self.memory.head_mut().level = level as u32;
    }

    /// A level was entered.
    pub(crate) fn count_level(&mut self, level: Level) {
        self.memory.head_mut().level_entries[level as usize] += 1;
    }

    /// How often each level was entered, by its name.
    pub(crate) fn levels_counted(&self) -> BTreeMap<String, u64> {
        let counts = self.memory.head().level_entries;
        Level::ALL.iter().zip(counts).map(|(level, count)| (level.name().to_owned(), count)).collect()
    }

    /// Log lines that nobody took, since the service was started.
    pub(crate) fn log_lines_dropped(&self) -> u64 {
        self.memory.head().log_lines_dropped
    }

    /// So many of this process's log lines were not taken.
    pub(crate) fn note_log_lines_dropped(&mut self, lines: u64) {
        self.memory.head_mut().log_lines_dropped = self.log_lines_dropped_before.saturating_add(lines);
    }

    /// The generation of settings that was last pushed; 0 for none.
    pub(crate) fn generation(&self) -> u64 {
        self.memory.head().generation
    }

    /// Settings of this generation are pushed.
    pub(crate) fn set_generation(&mut self, generation: u64) {
        self.memory.head_mut().generation = generation;
    }

    /// Which slot each place in the groups of listeners belonged to, if that was known.
    pub(crate) fn places(&self) -> Option<Vec<usize>> {
        let head = self.memory.head();
        let known = usize::try_from(head.places).ok().filter(|&places| places > 0)?;
        Some(head.slot_of_place.get(..known)?.iter().copied().map(usize::from).collect())
    }

    /// Which slot each place belongs to now.
    pub(crate) fn set_places(&mut self, slots: Option<&[usize]>) {
        let slots = slots.unwrap_or_default();
        let head = self.memory.head_mut();
        head.places = u32::try_from(slots.len()).unwrap_or_default();
        for (place, &slot) in head.slot_of_place.iter_mut().zip(slots) {
            *place = u16::try_from(slot).unwrap_or_default();
        }
    }

    /// What was remembered of a slot; nothing if it is new.
    pub(crate) fn slot(&self, id: SlotId) -> SlotState {
        self.memory.items().get(usize::from(id.0)).copied().unwrap_or_else(SlotState::zeroed)
    }

    /// Remembers a slot as it is now, with so many connections.
    pub(super) fn remember(&mut self, slot: &Slot, held: u64) {
        if let Some(place) = self.memory.items_mut().get_mut(usize::from(slot.id.0)) {
            *place = SlotState::of(slot, held);
        }
    }

    /// Makes room for so many slots; what is remembered stays.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn make_room(&mut self, slots: usize) -> Result<(), StateError> {
        if slots > self.known() {
            let memory = map(&self.path, slots, true);
            self.memory = memory.map_err(|source| StateError { path: self.path.clone(), source })?;
        }
        Ok(())
    }

    /// How many slots there is anything to remember of, those that are gone among them.
    pub(crate) fn known(&self) -> usize {
        self.memory.items().len()
    }

    /// The service has ended: there is nothing to go on with.
    pub(crate) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("cannot remove {}: {error}", self.path.display());
        }
    }

    fn is_ours(&self) -> bool {
        let head = self.memory.head();
        let slot_size = usize::try_from(head.slot_size);
        let theirs = Format { version: head.version, reads_since: head.reads_since, ..FORMAT };
        head.magic == MAGIC && FORMAT.fits(&theirs) && slot_size == Ok(SLOT_SIZE)
    }

    fn begin(&mut self, slots: usize) {
        self.memory.items_mut().fill(SlotState::zeroed());
        let identity: Vec<usize> = (0..slots).collect();
        *self.memory.head_mut() = Head {
            magic: MAGIC,
            version: FORMAT.version,
            reads_since: FORMAT.reads_since,
            slot_size: u32::try_from(size_of::<SlotState>()).unwrap_or_default(),
            ..Head::zeroed()
        };
        self.set_places(Some(&identity));
    }
}

impl SlotState {
    fn of(slot: &Slot, held: u64) -> Self {
        let newest = slot.worker.incarnation.0;
        let is_between = slot.state().worker().is_none();
        let mut restarts = [Restarts::zeroed(); CAUSES];
        for (position, (cause, &count)) in slot.restarts.iter().enumerate() {
            let entry = &mut restarts[position.min(CAUSES - 1)];
            if entry.count == 0 {
                for (byte, letter) in entry.cause.iter_mut().zip(cause.bytes()) {
                    *byte = letter;
                }
            }
            entry.count += count;
        }
        Self {
            base: slot.book.base(),
            reported: slot.book.table(),
            accepted: slot.book.accepted(),
            closed: slot.book.closed(),
            expected: newest + u32::from(is_between),
            newest,
            moved_away: slot.book.open().saturating_sub_unsigned(held),
            restarts,
            ..Self::zeroed()
        }
    }

    /// The newest incarnation heard of.
    pub(crate) fn newest(&self) -> Incarnation {
        Incarnation(self.newest)
    }

    /// Ends counted, by cause.
    pub(crate) fn restarts(&self) -> impl Iterator<Item = (String, u64)> {
        self.restarts.iter().filter(|entry| entry.cause[0] != 0).map(|entry| {
            let length = entry.cause.iter().position(|&byte| byte == 0).unwrap_or(CAUSE_LENGTH);
            (String::from_utf8_lossy(&entry.cause[..length]).into_owned(), entry.count)
        })
    }
}

fn map(path: &Path, slots: usize, adopting: bool) -> io::Result<Memory> {
    let file = open(path)?;
    if !adopting {
        // Another supervisor's mapping of it went with that supervisor.
        ftruncate(&file, 0)?;
    }
    // Slots that are gone have left something to count.
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let there = length.saturating_sub(HEAD_SIZE) / size_of::<SlotState>();
    let slots = slots.max(there.min(MAX_SLOTS));
    let length = i64::try_from(Memory::size(slots)).map_err(io::Error::other)?;
    // Room that is not there would be missed at the first write, by a SIGBUS.
    posix_fallocate(&file, 0, length)?;
    Memory::new(file.as_fd(), slots)
}

fn open(path: &Path) -> io::Result<File> {
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_link)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_by_who_adopts_and_by_nobody_else() {
        let place = tempfile::tempdir().unwrap();
        let mut slot = Slot::new(SlotId(1));
        slot.book.table_lost(&Counters { lost: 5, ..Counters::default() }, &[0; 32], 0);
        slot.book.admit(7);
        slot.worker.incarnation = Incarnation(3);
        slot.restarts.insert("SIGKILL".to_owned(), 2);
        let started = {
            let mut state = State::open(place.path(), 2, false).unwrap();
            state.remember(&slot, 5);
            state.set_level(Level::Degraded);
            state.set_generation(4);
            state.note_log_lines_dropped(6);
            state.set_places(Some(&[1, 0]));
            state.started(Duration::from_secs(100))
        };
        let mut state = State::open(place.path(), 3, true).unwrap();
        state.note_log_lines_dropped(1);
        assert_eq!(state.log_lines_dropped(), 7);
        let slot = state.slot(SlotId(1));
        assert_eq!((slot.accepted, slot.newest(), slot.expected, slot.base.lost), (7, Incarnation(3), 4, 5));
        assert!(slot.restarts().any(|(cause, count)| cause == "SIGKILL" && count == 2));
        assert_eq!((state.level(), state.generation()), (Level::Degraded, 4));
        assert_eq!(state.places(), Some(vec![1, 0]));
        assert_eq!(state.started(Duration::from_secs(200)), started);
        assert_eq!(
            (state.slot(SlotId(1)).moved_away, state.slot(SlotId(2)).accepted, state.known()),
            (2, 0, 3)
        );
        state.make_room(5).unwrap();
        assert_eq!((state.slot(SlotId(1)).accepted, state.known()), (7, 5));

        let state = State::open(place.path(), 2, false).unwrap();
        assert_eq!((state.slot(SlotId(1)).accepted, state.generation()), (0, 0));
        assert_eq!(state.places(), Some(vec![0, 1]));
        state.remove();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_layout_is_not_misread() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(NAME), [0xff; 10_000]).unwrap();
        let state = State::open(place.path(), 2, true).unwrap();
        assert_eq!((state.slot(SlotId(0)).accepted, state.level()), (0, Level::Normal));
    }

    #[test]
    fn more_causes_than_there_is_room_for_are_still_counted() {
        let mut slot = Slot::new(SlotId(0));
        slot.restarts = (0..100).map(|status| (format!("exit status {status}"), 1)).collect();
        assert_eq!(SlotState::of(&slot, 0).restarts().map(|(_, count)| count).sum::<u64>(), 100);
    }
}
