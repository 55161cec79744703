//! What a slot brings when it gives itself to us, looked at before anything of it is believed: it came over a
//! socket, from a process that may be anything.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::link::SupervisorEnd;
use holdfast_shared::ipc::message::{Envelope, ToSupervisor, WorkerMessage};
use holdfast_shared::sys::mapping;
use holdfast_shared::table::{self, TableError};
use nix::unistd::Pid;
use socket2::Socket;

use crate::cluster::Adopted;
use crate::cluster::lifecycle::Worker;
use crate::cluster::state::MAX_SLOTS;
use crate::host::kernel::parent;
use crate::host::run_dir::RunDir;

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Objection {
    /// It does not say what it brings.
    #[error("brings no slot")]
    NoSlot,
    /// Not one of ours.
    #[error("brings slot {0}; there are at most {MAX_SLOTS}")]
    SlotNumber(SlotId),
    /// The kernel says who is at the other end.
    #[error("says it is process {said}")]
    Pid { said: Pid },
    /// A worker is its keeper's child.
    #[error("says that its keeper is {said}, which is not its parent")]
    Keeper { said: Pid },
    /// Not all is there.
    #[error("brings slot {slot} with {found} descriptors; it takes a table, a lock and listeners")]
    Incomplete { slot: SlotId, found: usize },
    /// The table cannot be used.
    #[error("brings slot {slot} with a table that cannot be used: {source}")]
    Table { slot: SlotId, source: TableError },
    /// It is another slot's table.
    #[error("brings slot {slot} with the table of slot {owner}")]
    Owner { slot: SlotId, owner: SlotId },
    /// Whoever cuts the memory short would kill us.
    #[error("brings slot {slot} with a table that can be cut short")]
    Unsealed { slot: SlotId },
    /// The lock is another file.
    #[error("brings slot {slot} with another lock than this run directory's")]
    Lock { slot: SlotId },
    /// Clients would not come to it.
    #[error("brings slot {slot} with something that does not listen on TCP")]
    Listener { slot: SlotId },
    /// One of each slot.
    #[error("brings slot {slot}, which came before")]
    Twice { slot: SlotId },
    /// Slots listen where the others do.
    #[error("brings slot {slot}, which listens on {found:?} while others listen on {others:?}")]
    Elsewhere { slot: SlotId, found: Vec<SocketAddr>, others: Vec<SocketAddr> },
}

/// A slot that is what it should be, and has no link yet.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) slot: SlotId,
    pub(super) worker: Worker,
    keeper: Pid,
    table: OwnedFd,
    lock: OwnedFd,
    listeners: Vec<Socket>,
    addresses: Vec<SocketAddr>,
}

impl Brought {
    pub(super) fn with_link(self, link: SupervisorEnd) -> Adopted {
        let Self { slot, worker, keeper, table, lock, listeners, addresses } = self;
        Adopted { slot, worker, keeper, link, table, listeners, addresses, lock }
    }
}

/// Looks at what process `pid` brings.
pub(super) fn examine(
    envelope: &Envelope<ToSupervisor>,
    descriptors: Vec<OwnedFd>,
    pid: Pid,
    run_dir: &RunDir,
) -> Result<Brought, Objection> {
    let &ToSupervisor::Worker(WorkerMessage::Adopt { slot, pid: said, keeper }) = &envelope.message else {
        return Err(Objection::NoSlot);
    };
    let (said, keeper) = (Pid::from_raw(said), Pid::from_raw(keeper));
    if usize::from(slot.0) >= MAX_SLOTS {
        return Err(Objection::SlotNumber(slot));
    }
    if said != pid {
        return Err(Objection::Pid { said });
    }
    if parent(pid) != Some(keeper) {
        return Err(Objection::Keeper { said: keeper });
    }
    let found = descriptors.len();
    let mut descriptors = descriptors.into_iter();
    let (Some(table), Some(lock)) = (descriptors.next(), descriptors.next()) else {
        return Err(Objection::Incomplete { slot, found });
    };
    if !mapping::cannot_shrink(table.as_fd()) {
        return Err(Objection::Unsealed { slot });
    }
    let owner = table::owner(table.as_fd()).map_err(|source| Objection::Table { slot, source })?;
    if owner != slot {
        return Err(Objection::Owner { slot, owner });
    }
    if !run_dir.is_slots_lock(&lock) {
        return Err(Objection::Lock { slot });
    }
    let listeners: Vec<Socket> = descriptors.map(Socket::from).collect();
    let addresses: Option<Vec<SocketAddr>> = listeners.iter().map(listens_on).collect();
    match addresses {
        Some(addresses) if !addresses.is_empty() => {
            let worker = Worker { pid, incarnation: envelope.incarnation };
            Ok(Brought { slot, worker, keeper, table, lock, listeners, addresses })
        }
        Some(_) => Err(Objection::Incomplete { slot, found }),
        None => Err(Objection::Listener { slot }),
    }
}

/// Does it fit to what came before?
pub(super) fn agree(brought: &Brought, came_before: bool, others: Option<&Adopted>) -> Result<(), Objection> {
    let slot = brought.slot;
    if came_before {
        return Err(Objection::Twice { slot });
    }
    match others {
        Some(other) if other.addresses != brought.addresses => Err(Objection::Elsewhere {
            slot,
            found: brought.addresses.clone(),
            others: other.addresses.clone(),
        }),
        _ => Ok(()),
    }
}

/// Where a socket listens, if it is one of a group that does.
fn listens_on(socket: &Socket) -> Option<SocketAddr> {
    let is_listener = socket.is_listener().ok()? && socket.reuse_port().ok()?;
    let address = socket.local_addr().ok()?.as_socket()?;
    is_listener.then_some(address)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use holdfast_shared::id::Incarnation;
    use holdfast_shared::ipc::link;
    use holdfast_shared::table::Table;

    use super::*;
    use crate::cluster::listeners::Listeners;

    const SLOT: SlotId = SlotId(1);

    fn table(of: SlotId) -> OwnedFd {
        let memory = mapping::create("table", table::size(4)).unwrap();
        Table::format(memory.as_fd(), of, 4).unwrap();
        memory
    }

    fn listener() -> OwnedFd {
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 1, 1).unwrap();
        let socket = listeners.of_slot(SlotId(0)).next().unwrap();
        socket.try_clone_to_owned().unwrap()
    }

    fn offer(slot: SlotId, pid: i32, keeper: i32) -> Envelope<ToSupervisor> {
        let message = WorkerMessage::Adopt { slot, pid, keeper }.into();
        Envelope { incarnation: Incarnation(2), message }
    }

    fn bring(run_dir: &RunDir, descriptors: Vec<OwnedFd>) -> Result<Brought, Objection> {
        let (pid, keeper) = (nix::unistd::getpid(), nix::unistd::getppid());
        examine(&offer(SLOT, pid.as_raw(), keeper.as_raw()), descriptors, pid, run_dir)
    }

    #[test]
    fn only_what_is_whole_and_ours_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let run_dir = RunDir::acquire(Some(&place.path().join("run"))).unwrap();
        let lock = || run_dir.slots_lock().try_clone_to_owned().unwrap();
        let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let same_file = || OwnedFd::from(fs::File::open(place.path().join("run/slots.lock")).unwrap());

        let bring = |descriptors| bring(&run_dir, descriptors);
        assert!(matches!(bring(vec![table(SLOT), lock()]), Err(Objection::Incomplete { found: 2, .. })));
        assert!(matches!(bring(vec![null(), lock(), listener()]), Err(Objection::Unsealed { .. })));
        let blank = mapping::create("blank", table::size(4)).unwrap();
        assert!(matches!(bring(vec![blank, lock(), listener()]), Err(Objection::Table { .. })));
        let other = table(SlotId(2));
        assert!(matches!(bring(vec![other, lock(), listener()]), Err(Objection::Owner { .. })));
        assert!(matches!(bring(vec![table(SLOT), null(), listener()]), Err(Objection::Lock { .. })));
        assert!(matches!(bring(vec![table(SLOT), same_file(), listener()]), Err(Objection::Lock { .. })));
        assert!(matches!(bring(vec![table(SLOT), lock(), null()]), Err(Objection::Listener { .. })));

        let first = bring(vec![table(SLOT), lock(), listener()]).unwrap();
        assert!(agree(&first, false, None).is_ok());
        assert!(matches!(agree(&first, true, None), Err(Objection::Twice { slot: SLOT })));
        let elsewhere = bring(vec![table(SLOT), lock(), listener()]).unwrap();
        let (link, _slot_end) = link::pair().unwrap();
        let first = first.with_link(link);
        assert!(matches!(agree(&elsewhere, false, Some(&first)), Err(Objection::Elsewhere { .. })));
    }

    #[test]
    fn nobody_speaks_for_another() {
        let place = tempfile::tempdir().unwrap();
        let run_dir = RunDir::acquire(Some(&place.path().join("run"))).unwrap();
        let (pid, parent) = (nix::unistd::getpid().as_raw(), nix::unistd::getppid().as_raw());
        let refused = |slot, pid, keeper| {
            examine(&offer(SlotId(slot), pid, keeper), Vec::new(), nix::unistd::getpid(), &run_dir)
                .unwrap_err()
        };
        assert!(matches!(refused(0, 1, parent), Objection::Pid { .. }));
        assert!(matches!(refused(0, pid, pid), Objection::Keeper { .. }));
        assert!(matches!(refused(u16::MAX, pid, parent), Objection::SlotNumber(_)));
        assert!(matches!(refused(0, pid, parent), Objection::Incomplete { found: 0, .. }));
    }
}
