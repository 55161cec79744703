//! Leaving so that the next worker goes on where this one was, and its other side, taking up what was left.
//! Nothing is lost either way: whoever leaves has written down all it had, and whoever cannot stays.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::ipc::message::WorkerMessage;
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::Header;

use crate::connection::saved::{ReadError, Reader, WriteError, Writer};
use crate::life::event_loop::{Flow, Worker};

/// The longest that verdicts are waited for before leaving: they are a round trip away.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A hand-over that was asked for and has not happened. Until it does, all are served as ever.
#[derive(Debug)]
pub(crate) struct HandOver {
    until: Duration,
    /// The program that the slot goes on with.
    program: Option<OwnedFd>,
}

impl HandOver {
    /// When it happens at the latest.
    pub(crate) fn until(&self) -> Duration {
        self.until
    }

    /// Is the slot to go on with another program?
    pub(crate) fn has_program(&self) -> bool {
        self.program.is_some()
    }
}

/// The descriptor of the memory in which the last worker saved its heap states, if it did.
pub(crate) fn saved_memory(header: &Header) -> Option<RawFd> {
    header.saved.checked_sub(1).and_then(|number| RawFd::try_from(number).ok())
}

/// A descriptor's number as the table's header has it.
pub(crate) fn note(number: RawFd) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX - 1) + 1
}

impl Worker {
    /// The supervisor wants another worker in this one's place, and of another program if it sent one.
    pub(crate) fn begin_hand_over(&mut self, program: Option<OwnedFd>) {
        self.hand_over = Some(HandOver { until: self.server.now + LONGEST_WAIT, program });
    }

    /// Hands over as soon as nothing is under way between the supervisor and this worker: a verdict that came
    /// after it had left would be void, and its client counted as one that came and went.
    pub(crate) fn continue_hand_over(&mut self) -> Flow {
        let Some(hand_over) = &self.hand_over else { return Flow::Continue };
        if self.server.drain.is_some() {
            self.stay("it is draining");
            return Flow::Continue;
        }
        if self.link.is_none() {
            self.hand_over = None;
            return Flow::Continue;
        }
        if self.is_under_way() && self.server.now < hand_over.until {
            return Flow::Continue;
        }
        // Its death may be among the events that are still to come, and nobody would be there to go on.
        self.look_at_keeper();
        if !self.keeper.is_alive() {
            return Flow::Continue;
        }
        if self.moving.is_unsettled() {
            self.stay("another slot has not said yet whether it has connections of this one");
            return Flow::Continue;
        }
        let stopped = clock::now();
        match self.save(stopped) {
            Ok(memory) => {
                self.leave_behind(memory);
                Flow::HandOver
            }
            Err(error) => {
                self.stay(&error.to_string());
                Flow::Continue
            }
        }
    }

    /// Takes up all states that the last worker has saved. To be called when every connection was taken over
    /// and nobody has been served yet. Returns when that worker stopped serving.
    pub(crate) fn take_up(&mut self) -> Option<Duration> {
        let number = saved_memory(self.server.clients.connections.table.header())?;
        let read = |memory: BorrowedFd<'_>| {
            let mut reader = Reader::new(memory)?;
            self.put_back_all(&mut reader);
            Ok(reader.stopped())
        };
        let (stopped, is_ours) = match descriptor::with(number, read).map_err(ReadError::from).flatten() {
            Ok(stopped) => (Some(stopped), true),
            Err(error) => {
                log::error!("{error}; connections in the middle of something are closed");
                (None, matches!(error, ReadError::Version { .. }))
            }
        };
        // A worker that dies before this leaves the states to the next; one that dies after it, has served.
        self.server.clients.connections.table.header_mut().saved = 0;
        compiler_fence(Ordering::SeqCst);
        if is_ours && let Err(error) = nix::unistd::close(number) {
            log::error!("cannot close the memory of saved connections: {error}");
        }
        stopped
    }

    fn put_back_all(&mut self, reader: &mut Reader<'_>) {
        loop {
            match reader.next_state() {
                Ok(None) => return,
                Ok(Some(state)) => {
                    if !self.server.clients.connections.put_back(&state) {
                        log::error!("what was saved for descriptor {} is not of its connection", state.row);
                    }
                }
                Err(error) => {
                    log::error!("{error}; the connection is closed");
                    if !error.is_of_one_connection() {
                        return;
                    }
                }
            }
        }
    }

    /// Is anything under way between the supervisor and this worker?
    pub(crate) fn is_under_way(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            link.has_queued()
                || self.server.admission.is_unanswered()
                || !self.server.clients.connections.released.is_empty()
                || self.moving.is_active()
        })
    }

    pub(crate) fn save(&self, stopped: Duration) -> Result<OwnedFd, WriteError> {
        let mut writer = Writer::new()?;
        self.server.clients.connections.save_heap_states(&mut writer)?;
        writer.finish(stopped)
    }

    fn leave_behind(&mut self, memory: OwnedFd) {
        log::debug!("connections saved in descriptor {}", memory.as_fd().as_raw_fd());
        // Whoever finds the number must find the memory complete.
        compiler_fence(Ordering::SeqCst);
        // The descriptors are the slot's from now on: its next worker closes the memory, its keeper the program.
        self.server.clients.connections.table.header_mut().saved = note(memory.into_raw_fd());
        if let Some(program) = self.hand_over.take().and_then(|hand_over| hand_over.program) {
            self.server.clients.connections.table.header_mut().binary = note(program.into_raw_fd());
        }
    }

    pub(crate) fn stay(&mut self, reason: &str) {
        log::error!("worker {} does not hand over: {reason}", self.incarnation);
        self.hand_over = None;
        let reason = reason.to_owned();
        self.tell(WorkerMessage::RestartRefused { reason });
    }
}
