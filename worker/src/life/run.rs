//! A worker's life from its first instruction to its last: find the supervisor, take over the table, serve,
//! leave.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::link::{LinkError, SlotEnd};
use holdfast_shared::ipc::message::{DeathCause, Envelope, ToWorker, WorkerMessage};
use holdfast_shared::ipc::settings_memory::SettingsMemoryError;
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Table, TableError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::app::Program;
use crate::channels::ChannelAccess;
use crate::connection::{Clients, Connections, session};
use crate::life::event_loop::Worker;
use crate::life::reconnect::Reconnection;
use crate::life::{hand_over, resume, settings};
use crate::serve::Server;

/// Exit status of a worker that was told to leave and did.
pub const LEFT: i32 = 0;
/// Exit status of a worker that could not serve.
pub const CANNOT_START: i32 = 1;
/// Exit status of a worker that has saved what it had in hand for the next one.
pub const HANDED_OVER: i32 = 4;

/// How long a supervisor may take to send settings. Then those of the worker before hold: clients do not wait
/// for a supervisor that is busy, or stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a worker is handed.
#[derive(Debug)]
pub struct Assignment {
    /// What it is to run.
    pub program: Program,
    /// The place it fills.
    pub slot: SlotId,
    /// Which of the slot's workers it is.
    pub incarnation: Incarnation,
    /// Its end of the link. Never dropped: the descriptor is the keeper's too, and closing it here would
    /// close it there, where the next client would get its number.
    pub link: ManuallyDrop<SlotEnd>,
    /// The connection table's memory.
    pub table: RawFd,
    /// The slot's listening sockets.
    pub listeners: Vec<RawFd>,
    /// The lock of the run directory's slots.
    pub lock: RawFd,
    /// The socket of the next supervisor, when this one is gone.
    pub reconnect_socket: PathBuf,
    /// The process that keeps the slot.
    pub keeper: Pid,
    /// The program to go back to, should this worker not become ready.
    pub previous: Option<RawFd>,
    /// The slot's last worker.
    pub predecessor: Predecessor,
    /// The way to the hub, in a server with channels.
    pub channels: Option<ChannelAccess>,
}

/// What became of the slot's last worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predecessor {
    /// There was none.
    Nobody,
    /// It died of this.
    Died(DeathCause),
    /// It handed over.
    HandedOver,
}

/// How a worker left, when it left on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// For good.
    Left,
    /// The next one goes on where it was.
    HandedOver,
}

/// Why a worker could not serve, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("worker of slot {slot}: {source}")]
    Table { slot: SlotId, source: TableError },
    #[error("worker of slot {slot} has no settings: {source}")]
    Settings { slot: SlotId, source: SettingsMemoryError },
    #[error("worker of slot {slot}, {doing}: {source}")]
    Kernel { slot: SlotId, doing: &'static str, source: io::Error },
}

/// Serves until told to leave.
///
/// # Errors
/// See [`WorkerError`]. The connections stay open whatever happens here: their descriptors are the keeper's
/// too.
pub fn run(assignment: Assignment) -> Result<Departure, WorkerError> {
    let Assignment {
        program,
        slot,
        incarnation,
        mut link,
        table: table_memory,
        listeners,
        previous,
        predecessor,
        channels,
        ..
    } = assignment;
    let kernel = |doing| move |source| WorkerError::Kernel { slot, doing, source };
    let reconnection = Reconnection {
        path: assignment.reconnect_socket,
        slot,
        pid: nix::unistd::getpid(),
        keeper: assignment.keeper,
        version: program.version,
        link: link.as_raw_fd(),
        lost: None,
        lock: assignment.lock,
        search: None,
        last_attempt: None,
    };

    // If it cannot be said, the loop finds out why, and looks for another supervisor.
    let _ = link.send(incarnation, &reconnection.hello().into());
    let taking_over = "taking over its table";
    let mut table = descriptor::with(table_memory, Table::open)
        .map_err(kernel(taking_over))?
        .map_err(|source| WorkerError::Table { slot, source })?;

    let standard = [0, 1, 2, link.as_raw_fd(), table_memory, reconnection.lock];
    let owned: Vec<RawFd> = standard.into_iter().chain(listeners.iter().copied()).collect();
    let saved = hand_over::saved_memory(table.header());
    let sessions = session::memory(table.header());
    let in_force = settings::memory(table.header());
    let to_hub: Vec<RawFd> = table.header().channels().collect();
    let open = resume::close_strays(
        owned
            .iter()
            .copied()
            .chain(saved)
            .chain(sessions)
            .chain(in_force)
            .chain(previous)
            .chain(to_hub.clone()),
        table.records(),
    )
    .map_err(kernel("listing its descriptors"))?;

    let found = match wait_for_settings(&mut link) {
        Some(came) => settings::put_in_force(&mut table, came),
        None => settings::in_force(&table),
    };
    let (generation, settings) = found.map_err(|source| WorkerError::Settings { slot, source })?;
    descriptor::with(table_memory, |memory| table.grow(memory, settings.rows))
        .map_err(kernel(taking_over))?
        .map_err(|source| WorkerError::Table { slot, source })?;
    let mut connections = Connections::new(slot, table, settings, clock::now_ms());
    if let Some(access) = channels
        && let Err(error) = connections.open_feed(access)
    {
        log::error!("worker of slot {slot} has no channels: {error}");
    }
    let clients = Clients::new(connections, program);
    // Three are not among them: the settings' memory, the epoll instance, and the keeper's.
    let own_descriptors = u32::try_from(owned.len() + 3 + to_hub.len()).unwrap_or(u32::MAX);
    let worker = Server::new(clients, &listeners, own_descriptors)
        .and_then(|server| Worker::new(server, incarnation, link, reconnection, table_memory));
    let mut worker = worker.map_err(kernel("making its event loop"))?;
    worker.tell(WorkerMessage::Applied { generation });
    worker.resume(&open, predecessor).map_err(kernel("taking over its connections"))?;
    if let Some(previous) = previous {
        nix::unistd::close(previous).map_err(|error| kernel("closing the program before")(error.into()))?;
    }
    worker.run().map_err(kernel("waiting for events"))
}

/// What the keeper is told by the way its worker ends; whatever went wrong is logged here.
#[must_use]
pub fn to_exit_status(result: Result<Departure, WorkerError>) -> i32 {
    let error = match result {
        Ok(Departure::Left) => return LEFT,
        Ok(Departure::HandedOver) => return HANDED_OVER,
        Err(error) => error,
    };
    log::error!("{error}");
    CANNOT_START
}

/// Reads the link until the supervisor has answered `Hello`; `None` when it does not. What else is there is
/// meant for a dead worker.
fn wait_for_settings(link: &mut SlotEnd) -> Option<Option<OwnedFd>> {
    let deadline = clock::now() + PATIENCE;
    loop {
        match link.flush().and_then(|()| link.receive_with()) {
            Ok(Some((Envelope { message: ToWorker::Configure { knows, .. }, .. }, descriptors))) => {
                link.set_peer_knows(knows);
                return Some(descriptors.into_iter().next());
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let left = deadline.saturating_sub(clock::now());
                if left.is_zero() {
                    return None;
                }
                // Our own Hello may be what waits, behind messages of a worker that is dead.
                let mut interest = PollFlags::POLLIN;
                interest.set(PollFlags::POLLOUT, link.has_queued());
                let mut wanted = [PollFd::new(link.as_fd(), interest)];
                // An interrupted wait is only a reason to look again.
                let _ = poll(&mut wanted, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            }
            Err(LinkError::Closed) => return None,
            Err(error) => log::error!("{error}; the message is ignored"),
        }
    }
}
