//! Starting keepers: fork and exec of the running binary, with what the slot needs handed over by descriptor
//! number. A child that execs starts clean, however late and from however many threads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use holdfast_shared::config::API_KEY_VARIABLE;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::hub::SupervisorHubEnd;
use holdfast_shared::ipc::link::{self, LinkError, SupervisorEnd};
use holdfast_shared::sys::process::open_pidfd;
use holdfast_shared::sys::{descriptor, mapping};
use holdfast_shared::table::{self, Table, TableError};
use holdfast_worker::keeper::{KeeperStart, PROCESS_NAME};
use nix::unistd::Pid;

use crate::host::launch::{HANDOFF_VARIABLE, OURSELVES};

/// Why a keeper could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No memory for the connection table.
    #[error("cannot make a connection table of {rows} rows: {source}")]
    Memory { rows: u32, source: io::Error },
    /// The connection table could not be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A descriptor could not be made to survive exec.
    #[error("cannot hand a descriptor over to the keeper: {0}")]
    Handover(#[source] io::Error),
    /// No process.
    #[error("cannot start a keeper process: {0}")]
    Process(#[source] io::Error),
}

/// A keeper that runs, and our ends of what it was given.
#[derive(Debug)]
pub struct Spawned {
    pub keeper: Pid,
    /// Our end of the slot's link.
    pub link: SupervisorEnd,
    /// The slot's connection table: read when the keeper is dead, to count what died with it.
    pub table: OwnedFd,
}

/// What a keeper is started with.
#[derive(Debug)]
pub struct Order<'a> {
    /// The place it keeps.
    pub slot: SlotId,
    /// The last worker the slot had.
    pub last: Incarnation,
    /// Rows of its connection table.
    pub rows: u32,
    /// The memory of what its workers enforce, should there be no supervisor to tell them.
    pub settings: BorrowedFd<'a>,
    /// The slot's listening sockets.
    pub listeners: Vec<BorrowedFd<'a>>,
    /// The lock of the run directory's slots.
    pub lock: BorrowedFd<'a>,
    /// Where the next supervisor is met.
    pub reconnect_socket: PathBuf,
}

/// Starts a keeper with a new link and an empty table.
///
/// # Errors
/// See [`SpawnError`]; nothing stays behind.
pub fn spawn_keeper(order: &Order<'_>) -> Result<Spawned, SpawnError> {
    let rows = order.rows;
    let table = mapping::create("holdfast-table", table::size(rows))
        .map_err(|source| SpawnError::Memory { rows, source })?;
    Table::format(table.as_fd(), order.slot, rows)?.header_mut().set_settings(order.settings.as_raw_fd());
    let (link, slot_end) = link::pair()?;

    let handover = KeeperStart {
        slot: order.slot,
        last_incarnation: order.last,
        link: slot_end.as_raw_fd(),
        table: table.as_raw_fd(),
        lock: order.lock.as_raw_fd(),
        reconnect_socket: order.reconnect_socket.clone(),
        listeners: order.listeners.iter().map(AsRawFd::as_raw_fd).collect(),
        previous: None,
        went_back: None,
    };
    let mut inherited = vec![slot_end.as_fd(), table.as_fd(), order.settings, order.lock];
    inherited.extend(&order.listeners);
    let mut command = Command::new(OURSELVES);
    let arguments = handover.arguments().map_err(SpawnError::Handover)?;
    command.arg0(PROCESS_NAME).args(arguments).env_remove(HANDOFF_VARIABLE);
    // Workers have nothing to ask the API.
    command.env_remove(API_KEY_VARIABLE);
    // A group of its own: Ctrl-C in a terminal is for the supervisor to interpret, not for its children to
    // die of.
    command.process_group(0).stdin(Stdio::null());
    let child = with_inherited(&inherited, || command.spawn().map_err(SpawnError::Process))?;
    let keeper = Pid::from_raw(
        i32::try_from(child.id()).map_err(|error| SpawnError::Process(io::Error::other(error)))?,
    );
    Ok(Spawned { keeper, link, table })
}

/// Starts a hub with a new link: its process, a name for that which is nobody else's, and our end.
///
/// # Errors
/// See [`SpawnError`]; nothing stays behind.
pub fn spawn_hub(
    start: impl FnOnce(RawFd) -> io::Result<String>,
) -> Result<(Pid, OwnedFd, SupervisorHubEnd), SpawnError> {
    let (ours, theirs) = link::socket_pair()?;
    let argument = start(theirs.as_raw_fd()).map_err(SpawnError::Handover)?;
    let mut command = Command::new(OURSELVES);
    command.arg0(PROCESS_NAME).args(["hub", &argument]).env_remove(HANDOFF_VARIABLE);
    // Its keys come by the link, and what it inherits can be read by others of its user.
    command.env_remove(API_KEY_VARIABLE).process_group(0).stdin(Stdio::null());
    let child = with_inherited(&[theirs.as_fd()], || command.spawn().map_err(SpawnError::Process))?;
    let pid = i32::try_from(child.id()).map_err(|error| SpawnError::Process(io::Error::other(error)))?;
    let pid = Pid::from_raw(pid);
    let pidfd = open_pidfd(pid).map_err(SpawnError::Process)?;
    Ok((pid, pidfd, SupervisorHubEnd::new(ours)))
}

/// Lets `descriptors` survive an exec for as long as `action` takes. Only the supervisor's own thread starts
/// processes, so nothing else execs meanwhile.
fn with_inherited<T>(
    descriptors: &[BorrowedFd<'_>],
    action: impl FnOnce() -> Result<T, SpawnError>,
) -> Result<T, SpawnError> {
    let set = |inherited| {
        descriptors.iter().try_for_each(|&descriptor| descriptor::set_inherited(descriptor, inherited))
    };
    let result = set(true).map_err(SpawnError::Handover).and_then(|()| action());
    set(false).map_err(SpawnError::Handover)?;
    result
}
