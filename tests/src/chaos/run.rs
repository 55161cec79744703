//! One run: step after step until its time is over, each followed by a rest in which everything is checked.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::clients::{Behaviour, ClientThread, Loss, Tally};
use super::fault::{Cost, Fault};
use super::schedule::{Aimed, Schedule, Step};
use super::service::{self, Baseline, Service};
use super::strike::{Struck, strike};
use super::summary::Summary;
use super::upgrade::Installed;
use crate::cap_watch::{Watch, length_of_101};
use crate::control::Totals;
use crate::holdfast::binary;

/// Rest between two looks of the watch.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// How long the clients work once the service is whole again, so that what was broken shows.
const AFTERMATH: Duration = Duration::from_millis(150);

/// The supervisor may be without a successor for up to this long.
const LONGEST_WITHOUT_SUPERVISOR_MS: u64 = 1500;

/// What memory may have grown by: a share, and what one burst of buffers takes.
const MEMORY_SHARE: u64 = 4;
const MEMORY_SLACK: u64 = 4 << 20;

/// Of the clients that a worker is only now and then in the middle of something with, so many may be lost when
/// it dies: a share, or a few where that is less. Each holds at most what one turn of its loop was about.
const MID_EVENT_SHARE: usize = 20;
const MID_EVENT_FEW: usize = 3;

/// Why connections may have been closed, as the service counts it.
const EXPECTED_CLOSES: [&str; 3] = ["client", "worker_lost", "error"];

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server program; `None`: the one that is built here.
    pub program: Option<PathBuf>,
    /// `holdfast-next`, to which it is upgraded and back again.
    pub next: PathBuf,
    /// Determines the faults.
    pub seed: u64,
    /// No step begins after this.
    pub duration: Duration,
    /// How many clients.
    pub clients: usize,
    /// How many slots.
    pub workers: u16,
}

/// Does it.
///
/// # Panics
/// When anything is not as it must be.
#[must_use]
pub fn run(plan: &Plan) -> Summary {
    let mut run = Run::begin(plan);
    let mut schedule = Schedule::new(plan.seed, plan.workers.max(*service::SLOTS.end()));
    let deadline = Instant::now() + plan.duration;
    while Instant::now() < deadline {
        let Some(step) = schedule.next() else { break };
        run.step(&step);
    }
    run.end()
}

/// Kills whatever a run of this process has left, for one that cannot end as it should, and returns what the
/// supervisors logged last.
#[must_use]
pub fn clean_up() -> String {
    service::clean_up()
}

struct Run {
    plan: Plan,
    began: Instant,
    service: Service,
    clients: ClientThread,
    watch: Watch,
    baseline: Baseline,
    memory: u64,
    /// Refusals may still be on their way to be counted.
    refusals: VecDeque<bool>,
    /// Open connections that clients lost, so far.
    lost: u64,
    summary: Summary,
}

impl Run {
    fn begin(plan: &Plan) -> Self {
        let began = Instant::now();
        let installed = Installed::new(plan.program.as_deref().unwrap_or_else(|| binary()), &plan.next);
        let service = Service::start(installed, plan.workers, 2 * plan.clients);
        let address = service.server().address();
        let upgraded = length_of_101(service.server());
        let baseline = service.baseline();
        // The same clients as later, once: what it takes to serve it at all is no leak.
        let mut clients = ClientThread::start(address, plan.clients, plan.seed);
        clients.wait(AFTERMATH);
        clients.rest();
        let _ = clients.leave();
        service.wait_at_rest("all are gone", is_empty);
        let memory = service.memory();
        let watch = Watch::start(service.control().clone(), address, upgraded, LOOK_PAUSE);
        let mut clients = ClientThread::start(address, plan.clients, plan.seed);
        let tally = clients.rest();
        assert!(tally.losses.is_empty(), "before anything happened: {:?}", tally.losses);
        clients.work();
        let refusals = VecDeque::from([false]);
        let summary = Summary::new(plan.seed, tally.open);
        Self {
            plan: plan.clone(),
            began,
            service,
            clients,
            watch,
            baseline,
            memory,
            refusals,
            lost: 0,
            summary,
        }
    }

    fn step(&mut self, step: &Step) {
        self.clients.wait(step.pause);
        let workers = self.service.workers().expect("a service that is whole answers");
        let could_refuse = self.service.cap < self.plan.clients;
        let mut struck: Vec<Struck> = Vec::new();
        for aimed in &step.faults {
            let alone = step.faults.len() == 1;
            let one = strike(aimed, alone, &mut self.service, &workers, self.plan.clients);
            eprintln!("{:8.2} {}", self.began.elapsed().as_secs_f64(), one.what);
            struck.push(one);
        }
        let killed = step.faults.iter().find(|aimed| aimed.fault == Fault::KillSupervisor);
        if let Some(aimed) = killed {
            self.clients.wait(Duration::from_millis(aimed.detail % LONGEST_WITHOUT_SUPERVISOR_MS));
            self.service.succeed();
        }
        self.service.wait(&mut self.clients, "the effect of a fault", |service| {
            struck.iter_mut().all(|one| one.is_over(service))
        });
        self.service.wait(&mut self.clients, "the service is whole", Service::is_whole);
        self.clients.wait(AFTERMATH);
        let tally = self.clients.rest();
        let refuses = could_refuse || self.service.cap < self.plan.clients || killed.is_some();
        self.refusals.push_back(refuses);
        self.check_losses(step, &tally, &workers);
        self.refusals.pop_front();
        self.check_at_rest(tally.open as u64);
        self.summary.add(step, &tally);
        self.clients.work();
    }

    /// Nobody was lost but those whom these faults may cost, and no more of them than they may.
    fn check_losses(&mut self, step: &Step, tally: &Tally, workers: &[Totals]) {
        let bounds = Bounds::new(step, &service::connections(workers));
        let (mut idle, mut halfway) = (0, 0);
        for (&(behaviour, loss), &count) in &tally.losses {
            let allowed = match loss {
                Loss::Refused(status) => status == 503 && self.refusals.contains(&true),
                Loss::Unanswered => bounds.cost >= Cost::MidEvent,
                Loss::Closed(1011 | 1012) | Loss::Cut => {
                    bounds.cost == Cost::Slot
                        || (bounds.cost == Cost::MidEvent && behaviour != Behaviour::Idle)
                }
                Loss::Closed(_) => false,
            };
            assert!(allowed, "{count} {behaviour:?} clients {loss}, which {:?} must not cost", step.faults);
            if matches!(loss, Loss::Closed(_) | Loss::Cut) {
                self.lost += count as u64;
                match behaviour {
                    Behaviour::Idle => idle += count as u64,
                    Behaviour::HalfFrame | Behaviour::Slow => halfway += count as u64,
                    Behaviour::Echoing | Behaviour::Restless => {}
                }
            }
        }
        let Bounds { of_slots, of_workers, .. } = bounds;
        assert!(idle <= of_slots, "{idle} idle clients lost, and the slots hit had {of_slots} connections");
        assert!(
            halfway <= of_slots + of_workers,
            "{halfway} clients with half a frame or output queued lost, and the workers hit had {of_workers}"
        );
        for behaviour in [Behaviour::Echoing, Behaviour::Restless] {
            let most = of_slots + bounds.mid_event(behaviour.count(self.plan.clients)) as u64;
            let lost = tally.lost(behaviour) as u64;
            assert!(lost <= most, "{lost} {behaviour:?} clients lost, and {:?} may cost {most}", step.faults);
        }
    }

    /// What can be counted when nothing moves: `open` clients are connected, and that is all.
    fn check_at_rest(&self, open: u64) {
        assert!(!self.watch.has_failed(), "what was watched all the time is not as it must be: see above");
        let service = &self.service;
        service.wait_at_rest(&format!("{open} connections and nobody pending"), |service| {
            service.totals().is_some_and(|totals| {
                (totals.number("connections"), totals.number("pending_handshakes")) == (open, 0)
            })
        });
        service
            .wait_at_rest("no more descriptors than clients", |service| service.leaks_nothing(self.baseline));
        let totals = service.totals().expect("a service that is whole answers");
        assert_eq!(totals.number("anomalies_total"), 0, "{:?}", totals.0);
        let closes = totals.value("closed_total").as_object().expect("closes by reason");
        for (reason, count) in closes.iter().filter(|(reason, _)| !EXPECTED_CLOSES.contains(&reason.as_str()))
        {
            assert_eq!(count.as_u64(), Some(0), "closed_total.{reason}");
        }
        let told = totals.number("closed_total.worker_lost");
        assert!(told >= self.lost, "clients lost {} connections, and {told} are accounted for", self.lost);
    }

    fn end(mut self) -> Summary {
        self.clients.rest();
        let _ = self.clients.leave();
        let service = self.service;
        service.wait_at_rest("all are gone", is_empty);
        service.wait_at_rest("no more descriptors than at first", |service| {
            service.leaks_nothing(self.baseline)
        });
        self.summary.looks = self.watch.end();
        let totals = service.totals().expect("a service that is whole answers");
        let ended = totals.sum("closed_total");
        assert_eq!(totals.number("accepted_total"), ended, "not all that came have gone: {:?}", totals.0);
        let most = self.memory + self.memory / MEMORY_SHARE + MEMORY_SLACK;
        self.summary.memory = (self.memory, service.memory());
        assert!(
            self.summary.memory.1 <= most,
            "memory went from {} to {}",
            self.memory,
            self.summary.memory.1
        );
        self.summary.supervisors = service.supervisors();
        self.summary.totals = Some(totals);
        service.stop();
        self.summary
    }
}

fn is_empty(service: &Service) -> bool {
    service
        .totals()
        .is_some_and(|totals| (totals.number("connections"), totals.number("pending_handshakes")) == (0, 0))
}

/// What a step may cost.
struct Bounds {
    cost: Cost,
    /// Connections of the slots that may be lost as a whole.
    of_slots: u64,
    /// Connections of the workers that die in the middle of something.
    of_workers: u64,
    /// How many such workers.
    workers: usize,
}

impl Bounds {
    /// For a service whose slots `held` so many connections before.
    fn new(step: &Step, held: &BTreeMap<u16, u64>) -> Self {
        let slots = u16::try_from(held.len()).unwrap_or(u16::MAX).max(1);
        let of = |aimed: &Aimed| held.get(&(aimed.slot % slots)).copied().unwrap_or(0);
        let costing = |cost: Cost| step.faults.iter().filter(move |aimed| aimed.fault.cost() == cost).map(of);
        let mut bounds = Self {
            cost: step.faults.iter().map(|aimed| aimed.fault.cost()).max().unwrap_or(Cost::Nothing),
            of_slots: costing(Cost::Slot).sum(),
            of_workers: costing(Cost::MidEvent).sum(),
            workers: costing(Cost::MidEvent).count(),
        };
        if let [one, other] = &step.faults[..]
            && one.fault.costs_slot_with(one.slot % slots, other.fault, other.slot % slots)
        {
            let keeper = if one.fault == Fault::KillKeeper { one } else { other };
            bounds.cost = Cost::Slot;
            bounds.of_slots += of(keeper);
        }
        bounds
    }

    /// How many of `clients` that are only now and then in the middle of something.
    fn mid_event(&self, clients: usize) -> usize {
        self.workers * (clients / MID_EVENT_SHARE).max(MID_EVENT_FEW)
    }
}
