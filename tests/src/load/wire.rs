//! What parent and client processes say to each other: a plan and then single bytes down, JSON lines up.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pattern::Kind;
use super::tally::Counts;

/// What an open client does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// Keeps messages travelling and checks every byte that comes back.
    Echo {
        /// Payload bytes of a message.
        size: usize,
        /// Text or bytes.
        kind: Kind,
        /// Messages sent and not yet back.
        in_flight: usize,
        /// The server sends frames back masked, as they came.
        raw: bool,
        /// Messages per second of this process; `None`: the next one goes when one has come back.
        rate: Option<f64>,
    },
    /// Answers pings.
    Idle,
    /// Sends one message but for its last byte, that byte once measuring begins, and then keeps quiet.
    Burst {
        /// Payload bytes of the message.
        size: usize,
    },
    /// Leaves as soon as it is let in, and comes again.
    Handshake,
    /// Sends without end and never reads.
    Flood {
        /// Payload bytes of a message.
        size: usize,
    },
}

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

/// Everything a client process has counted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Clients open at the end.
    pub open: u64,
    /// Clients that had neither been let in nor refused.
    pub undecided: u64,
    /// Counts.
    pub counts: Counts,
    /// Latency buckets: nanoseconds, count.
    pub latencies: Vec<(u64, u64)>,
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
            role: Role::Echo { size: 1, kind: Kind::Text, in_flight: 2, raw: true, rate: Some(0.5) },
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
