//! What came of it, as JSON and as text for people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::server::Cpu;
use crate::clients::Latencies;

/// One measurement.
#[derive(Debug, Serialize)]
pub struct Report {
    /// echo, idle, burst, handshake, storm or slow-reader.
    pub mode: &'static str,
    /// The server.
    pub target: String,
    /// Clients asked for.
    pub clients: usize,
    /// Processes they were spread over.
    pub processes: usize,
    /// Clients open at the end.
    pub open: u64,
    /// Clients that were neither let in nor refused in time.
    pub undecided: u64,
    /// Time from the order to connect until all were let in or refused.
    pub connect_seconds: Option<f64>,
    /// Time measured: of the work, or of staying.
    pub seconds: f64,
    /// What `units` counts.
    pub unit: &'static str,
    /// Work done in that time; for idle and storm, handshakes while connecting.
    pub units: u64,
    /// Rate of that work.
    pub units_per_second: f64,
    /// Payload bytes each way.
    pub payload_bytes_per_second: f64,
    /// From sending to the whole echo, or from connecting to the 101.
    pub latency_microseconds: Option<Quantiles>,
    /// Pings answered.
    pub pings: u64,
    /// Answers to upgrade requests, since the start.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections that came to nothing, since the start.
    pub failures: BTreeMap<String, u64>,
    /// Open connections that were lost, since the start.
    pub lost: BTreeMap<String, u64>,
    /// CPU seconds of the client processes over the same time.
    pub load_cpu_seconds: f64,
    /// The server's costs, when its processes were named.
    pub server: Option<ServerCosts>,
    /// Growth of the kernel's memory per open connection on this machine, both ends when both are here.
    pub kernel_bytes_per_connection: Option<i64>,
    /// Everything went as the mode expects.
    pub ok: bool,
}

/// Latencies in microseconds.
#[derive(Debug, Serialize)]
pub struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

impl Quantiles {
    /// `None` when there are none.
    pub fn of(latencies: &Latencies) -> Option<Self> {
        let at = |quantile| ratio(latencies.quantile(quantile), 1_000);
        (latencies.count() > 0).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        })
    }
}

/// What the server used.
#[derive(Debug, Serialize)]
pub struct ServerCosts {
    /// Processes at the end.
    pub processes: usize,
    /// CPU seconds in user mode for `units`.
    pub cpu_user_seconds: f64,
    /// CPU seconds in the kernel for `units`.
    pub cpu_system_seconds: f64,
    /// Both.
    pub cpu_seconds: f64,
    /// Work per CPU second: the figure to compare servers by.
    pub units_per_cpu_second: f64,
    /// Its inverse.
    pub cpu_microseconds_per_unit: f64,
    /// Share of one core used while clients only stayed.
    pub idle_cpu_share: Option<f64>,
    /// Pss before the first client.
    pub pss_bytes_before: u64,
    /// Pss with all clients in and idle, before a burst.
    pub pss_bytes_idle: Option<u64>,
    /// Pss while every message of a burst lacked its last byte.
    pub pss_bytes_peak: Option<u64>,
    /// Pss with the clients, at the end.
    pub pss_bytes_after: u64,
    /// Growth per open connection.
    pub pss_bytes_per_connection: Option<f64>,
}

impl ServerCosts {
    /// CPU time per unit and memory per connection.
    pub fn new(processes: usize, cpu: Cpu, units: u64, pss: (u64, u64), open: u64) -> Self {
        let (before, after) = pss;
        let growth = ratio(after, 1) - ratio(before, 1);
        let units = ratio(units, 1);
        Self {
            processes,
            cpu_user_seconds: cpu.user,
            cpu_system_seconds: cpu.system,
            cpu_seconds: cpu.total(),
            units_per_cpu_second: if cpu.total() > 0.0 { units / cpu.total() } else { 0.0 },
            cpu_microseconds_per_unit: if units > 0.0 { cpu.total() * 1e6 / units } else { 0.0 },
            idle_cpu_share: None,
            pss_bytes_before: before,
            pss_bytes_idle: None,
            pss_bytes_peak: None,
            pss_bytes_after: after,
            pss_bytes_per_connection: (open > 0).then(|| growth / ratio(open, 1)),
        }
    }
}

/// Division for people: beyond 2^53 the last digits do not matter.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub fn ratio(numerator: u64, denominator: u64) -> f64 {
    numerator as f64 / denominator as f64
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plural = if self.processes == 1 { "process" } else { "processes" };
        writeln!(
            f,
            "{} against {}: {} clients, {} {plural}",
            self.mode, self.target, self.clients, self.processes
        )?;
        if let Some(seconds) = self.connect_seconds {
            writeln!(f, "  connecting   {seconds:.2} s")?;
        }
        writeln!(f, "  measured     {:.2} s, {} clients open at the end", self.seconds, self.open)?;
        writeln!(f, "  {:<12} {}, {:.0}/s", self.unit, self.units, self.units_per_second)?;
        if self.payload_bytes_per_second > 0.0 {
            writeln!(f, "  payload      {:.1} MiB/s each way", self.payload_bytes_per_second / 1_048_576.0)?;
        }
        if let Some(Quantiles { p50, p90, p99, p999, max }) = &self.latency_microseconds {
            let (p50, p90, p99, p999, max) = (Time(*p50), Time(*p90), Time(*p99), Time(*p999), Time(*max));
            writeln!(f, "  latency      p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}")?;
        }
        if self.pings > 0 {
            writeln!(f, "  pings        {} answered", self.pings)?;
        }
        list(f, "status", &self.statuses)?;
        list(f, "failed", &self.failures)?;
        list(f, "lost", &self.lost)?;
        if self.undecided > 0 {
            writeln!(f, "  undecided    {} neither let in nor refused in time", self.undecided)?;
        }
        writeln!(f, "  clients' CPU {:.2} s", self.load_cpu_seconds)?;
        if let Some(server) = &self.server {
            write!(f, "{server}")?;
        }
        if let Some(bytes) = self.kernel_bytes_per_connection {
            writeln!(
                f,
                "  kernel       {bytes} bytes per connection (this machine's slab and socket buffers)"
            )?;
        }
        Ok(())
    }
}

impl Display for ServerCosts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  server CPU   {:.2} s ({:.2} user, {:.2} system) in {} processes: {:.0} per CPU second, {:.2} µs each",
            self.cpu_seconds,
            self.cpu_user_seconds,
            self.cpu_system_seconds,
            self.processes,
            self.units_per_cpu_second,
            self.cpu_microseconds_per_unit,
        )?;
        if let Some(share) = self.idle_cpu_share {
            writeln!(f, "  while idle   {:.2} % of a core", share * 100.0)?;
        }
        let mib = |bytes| ratio(bytes, 1_048_576);
        if let (Some(idle), Some(peak)) = (self.pss_bytes_idle, self.pss_bytes_peak) {
            let (idle, peak, after) = (mib(idle), mib(peak), mib(self.pss_bytes_after));
            let back = after / idle - 1.0;
            writeln!(
                f,
                "  burst Pss    {idle:.2} MiB idle, {peak:.2} MiB at the peak, {after:.2} MiB afterwards ({:+.1} %)",
                back * 100.0
            )?;
        }
        let (before, after) = (mib(self.pss_bytes_before), mib(self.pss_bytes_after));
        write!(f, "  server Pss   {before:.2} MiB before, {after:.2} MiB at the end")?;
        match self.pss_bytes_per_connection {
            Some(bytes) => writeln!(f, ": {bytes:.0} bytes per connection"),
            None => writeln!(f),
        }
    }
}

fn list<K: Display>(f: &mut Formatter<'_>, title: &str, counts: &BTreeMap<K, u64>) -> fmt::Result {
    for (what, count) in counts {
        writeln!(f, "  {title:<12} {what}: {count}")?;
    }
    Ok(())
}

/// Microseconds in the unit that reads best.
struct Time(f64);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            us if us < 1_000.0 => write!(f, "{us:.0} µs"),
            us if us < 1e6 => write!(f, "{:.2} ms", us / 1e3),
            us => write!(f, "{:.2} s", us / 1e6),
        }
    }
}
