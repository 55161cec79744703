//! The parent: shares the load out, times its phases, reads the server's costs at their edges, adds
//! everything up.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::LoadError;
use super::cli::Job;
use super::endpoint::Sources;
use super::kernel;
use super::processes::ClientProcesses;
use super::report::{Quantiles, Report, ServerCosts, ratio};
use super::server::{Cpu, Watched};
use super::watch::Line;
use super::wire::{Order, Outcome, Plan, Progress};
use crate::clients::{Latencies, Role};
use crate::handshake;

/// Descriptors a client process needs besides its clients'.
const SPARE_DESCRIPTORS: u64 = 32;

/// Costs up to a moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    server: Cpu,
    load: Cpu,
}

/// Does the job and reports on it.
///
/// # Errors
/// When the load cannot be made, or not one client gets in.
pub fn run(job: &Job) -> Result<Report, LoadError> {
    let server = job.server();
    if let Some(server) = &server {
        server.check()?;
    }
    let plans = plans(job)?;
    let mut clients = ClientProcesses::start(Path::new("/proc/self/exe"), &plans)?;
    let load = Watched::Only(clients.pids());
    let mark = || -> Result<Mark, LoadError> {
        let server = server.as_ref().map_or(Ok(Cpu::default()), Watched::cpu)?;
        Ok(Mark { at: Instant::now(), server, load: load.cpu()? })
    };
    let pss = || server.as_ref().map_or(Ok(0), Watched::pss);
    let mut screen = Screen::new(job);

    let pss_before = pss()?;
    let kernel_before = kernel::memory();
    let start = mark()?;
    let mut settled = start;
    if job.connect_first {
        clients.order(Order::Connect)?;
        let decided = |progress: &Progress| progress.undecided == Some(0);
        let deadline = Instant::now() + job.common.connect_timeout;
        clients.listen(deadline, decided, |progress| screen.show("connecting", progress))?;
        settled = mark()?;
    }
    let is_burst = matches!(job.role, Role::InParts { .. });
    let pss_idle = is_burst.then(pss).transpose()?;
    let mut pss_peak = None;
    let mut from = settled;
    if let Some(warmup) = job.warmup {
        clients.order(Order::Go)?;
        wait(&mut clients, warmup, |progress| screen.show("warming up", progress))?;
        from = mark()?;
        pss_peak = is_burst.then(pss).transpose()?;
        clients.order(Order::Measure)?;
    }
    wait(&mut clients, job.duration, |progress| screen.show("measuring", progress))?;
    let to = mark()?;
    let (pss_after, kernel_after) = (pss()?, kernel::memory());
    let server_processes = server.as_ref().map_or(Ok(0), |server| server.pids().map(|pids| pids.len()))?;
    let outcomes = clients.stop()?;
    screen.clear();

    // Where there is no work, the connecting was.
    let (work_from, work_to) = if job.warmup.is_some() { (from, to) } else { (start, settled) };
    let mut report = add_up(job, &plans, outcomes, (work_to.at - work_from.at).as_secs_f64())?;
    report.seconds = (to.at - from.at).as_secs_f64();
    report.connect_seconds = job.connect_first.then(|| (settled.at - start.at).as_secs_f64());
    report.load_cpu_seconds = work_to.load.since(work_from.load).total();
    report.server = server.is_some().then(|| {
        let cpu = work_to.server.since(work_from.server);
        let mut costs =
            ServerCosts::new(server_processes, cpu, report.units, (pss_before, pss_after), report.open);
        let stayed = job.warmup.is_none() && !job.duration.is_zero();
        (costs.pss_bytes_idle, costs.pss_bytes_peak) = (pss_idle, pss_peak);
        costs.idle_cpu_share = stayed.then(|| to.server.since(settled.server).total() / report.seconds);
        costs
    });
    let growth = kernel_after.zip(kernel_before).map(|(after, before)| after - before);
    let open = i64::try_from(report.open).unwrap_or(i64::MAX);
    // While messages travel it is their number that counts, not the connections'.
    let quiet = open > 0 && !matches!(job.role, Role::Echo { .. });
    report.kernel_bytes_per_connection = growth.filter(|_| quiet).map(|growth| growth / open);
    Ok(report)
}

fn wait(
    clients: &mut ClientProcesses,
    duration: Duration,
    show: impl FnMut(&Progress),
) -> Result<(), LoadError> {
    clients.listen(Instant::now() + duration, |_| false, show).map(|_| ())
}

/// One plan for each process.
fn plans(job: &Job) -> Result<Vec<Plan>, LoadError> {
    let server = job.common.target.resolve()?;
    let processes = processes(job)?;
    let sources = match &job.common.sources {
        Some(sources) => sources.clone(),
        None => Sources::for_target(server, job.clients, job.per_source),
    };
    let headers: String = job.common.headers.iter().map(|header| header.trim().to_owned() + "\r\n").collect();
    let request = handshake::request(&job.common.target.host, &job.common.target.path, &headers);
    let request = String::from_utf8_lossy(&request).into_owned();
    let share = |of: usize, index: usize| of * (index + 1) / processes - of * index / processes;
    let mut first = 0;
    let plan = |index| {
        let clients = share(job.clients, index);
        // Each process goes on where the one before stopped, so that all sources are used evenly.
        let own = (first..first + clients.min(sources.count())).map(|n| sources.of(n)).collect();
        first += clients;
        let &Job { role, kind, raw, .. } = job;
        let rate = job.rate.map(|rate| rate * ratio(clients as u64, job.clients as u64));
        let connecting = share(job.connecting, index).max(1);
        Plan { server, request: request.clone(), sources: own, clients, role, kind, raw, rate, connecting }
    };
    Ok((0..processes).map(plan).collect())
}

/// As many as asked for, or as the descriptor limit demands; raises the soft limit to the hard one.
fn processes(job: &Job) -> Result<usize, LoadError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let each = usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(usize::MAX).max(1);
    let needed = job.clients.div_ceil(each).max(1);
    let processes = job.common.processes.map_or(needed, usize::from).min(job.clients);
    if processes < needed {
        return Err(LoadError::Descriptors { clients: job.clients, processes, limit, needed });
    }
    Ok(processes)
}

fn add_up(job: &Job, plans: &[Plan], outcomes: Vec<Outcome>, seconds: f64) -> Result<Report, LoadError> {
    let mut counts = Outcome::default();
    outcomes.into_iter().for_each(|outcome| counts.add(outcome));
    let mut latencies = Latencies::default();
    latencies.add_pairs(&counts.latencies);
    if counts.statuses.is_empty() {
        let most = counts.failures.iter().max_by_key(|(_, count)| **count);
        let why = most.map_or_else(|| "no answer in time".to_owned(), |(what, _)| what.clone());
        return Err(LoadError::NobodyIn { target: job.common.target.to_string(), why });
    }
    let undecided = if job.connect_first { counts.undecided } else { 0 };
    let refused = counts.statuses.keys().any(|status| *status != 101);
    let troubled = refused || undecided > 0 || !counts.failures.is_empty() || !counts.lost.is_empty();
    let idle_only = job.warmup.is_none();
    let units = if idle_only { counts.statuses.values().sum() } else { counts.units };
    let per_second = |count: u64| if seconds > 0.0 { ratio(count, 1) / seconds } else { 0.0 };
    Ok(Report {
        mode: job.mode,
        target: job.common.target.to_string(),
        clients: job.clients,
        processes: plans.len(),
        open: counts.open,
        undecided,
        connect_seconds: None,
        seconds,
        unit: job.unit,
        units,
        units_per_second: per_second(units),
        payload_bytes_per_second: per_second(counts.bytes),
        latency_microseconds: Quantiles::of(&latencies),
        pings: counts.pings,
        statuses: counts.statuses,
        failures: counts.failures,
        lost: counts.lost,
        load_cpu_seconds: 0.0,
        server: None,
        kernel_bytes_per_connection: None,
        ok: !(job.strict && troubled),
    })
}

/// The progress line on a terminal; nothing elsewhere.
struct Screen {
    /// What `watch` shows instead, wherever it is.
    watch: Option<Line>,
    visible: bool,
    unit: &'static str,
    last: Option<(Instant, u64)>,
}

impl Screen {
    const INTERVAL: Duration = Duration::from_millis(500);

    fn new(job: &Job) -> Self {
        let visible = !job.common.json && io::stderr().is_terminal();
        let watch = (job.mode == "watch" && !job.common.json).then(Line::new);
        Self { watch, visible, unit: job.unit, last: None }
    }

    fn show(&mut self, doing: &str, progress: &Progress) {
        if let Some(line) = &mut self.watch {
            return line.show(progress);
        }
        if !self.visible || self.last.is_some_and(|(at, _)| at.elapsed() < Self::INTERVAL) {
            return;
        }
        let since = self.last.replace((Instant::now(), progress.units));
        let rate = since.map_or(0.0, |(at, units)| {
            ratio(progress.units.saturating_sub(units), 1) / at.elapsed().as_secs_f64()
        });
        let Progress { open, undecided, lost, .. } = progress;
        let undecided = undecided.unwrap_or(0);
        let unit = self.unit;
        // Carriage return and "erase to end of line" keep it one line.
        let line =
            format!("\r{doing}: {open} open, {undecided} undecided, {lost} lost, {rate:.0} {unit}/s\x1b[K");
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn clear(&self) {
        if let Some(line) = &self.watch {
            return line.end();
        }
        if self.visible {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
