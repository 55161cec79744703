//! The command line of `holdfast-load`, and what it asks for as a job.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::endpoint::{PORTS_PER_SOURCE, Sources, Target};
use super::server::Watched;
use crate::clients::{Kind, Role};

/// Nobody means to run longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes all clients' messages of a process may have in flight, which it keeps ready.
const MOST_IN_FLIGHT: usize = 1 << 30;
/// Clients that connect at one time, unless the mode is about that.
const CONNECTING: usize = 1_000;
/// Clients of `watch` from one address: what a Holdfast without configuration lets in.
const WATCHED_PER_SOURCE: usize = 100;
/// Payload bytes of a message of `watch`.
const COUNTER_SIZE: usize = 16;

/// Loads a WebSocket echo server and measures what it does and what that costs.
///
/// Reports rates and latencies and, for a server on this machine (--server-pid-tree), CPU time per unit of
/// work and memory per connection. Raise the server's own limits first: most have one for connections, and
/// Holdfast has one per address (--max-connections-per-address 0).
#[derive(Debug, Parser)]
#[command(name = "holdfast-load", version, max_term_width = 120, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  holdfast-load echo ws://127.0.0.1:8080/ --clients 1000 --size 125 --duration 10s
  holdfast-load echo 127.0.0.1:8080 --clients 200 --in-flight 16 --size 20 --server-pid-tree \"$(cat /run/holdfast/holdfast.pid)\"
  holdfast-load idle 127.0.0.1:8080 --clients 300000 --hold 1m
  holdfast-load watch --clients 1000
  holdfast-load storm 127.0.0.1:8080 --clients 20000 --processes 4 --json

Exit status: 0 when all went as the mode expects; 1 when a connection failed or was lost, or an echo was wrong; 2 on bad usage.";

/// The modes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Clients send messages and check every byte that comes back
    Echo(Echo),
    /// Clients connect and stay, answering pings
    Idle(Idle),
    /// Clients send one large message each, all at once, and are idle before and after: what memory does
    Burst(Burst),
    /// Clients connect, upgrade and leave, over and over
    Handshake(Handshake),
    /// Clients connect all at once, to meet a limit; the answers are counted
    Storm(Storm),
    /// Clients send without end and never read, to meet a bound on memory
    SlowReader(SlowReader),
    /// Clients stay and each sends a message now and then: one line says how they fare while you do things to
    /// the server
    Watch(Watch),
    /// One process of clients, started by the others
    #[command(hide = true)]
    ClientProcess,
}

/// Options of all modes.
#[derive(Debug, Args)]
pub struct Common {
    /// The server: ws://host:port/path, or host:port
    #[arg(default_value = "ws://127.0.0.1:8080/")]
    pub target: Target,
    /// Processes to spread the clients over [default: as many as the descriptor limit demands]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub processes: Option<u16>,
    /// Addresses the clients come from, such as 127.0.0.2-127.0.0.40 or a list with commas; each carries
    /// 14,000 connections quickly and 28,000 slowly [default: loopback addresses as needed when the
    /// server is on loopback, else as the kernel chooses]
    #[arg(long, value_name = "ADDRESSES")]
    pub sources: Option<Sources>,
    /// Header line for the upgrade request, such as 'Origin: https://example.org'; may be repeated
    #[arg(long = "header", value_name = "LINE", value_parser = header_line)]
    pub headers: Vec<String>,
    /// Longest wait for all clients to be let in or refused
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub connect_timeout: Duration,
    /// Processes of the server, on this machine: measures their CPU time and memory
    #[arg(long, value_name = "PID,PID", value_delimiter = ',')]
    pub server_pids: Vec<u32>,
    /// As --server-pids, for a process and all its descendants
    #[arg(long, value_name = "PID", conflicts_with = "server_pids")]
    pub server_pid_tree: Option<u32>,
    /// Print only one line of JSON, and no progress
    #[arg(long)]
    pub json: bool,
}

/// Options of `echo`.
#[derive(Debug, Args)]
pub struct Echo {
    #[command(flatten)]
    common: Common,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = count)]
    clients: usize,
    /// Messages each client keeps travelling
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    in_flight: u64,
    /// Payload of a message, such as 125 or 16KiB
    #[arg(long, value_name = "SIZE", default_value = "125", value_parser = size)]
    size: usize,
    /// Kind of messages
    #[arg(long = "type", value_name = "KIND", value_enum, default_value_t = Kind::Text)]
    kind: Kind,
    /// Messages per second over all clients; latency then counts from when a message was due [default: as
    /// fast as they come back]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long to work before that
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    warmup: Duration,
    /// The server sends back the bytes it got, masked frames and all (holdfast-floor)
    #[arg(long)]
    raw: bool,
}

/// Options of `idle`.
#[derive(Debug, Args)]
pub struct Idle {
    #[command(flatten)]
    common: Common,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = count)]
    clients: usize,
    /// How long to stay once all are in
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    hold: Duration,
}

/// Options of `burst`.
#[derive(Debug, Args)]
pub struct Burst {
    #[command(flatten)]
    common: Common,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = count)]
    clients: usize,
    /// Payload of the message
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    size: usize,
    /// How long the messages stay without their last byte, so that the server holds them all
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pause: Duration,
    /// How long to stay after that
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    hold: Duration,
}

/// Options of `handshake`.
#[derive(Debug, Args)]
pub struct Handshake {
    #[command(flatten)]
    common: Common,
    /// Handshakes under way at one time
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    concurrency: usize,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long to work before that
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    warmup: Duration,
}

/// Options of `storm`.
#[derive(Debug, Args)]
pub struct Storm {
    #[command(flatten)]
    common: Common,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = count)]
    clients: usize,
    /// How long those that were let in stay
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    hold: Duration,
}

/// Options of `slow-reader`.
#[derive(Debug, Args)]
pub struct SlowReader {
    #[command(flatten)]
    common: Common,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    clients: usize,
    /// Payload of a message
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = size)]
    size: usize,
    /// How long to go on
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
}

/// Options of `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    #[command(flatten)]
    common: Common,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = count)]
    clients: usize,
    /// Messages per second over all clients
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long to go on
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    duration: Duration,
}

/// What is to be done, whatever the mode is called.
#[derive(Debug)]
pub struct Job {
    /// The mode's name.
    pub mode: &'static str,
    /// What one unit of its work is.
    pub unit: &'static str,
    /// Options of all modes.
    pub common: Common,
    /// Clients over all processes.
    pub clients: usize,
    /// What each does.
    pub role: Role,
    /// Text or bytes.
    pub kind: Kind,
    /// The server sends frames back masked, as they came.
    pub raw: bool,
    /// Messages per second over all processes; `None`: the next one goes when one has come back.
    pub rate: Option<f64>,
    /// Clients from one address, unless the addresses were named.
    pub per_source: usize,
    /// Clients connecting at one time, over all processes.
    pub connecting: usize,
    /// Clients connect first, and the work begins when all are in.
    pub connect_first: bool,
    /// Time at work before measuring; `None`: there is no work, the clients only stay.
    pub warmup: Option<Duration>,
    /// Time to measure, or to stay.
    pub duration: Duration,
    /// A refusal or a lost connection is a failure.
    pub strict: bool,
}

impl Command {
    /// The job; `None` for a client process.
    ///
    /// # Errors
    /// When the options cannot go together.
    pub fn job(self) -> Result<Job, String> {
        match self {
            Self::Echo(echo) => echo.job(),
            Self::Idle(idle) => Ok(Job {
                connect_first: true,
                ..Job::new("idle", "handshakes", idle.common, idle.clients, Role::Idle, idle.hold)
            }),
            Self::Burst(burst) => Ok(Job {
                connect_first: true,
                warmup: Some(burst.pause),
                ..Job::new(
                    "burst",
                    "messages",
                    burst.common,
                    burst.clients,
                    Role::InParts { size: burst.size },
                    burst.hold,
                )
            }),
            Self::Handshake(shake) => Ok(Job {
                warmup: Some(shake.warmup),
                connecting: shake.concurrency,
                ..Job::new(
                    "handshake",
                    "handshakes",
                    shake.common,
                    shake.concurrency,
                    Role::Handshake,
                    shake.duration,
                )
            }),
            Self::Storm(storm) => Ok(Job {
                connect_first: true,
                connecting: storm.clients,
                strict: false,
                ..Job::new("storm", "handshakes", storm.common, storm.clients, Role::Idle, storm.hold)
            }),
            Self::SlowReader(slow) => Ok(Job {
                connect_first: true,
                warmup: Some(Duration::ZERO),
                strict: false,
                ..Job::new(
                    "slow-reader",
                    "messages",
                    slow.common,
                    slow.clients,
                    Role::Flood { size: slow.size },
                    slow.duration,
                )
            }),
            Self::Watch(watch) => {
                let role = Role::Echo { in_flight: 1, size: COUNTER_SIZE };
                Ok(Job {
                    kind: Kind::Text,
                    rate: Some(watch.rate.into()),
                    connect_first: true,
                    warmup: Some(Duration::ZERO),
                    per_source: WATCHED_PER_SOURCE,
                    ..Job::new("watch", "messages", watch.common, watch.clients, role, watch.duration)
                })
            }
            Self::ClientProcess => Err("a client process has no job of its own".to_owned()),
        }
    }
}

impl Echo {
    fn job(self) -> Result<Job, String> {
        let Self { common, clients, in_flight, size, kind, rate, duration, warmup, raw } = self;
        if in_flight.saturating_mul(size as u64) > MOST_IN_FLIGHT as u64 {
            return Err("--size times --in-flight may be 1 GiB at most".to_owned());
        }
        let role = Role::Echo { in_flight, size };
        Ok(Job {
            kind,
            raw,
            rate: rate.map(f64::from),
            connect_first: true,
            warmup: Some(warmup),
            ..Job::new("echo", "messages", common, clients, role, duration)
        })
    }
}

impl Job {
    fn new(
        mode: &'static str,
        unit: &'static str,
        common: Common,
        clients: usize,
        role: Role,
        duration: Duration,
    ) -> Self {
        let connecting = CONNECTING;
        Self {
            mode,
            unit,
            common,
            clients,
            role,
            kind: Kind::Binary,
            raw: false,
            rate: None,
            per_source: PORTS_PER_SOURCE,
            connecting,
            connect_first: false,
            warmup: None,
            duration,
            strict: true,
        }
    }

    /// The server's processes, if they were named.
    #[must_use]
    pub fn server(&self) -> Option<Watched> {
        match (self.common.server_pid_tree, &self.common.server_pids[..]) {
            (Some(root), _) => Some(Watched::Tree(root)),
            (None, []) => None,
            (None, pids) => Some(Watched::Only(pids.to_vec())),
        }
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.replace('_', "").parse() {
        Ok(count @ 1..=10_000_000) => Ok(count),
        _ => Err("expected a number from 1 to 10000000".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs);
    match seconds.or_else(|_| humantime::parse_duration(text)) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("a day at most".to_owned()),
        Err(_) => Err("expected a time such as 10s or 2m".to_owned()),
    }
}

fn size(text: &str) -> Result<usize, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("B", 1), ("", 1)];
    let parsed = units.into_iter().find_map(|(suffix, unit)| {
        let number = text.strip_suffix(suffix)?.trim();
        Some(number.parse::<usize>().ok()?.saturating_mul(unit))
    });
    match parsed {
        Some(size) if size <= MOST_IN_FLIGHT / 4 => Ok(size),
        Some(_) => Err("256MiB at most".to_owned()),
        None => Err("expected a size such as 125 or 16KiB".to_owned()),
    }
}

fn header_line(text: &str) -> Result<String, String> {
    if text.contains(['\r', '\n']) || !text.contains(':') {
        return Err("expected one line, 'Name: value'".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_sizes_have_units_and_bounds() {
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("2days").is_err() && duration("fast").is_err());
        assert_eq!(size("16KiB"), Ok(16_384));
        assert_eq!(size("0"), Ok(0));
        assert!(size("1TiB").is_err() && size("1024MiB").is_err());
        assert!(count("0").is_err());
    }

    #[test]
    fn every_mode_is_bounded_by_default() {
        for mode in ["echo", "idle", "burst", "handshake", "storm", "slow-reader", "watch"] {
            let job = Cli::try_parse_from(["holdfast-load", mode]).unwrap().command.job().unwrap();
            assert!(job.duration <= LONGEST && job.common.connect_timeout <= LONGEST && job.clients > 0);
        }
    }
}
