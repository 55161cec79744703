//! The process that holds a slot's descriptors, so that its worker may die. It makes the worker, waits for
//! its end and makes the next one. No other logic: whatever could go wrong here would cost the slot its
//! connections.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::backoff::Backoff;
use holdfast_shared::clock;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::link::{LinkError, SlotEnd};
use holdfast_shared::ipc::message::{DeathCause, ToSupervisor};
use holdfast_shared::sys::descriptor::{self, DescriptorError};
use holdfast_shared::sys::process::{Side, die_of_faults, fork_sharing_descriptors};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};

use crate::program::Program;
use crate::run::{self, Assignment, Predecessor};

/// What a keeper is handed, by descriptor number, when it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The place it keeps.
    pub slot: SlotId,
    /// The last worker the slot had, under an earlier keeper.
    pub last_incarnation: Incarnation,
    /// The slot's end of the link.
    pub link: RawFd,
    /// The connection table's memory.
    pub table: RawFd,
    /// The memory of the settings last applied.
    pub settings: RawFd,
    /// The lock of the run directory's slots, held open so that no second cluster starts while this one's
    /// connections live.
    pub lock: RawFd,
    /// Where the next supervisor is met when this one is gone.
    pub rendezvous: PathBuf,
    /// The slot's listening sockets.
    pub listeners: Vec<RawFd>,
}

/// Why a keeper could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A descriptor it was promised is not there.
    #[error("keeper of slot {slot}: {source}")]
    Handover {
        /// The slot.
        slot: SlotId,
        /// Which one.
        source: DescriptorError,
    },
    /// What signals do could not be set.
    #[error("keeper of slot {slot} cannot set what signals do")]
    Signals {
        /// The slot.
        slot: SlotId,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Keeps the slot, for workers that run `program`, until one of them leaves on purpose.
///
/// # Errors
/// See [`KeeperError`]; nothing that happens to a worker is an error here.
pub fn run(program: Program, handover: &Handover) -> Result<(), KeeperError> {
    let slot = handover.slot;
    let link = descriptor::adopt(handover.link).map_err(|source| KeeperError::Handover { slot, source })?;
    let mut link = SlotEnd::new(link);
    ignore_group_signals().map_err(|source| KeeperError::Signals { slot, source: source.into() })?;
    die_of_faults().map_err(|source| KeeperError::Signals { slot, source })?;

    let keeper = getpid();
    let mut incarnation = handover.last_incarnation;
    let mut backoff = Backoff::default();
    let mut predecessor = Predecessor::Nobody;
    loop {
        incarnation = incarnation.next();
        let started = clock::now();
        let end = match fork_sharing_descriptors() {
            Ok(Side::Child) => become_worker(program, handover, keeper, incarnation, link, predecessor),
            Ok(Side::Parent { child }) => {
                tell(&mut link, &ToSupervisor::Started { incarnation, pid: child.as_raw() });
                wait_for(child)
            }
            Err(error) => {
                log::error!("slot {slot}: cannot make a worker: {error}");
                DeathCause::Exit(run::CANNOT_START)
            }
        };
        match end {
            DeathCause::Exit(run::LEFT) => {
                tell(&mut link, &ToSupervisor::Left { incarnation });
                return Ok(());
            }
            DeathCause::Exit(run::HANDED_OVER) => {
                tell(&mut link, &ToSupervisor::HandedOver { incarnation });
                predecessor = Predecessor::HandedOver;
                continue;
            }
            DeathCause::Exit(_) | DeathCause::Signal(_) => {}
        }
        let lived = clock::now().saturating_sub(started);
        let pause = backoff.died(lived);
        log_death(slot, incarnation, end, lived, pause);
        tell(&mut link, &ToSupervisor::Died { incarnation, cause: end, lived, pause });
        predecessor = Predecessor::Died(end);
        std::thread::sleep(pause);
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

fn become_worker(
    program: Program,
    handover: &Handover,
    keeper: Pid,
    incarnation: Incarnation,
    mut link: SlotEnd,
    predecessor: Predecessor,
) -> ! {
    // The copy of what the keeper has yet to send is the keeper's.
    link.forget_queued();
    // Without its keeper, a worker would be one death away from losing everything, unnoticed.
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid() != keeper {
        std::process::exit(run::CANNOT_START);
    }
    crash_if_asked("start");
    let assignment = Assignment {
        program,
        slot: handover.slot,
        incarnation,
        link: ManuallyDrop::new(link),
        table: handover.table,
        settings: handover.settings,
        listeners: handover.listeners.clone(),
        lock: handover.lock,
        rendezvous: handover.rendezvous.clone(),
        keeper,
        predecessor,
    };
    std::process::exit(run::to_exit_status(run::run(assignment)))
}

/// For tests of what happens when workers cannot start, or crash at a certain point; not in release builds.
pub(crate) fn crash_if_asked(at: &str) {
    if cfg!(debug_assertions) && std::env::var_os("HOLDFAST_TEST_CRASH").is_some_and(|when| when == at) {
        std::process::abort();
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

fn log_death(slot: SlotId, incarnation: Incarnation, cause: DeathCause, lived: Duration, pause: Duration) {
    let next = if pause.is_zero() { "at once".to_string() } else { format!("in {pause:?}") };
    log::warn!(
        "slot {slot}: worker {incarnation} died of {cause} after {lived:.1?}; the next one comes {next}"
    );
}

fn tell(link: &mut SlotEnd, message: &ToSupervisor) {
    match link.flush().and_then(|()| link.send(message)) {
        // A keeper without a supervisor keeps all the same.
        Ok(()) | Err(LinkError::Closed) => {}
        Err(error) => log::error!("{error}"),
    }
}
