//! What each fault does, and how it is known to be over. Adding a fault is adding an arm here and a line in
//! `fault`.

use std::thread;

use nix::sys::signal::{Signal, kill};

use super::fault::Fault;
use super::schedule::Aimed;
use super::service::Service;
use super::upgrade::{self, Upgrading};
use crate::control::Totals;
use crate::holdfast::pid_of;

/// A fault that has struck.
pub(super) struct Struck {
    /// What was done, for the log.
    pub(super) what: String,
    over: Box<dyn FnMut(&Service) -> bool>,
}

impl Struck {
    fn new(what: String, over: impl FnMut(&Service) -> bool + 'static) -> Self {
        Self { what, over: Box::new(over) }
    }

    /// Whether its effect has come to pass. The service may be less than whole then.
    pub(super) fn is_over(&mut self, service: &Service) -> bool {
        (self.over)(service)
    }
}

/// Lets a fault strike a service that had these `workers` before the step, and gets `clients` clients. One that
/// comes `alone` must end as it should; another may be refused because of its company.
pub(super) fn strike(
    aimed: &Aimed,
    alone: bool,
    service: &mut Service,
    workers: &[Totals],
    clients: usize,
) -> Struck {
    let worker = &workers[usize::from(aimed.slot) % workers.len()];
    let name = aimed.fault.name();
    match aimed.fault {
        Fault::KillWorker => end(worker, "pid", Signal::SIGKILL),
        Fault::CrashWorker => end(worker, "pid", Signal::SIGSEGV),
        Fault::WedgeWorker => end(worker, "pid", Signal::SIGSTOP),
        Fault::KillKeeper => end(worker, "keeper_pid", Signal::SIGKILL),
        Fault::KillSlot => {
            // So that the worker does not see its keeper die.
            let _ = kill(pid_of(worker, "pid"), Signal::SIGSTOP);
            let mut keeper = end(worker, "keeper_pid", Signal::SIGKILL);
            let mut worker = end(worker, "pid", Signal::SIGKILL);
            Struck::new(format!("{}, {}", keeper.what, worker.what), move |service| {
                keeper.is_over(service) && worker.is_over(service)
            })
        }
        Fault::KillSupervisor => {
            let pid = service.server().process().pid();
            service.kill_supervisor();
            Struck::new(format!("{name} (pid {pid})"), |_| true)
        }
        Fault::Reload => reload(aimed.detail, service, clients),
        Fault::RestartBySignal => {
            service.server().signal(Signal::SIGUSR1);
            let before: Vec<u64> = workers.iter().map(|worker| worker.number("incarnation")).collect();
            Struck::new(name.to_owned(), move |service| {
                service.workers().is_some_and(|workers| {
                    workers.iter().zip(&before).all(|(now, before)| now.number("incarnation") > *before)
                })
            })
        }
        Fault::RestartAll => post(name.to_owned(), service, "/restart".to_owned()),
        Fault::RestartSlot => {
            post(format!("{name} (slot {})", aimed.slot), service, format!("/restart?slot={}", aimed.slot))
        }
        Fault::Scale => {
            service.scale(aimed.detail);
            service.server().signal(Signal::SIGHUP);
            Struck::new(format!("{name}: {}", service.slots()), Service::is_whole)
        }
        Fault::Rebalance => post(name.to_owned(), service, "/rebalance".to_owned()),
        Fault::Upgrade => {
            let mut upgrading = Upgrading::to_the_other(service, alone);
            Struck::new(format!("{name} to {:?}", service.build), move |service| upgrading.is_over(service))
        }
        Fault::UpgradeRefused => {
            let unfit = upgrade::Build::unfit(aimed.detail);
            let mut upgrading = Upgrading::to_unfit(unfit, service, alone);
            Struck::new(format!("{name} to {unfit:?}"), move |service| upgrading.is_over(service))
        }
    }
}

/// A signal that costs a process its life, at once or later.
fn end(worker: &Totals, who: &'static str, signal: Signal) -> Struck {
    let (slot, victim) = (usize::try_from(worker.number("slot")).unwrap_or(0), pid_of(worker, who));
    // A fault that came at the same time may have ended it already.
    let _ = kill(victim, signal);
    let victim_number = worker.number(who);
    Struck::new(format!("{signal} to {who} {victim} of slot {slot}"), move |service| {
        service
            .workers()
            .and_then(|workers| workers.get(slot)?.0[who].as_u64())
            .is_some_and(|now| now != victim_number)
    })
}

/// Another cap, above or below the number of clients, another balance, another bound for output.
fn reload(detail: u64, service: &mut Service, clients: usize) -> Struck {
    let pick = |choices: [usize; 4], shift: u32| choices[usize::try_from((detail >> shift) % 4).unwrap_or(0)];
    let cap = pick([clients / 2, clients.saturating_sub(7).max(1), clients + 50, 2 * clients], 0);
    let balance =
        ["kernel", "least-connections", "source-address", "least-connections"][pick([0, 1, 2, 3], 2)];
    let queued = ["64MiB", "32MiB", "16MiB", "64MiB"][pick([0, 1, 2, 3], 4)];
    service.write_config(cap, balance, queued);
    service.server().signal(Signal::SIGHUP);
    Struck::new(format!("reload: {cap} connections, {balance}, {queued}"), move |service| {
        service.totals().is_some_and(|totals| totals.number("max_connections") == cap as u64)
    })
}

/// Asks from another thread, for an answer may take as long as the service does.
fn post(what: String, service: &Service, target: String) -> Struck {
    let control = service.control().clone();
    let mut asking = Some(thread::spawn(move || control.try_request("POST", &target)));
    let text = what.clone();
    Struck::new(what, move |_| {
        let Some(answer) = asking.take_if(|asking| asking.is_finished()) else { return asking.is_none() };
        match answer.join() {
            // What struck at the same time may make it impossible; the answer says so.
            Ok(Some(answer)) => eprintln!("        {text}: {} {}", answer.status, answer.text().trim_end()),
            _ => eprintln!("        {text}: no answer"),
        }
        true
    })
}
