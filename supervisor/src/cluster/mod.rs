//! What is true: the slots and their processes, who is counted where, where clients are sent, which settings hold.
//! Its fields are its own; the loop and the operations ask it, and tell it what to do, by its methods. Knows no
//! operator and no plan: what an operation may be waiting for is left as [`News`].

mod admission;
mod admission_hold;
mod adopted;
mod ban_file;
mod book;
mod connections;
mod heartbeat;
pub(crate) mod hub;
mod ledger;
mod level;
mod levels;
pub(crate) mod lifecycle;
mod link;
pub mod listeners;
mod phase;
mod processes;
mod rules;
mod settings;
mod size;
mod slot;
pub(crate) mod state;
mod steering;
mod take_over;
mod transfer;
mod view;
mod waiting_room;
mod watchdog;

use std::net::SocketAddr;
use std::ops::{Index, IndexMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::config::{Config, Effective};
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::ipc::settings_memory::{self, SettingsMemoryError};
use holdfast_shared::metric::RESUME_BUCKETS;
use mio::{Registry, Token};
use nix::unistd::Pid;

use crate::api::RestartedSlot;
use crate::api::histogram::Histogram;
use crate::host::capacity::Capacity;
use crate::host::run_dir::RunDir;
use crate::host::settings::for_worker;
use crate::logging;
use admission_hold::AdmissionHold;
use adopted::AdoptedProcesses;
use ban_file::BanFile;
pub(crate) use connections::{Found, Goodbye, Tables};
use ledger::Ledger;
use levels::Levels;
use lifecycle::{Cause, Event, State as SlotState};
use listeners::Listeners;
pub(crate) use phase::{DrainTime, Phase};
pub(crate) use size::ResizeError;
pub(crate) use slot::Slot;
use state::State;
use steering::Steering;
pub(crate) use take_over::Adopted;
use transfer::Transfers;
use waiting_room::WaitingRoom;

/// When a process ends that is ours to look after and no child of ours.
pub(crate) const ADOPTED_PROCESSES: Token = Token(usize::MAX - 2);

/// The longest the loop sleeps: whatever event might be missed, wanted and alive are compared this often.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What happened that an operation may be waiting for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// A worker died, and had not handed over.
    Died { slot: SlotId, incarnation: Incarnation },
    /// A worker that was asked to hand over stays.
    Stays { slot: SlotId, incarnation: Incarnation, reason: String },
    /// A slot goes on with the program it had, though it was given another.
    KeptProgram { slot: SlotId, reason: String },
    /// A slot has a worker that serves, with what it took over.
    Ready { incarnation: Incarnation, result: RestartedSlot },
    /// A transfer is over.
    Moved { from: SlotId, to: SlotId, moved: u32, stopped: Option<String> },
    /// Of connections that were `named` to be closed, so many were told.
    Told { order: u64, named: u32, told: u32 },
    /// A child that is no slot's has ended.
    ChildEnded { pid: Pid, cause: Cause },
    /// A slot cannot be made to serve, and never has.
    StartFailed { slot: SlotId, cause: Cause },
}

/// Why there can be no cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoundationError {
    #[error(transparent)]
    Settings(#[from] SettingsMemoryError),
    #[error(transparent)]
    Hub(#[from] hub::HubError),
}

/// What a cluster starts from.
pub(crate) struct Foundation {
    pub(crate) effective: Effective,
    pub(crate) descriptors: u32,
    pub(crate) capacity: Capacity,
    pub(crate) run_dir: RunDir,
    pub(crate) state: State,
    pub(crate) listeners: Listeners,
    pub(crate) slots: u16,
    /// Slots that live already.
    pub(crate) adopted: Vec<Adopted>,
    /// The hub that lives already.
    pub(crate) adopted_hub: Option<hub::AdoptedHub>,
    /// Another program was in our place.
    pub(crate) is_upgrade: bool,
}

/// All slots, and what they have in common.
pub(crate) struct Cluster {
    registry: Registry,
    run_dir: RunDir,
    state: State,
    effective: Effective,
    descriptors: u32,
    capacity: Capacity,
    /// Counts up with each change of the workers' settings.
    generation: u64,
    /// The memory of those that hold.
    settings: Arc<OwnedFd>,
    listeners: Listeners,
    steering: Steering,
    ledger: Ledger,
    ban_file: BanFile,
    waiting_room: WaitingRoom,
    levels: Levels,
    slots: Slots,
    /// `None` in a server without channels.
    hub: Option<hub::Hub>,
    /// Slots that were closed, the lowest last: what they have counted stays in the totals.
    retired: Vec<Slot>,
    wanted: u16,
    /// Until it is released, nobody is let in.
    admission_hold: AdmissionHold,
    adopted_processes: AdoptedProcesses,
    /// Some slots are older than this supervisor.
    has_adopted: bool,
    transfers: Transfers,
    phase: Phase,
    /// Slots that had more to say than one turn allows.
    unread_links: Vec<SlotId>,
    news: Vec<News>,
    last_request: u64,
    resume_seconds: Histogram,
    started: Duration,
    /// The clock, read once a turn.
    now: Duration,
    /// Until when the workers' silence was measured.
    listened_until: Duration,
}

impl Cluster {
    /// # Errors
    /// When workers cannot be told what the configuration says.
    pub(crate) fn new(foundation: Foundation, registry: Registry) -> Result<Self, FoundationError> {
        let Foundation {
            effective,
            descriptors,
            capacity,
            run_dir,
            mut state,
            listeners,
            slots,
            adopted,
            adopted_hub,
            is_upgrade,
        } = foundation;
        let now = clock::now();
        let generation = state.generation() + 1;
        state.set_generation(generation);
        let memory = settings_memory::create(generation, &for_worker(&effective.config, &capacity))?;
        let mut ledger = Ledger::new(settings::for_ledger(&effective.config, &capacity));
        ledger.set_now(now);
        if !adopted.is_empty() {
            ledger.exhaust_rates();
        }
        let (ban_file, bans) = BanFile::open(run_dir.path(), !adopted.is_empty(), now);
        ledger.bans = bans;
        let mut cluster = Self {
            registry,
            ledger,
            ban_file,
            waiting_room: WaitingRoom::default(),
            levels: Levels::new(
                settings::for_levels(&effective.config.limits.resolve(capacity.max_connections)),
                state.level(),
            ),
            wanted: crate::host::capacity::workers(effective.config.workers),
            effective,
            descriptors,
            capacity,
            generation,
            settings: Arc::new(memory),
            run_dir,
            steering: Steering::default(),
            listeners,
            admission_hold: AdmissionHold::new(adopted.iter().map(|adopted| adopted.slot)),
            adopted_processes: AdoptedProcesses::default(),
            has_adopted: !adopted.is_empty(),
            slots: Slots((0..slots).map(|id| Slot::recalled(SlotId(id), &state.slot(SlotId(id)))).collect()),
            hub: None,
            retired: Vec::new(),
            transfers: Transfers::default(),
            phase: Phase::Starting,
            unread_links: Vec::new(),
            news: Vec::new(),
            last_request: 0,
            resume_seconds: Histogram::new(&RESUME_BUCKETS),
            started: state.started(now),
            state,
            now,
            listened_until: now,
        };
        let living = adopted.iter().map(|adopted| adopted.slot).collect();
        cluster.found_hub(adopted_hub, &living, is_upgrade)?;
        cluster.settings = Arc::new(cluster.settings_memory(generation, None)?);
        cluster.take_over_slots(adopted);
        cluster.reconsider_waiting();
        Ok(cluster)
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn config(&self) -> &Config {
        &self.effective.config
    }

    pub(crate) fn effective(&self) -> &Effective {
        &self.effective
    }

    pub(crate) fn descriptors(&self) -> u32 {
        self.descriptors
    }

    pub(crate) fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        self.listeners.addresses()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.0.iter()
    }

    pub(crate) fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots.get(id)
    }

    /// Connections, those in transit between slots among them.
    pub(crate) fn connections(&self) -> u64 {
        self.ledger.connections()
    }

    pub(crate) fn held_by(&self, slot: SlotId) -> u64 {
        self.ledger.held_by(slot)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Has every adopted slot said whom it holds?
    pub(crate) fn is_counted(&self) -> bool {
        self.admission_hold.is_released()
    }

    pub(crate) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// The loop is awake.
    pub(crate) fn wake(&mut self) {
        self.now = clock::now();
        self.ledger.set_now(self.now);
    }

    /// Takes in what has happened to slots: what they said, who has ended, who is silent, who is due.
    pub(crate) fn take_in(&mut self, look_for_dead: bool) {
        self.continue_links();
        self.watch_hub();
        if look_for_dead {
            self.reap();
        }
        self.watch_heartbeats();
        for slot in self.slots.ids() {
            self.step(slot, Event::Tick);
        }
        self.watch_transfer();
        let is_settled = |slot: &Slot| slot.answers() || slot.is_given_up;
        if self.phase == Phase::Starting && self.slots().all(is_settled) {
            self.phase = Phase::Running;
        }
    }

    /// Looks at what has changed for newcomers: who of those who wait comes in, how full it is, and where they are sent.
    pub(crate) fn conclude(&mut self) {
        self.admit_waiting();
        self.watch_level();
        self.steer();
        self.state.note_log_lines_dropped(logging::lines_dropped());
    }

    /// When there is something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        if !self.unread_links.is_empty() || !self.news.is_empty() {
            return Some(self.now);
        }
        let slots = self.slots().filter_map(|slot| slot.life.wakeup());
        let others = [
            Some(self.level_deadline()),
            self.steering.wakeup(),
            self.transfers.wakeup(self.now),
            self.waiting_deadline(),
        ];
        slots.chain(others.into_iter().flatten()).min()
    }

    /// Does nothing run any more, and will nothing?
    pub(crate) fn has_ended(&self) -> bool {
        self.slots().all(|slot| matches!(slot.state(), SlotState::Left))
    }

    /// The service has ended.
    pub(crate) fn end(mut self) {
        self.end_hub();
        self.ban_file.remove();
        self.state.remove();
    }

    /// Tells every worker that listens.
    pub(crate) fn tell_all(&mut self, message: &ToWorker) {
        for slot in self.slots.ids() {
            self.tell(slot, message);
        }
    }

    /// From now on nobody is let in, and workers leave: over the time of a drain, or at once.
    pub(crate) fn begin_ending(&mut self, phase: Phase) {
        let was_draining = self.phase.is_ending();
        self.phase = phase;
        self.ledger.set_draining(true);
        for id in self.slots.ids() {
            if was_draining && matches!(self.slots[id].state(), SlotState::Draining(_)) {
                self.tell(id, &phase.last_order(self.now));
                continue;
            }
            // Until the workers say so themselves.
            let held = u32::try_from(self.ledger.held_by(id)).unwrap_or(u32::MAX);
            self.slots[id].note_drain(0, held);
            // The slot asks for its worker to be told, now or as soon as there is one.
            self.step(id, Event::Drain);
        }
    }

    /// The time of the drain is another one, or is held.
    pub(crate) fn set_drain_time(&mut self, time: DrainTime) {
        self.phase = Phase::Draining(time);
        self.tell_all(&self.phase.last_order(self.now));
    }

    /// Kills everything.
    pub(crate) fn abort(&mut self) {
        self.phase = Phase::Stopping;
        self.ledger.set_draining(true);
        for slot in self.slots.ids() {
            self.step(slot, Event::Stop);
        }
    }

    /// The memory of the settings that are to be applied next.
    ///
    /// # Errors
    /// When they are too many.
    pub(crate) fn next_settings(
        &self,
        config: &Config,
        capacity: &Capacity,
    ) -> Result<OwnedFd, SettingsMemoryError> {
        self.settings_memory(self.generation + 1, Some((config, capacity)))
    }

    /// Settings as workers are told them: `next`, or those that hold.
    fn settings_memory(
        &self,
        generation: u64,
        next: Option<(&Config, &Capacity)>,
    ) -> Result<OwnedFd, SettingsMemoryError> {
        let (config, capacity) = next.unwrap_or((&self.effective.config, &self.capacity));
        let mut settings = for_worker(config, capacity);
        if let Some(channels) = &mut settings.channels {
            channels.memory = self.hub.as_ref().map_or(0, hub::Hub::seed);
        }
        settings_memory::create(generation, &settings)
    }

    /// These settings hold from now on, for everybody; `memory` is theirs. Nothing can fail here.
    pub(crate) fn apply(
        &mut self,
        next: Effective,
        capacity: Capacity,
        memory: OwnedFd,
        plan: Option<hub::HubPlan>,
    ) {
        self.effective = next;
        self.capacity = capacity;
        let is_new = self.hub.is_none() && plan.is_some();
        self.apply_hub(plan);
        let config = &self.effective.config;
        self.ledger.set_limits(settings::for_ledger(config, &capacity));
        self.levels.edges = settings::for_levels(&config.limits.resolve(capacity.max_connections));
        self.steering.reconsider();
        self.generation += 1;
        self.state.set_generation(self.generation);
        self.settings = Arc::new(memory);
        if is_new {
            // Now that there is one, workers are told whose memory it is.
            match self.settings_memory(self.generation, None) {
                Ok(memory) => self.settings = Arc::new(memory),
                Err(error) => log::error!("workers do not hear of the hub: {error}"),
            }
        }
        for slot in self.slots.ids() {
            self.tell_settings(slot);
        }
        self.reconsider_waiting();
    }

    /// All slots there have been.
    fn all_slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots().chain(&self.retired)
    }
}

/// The slots there are, by their number.
#[derive(Debug)]
struct Slots(Vec<Slot>);

impl Slots {
    fn get(&self, id: SlotId) -> Option<&Slot> {
        self.0.get(usize::from(id.0))
    }

    fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.0.get_mut(usize::from(id.0))
    }

    /// Their numbers, for loops that change them.
    fn ids(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..u16::try_from(self.0.len()).unwrap_or(u16::MAX)).map(SlotId)
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;

    fn index(&self, id: SlotId) -> &Slot {
        &self.0[usize::from(id.0)]
    }
}

impl IndexMut<SlotId> for Slots {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.0[usize::from(id.0)]
    }
}
