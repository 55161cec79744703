//! The supervisor's loop and what all of it shares. Readiness becomes an [`Event`], an event is one match
//! arm, an arm is one method. After the batch, in fixed order: the dead are reaped, slots take their turn,
//! the level is looked at, new clients are steered, what was waited for is answered.
//!
//! It reads no client byte and blocks on nothing.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use holdfast_shared::clock;
use holdfast_shared::config::{Effective, Inputs};
use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::ipc::settings_memory::{self, SettingsMemoryError};
use holdfast_shared::level::Level;
use holdfast_worker::Program;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::api::Request;
use crate::api::histogram::Histogram;
use crate::cluster::admission_hold::AdmissionHold;
use crate::cluster::adopted::AdoptedProcesses;
use crate::cluster::ledger::Ledger;
use crate::cluster::level::LevelEdges;
use crate::cluster::lifecycle;
use crate::cluster::listeners::{ListenError, Listeners};
use crate::cluster::settings;
use crate::cluster::slot::Slot;
use crate::cluster::state::{State, StateError};
use crate::cluster::steering::Steering;
use crate::cluster::take_over::ADOPTED_PROCESSES;
use crate::cluster::totals::Gather;
use crate::host::capacity::{Capacity, Unreachable};
use crate::host::launch::Launch;
use crate::host::notify;
use crate::host::run_dir::{RunDir, RunDirError};
use crate::host::signals::Signals;
use crate::operations::adoption::{AdoptError, Adopted};
use crate::operations::drain::Drain;
use crate::operations::rebalance::Moving;
use crate::operations::reload::PendingReload;
use crate::operations::resize::Scale;
use crate::operations::restart::Restart;
use crate::operations::upgrade::{ANSWER, Upgrade};
use crate::operator::control::{self, Control, Inherited, Sockets};
use crate::start;

const SIGNALS: Token = Token(usize::MAX);
const REQUESTS: Token = Token(usize::MAX - 1);
const EVENTS_PER_TURN: usize = 256;
/// The longest the loop sleeps: whatever event might be missed, wanted and alive are compared this often.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// How long workers get to tell their clients that it is over, before they are killed.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Why the supervisor could not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// What an earlier supervisor has left.
    #[error(transparent)]
    State(#[from] StateError),
    /// The slots of an earlier supervisor.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The listening sockets.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// What workers are told.
    #[error(transparent)]
    Settings(#[from] SettingsMemoryError),
    /// The control socket or the admin address.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The configured cap.
    #[error(transparent)]
    Capacity(#[from] Unreachable),
    /// No slot can be made to serve.
    #[error(
        "slot {slot} could not start in {attempts} attempts, the last ended with {cause}; the log says why"
    )]
    Start {
        /// Which slot.
        slot: SlotId,
        /// How often it was tried.
        attempts: u32,
        /// How the last attempt ended.
        cause: lifecycle::Cause,
    },
    /// Something the loop cannot do without.
    #[error("cannot {doing}: {source}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What readiness means.
enum Event {
    /// A signal arrived.
    Signals,
    /// The control thread has requests.
    Requests,
    /// A process ended that is ours to look after and no child of ours.
    AdoptedProcesses,
    /// A program that was asked whether it could take our place says something, or has ended.
    Candidate,
    /// A slot said something, or reads again.
    Link(usize),
}

/// Where the whole service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not every slot has served yet, or was given up.
    Starting,
    /// All slots have served.
    Running,
    /// Nobody is let in, clients are told to go, one by one.
    Draining(Drain),
    /// Workers tell their clients and leave; who has not left by then is killed.
    Stopping { until: Duration },
}

impl Stage {
    pub(crate) fn is_ending(self) -> bool {
        matches!(self, Self::Draining(_) | Self::Stopping { .. })
    }
}

/// What a supervisor starts from: all that can fail has been done.
pub(crate) struct Foundation {
    pub(crate) program: Program,
    pub(crate) launch: Launch,
    /// The upgrade that has brought this program here.
    pub(crate) upgrade: Option<Upgrade>,
    /// Sockets that it has left.
    pub(crate) sockets: Inherited,
    pub(crate) inputs: Inputs,
    pub(crate) effective: Effective,
    pub(crate) descriptors: u32,
    pub(crate) capacity: Capacity,
    pub(crate) run_dir: RunDir,
    pub(crate) signals: Signals,
    pub(crate) state: State,
    pub(crate) listeners: Listeners,
    pub(crate) slots: u16,
    /// Slots that live already.
    pub(crate) adopted: Vec<Adopted>,
}

/// Everything the supervisor has.
pub struct Supervisor {
    pub(crate) program: Program,
    pub(crate) launch: Launch,
    pub(crate) poll: Poll,
    /// Wakes the loop from other threads.
    pub(crate) waker: Arc<Waker>,
    pub(crate) signals: Signals,
    pub(crate) control: Control,
    pub(crate) requests: Receiver<Request>,
    pub(crate) inputs: Inputs,
    pub(crate) effective: Effective,
    pub(crate) descriptors: u32,
    pub(crate) capacity: Capacity,
    pub(crate) run_dir: RunDir,
    pub(crate) state: State,
    pub(crate) listeners: Listeners,
    /// Until it opens, nobody is let in.
    pub(crate) admission_hold: AdmissionHold,
    pub(crate) adopted_processes: AdoptedProcesses,
    /// Some slots are older than this supervisor.
    pub(crate) has_adopted: bool,
    pub(crate) steering: Steering,
    pub(crate) ledger: Ledger,
    pub(crate) edges: LevelEdges,
    pub(crate) level: Level,
    pub(crate) slots: Vec<Slot>,
    /// Slots that were closed, the lowest last: what they have counted stays in the totals.
    pub(crate) retired: Vec<Slot>,
    pub(crate) scale: Scale,
    pub(crate) moving: Moving,
    pub(crate) stage: Stage,
    /// Counts up with each change of the workers' settings.
    pub(crate) generation: u64,
    /// The memory of the settings that hold.
    pub(crate) settings: Arc<OwnedFd>,
    /// Children may have ended since they were last looked for.
    pub(crate) look_for_dead: bool,
    /// Slots that had more to say than one turn allows.
    pub(crate) unread_links: Vec<usize>,
    pub(crate) gathers: Vec<Gather>,
    pub(crate) reloads: Vec<PendingReload>,
    pub(crate) restart: Option<Restart>,
    /// The upgrade under way, or the last one.
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) last_request: u64,
    pub(crate) resume_seconds: Histogram,
    pub(crate) started: Duration,
    /// The clock, read once a turn.
    pub(crate) now: Duration,
    /// Until when the workers' silence was measured.
    pub(crate) listened_until: Duration,
    /// Why it ends with a failure, if it does.
    pub(crate) failure: Option<SupervisorError>,
}

impl Supervisor {
    pub(crate) fn new(foundation: Foundation) -> Result<Self, SupervisorError> {
        let kernel = |doing| move |source| SupervisorError::Kernel { doing, source };
        let Foundation { program, inputs, effective, descriptors, capacity, run_dir, .. } = foundation;
        let Foundation {
            mut signals, mut state, listeners, slots, adopted, launch, upgrade, sockets, ..
        } = foundation;
        let poll = Poll::new().map_err(kernel("make an event loop"))?;
        let watched = poll.registry().register(&mut signals, SIGNALS, Interest::READABLE);
        watched.map_err(kernel("watch signals"))?;
        let waker = Arc::new(Waker::new(poll.registry(), REQUESTS).map_err(kernel("make a waker"))?);
        let sockets = Sockets::bind(run_dir.path(), effective.config.admin.listen, sockets)?;
        let (control, requests) = Control::start(sockets, Arc::clone(&waker), program.version)?;
        let now = clock::now();
        let generation = state.generation() + 1;
        state.set_generation(generation);
        let for_workers = settings::for_worker(&effective.config, &capacity);
        let memory = settings_memory::create(generation, &for_workers)?;
        let mut supervisor = Self {
            program,
            launch,
            poll,
            waker,
            signals,
            control,
            requests,
            ledger: Ledger::new(settings::for_ledger(&effective.config, &capacity)),
            edges: settings::for_levels(&effective.config.limits.resolve(capacity.max_connections)),
            level: state.level(),
            scale: Scale::new(start::workers(effective.config.workers)),
            inputs,
            effective,
            descriptors,
            capacity,
            run_dir,
            steering: Steering::default(),
            listeners,
            admission_hold: AdmissionHold::new(adopted.iter().map(|adopted| usize::from(adopted.slot.0))),
            adopted_processes: AdoptedProcesses::default(),
            has_adopted: !adopted.is_empty(),
            slots: (0..slots).map(|slot| Slot::new(SlotId(slot))).collect(),
            retired: Vec::new(),
            moving: Moving::default(),
            stage: Stage::Starting,
            generation,
            settings: Arc::new(memory),
            look_for_dead: false,
            unread_links: Vec::new(),
            gathers: Vec::new(),
            reloads: Vec::new(),
            restart: None,
            upgrade,
            last_request: 0,
            resume_seconds: Histogram::new(&holdfast_shared::metric::RESUME_BUCKETS),
            started: state.started(now),
            state,
            now,
            listened_until: now,
            failure: None,
        };
        supervisor.take_over_slots(adopted);
        Ok(supervisor)
    }

    /// Runs until the service has ended.
    ///
    /// # Errors
    /// When it could not start, or the kernel's readiness can no longer be had.
    pub fn run(mut self) -> Result<(), SupervisorError> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        loop {
            self.after_batch();
            if self.has_ended() {
                return self.end();
            }
            if let Err(source) = self.poll.poll(&mut events, Some(self.timeout()))
                && source.kind() != io::ErrorKind::Interrupted
            {
                return Err(SupervisorError::Kernel { doing: "wait for events", source });
            }
            self.now = clock::now();
            // A turn that nothing caused is the time to see whether a signal was missed.
            self.look_for_dead |= events.is_empty();
            for event in &events {
                match self.name(event.token()) {
                    Event::Signals => self.on_signals(),
                    Event::Requests => self.on_requests(),
                    Event::AdoptedProcesses => self.look_for_dead = true,
                    // Read after the batch.
                    Event::Candidate => {}
                    Event::Link(position) => self.on_link(position),
                }
            }
        }
    }

    /// Watches a slot's link.
    pub(crate) fn watch_link(&self, position: usize) -> io::Result<()> {
        let Some(link) = self.slots.get(position).and_then(|seat| seat.link.as_ref()) else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), Token(position), interest)
    }

    /// Tells every worker that listens.
    pub(crate) fn tell_all(&mut self, message: &ToWorker) {
        for position in 0..self.slots.len() {
            self.tell(position, message);
        }
    }

    /// Ends at once: clients are told, and not waited for.
    pub(crate) fn stop(&mut self) {
        if matches!(self.stage, Stage::Stopping { .. }) {
            return;
        }
        log::info!("stopping: {} connections are closed", self.ledger.connections());
        notify::stopping("stopping");
        self.stage = Stage::Stopping { until: self.now + STOP_GRACE };
        self.ledger.set_draining(true);
        for position in 0..self.slots.len() {
            if matches!(self.slots[position].machine.state(), lifecycle::State::Draining(_)) {
                self.tell(position, &ToWorker::Leave);
            } else {
                // The slot asks for its worker to be told, now or as soon as there is one.
                self.step(position, lifecycle::Event::Drain);
            }
        }
    }

    /// Kills everything.
    pub(crate) fn abort(&mut self) {
        self.stage = Stage::Stopping { until: Duration::MAX };
        self.ledger.set_draining(true);
        for position in 0..self.slots.len() {
            self.step(position, lifecycle::Event::Stop);
        }
    }

    fn enforce_deadlines(&mut self) {
        match self.stage {
            Stage::Draining(drain) => self.watch_drain(drain),
            Stage::Stopping { until } if self.now >= until => self.abort(),
            Stage::Starting | Stage::Running | Stage::Stopping { .. } => {}
        }
    }

    fn name(&self, token: Token) -> Event {
        match token {
            SIGNALS => Event::Signals,
            REQUESTS => Event::Requests,
            ADOPTED_PROCESSES => Event::AdoptedProcesses,
            ANSWER => Event::Candidate,
            Token(position) => Event::Link(position),
        }
    }

    fn after_batch(&mut self) {
        self.continue_links();
        if std::mem::take(&mut self.look_for_dead) {
            self.reap();
        }
        self.watch_heartbeats();
        for position in 0..self.slots.len() {
            self.step(position, lifecycle::Event::Tick);
        }
        self.enforce_deadlines();
        self.continue_restart();
        self.continue_moves();
        self.continue_scaling();
        self.watch_level();
        self.steer();
        self.announce_ready();
        self.finish_gathers();
        self.finish_reloads();
        self.continue_upgrade();
    }

    fn announce_ready(&mut self) {
        let is_settled = |seat: &Slot| seat.ready_since.is_some() || seat.is_given_up;
        if self.stage == Stage::Starting && self.slots.iter().all(is_settled) {
            self.stage = Stage::Running;
            let listen: Vec<String> = self.listeners.addresses().iter().map(ToString::to_string).collect();
            let admin =
                self.control.admin_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
            log::info!(
                "ready listen={} admin={admin} workers={} max_connections={} run_dir={}",
                listen.join(","),
                self.slots.len(),
                self.capacity.max_connections,
                self.run_dir.path().display()
            );
            notify::ready(&format!("serving on {}", listen.join(", ")));
        }
    }

    fn watch_level(&mut self) {
        // Until the adopted slots have reported, the count is below the truth, and the last level holds.
        if !self.admission_hold.is_open() {
            return;
        }
        let connections = self.ledger.connections();
        let level = self.edges.next(self.level, connections);
        if level == self.level {
            return;
        }
        let max = self.capacity.max_connections;
        log::log!(
            if level > self.level { log::Level::Warn } else { log::Level::Info },
            "level {} -> {}: {connections} of {max} connections",
            self.level.name(),
            level.name()
        );
        self.level = level;
        self.state.set_level(level);
        self.tell_all(&ToWorker::State { full: level == Level::Full });
    }

    fn timeout(&self) -> Duration {
        if !self.unread_links.is_empty() {
            return Duration::ZERO;
        }
        let slots = self.slots.iter().filter_map(|seat| seat.machine.wakeup());
        let gathers = self.gathers.iter().map(|gather| gather.deadline);
        let reloads = self.reloads.iter().map(|reload| reload.deadline);
        let restart = self.restart.as_ref().and_then(Restart::deadline);
        let stage = match self.stage {
            Stage::Draining(drain) => Some(drain.wakeup(self.grace())),
            Stage::Stopping { until } => Some(until),
            Stage::Starting | Stage::Running => None,
        };
        let next = slots
            .chain(gathers)
            .chain(reloads)
            .chain(restart)
            .chain(self.upgrade.as_ref().and_then(Upgrade::deadline))
            .chain(stage)
            .chain(self.steering.wakeup())
            .chain(self.moves_wakeup())
            .min();
        next.map_or(TICK, |moment| moment.saturating_sub(self.now)).min(TICK)
    }

    fn has_ended(&self) -> bool {
        self.slots.iter().all(|seat| matches!(seat.machine.state(), lifecycle::State::Left))
    }

    fn end(self) -> Result<(), SupervisorError> {
        drop(self.requests);
        self.control.stop();
        self.state.remove();
        match self.failure {
            Some(failure) => Err(failure),
            None => {
                log::info!("stopped");
                Ok(())
            }
        }
    }
}
