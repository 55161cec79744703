//! The hub, from outside: its memory, which outlives it; its process, started again when it dies or says nothing for long; and the
//! ways between it and the slots. What it does with all that is its own business.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::channels::memory::ChannelMemoryError;
use holdfast_shared::channels::up_ring::UpRingError;
use holdfast_shared::config::{ApiListen, Config};
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::hub::{FromHub, HubSettings, SupervisorHubEnd, ToHub};
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::ipc::settings_memory::{self, SettingsMemoryError};
use holdfast_shared::level::Level;
use holdfast_shared::sys::process::signal_pidfd;
use mio::Token;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::lifecycle::State;
use super::{Cluster, Phase};
use crate::host::api_sockets::{self, ApiListenError, LOCAL_SOCKET, Others};
use crate::host::kernel;
pub(super) use process::Hub;
use process::{Process, send, watch};

/// The hub's link.
pub(crate) const HUB_LINK: Token = Token(usize::MAX - 4);
/// The hub's process.
pub(crate) const HUB_PROCESS: Token = Token(usize::MAX - 5);

/// How long a hub may say nothing before it is aborted, and then killed.
const PATIENCE: Duration = Duration::from_secs(10);
const DYING: Duration = Duration::from_secs(5);
/// How long one that was told to leave may take.
const LEAVING: Duration = Duration::from_secs(1);
/// No pause between two hubs is longer: nothing is said meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Between two requests to a worker to make place for one that has the way to the hub.
const BETWEEN_REQUESTS: Duration = Duration::from_secs(2);

/// Why there is no hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error(transparent)]
    Memory(#[from] ChannelMemoryError),
    #[error(transparent)]
    Ring(#[from] UpRingError),
    #[error(transparent)]
    Settings(#[from] SettingsMemoryError),
    #[error(transparent)]
    Listen(#[from] ApiListenError),
    #[error("cannot make what the hub is woken by, or told with: {0}")]
    Kernel(#[from] io::Error),
    #[error("cannot make {}: {source}", path.display())]
    LocalSocket { path: PathBuf, source: io::Error },
}

/// What a configuration asks of the hub, as far as it can fail.
#[derive(Debug)]
pub(crate) struct HubPlan {
    settings: OwnedFd,
    /// A listener for another place than before.
    listener: Option<Option<OwnedFd>>,
}

/// A hub of an earlier supervisor.
#[derive(Debug)]
pub(crate) struct AdoptedHub {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) link: SupervisorHubEnd,
    pub(crate) memory: OwnedFd,
    pub(crate) bell: OwnedFd,
    /// By slot: its ring and its bell.
    pub(crate) ways: BTreeMap<SlotId, (OwnedFd, OwnedFd)>,
}

impl Cluster {
    /// What `config` asks of the hub; `None` if it asks for none.
    ///
    /// # Errors
    /// Nothing has changed.
    pub(crate) fn plan_hub(&self, config: &Config) -> Result<Option<HubPlan>, HubError> {
        let is_new = self.hub.is_none();
        let before = self.config();
        plan_hub(config, (!is_new).then_some(before), Others::Strangers)
    }

    /// Puts a plan in force.
    pub(super) fn apply_hub(&mut self, plan: Option<HubPlan>) {
        match (plan, &mut self.hub) {
            (Some(plan), Some(hub)) => {
                hub.settings = plan.settings;
                if let Some(listener) = plan.listener {
                    hub.listener = listener;
                }
                hub.tell_settings();
            }
            (Some(plan), None) => {
                let (size, path) = (self.config().channels.journal_size, self.hub_socket());
                match Hub::new(plan, None, self.run_dir.path(), path, size, self.now) {
                    Ok(hub) => self.hub = Some(hub),
                    Err(error) => log::error!("there is no hub: {error}"),
                }
            }
            (None, Some(_)) => {
                log::info!("the hub is not needed any more");
                self.end_hub();
            }
            (None, None) => {}
        }
    }

    pub(super) fn hub_socket(&self) -> PathBuf {
        self.run_dir.path().join(HUB_SOCKET)
    }

    /// The hub has said something, or has ended, or it is time to look.
    pub(crate) fn watch_hub(&mut self) {
        self.read_hub();
        let Some(hub) = &mut self.hub else { return };
        match &mut hub.process {
            Process::Up(running) if running.leaves && has_ended(running.pidfd.as_fd()) => {
                log::info!("the hub of the program before (pid {}) has left", running.pid);
                hub.process = Process::Down { until: self.now };
            }
            Process::Up(running) if has_ended(running.pidfd.as_fd()) => {
                let lived = self.now.saturating_sub(running.since);
                let pause = hub.backoff.died(lived).min(LONGEST_PAUSE);
                log::warn!(
                    "the hub (pid {}) died after {lived:.1?}; the next one comes in {pause:?}",
                    running.pid
                );
                hub.restarts += 1;
                hub.process = Process::Down { until: self.now + pause };
            }
            Process::Up(running) => {
                let silence = self.now.saturating_sub(running.heard);
                match running.aborted {
                    None if silence >= PATIENCE => {
                        log::error!(
                            "the hub has said nothing for {:.1} s: aborting it",
                            silence.as_secs_f64()
                        );
                        running.aborted = Some(self.now);
                        let _ = signal_pidfd(running.pidfd.as_fd(), Signal::SIGABRT);
                        // As for workers: one that is stopped dies of SIGKILL only, before it goes on.
                        let _ = signal_pidfd(running.pidfd.as_fd(), Signal::SIGCONT);
                    }
                    Some(at) if self.now >= at + DYING => {
                        let _ = signal_pidfd(running.pidfd.as_fd(), Signal::SIGKILL);
                    }
                    _ => {}
                }
            }
            Process::Down { .. } => {}
        }
        self.start_hub();
        self.connect_slots();
    }

    fn start_hub(&mut self) {
        if self.phase == Phase::Stopping {
            return;
        }
        let Some(hub) = &mut self.hub else { return };
        if let Process::Down { until } = hub.process
            && self.now >= until
            && let Err(error) = hub.start(self.now, &self.registry)
        {
            log::error!("{error}");
            hub.process = Process::Down { until: self.now + Duration::from_secs(1) };
        }
    }

    fn read_hub(&mut self) {
        loop {
            let Some(link) = self.hub.as_mut().and_then(Hub::link) else { return };
            match link.flush().and_then(|()| link.receive()) {
                Ok(Some(envelope)) => self.on_hub_message(envelope.message),
                Ok(None) | Err(LinkError::Closed) => return,
                Err(error) => log::error!("the hub: {error}; the message is ignored"),
            }
        }
    }

    fn on_hub_message(&mut self, message: FromHub) {
        let level = self.level();
        let Some(hub) = &mut self.hub else { return };
        if let Process::Up(running) = &mut hub.process {
            running.heard = self.now;
        }
        match message {
            FromHub::Hello { version, knows, .. } => {
                if let Process::Up(running) = &mut hub.process {
                    running.link.set_peer_knows(knows);
                    running.version = version;
                    send(&mut running.link, &ToHub::Memory, &[hub.memory.as_fd(), hub.bell.as_fd()]);
                }
                let slots: Vec<SlotId> = hub.ways.keys().copied().collect();
                for slot in slots {
                    hub.tell_way(slot);
                }
                hub.tell_settings();
                hub.tell(&ToHub::Level { level });
                hub.tell(&ToHub::AllSlots);
            }
            FromHub::Applied { error: Some(error), .. } => log::error!("the hub: {error}"),
            FromHub::Applied { error: None, generation } => {
                log::debug!("the hub applies settings {generation}");
            }
            FromHub::Report { report } => hub.report = report,
            FromHub::Adopt { .. } => log::error!("the hub gives itself to us, and is ours"),
        }
    }

    /// A keeper asks for the way to the hub before it makes a worker.
    pub(super) fn on_wants_channels(&mut self, slot: SlotId) {
        let keeper = self.slots[slot].state().keeper();
        // Whoever has the slot's end of the link shares it with the worker, which must not get what it could open anew.
        if keeper.is_some_and(kernel::has_children) {
            return log::error!(
                "slot {slot}: the way to the hub was asked for while there is a worker; not answered"
            );
        }
        let Some(hub) = &mut self.hub else { return };
        let made = hub.way(slot).map_err(|error| error.to_string());
        let memory = made.and_then(|()| read_only(hub.memory.as_fd()).map_err(|error| error.to_string()));
        let (Some((ring, bell)), Ok(memory)) = (hub.ways.get(&slot), memory.as_ref()) else {
            return log::error!("slot {slot} cannot have the way to the hub: {memory:?}");
        };
        let copies = || -> io::Result<[OwnedFd; 3]> {
            let copy = |descriptor: &OwnedFd| descriptor.try_clone();
            Ok([copy(ring)?, copy(bell)?, copy(&hub.bell)?])
        };
        match copies() {
            Ok([ring, bell, hub_bell]) => {
                hub.connected.insert(slot);
                let with = [memory.as_fd(), ring.as_fd(), bell.as_fd(), hub_bell.as_fd()];
                self.tell_worker(slot, Incarnation::ANY, &ToWorker::Channels, &with);
            }
            Err(error) => log::error!("slot {slot} cannot have the way to the hub: {error}"),
        }
    }

    /// The slot is gone, with all that its keeper had.
    pub(super) fn lose_way(&mut self, slot: SlotId) {
        if let Some(hub) = &mut self.hub
            && hub.ways.remove(&slot).is_some()
        {
            hub.connected.remove(&slot);
            hub.tell(&ToHub::SlotLost { slot });
        }
    }

    /// Workers without the way to the hub make place for others, whose keepers ask for it.
    fn connect_slots(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let Some(hub) = &self.hub else { return };
        let without: Vec<SlotId> = self
            .slots()
            .filter(|slot| matches!(slot.state(), State::Ready(_)) && !slot.is_behind(self.generation))
            .map(super::Slot::id)
            .filter(|slot| !hub.connected.contains(slot))
            .filter(|slot| hub.asked.get(slot).is_none_or(|&at| self.now >= at + BETWEEN_REQUESTS))
            .collect();
        for slot in without {
            log::info!("slot {slot}: its worker has no way to the hub; asking for another one");
            if self.ask_to_hand_over(slot, None).is_ok()
                && let Some(hub) = &mut self.hub
            {
                hub.asked.insert(slot, self.now);
            }
        }
    }

    pub(super) fn tell_hub_level(&mut self, level: Level) {
        if let Some(hub) = &mut self.hub {
            hub.tell(&ToHub::Level { level });
        }
    }

    /// Ends the hub, and waits for that, but not long.
    pub(super) fn end_hub(&mut self) {
        let Some(mut hub) = self.hub.take() else { return };
        hub.tell(&ToHub::Leave);
        if let Process::Up(running) = &hub.process {
            let mut watched = [PollFd::new(running.pidfd.as_fd(), PollFlags::POLLIN)];
            let time = PollTimeout::try_from(LEAVING).unwrap_or(PollTimeout::ZERO);
            if !matches!(poll(&mut watched, time), Ok(1..)) {
                let _ = signal_pidfd(running.pidfd.as_fd(), Signal::SIGKILL);
            }
        }
        let _ = std::fs::remove_file(self.run_dir.path().join(LOCAL_SOCKET));
    }

    /// Takes over a hub, or makes one, before there is a worker. Slots that are not `living` died unseen. After an upgrade the
    /// hub makes place for one of this program.
    pub(super) fn found_hub(
        &mut self,
        adopted: Option<AdoptedHub>,
        living: &BTreeSet<SlotId>,
        is_upgrade: bool,
    ) -> Result<(), HubError> {
        let others = if adopted.is_some() { Others::OurHub } else { Others::Strangers };
        let Some(plan) = plan_hub(self.config(), None, others)? else {
            if let Some(mut adopted) = adopted {
                send(&mut adopted.link, &ToHub::Leave, &[]);
                let _ = std::fs::remove_file(self.run_dir.path().join(LOCAL_SOCKET));
            }
            return Ok(());
        };
        let (size, path) = (self.config().channels.journal_size, self.hub_socket());
        let hub = Hub::new(plan, adopted, self.run_dir.path(), path, size, self.now)?;
        if let Process::Up(running) = &hub.process {
            watch(running, &self.registry);
        }
        let lost: Vec<SlotId> = hub.ways.keys().copied().filter(|slot| !living.contains(slot)).collect();
        self.hub = Some(hub);
        for slot in lost {
            self.lose_way(slot);
        }
        if is_upgrade && let Some(hub) = &mut self.hub {
            hub.make_place(self.now);
        }
        Ok(())
    }
}

/// Where a hub without a supervisor meets the next.
pub(crate) const HUB_SOCKET: &str = "hub.sock";

fn plan_hub(config: &Config, before: Option<&Config>, others: Others) -> Result<Option<HubPlan>, HubError> {
    if !config.has_channels() {
        return Ok(None);
    }
    let settings = HubSettings {
        rules: config.channels.rules.clone(),
        max_connections_per_user: config.limits.max_connections_per_user,
        has_events: config.api.listen != ApiListen::Off,
        api_keys: config
            .secrets
            .api_keys
            .iter()
            .map(|key| String::from_utf8_lossy(key.expose()).into_owned())
            .collect(),
    };
    let is_elsewhere = before.is_none_or(|before| before.api.listen != config.api.listen);
    let listener = if is_elsewhere { Some(api_sockets::listen(&config.api.listen, others)?) } else { None };
    Ok(Some(HubPlan { settings: settings_memory::create_for_hub(0, &settings)?, listener }))
}

/// A descriptor by which the memory cannot be written.
fn read_only(memory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::POLLIN)];
    matches!(poll(&mut watched, PollTimeout::ZERO), Ok(1..))
}
