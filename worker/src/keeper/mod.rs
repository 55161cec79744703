//! The process that holds a slot's descriptors, so that its worker may die. It makes the worker, waits for
//! its end and makes the next one. No other logic: whatever could go wrong here would cost the slot its
//! connections.

mod channels;
mod probation;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use holdfast_shared::backoff::Backoff;
use holdfast_shared::clock;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::link::{LinkError, SlotEnd};
use holdfast_shared::ipc::message::{DeathCause, KeeperMessage};
use holdfast_shared::sys::descriptor::{self, ClaimError};
use holdfast_shared::sys::process::{Side, die_of_faults, fork_sharing_descriptors};
use holdfast_shared::sys::title;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

pub use crate::life::{KEEPER_FORMAT, KeeperStart, PROCESS_NAME};

use crate::app::Program;
use crate::channels::ChannelAccess;
use crate::life::run::{self, Assignment, Predecessor};

/// No pause between two workers is longer while there is no supervisor.
const LONGEST_ALONE: Duration = Duration::from_secs(1);

/// Why a keeper could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("keeper of slot {slot}: {source}")]
    Descriptor { slot: SlotId, source: ClaimError },
    #[error("keeper of slot {slot} cannot set what signals do")]
    Signals { slot: SlotId, source: io::Error },
}

/// Keeps the slot, for workers that run `program`, until one of them leaves on purpose.
///
/// # Errors
/// See [`KeeperError`]; nothing that happens to a worker is an error here.
pub fn run(program: Program, handover: KeeperStart) -> Result<(), KeeperError> {
    let slot = handover.slot;
    let link = descriptor::claim(handover.link).map_err(|source| KeeperError::Descriptor { slot, source })?;
    ignore_group_signals().map_err(|source| KeeperError::Signals { slot, source: source.into() })?;
    die_of_faults().map_err(|source| KeeperError::Signals { slot, source })?;

    let mut keeper = Keeper::new(handover, SlotEnd::new(link));
    loop {
        keeper.get_channels();
        keeper.incarnation = keeper.incarnation.next();
        let started = clock::now();
        let end = match fork_sharing_descriptors() {
            Ok(Side::Child) => become_worker(program, keeper),
            Ok(Side::Parent { child }) => {
                keeper.tell(KeeperMessage::Started { pid: child.as_raw() });
                wait_for(child)
            }
            Err(error) => {
                log::error!("slot {slot}: cannot make a worker: {error}");
                DeathCause::Exit(run::CANNOT_START)
            }
        };
        if end == DeathCause::Exit(run::LEFT) {
            keeper.tell(KeeperMessage::Left);
            return Ok(());
        }
        keeper.end_probation(end);
        if end == DeathCause::Exit(run::HANDED_OVER) {
            keeper.tell(KeeperMessage::HandedOver);
            keeper.predecessor = Predecessor::HandedOver;
            keeper.become_next_program();
        } else {
            keeper.forget_next_program();
            keeper.on_worker_death(end, clock::now().saturating_sub(started));
        }
    }
}

/// A keeper between two workers.
#[derive(Debug)]
struct Keeper {
    pid: Pid,
    handover: KeeperStart,
    link: SlotEnd,
    /// The worker it has, or had last.
    incarnation: Incarnation,
    predecessor: Predecessor,
    backoff: Backoff,
    /// The way to the hub, in a server with channels.
    channels: Option<ChannelAccess>,
}

impl Keeper {
    fn new(mut handover: KeeperStart, link: SlotEnd) -> Self {
        let incarnation = handover.last_incarnation;
        let went_back = handover.went_back.take();
        let (predecessor, backoff) = (Predecessor::Nobody, Backoff::default());
        let mut keeper =
            Self { pid: getpid(), handover, link, incarnation, predecessor, backoff, channels: None };
        if keeper.has_served() {
            keeper.predecessor = Predecessor::HandedOver;
        }
        keeper.tell(KeeperMessage::Keeper { pid: keeper.pid.as_raw() });
        if let Some(reason) = went_back {
            log::error!("slot {}: back to the program before: {reason}", keeper.handover.slot);
            keeper.tell(KeeperMessage::WentBack { reason });
        }
        keeper
    }

    /// A worker died: says so, and waits until it is time for the next.
    fn on_worker_death(&mut self, cause: DeathCause, lived: Duration) {
        let (slot, incarnation) = (self.handover.slot, self.incarnation);
        let pause = self.backoff.died(lived);
        let next = if pause.is_zero() { "at once".to_string() } else { format!("in {pause:?}") };
        log::warn!(
            "slot {slot}: worker {incarnation} died of {cause} after {lived:.1?}; the next one comes {next}"
        );
        self.tell(KeeperMessage::Died { cause, lived, pause });
        self.predecessor = Predecessor::Died(cause);
        rest(self.link.as_fd(), pause);
    }

    fn tell(&mut self, message: KeeperMessage) {
        let incarnation = self.incarnation;
        match self.link.flush().and_then(|()| self.link.send(incarnation, &message.into())) {
            // A keeper without a supervisor keeps all the same.
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => log::error!("{error}"),
        }
    }
}

/// A terminal's and a service manager's signals reach the whole group; here only the supervisor decides what
/// they mean.
fn ignore_group_signals() -> Result<(), Errno> {
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2] {
        ignored.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ignored), None)
}

fn become_worker(program: Program, keeper: Keeper) -> ! {
    let Keeper { pid, handover, mut link, incarnation, predecessor, channels, .. } = keeper;
    // The copy of what the keeper has yet to send is the keeper's.
    link.forget_queued();
    let slot = handover.slot;
    // Should it fail, the keeper's failed too, and was logged.
    let _ = title::set(&format!("holdfast: worker {slot}"), &[], &format!("holdfast-w{slot}"));
    crate::test_hooks::crash_if_asked("start");
    let assignment = Assignment {
        program,
        slot: handover.slot,
        incarnation,
        link: ManuallyDrop::new(link),
        table: handover.table,
        listeners: handover.listeners,
        lock: handover.lock,
        reconnect_socket: handover.reconnect_socket,
        keeper: pid,
        previous: handover.previous,
        predecessor,
        channels,
    };
    std::process::exit(run::to_exit_status(run::run(assignment)))
}

/// Waits for `pause`, but for `LONGEST_ALONE` at most when the supervisor is gone: only a worker can give the slot to the
/// next one, which waits for every slot.
fn rest(link: BorrowedFd<'_>, pause: Duration) {
    let began = clock::now();
    let left = |of: Duration| of.saturating_sub(clock::now().saturating_sub(began));
    let is_alone = || -> bool {
        let mut watched = [PollFd::new(link, PollFlags::empty())];
        // In full milliseconds, or the end of a pause would be waited for by asking over and over.
        let time = PollTimeout::try_from(left(pause) + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        !matches!(poll(&mut watched, time), Ok(0) | Err(Errno::EINTR))
    };
    while !left(pause).is_zero() {
        if is_alone() {
            return std::thread::sleep(left(pause.min(LONGEST_ALONE)));
        }
    }
}

fn wait_for(child: Pid) -> DeathCause {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => return DeathCause::Exit(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return DeathCause::Signal(signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("keeper {}: cannot wait for worker {child}: {error}", getpid());
                return DeathCause::Exit(run::CANNOT_START);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::ipc::link;

    use super::*;

    #[test]
    fn a_pause_is_kept_while_there_is_a_supervisor_and_cut_short_when_it_is_gone() {
        let (supervisor, slot) = link::pair().unwrap();
        let began = clock::now();
        rest(slot.as_fd(), Duration::from_millis(50));
        assert!(clock::now() - began >= Duration::from_millis(50));
        let resting = std::thread::spawn(move || rest(slot.as_fd(), Duration::from_mins(5)));
        drop(supervisor);
        resting.join().unwrap();
        assert!(clock::now() - began < Duration::from_mins(1));
    }
}
