//! The slots' rings: what workers say is taken out of them in turn, and how far each slot has delivered the journal is
//! looked at. Nothing of what is found in a ring is believed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use holdfast_shared::channels::memory::{ChannelMemory, Word as Memory};
use holdfast_shared::channels::sleep::{self, Waker};
use holdfast_shared::channels::up_ring::{MessageKind, UpRing, UpRingError, Word};

use super::desk::Desk;

/// What one slot may say in a row.
const MESSAGES_IN_TURN: usize = 512;
const BYTES_IN_TURN: u64 = 256 * 1024;

/// A slot that is further behind than this, and than this part of the journal, is waited for.
const MOST_BEHIND: u64 = 8 * 1024 * 1024;
const MOST_BEHIND_PART: u64 = 4;

/// For so long; then it is left behind.
const PATIENCE: Duration = Duration::from_secs(1);

/// A slot that has nothing to deliver is woken only when it is this part of the journal behind.
const IDLE_PART: u64 = 16;

/// One slot's.
#[derive(Debug)]
struct Ring {
    ring: UpRing,
    descriptor: OwnedFd,
    bell: OwnedFd,
    /// Up to where it has been taken; stored in the ring once that counts.
    read: u64,
    waker: Waker,
    /// Since when it has been too far behind.
    behind_since: Option<Duration>,
    is_left_behind: bool,
    /// Up to where other rings are to be taken first: a connection came from one of them, whose words come before.
    waits_for: Vec<(u16, u64)>,
    /// The message before which it has waited.
    waited_at: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Rings {
    slots: BTreeMap<u16, Ring>,
    /// The slot that was the last to begin a turn.
    began: u16,
    bytes: Vec<u8>,
    broken: u64,
}

impl Rings {
    /// A slot's ring and its bell. `redone`: it has been carried out up to there, whatever it says.
    pub(super) fn add(
        &mut self,
        slot: u16,
        descriptor: OwnedFd,
        bell: OwnedFd,
        redone: Option<u64>,
    ) -> Result<(), UpRingError> {
        let ring = UpRing::map(descriptor.as_fd())?;
        let written = ring.get(Word::Written);
        let read = ring.get(Word::Read);
        let read = redone.filter(|&redone| redone <= written).map_or(read, |redone| redone.max(read));
        ring.set(Word::Read, read);
        let (waker, waits_for) = (Waker::default(), Vec::new());
        let added = Ring {
            ring,
            descriptor,
            bell,
            read,
            waker,
            behind_since: None,
            is_left_behind: false,
            waits_for,
            waited_at: u64::MAX,
        };
        self.slots.insert(slot, added);
        Ok(())
    }

    /// Is this the ring that the slot has already?
    pub(super) fn has(&self, slot: u16, descriptor: BorrowedFd<'_>) -> bool {
        let same = |ring: &Ring| -> io::Result<bool> {
            let of = |descriptor| nix::sys::stat::fstat(descriptor).map(|stat| (stat.st_dev, stat.st_ino));
            Ok(of(ring.descriptor.as_fd())? == of(descriptor)?)
        };
        self.slots.get(&slot).is_some_and(|ring| same(ring).unwrap_or(false))
    }

    pub(super) fn remove(&mut self, slot: u16) {
        self.slots.remove(&slot);
    }

    /// Each slot with its ring's and its bell's descriptor.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (u16, BorrowedFd<'_>, BorrowedFd<'_>)> {
        self.slots.iter().map(|(&slot, ring)| (slot, ring.descriptor.as_fd(), ring.bell.as_fd()))
    }

    /// Takes what slots have said, some of each, as long as the batch has room. Says whether anything is left.
    pub(super) fn take(&mut self, desk: &mut Desk) -> bool {
        let order: Vec<u16> = self.slots.keys().copied().collect();
        let first = order.iter().position(|&slot| slot > self.began).unwrap_or(0);
        for &slot in order[first..].iter().chain(&order[..first]) {
            if desk.is_full() {
                return true;
            }
            self.began = slot;
            self.take_from(slot, desk);
        }
        self.has_messages()
    }

    /// Takes all that the slot has said.
    pub(super) fn take_all(&mut self, slot: u16, desk: &mut Desk) {
        while self.slots.get(&slot).is_some_and(Ring::has_messages) {
            if let Some(ring) = self.slots.get_mut(&slot) {
                ring.waits_for.clear();
            }
            self.take_from(slot, desk);
            desk.commit();
            self.store_positions();
        }
    }

    fn take_from(&mut self, slot: u16, desk: &mut Desk) {
        if self.must_wait(slot) {
            return;
        }
        let Some(ring) = self.slots.get_mut(&slot) else { return };
        let end = ring.read + BYTES_IN_TURN;
        for _ in 0..MESSAGES_IN_TURN {
            match ring.ring.message(ring.read, &mut self.bytes) {
                Ok(None) => break,
                Ok(Some(message)) => {
                    if message.kind == Some(MessageKind::MovedIn) && ring.waited_at != ring.read {
                        ring.waited_at = ring.read;
                        return self.wait_for_others(slot);
                    }
                    desk.take(slot, &message, &self.bytes);
                    ring.read = message.end;
                    if ring.read >= end || desk.is_full() {
                        break;
                    }
                }
                Err(error) => {
                    self.broken += 1;
                    log::error!("{error}: what slot {slot} has said since is passed over");
                    ring.read = ring.ring.get(Word::Written);
                    break;
                }
            }
        }
    }

    /// A connection has come to the slot: what it said elsewhere comes first. Not where that waits itself.
    fn wait_for_others(&mut self, slot: u16) {
        let others = self.slots.iter().filter(|(of, ring)| **of != slot && ring.waits_for.is_empty());
        let waits_for = others
            .filter(|(_, ring)| ring.has_messages())
            .map(|(&of, ring)| (of, ring.ring.get(Word::Written)))
            .collect();
        if let Some(ring) = self.slots.get_mut(&slot) {
            ring.waits_for = waits_for;
        }
    }

    fn must_wait(&mut self, slot: u16) -> bool {
        let Some(ring) = self.slots.get(&slot).filter(|ring| !ring.waits_for.is_empty()) else {
            return false;
        };
        let is_to_come = |&&(of, until): &&(u16, u64)| {
            self.slots.get(&of).is_some_and(|other| other.read < until && other.waits_for.is_empty())
        };
        let left: Vec<_> = ring.waits_for.iter().filter(is_to_come).copied().collect();
        let must_wait = !left.is_empty();
        if let Some(ring) = self.slots.get_mut(&slot) {
            ring.waits_for = left;
        }
        must_wait
    }

    /// What was taken counts. To be called before the next batch does: a hub that starts looks no further back than one.
    pub(super) fn store_positions(&mut self) {
        for ring in self.slots.values_mut() {
            if ring.ring.get(Word::Read) != ring.read {
                ring.ring.set(Word::Read, ring.read);
            }
            if ring.ring.get(Word::WantsRoom) != 0 {
                ring.ring.set(Word::WantsRoom, 0);
                sleep::ring(ring.bell.as_fd());
            }
        }
    }

    /// Has any slot said anything that was not taken?
    pub(super) fn has_messages(&self) -> bool {
        self.slots.values().any(Ring::has_messages)
    }

    /// Is a slot so far behind that nothing more is to be written for now?
    pub(super) fn must_wait_for_slots(&mut self, desk: &Desk, now: Duration) -> bool {
        let (memory, mut must_wait) = (desk.memory(), false);
        let most = MOST_BEHIND.min(memory.journal_size() / MOST_BEHIND_PART);
        for (&slot, ring) in &mut self.slots {
            let is_idle = desk.connections_of(slot) == (0, true);
            if ring.behind(memory) <= most || is_idle {
                ring.behind_since = None;
                ring.is_left_behind = false;
                continue;
            }
            let since = *ring.behind_since.get_or_insert(now);
            if now.saturating_sub(since) < PATIENCE {
                must_wait = true;
            } else if !std::mem::replace(&mut ring.is_left_behind, true) {
                log::warn!("slot {slot} does not deliver: it is waited for no longer");
            }
        }
        must_wait
    }

    /// Wakes those slots for which there is something, or that are to catch up; after the fence of the batch that counts.
    pub(super) fn wake(&mut self, desk: &Desk, concerns_clients: bool) {
        let memory = desk.memory();
        for (&slot, ring) in &mut self.slots {
            let is_idle = desk.connections_of(slot) == (0, true) || !concerns_clients;
            if (!is_idle || ring.behind(memory) > memory.journal_size() / IDLE_PART)
                && ring.waker.must_wake(ring.ring.word(Word::WorkerSleep))
            {
                sleep::ring(ring.bell.as_fd());
            }
        }
    }

    /// Wakes all slots, asleep or not.
    pub(super) fn wake_all(&self) {
        for ring in self.slots.values() {
            sleep::ring(ring.bell.as_fd());
        }
    }

    /// Bytes that wait.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.slots.values().map(|ring| ring.ring.get(Word::Written).saturating_sub(ring.read)).sum()
    }

    /// How far the slowest slot is behind.
    pub(super) fn slowest(&self, memory: &ChannelMemory) -> u64 {
        self.slots.values().map(|ring| ring.behind(memory)).max().unwrap_or_default()
    }

    /// Rings in which something could not be.
    pub(super) fn broken(&self) -> u64 {
        self.broken
    }
}

impl Ring {
    fn has_messages(&self) -> bool {
        self.ring.get(Word::Written) != self.read
    }

    fn behind(&self, memory: &ChannelMemory) -> u64 {
        memory.get(Memory::Tail).saturating_sub(self.ring.get(Word::Delivered))
    }
}
