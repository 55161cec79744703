//! What is so or not about a connection. Part of the table layout: append only.

use bytemuck::{Pod, Zeroable};

/// Facts about a connection that are either so or not. See the constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Flags(u16);

impl Flags {
    /// Nothing of note.
    pub const NONE: Self = Self(0);
    /// An event of this connection is being processed: its stream state is inconsistent until it is cleared.
    pub const BUSY: Self = Self(1);
    /// It has heap state: state on the worker's heap that dies with the worker.
    pub const UNSAVED: Self = Self(1 << 1);
    /// The supervisor has admitted it: it counts as one connection until its descriptor is closed.
    pub const ADMITTED: Self = Self(1 << 2);
    /// A ping was sent and nothing has been heard since; `ping_due_ms` is the deadline for a sign of life.
    pub const AWAITING_PONG: Self = Self(1 << 3);
    /// The kernel took a part of a frame: nothing but the rest of it may be written next.
    pub const FRAME_CUT: Self = Self(1 << 4);
    /// The write half was shut.
    pub const WRITE_SHUT: Self = Self(1 << 5);

    /// AwaitingAdmission, and bytes wait in the kernel: their event has passed, so they must be read without one.
    pub const INPUT_WAITS: Self = Self(1 << 6);

    /// It had more to read than one turn allows, and is in the worker's list of those.
    pub const READ_QUEUED: Self = Self(1 << 7);
    /// The client will send no more, and is still to get what is queued.
    pub const READ_ENDED: Self = Self(1 << 8);
    /// A worker is taking it over. Found by the next one after a crash, it is what the crash happened in.
    pub const RESUMING: Self = Self(1 << 9);
    /// It was sent to another slot, which has not said yet that it has it. Found by the next worker, it is the
    /// other slot's.
    pub const GIVEN: Self = Self(1 << 10);
    /// It came from another slot, which has not been told yet. Found by the next worker, it is the other
    /// slot's.
    pub const TAKEN: Self = Self(1 << 11);
    /// Its application knows it: was told that it opened, and not yet that it closed.
    pub const OPENED: Self = Self(1 << 12);
    /// The pong of the last ping has not come, whatever else has.
    pub const PONG_DUE: Self = Self(1 << 13);
    /// AwaitingAdmission, and a subprotocol lies where its times are otherwise.
    pub const SUBPROTOCOL: Self = Self(1 << 14);

    /// Are all of `flags` set?
    #[must_use]
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Is any of `flags` set?
    #[must_use]
    pub fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// Sets or clears `flags`.
    pub fn set(&mut self, flags: Self, on: bool) {
        if on {
            self.0 |= flags.0;
        } else {
            self.0 &= !flags.0;
        }
    }
}
