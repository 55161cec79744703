//! The service under fire: the supervisor that lives now, those that died, the config in force; and what its
//! processes hold at moments of rest.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::clients::ClientThread;
use super::upgrade::{Build, Installed};
use crate::PATIENCE;
use crate::control::{Control, Totals};
use crate::holdfast::{Holdfast, Options, Starting, pid_of};
use crate::process;
use crate::watch::Watched;

/// Between two questions of a wait.
const POLL_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The supervisors of this process's runs, for a run that cannot end as it should.
static SUPERVISORS: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

/// The mark of all processes of this run, whoever started them.
const MARK: &str = "HOLDFAST_CHAOS_RUN";

/// Descriptors that a slot may have more than at first, apart from its connections: a link in the making,
/// something saved for the next worker.
const SPARE_DESCRIPTORS: u64 = 4;

/// Descriptors that the supervisor may have more than at first: control connections, a link in the making.
const SPARE_SUPERVISOR_DESCRIPTORS: usize = 16;

/// How many slots there may be when their number changes.
pub(super) const SLOTS: RangeInclusive<u16> = 2..=5;

/// What processes hold when nobody is connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Baseline {
    slots: usize,
    slot_descriptors: u64,
    supervisor_descriptors: usize,
}

/// The service.
pub(super) struct Service {
    /// Where its program is.
    pub(super) installed: Installed,
    /// The fit program that was put there last.
    pub(super) build: Build,
    /// How many slots it has, once it is whole.
    slots: u16,
    balance: String,
    queued: String,
    /// The cap in force.
    pub(super) cap: usize,
    current: Option<Holdfast>,
    /// Those that were killed. Dropping one kills all it ever started.
    dead: Vec<Holdfast>,
    control: Control,
}

impl Service {
    pub(super) fn start(installed: Installed, slots: u16, cap: usize) -> Self {
        let (balance, queued) = ("least-connections".to_owned(), "64MiB".to_owned());
        let server = Holdfast::start(&options(&installed.path(), &config(slots, cap, &balance, &queued)));
        let control = server.control().clone();
        remember(&server);
        Self {
            installed,
            build: Build::First,
            slots,
            balance,
            queued,
            cap,
            current: Some(server),
            dead: Vec::new(),
            control,
        }
    }

    /// The supervisor that lives.
    pub(super) fn server(&self) -> &Holdfast {
        match self.current.as_ref().or(self.dead.last()) {
            Some(server) => server,
            None => unreachable!("there is always one, dead or alive"),
        }
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// Every slot; `None` when nobody can be asked.
    pub(super) fn workers(&self) -> Option<Vec<Totals>> {
        let answer = self.control.try_request("GET", "/workers").filter(|answer| answer.status == 200)?;
        Some(answer.json().as_array()?.iter().cloned().map(Totals).collect())
    }

    pub(super) fn totals(&self) -> Option<Totals> {
        let answer = self.control.try_request("GET", "/totals").filter(|answer| answer.status == 200)?;
        Some(Totals(answer.json()))
    }

    /// The config that a reload or the next supervisor finds.
    pub(super) fn write_config(&mut self, cap: usize, balance: &str, queued: &str) {
        (self.balance, self.queued) = (balance.to_owned(), queued.to_owned());
        self.cap = cap;
        self.server().write_config(&self.config());
    }

    /// Lets the config that a reload or the next supervisor finds ask for another number of slots.
    pub(super) fn scale(&mut self, choice: u64) {
        let others: Vec<u16> = SLOTS.filter(|slots| *slots != self.slots).collect();
        let choice = usize::try_from(choice % others.len() as u64).unwrap_or(0);
        self.slots = others[choice];
        self.server().write_config(&self.config());
    }

    pub(super) fn slots(&self) -> u16 {
        self.slots
    }

    fn config(&self) -> String {
        config(self.slots, self.cap, &self.balance, &self.queued)
    }

    /// Kills the supervisor, and waits until it is gone.
    pub(super) fn kill_supervisor(&mut self) {
        if let Some(server) = self.current.take() {
            server.signal(Signal::SIGKILL);
            let _ = server.process().wait_for_exit();
            self.dead.push(server);
        }
    }

    /// Starts another supervisor if the last one was killed.
    pub(super) fn succeed(&mut self) {
        if self.current.is_none() {
            let options = options(&self.installed.path(), &self.config()).run_dir(self.server().run_dir());
            let next = Starting::new(&options).ready();
            assert_eq!(next.address(), self.server().address(), "another address than before");
            remember(&next);
            self.current = Some(next);
        }
    }

    /// Waits until `fact` is true, the clients being at what they were at.
    ///
    /// # Panics
    /// When it does not become true, or the supervisor ends unasked.
    pub(super) fn wait(&self, clients: &mut ClientThread, what: &str, fact: impl FnMut(&Self) -> bool) {
        self.wait_with(what, fact, || clients.wait(POLL_PAUSE));
    }

    /// As [`Service::wait`], while the clients are at rest.
    pub(super) fn wait_at_rest(&self, what: &str, fact: impl FnMut(&Self) -> bool) {
        self.wait_with(what, fact, || self.server().process().pause(POLL_PAUSE, what));
    }

    fn wait_with(&self, what: &str, mut fact: impl FnMut(&Self) -> bool, mut pause: impl FnMut()) {
        let deadline = Instant::now() + PATIENCE;
        while !fact(self) {
            let process = self.server().process();
            if let Some(status) = process.exit() {
                panic!("the supervisor ended ({status}) before {what}\n{}", process.tail());
            }
            assert!(
                Instant::now() < deadline,
                "{what}: not within {PATIENCE:?}; workers: {:#?}\n{}",
                self.workers(),
                process.tail()
            );
            pause();
        }
    }

    /// Every slot has a worker that serves.
    pub(super) fn is_whole(&self) -> bool {
        let ready = |worker: &Totals| worker.text("state") == "ready" && worker.0["pid"].is_u64();
        self.workers()
            .is_some_and(|workers| workers.len() == usize::from(self.slots) && workers.iter().all(ready))
    }

    pub(super) fn baseline(&self) -> Baseline {
        let workers = self.workers().unwrap_or_default();
        let descriptors = workers.iter().map(|worker| descriptors_besides_clients(worker).unwrap_or(0));
        Baseline {
            slots: workers.len().max(1),
            slot_descriptors: descriptors.max().unwrap_or(0),
            supervisor_descriptors: process::open_descriptors(self.server().process().pid()),
        }
    }

    /// Whether no process has more descriptors than its clients explain.
    pub(super) fn leaks_nothing(&self, baseline: Baseline) -> bool {
        let supervisor = process::open_descriptors(self.server().process().pid());
        // Most of what it holds is for its slots.
        let share = usize::from(self.slots).max(baseline.slots);
        let of_slots = (baseline.supervisor_descriptors * share).div_ceil(baseline.slots);
        supervisor <= of_slots + SPARE_SUPERVISOR_DESCRIPTORS
            && self.workers().is_some_and(|workers| {
                workers.iter().all(|worker| {
                    descriptors_besides_clients(worker)
                        .is_some_and(|count| count <= baseline.slot_descriptors + SPARE_DESCRIPTORS)
                })
            })
    }

    /// The processes of all supervisors.
    fn processes(&self) -> Vec<nix::unistd::Pid> {
        process::marked(MARK, &mark())
    }

    /// Memory that is not of files, of all processes.
    pub(super) fn memory(&self) -> u64 {
        self.processes().into_iter().map(process::data_pss).sum()
    }

    /// How many supervisors there were.
    pub(super) fn supervisors(&self) -> usize {
        self.dead.len() + 1
    }

    /// Ends it, and checks that no process of any supervisor is left.
    pub(super) fn stop(mut self) {
        if let Some(server) = self.current.take() {
            server.stop();
        }
        assert_eq!(self.processes(), [], "processes left behind");
    }
}

/// Kills whatever is left of this process's runs, and returns what the last two supervisors logged in the end.
pub(super) fn clean_up() -> String {
    process::kill_marked(MARK, &mark());
    let supervisors = SUPERVISORS.try_lock().map(|supervisors| supervisors.clone()).unwrap_or_default();
    supervisors.iter().rev().take(2).rev().filter_map(Watched::try_tail).collect()
}

fn remember(server: &Holdfast) {
    if let Ok(mut supervisors) = SUPERVISORS.lock() {
        supervisors.push(server.process().clone());
    }
}

/// The value of [`MARK`] in this process.
fn mark() -> String {
    std::process::id().to_string()
}

fn options(program: &Path, config: &str) -> Options {
    Options::config(config).environment(MARK, &mark()).program(program)
}

/// No ping ever: a client is then either idle or not, and the idle ones may not be lost.
fn config(slots: u16, cap: usize, balance: &str, queued: &str) -> String {
    format!(
        "workers = {slots}
        balance = \"{balance}\"
        degraded.notify_clients = false
        degraded.messages_per_second = 0
        limits.max_connections = {cap}
        limits.max_connections_per_address = 0
        limits.max_queued_output = \"{queued}\"
        timeouts.handshake = \"60s\"
        timeouts.ping_interval = \"0s\"
        timeouts.idle = \"0s\"
        timeouts.close = \"5s\"
        drain.duration = \"100ms\""
    )
}

/// Connections by slot.
pub(super) fn connections(workers: &[Totals]) -> BTreeMap<u16, u64> {
    let entry = |worker: &Totals| {
        (u16::try_from(worker.number("slot")).unwrap_or(u16::MAX), worker.number("connections"))
    };
    workers.iter().map(entry).collect()
}

/// `None`: it has no worker now.
fn descriptors_besides_clients(worker: &Totals) -> Option<u64> {
    worker.0["pid"].as_u64()?;
    let open = process::open_descriptors(pid_of(worker, "pid")) as u64;
    Some(open.saturating_sub(worker.number("connections")))
}
