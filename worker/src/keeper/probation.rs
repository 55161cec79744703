//! A slot's change of program. Its keeper executes the next program in place of itself, and everything goes on
//! in the same process, with the same descriptors. Until the first worker of the new program is ready, the old
//! program is kept open, to be gone back to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use holdfast_shared::ipc::message::{DeathCause, KeeperMessage};
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::Header;

use super::Keeper;
use crate::life::{KeeperStart, OURSELVES};

impl Keeper {
    /// Executes the program that the last worker has left for this keeper, if it did. Returns when there is
    /// none, and when it cannot be executed: the slot goes on with this one.
    pub(super) fn become_next_program(&mut self) {
        let Some(number) = self.next_program() else { return };
        // Afterwards the number is somebody else's.
        let result = self.note_no_program().and_then(|()| self.execute(number));
        let Err(error) = result else { return };
        close(number);
        let (slot, reason) = (self.handover.slot, error.to_string());
        log::error!("slot {slot}: cannot execute the next program: {reason}; going on with this one");
        self.tell(KeeperMessage::ProgramRefused { reason });
    }

    /// A worker died before it had handed over: nothing comes of the program it had for us.
    pub(super) fn forget_next_program(&mut self) {
        let Some(number) = self.next_program() else { return };
        match self.note_no_program() {
            Ok(()) => close(number),
            Err(error) => log::error!("slot {}: {error}", self.handover.slot),
        }
    }

    /// The first worker of a new program has ended. If it was not ready before, the slot goes back to the
    /// program before: what one worker cannot do, the next one cannot either.
    pub(super) fn end_probation(&mut self, end: DeathCause) {
        let Some(previous) = self.handover.previous.take() else { return };
        if self.was_ready() {
            // The worker has closed it.
            return;
        }
        let reason = format!("the new program's first worker ended before it was ready: {end}");
        let handover = KeeperStart { went_back: Some(reason), ..self.next_start() };
        let Err(error) = execute(&handover, previous) else { return };
        log::error!("slot {}: cannot go back to the program before: {error}", handover.slot);
        close(previous);
    }

    fn execute(&mut self, program: RawFd) -> io::Result<()> {
        let ourselves = File::open(OURSELVES)?;
        descriptor::set_inherited(ourselves.as_fd(), true)?;
        let previous = Some(ourselves.as_raw_fd());
        execute(&KeeperStart { previous, ..self.next_start() }, program)
    }

    /// What this keeper was handed, as of now.
    fn next_start(&mut self) -> KeeperStart {
        // What waits here would be lost.
        let _ = self.link.flush();
        KeeperStart { last_incarnation: self.incarnation, ..self.handover.clone() }
    }

    fn next_program(&self) -> Option<RawFd> {
        self.header()?.binary.checked_sub(1).and_then(|number| RawFd::try_from(number).ok())
    }

    fn was_ready(&self) -> bool {
        self.header().is_some_and(|header| header.ready_incarnation == self.incarnation.0)
    }

    /// Was any worker of the slot ever ready, under an earlier keeper?
    pub(super) fn has_served(&self) -> bool {
        self.header().is_some_and(|header| header.ready_incarnation > 0)
    }

    fn note_no_program(&self) -> io::Result<()> {
        descriptor::with(self.handover.table, Header::clear_binary)?
    }

    /// The table's header, if this program can read it.
    fn header(&self) -> Option<Header> {
        let header = descriptor::with(self.handover.table, Header::read).ok()?;
        header.ok().filter(|header| header.check().is_ok())
    }
}

fn execute(handover: &KeeperStart, program: RawFd) -> io::Result<()> {
    descriptor::with(program, |program| handover.execute(program))?.map(|never| match never {})
}

fn close(number: RawFd) {
    if let Err(error) = nix::unistd::close(number) {
        log::error!("cannot close the program in descriptor {number}: {error}");
    }
}
