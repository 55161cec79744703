//! What parent and client processes say to each other: a plan and then single bytes down, JSON lines up.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clients::{End, Kind, Latencies, Role, Stats};

/// A client process's share of the load, the first thing it reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where to.
    pub server: SocketAddr,
    /// The upgrade request.
    pub request: String,
    /// Where each client comes from; `None`: as the kernel chooses.
    pub sources: Vec<Option<IpAddr>>,
    /// How many clients; they use the sources in turn.
    pub clients: usize,
    /// What they do.
    pub role: Role,
    /// Text or bytes.
    pub kind: Kind,
    /// The server sends frames back masked, as they came.
    pub raw: bool,
    /// Messages per second; `None`: the next one goes when one has come back.
    pub rate: Option<f64>,
    /// Clients that may be connecting at one time.
    pub connecting: usize,
}

impl Plan {
    /// Writes it: its length in eight bytes, then JSON. (As an argument it could be too long:
    /// MAX_ARG_STRLEN.)
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        to.write_all(&(json.len() as u64).to_le_bytes())?;
        to.write_all(&json)
    }

    /// Reads it, and not a byte more.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        Ok(serde_json::from_reader(from.take(u64::from_le_bytes(length)))?)
    }
}

/// From the parent, one byte each. End of input means the parent has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Connect your clients.
    Connect,
    /// Begin the work.
    Go,
    /// Count from here.
    Measure,
    /// Report and end.
    Stop,
}

impl Order {
    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Connect => b'c',
            Self::Go => b'g',
            Self::Measure => b'm',
            Self::Stop => b's',
        }
    }

    /// The order a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Connect, Self::Go, Self::Measure, Self::Stop].into_iter().find(|order| order.byte() == byte)
    }
}

/// From a client process, one line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Word {
    /// Some times a second, and when the last client has connected or failed.
    Progress(Progress),
    /// The last word.
    Done(Outcome),
}

/// How things stand.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Clients whose connection is open.
    pub open: u64,
    /// Clients that have yet to be let in or refused; `None` before they were told to connect.
    pub undecided: Option<u64>,
    /// Units of work since measuring began.
    pub units: u64,
    /// Open connections lost so far.
    pub lost: u64,
    /// Longest latency of a unit since measuring began.
    pub longest_wait: Duration,
}

/// Everything a client process has counted, or all of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Clients open at the end.
    pub open: u64,
    /// Clients that had neither been let in nor refused.
    pub undecided: u64,
    /// Messages echoed, or handshakes done, or messages taken, as the mode has it.
    pub units: u64,
    /// Payload bytes of those messages.
    pub bytes: u64,
    /// Pings answered.
    pub pings: u64,
    /// Handshakes that ended in a status, 101 included.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections that came to nothing, by what happened.
    pub failures: BTreeMap<String, u64>,
    /// Open connections that were lost, by what happened.
    pub lost: BTreeMap<String, u64>,
    /// Latency buckets: nanoseconds, count.
    pub latencies: Vec<(u64, u64)>,
}

impl Outcome {
    /// What clients in `role` came to.
    pub fn of(stats: &Stats, role: Role) -> Self {
        let (units, latencies) = work(stats, role);
        let mut outcome = Self {
            open: stats.open as u64,
            undecided: stats.undecided() as u64,
            units,
            bytes: stats.bytes,
            pings: stats.pings,
            latencies: latencies.to_pairs(),
            ..Self::default()
        };
        if stats.let_in > 0 {
            outcome.statuses.insert(101, stats.let_in);
        }
        for (&end, &count) in &stats.ends {
            let entry = match end {
                End::Left => continue,
                End::Refused(status) => outcome.statuses.entry(status).or_default(),
                End::Failed(fault) => outcome.failures.entry(fault.to_string()).or_default(),
                End::Lost(fault) => outcome.lost.entry(fault.to_string()).or_default(),
                End::Closed(code) => {
                    outcome.lost.entry(format!("closed by the server with code {code}")).or_default()
                }
            };
            *entry += count as u64;
        }
        outcome
    }

    /// Adds another process's.
    pub fn add(&mut self, other: Self) {
        self.open += other.open;
        self.undecided += other.undecided;
        self.units += other.units;
        self.bytes += other.bytes;
        self.pings += other.pings;
        add_all(&mut self.statuses, other.statuses);
        add_all(&mut self.failures, other.failures);
        add_all(&mut self.lost, other.lost);
        self.latencies.extend(other.latencies);
    }
}

fn add_all<K: Ord>(to: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
    for (key, count) in from {
        *to.entry(key).or_default() += count;
    }
}

impl Progress {
    /// How clients in `role` are doing; `told`: they were told to connect.
    pub fn of(stats: &Stats, role: Role, told: bool) -> Self {
        let (units, latencies) = work(stats, role);
        let closed = |(end, count): (&End, &usize)| matches!(end, End::Closed(_)).then_some(*count);
        let lost = stats.lost() + stats.ends.iter().filter_map(closed).sum::<usize>();
        Self {
            open: stats.open as u64,
            undecided: told.then(|| stats.undecided() as u64),
            units,
            lost: lost as u64,
            longest_wait: Duration::from_nanos(latencies.longest()),
        }
    }
}

/// Units of work since measuring began, and their latencies: messages where there are any, else handshakes.
fn work(stats: &Stats, role: Role) -> (u64, &Latencies) {
    match role {
        Role::Handshake | Role::Idle | Role::Silent => (stats.handshakes.count(), &stats.handshakes),
        _ => (stats.echoes, &stats.latencies),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_arrives_and_what_follows_it_stays() {
        let sources = [Some(IpAddr::from([127, 0, 0, 1])), None];
        let plan = Plan {
            server: SocketAddr::from(([127, 0, 0, 1], 80)),
            request: "GET / HTTP/1.1\r\n\r\n".to_owned(),
            sources: sources.repeat(10_000),
            clients: 3,
            role: Role::Echo { in_flight: 2, size: 1 },
            kind: Kind::Text,
            raw: true,
            rate: Some(0.5),
            connecting: 7,
        };
        let mut wire = Vec::new();
        plan.write(&mut wire).unwrap();
        wire.push(Order::Go.byte());
        let mut rest = &wire[..];
        assert_eq!(Plan::read(&mut rest).unwrap(), plan);
        assert_eq!(Order::from_byte(rest[0]), Some(Order::Go));
    }
}
