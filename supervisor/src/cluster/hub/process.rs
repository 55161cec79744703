//! The hub's process as its supervisor has it, with all that outlives it: the memory, the ways to the slots, the sockets and
//! settings that each one gets. Bookkeeping and words only; when what is done is decided in the folder's `mod.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_shared::backoff::Backoff;
use holdfast_shared::channels::memory::{self, ChannelMemory, Word};
use holdfast_shared::channels::{sleep, up_ring};
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::hub::{HubReport, SupervisorHubEnd, ToHub};
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::sys::shared_memory::Access;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::unistd::Pid;

use super::{AdoptedHub, HUB_LINK, HUB_PROCESS, HubError, HubPlan};
use crate::host::api_sockets::{self, LOCAL_SOCKET, Others};
use crate::host::spawn::{SpawnError, spawn_hub};
use crate::hub::HubStart;

/// Where a hub stands.
#[derive(Debug)]
pub(super) enum Process {
    /// None runs until then.
    Down { until: Duration },
    /// It runs.
    Up(Box<Running>),
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) link: SupervisorHubEnd,
    pub(super) since: Duration,
    pub(super) heard: Duration,
    /// When it was told to die, if it was.
    pub(super) aborted: Option<Duration>,
    /// It was told to make place for one of this program.
    pub(super) leaves: bool,
    pub(super) version: String,
}

impl Running {
    pub(super) fn new(pid: Pid, pidfd: OwnedFd, link: SupervisorHubEnd, now: Duration) -> Self {
        Self {
            pid,
            pidfd,
            link,
            since: now,
            heard: now,
            aborted: None,
            leaves: false,
            version: String::new(),
        }
    }
}

/// The hub and all that is its.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(super) memory: OwnedFd,
    pub(super) bell: OwnedFd,
    pub(super) seed: u64,
    pub(super) ways: BTreeMap<SlotId, (OwnedFd, OwnedFd)>,
    /// Slots whose keepers have the way to it, as far as is known.
    pub(super) connected: BTreeSet<SlotId>,
    pub(super) asked: BTreeMap<SlotId, Duration>,
    pub(super) process: Process,
    pub(super) backoff: Backoff,
    pub(super) restarts: u64,
    pub(super) report: HubReport,
    pub(super) settings: OwnedFd,
    pub(super) generation: u64,
    pub(super) listener: Option<OwnedFd>,
    pub(super) local: OwnedFd,
    pub(super) reconnect_socket: PathBuf,
}

impl Hub {
    pub(super) fn new(
        plan: HubPlan,
        adopted: Option<AdoptedHub>,
        run_dir: &Path,
        reconnect_socket: PathBuf,
        journal_size: usize,
        now: Duration,
    ) -> Result<Self, HubError> {
        let path = run_dir.join(LOCAL_SOCKET);
        // Whoever else has it is a hub of ours: the run directory is.
        let local = api_sockets::bind_unix(&path, 0o600, Others::OurHub)
            .map_err(|source| HubError::LocalSocket { path, source })?;
        let (memory, bell, ways, process) = match adopted {
            Some(AdoptedHub { pid, pidfd, link, memory, bell, ways }) => {
                (memory, bell, ways, Process::Up(Box::new(Running::new(pid, pidfd, link, now))))
            }
            None => {
                let (memory, bell) = (memory::create(journal_size)?, sleep::bell()?);
                (memory, bell, BTreeMap::new(), Process::Down { until: Duration::ZERO })
            }
        };
        let seed = ChannelMemory::map(memory.as_fd(), Access::Read)?.get(Word::Seed);
        Ok(Self {
            memory,
            bell,
            seed,
            connected: ways.keys().copied().collect(),
            ways,
            asked: BTreeMap::new(),
            process,
            backoff: Backoff::default(),
            restarts: 0,
            report: HubReport::default(),
            settings: plan.settings,
            generation: 0,
            listener: plan.listener.flatten(),
            local,
            reconnect_socket,
        })
    }

    /// Tells its memory from others.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn link(&mut self) -> Option<&mut SupervisorHubEnd> {
        match &mut self.process {
            Process::Up(running) => Some(&mut running.link),
            Process::Down { .. } => None,
        }
    }

    pub(super) fn tell_settings(&mut self) {
        self.generation += 1;
        let message = ToHub::Configure { generation: self.generation, has_api: self.listener.is_some() };
        let Process::Up(running) = &mut self.process else { return };
        let mut with = vec![self.settings.as_fd()];
        with.extend(self.listener.as_ref().map(AsFd::as_fd));
        with.push(self.local.as_fd());
        send(&mut running.link, &message, &with);
    }

    pub(super) fn tell_way(&mut self, slot: SlotId) {
        let Process::Up(running) = &mut self.process else { return };
        // One that has not said Hello is told of all slots when it does.
        if running.version.is_empty() {
            return;
        }
        let Some((ring, bell)) = self.ways.get(&slot) else { return };
        send(&mut running.link, &ToHub::Slot { slot }, &[ring.as_fd(), bell.as_fd()]);
    }

    /// The process ends, and the next is of this program.
    pub(super) fn make_place(&mut self, now: Duration) {
        if let Process::Up(running) = &mut self.process {
            send(&mut running.link, &ToHub::Leave, &[]);
            // One that does not leave is killed as one that does not die.
            (running.leaves, running.aborted) = (true, Some(now));
        }
    }

    pub(super) fn tell(&mut self, message: &ToHub) {
        if let Some(link) = self.link() {
            send(link, message, &[]);
        }
    }

    /// The slot's ring and bell, made if it has none.
    pub(super) fn way(&mut self, slot: SlotId) -> Result<(), HubError> {
        if self.ways.contains_key(&slot) {
            return Ok(());
        }
        let tail = ChannelMemory::map(self.memory.as_fd(), Access::Read)?.get(Word::Tail);
        self.ways.insert(slot, (up_ring::create(slot.0, tail)?, sleep::bell()?));
        self.tell_way(slot);
        Ok(())
    }

    pub(super) fn start(&mut self, now: Duration, registry: &Registry) -> Result<(), SpawnError> {
        let reconnect_socket = self.reconnect_socket.clone();
        let start = |link| Ok(serde_json::to_string(&HubStart { link, reconnect_socket })?);
        let (pid, pidfd, link) = spawn_hub(start)?;
        log::info!("the hub is process {pid}");
        let running = Running::new(pid, pidfd, link, now);
        watch(&running, registry);
        self.process = Process::Up(Box::new(running));
        Ok(())
    }
}

pub(super) fn watch(running: &Running, registry: &Registry) {
    let both = Interest::READABLE | Interest::WRITABLE;
    let link = registry.register(&mut SourceFd(&running.link.as_raw_fd()), HUB_LINK, both);
    let process =
        registry.register(&mut SourceFd(&running.pidfd.as_raw_fd()), HUB_PROCESS, Interest::READABLE);
    if let Err(error) = link.and(process) {
        log::error!("cannot watch the hub: {error}");
    }
}

pub(super) fn send(link: &mut SupervisorHubEnd, message: &ToHub, with: &[BorrowedFd<'_>]) {
    match link.send_with(Incarnation::ANY, message, with) {
        // Its end is seen by its process.
        Ok(()) | Err(LinkError::Closed | LinkError::NotKnown { .. }) => {}
        Err(error) => log::error!("the hub: {error}"),
    }
}
