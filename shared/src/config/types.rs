//! The configuration as types, with its defaults. Knows neither how values are spelled nor where they came
//! from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::channels::{Api, Channels, Events, Tokens};
use super::secrets::Secrets;
use crate::route::Route;

/// The most connections `max_connections = "auto"` ever stands for.
pub const AUTO_MAX_CONNECTIONS: u32 = 100_000;

/// The protocol of the plain server: every message goes back as it came.
pub const ECHO: &str = "echo";

/// Everything a start of Holdfast can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Public addresses; never empty. Port 0 lets the kernel choose.
    pub listen: Vec<SocketAddr>,
    /// How many slots to run.
    pub workers: Workers,
    /// Length of each listener's accept queue; the kernel cuts it to `net.core.somaxconn`.
    pub backlog: u32,
    /// Which worker gets a new client.
    pub balance: Balance,
    /// Where control socket and pid file go; `None` means the first writable of the usual places.
    pub run_dir: Option<PathBuf>,
    /// Which protocol serves which path; never empty, and no path twice.
    pub routes: Vec<Route>,
    /// Who is let in, and how much one connection may use.
    pub limits: Limits,
    /// The deadlines of a connection.
    pub timeouts: Timeouts,
    /// What an upgrade request must look like.
    pub security: Security,
    /// Whose word about a client's address is believed.
    pub proxy: Proxy,
    /// The read-only address for metrics and health.
    pub admin: Admin,
    /// What changes for clients when the server is degraded, and when it is.
    pub degraded: Degraded,
    /// How a stop treats open connections.
    pub drain: Drain,
    /// Which channels there may be, and what holds for them.
    pub channels: Channels,
    /// How applications reach them.
    pub api: Api,
    /// By which tokens clients show who they are.
    pub tokens: Tokens,
    /// Where events are sent.
    pub events: Events,
    /// What the files of keys and secrets hold. Never shown.
    #[serde(skip)]
    pub secrets: Secrets,
}

/// How many workers to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workers {
    /// One per CPU this process may use.
    Auto,
    /// Exactly this many, at least one.
    Count(u16),
}

/// Which worker gets a new client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    /// The one the kernel's hash of addresses and ports falls on.
    Kernel,
    /// One of those with the fewest connections.
    LeastConnections,
    /// The same for all clients of an address, an IPv6 address standing for its /64.
    SourceAddress,
}

/// Limits on admission and on what one connection may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The cluster-wide cap.
    pub max_connections: MaxConnections,
    /// Above it the server is `degraded`.
    pub soft_connections: Portion,
    /// Above it the server is in `warning`.
    pub warning_connections: Portion,
    /// How far below the edge where it was entered a level is left.
    pub hysteresis: Portion,
    /// Over all workers; `None` means no limit.
    pub max_connections_per_address: Option<NonZeroU32>,
    /// IPv6 clients are counted per prefix of this many bits, 1 to 128.
    pub ipv6_prefix: u8,
    /// Networks without a cap or rate per address.
    pub exempt_addresses: Vec<IpNet>,
    /// Connections let in a second, over all workers; 0 is no limit.
    pub connect_rate: u32,
    /// Connections of one address let in a second, over all workers; 0 is no limit.
    pub connect_rate_per_address: u32,
    /// Unfinished handshakes over all workers.
    pub max_pending_handshakes: u32,
    /// Longest message taken from a client, in bytes.
    pub max_message_size: usize,
    /// Of one connection; `None` means no limit.
    pub messages_per_second: Option<NonZeroU32>,
    /// Most output queued for one connection, in bytes.
    pub max_queued_output: usize,
    /// Most queued output and half messages of one worker.
    pub max_buffered_total: MaxBuffered,
    /// How a client is turned away.
    pub refusal: RefusalMode,
    /// What a refused client is told to wait, before jitter.
    pub retry_after: Duration,
    /// Clients that may wait for a place when the cap is reached; 0 is none.
    pub waiting_room: u32,
    /// How long they may.
    pub waiting_room_timeout: Duration,
    /// Connections of one user, over all workers; 0 is no limit.
    pub max_connections_per_user: u32,
    /// Who is closed when the cap is lowered below the count.
    pub shed: Shed,
    /// How many connections are closed in a second, when many are to be: those shed, or those an operator names.
    pub shed_rate: u32,
}

/// Who is closed when the cap is lowered below the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shed {
    /// Nobody: newcomers are refused until enough have left.
    None,
    /// Those who have sent no message for longest.
    Idlest,
}

/// How a client with a good request is turned away by a limit or a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalMode {
    /// With an HTTP status, which scripts in browsers do not see.
    #[default]
    Status,
    /// With a finished handshake and a close frame.
    Close,
}

/// The cluster-wide cap as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MaxConnections {
    /// As many as descriptors and memory carry, up to [`AUTO_MAX_CONNECTIONS`].
    Auto,
    /// Exactly this many, at least one.
    Count(u32),
}

impl MaxConnections {
    /// The most it can stand for.
    #[must_use]
    pub fn ceiling(self) -> u32 {
        match self {
            Self::Auto => AUTO_MAX_CONNECTIONS,
            Self::Count(count) => count,
        }
    }
}

/// How much one worker keeps for its clients together, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MaxBuffered {
    /// An equal part of a quarter of the memory.
    Auto,
    /// This many bytes.
    Bytes(usize),
}

/// A part of the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Portion {
    /// This many connections.
    Count(u32),
    /// This many hundredths of `max_connections`, 0 to 100.
    Percent(u8),
}

impl Portion {
    /// In connections, when the cap is `max`. Rounds up, so that only 0 % is nothing.
    #[must_use]
    pub fn of(self, max: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => {
                let share = (u64::from(max) * u64::from(percent)).div_ceil(100);
                u32::try_from(share).unwrap_or(u32::MAX)
            }
        }
    }
}

/// The limits that levels are computed from, in connections: `warning <= soft <= max`, `hysteresis <=
/// warning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedLimits {
    /// The cap.
    pub max: u32,
    /// `degraded` above it.
    pub soft: u32,
    /// `warning` above it.
    pub warning: u32,
    /// A level is left this far below the edge where it was entered.
    pub hysteresis: u32,
}

impl Limits {
    /// The level limits once the cap is known to be `max`. An `"auto"` cap may turn out below a soft limit
    /// that was given as a number; then the lower limits give way.
    #[must_use]
    pub fn resolve(&self, max: u32) -> ResolvedLimits {
        let soft = self.soft_connections.of(max).min(max);
        let warning = self.warning_connections.of(max).min(soft);
        let hysteresis = self.hysteresis.of(max).min(warning);
        ResolvedLimits { max, soft, warning, hysteresis }
    }
}

/// Deadlines of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From accept to the end of the upgrade request and its verdict.
    pub handshake: Duration,
    /// Between pings; `None` sends none.
    pub ping_interval: Option<Duration>,
    /// From a ping to any sign of life.
    pub pong: Duration,
    /// Without a data frame; `None` means never.
    pub idle: Option<Duration>,
    /// From our close frame to the client's.
    pub close: Duration,
    /// From the first byte of a message to its last; `None` means for ever.
    pub message: Option<Duration>,
    /// How long a client may take none of its queued output; `None` means for ever.
    pub stalled: Option<Duration>,
}

/// What an upgrade request must look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Origins as browsers send them (lower case, no default port); empty allows any and none.
    pub allowed_origins: Vec<String>,
    /// Upgrades are allowed at this path and below it. No slash at the end, except for `/` itself.
    pub path: String,
}

/// Whose word about a client's address is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Networks whose forwarding headers are believed.
    pub trusted: Vec<IpNet>,
    /// The header that is read.
    pub header: ForwardingHeader,
    /// Whether they send a PROXY header in front of the request.
    pub proxy_protocol: bool,
}

/// In which header proxies say where their clients are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardingHeader {
    /// A list of addresses.
    #[default]
    XForwardedFor,
    /// That of RFC 7239.
    Forwarded,
}

/// The read-only address for metrics and health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// `None` is off.
    pub listen: Option<SocketAddr>,
}

/// What changes for clients when the server is degraded, and what makes it so besides the number of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// Between pings, if that is longer than usual.
    pub ping_interval: Duration,
    /// Whether applications may send one message to many.
    pub allow_broadcast: bool,
    /// Longest message, if that is shorter than usual.
    pub max_message_size: usize,
    /// Of one connection, if that is fewer than usual; `None` changes nothing.
    pub messages_per_second: Option<NonZeroU32>,
    /// New clients are told.
    pub notify_clients: bool,
    /// Degraded when this many hundredths of the memory are in use; 0 is never.
    pub memory: u8,
    /// Degraded when processes wait for memory for this many hundredths of the time; 0 is never.
    pub memory_stalls: u8,
    /// Degraded when a worker uses this many hundredths of its descriptors; 0 is never.
    pub descriptors: u8,
}

/// How a stop treats open connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Closes are spread over this time; zero closes all at once.
    pub duration: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080)],
            workers: Workers::Auto,
            backlog: 65_535,
            balance: Balance::Kernel,
            run_dir: None,
            routes: vec![Route { path: "/".to_owned(), protocol: ECHO.to_owned(), ..Route::default() }],
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            security: Security::default(),
            proxy: Proxy::default(),
            admin: Admin::default(),
            degraded: Degraded::default(),
            drain: Drain::default(),
            channels: Channels::default(),
            api: Api::default(),
            tokens: Tokens::default(),
            events: Events::default(),
            secrets: Secrets::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: MaxConnections::Auto,
            soft_connections: Portion::Percent(80),
            warning_connections: Portion::Percent(70),
            hysteresis: Portion::Percent(5),
            max_connections_per_address: NonZeroU32::new(100),
            ipv6_prefix: 64,
            exempt_addresses: Vec::new(),
            connect_rate: 0,
            connect_rate_per_address: 0,
            max_pending_handshakes: 10_000,
            max_message_size: 1024 * 1024,
            messages_per_second: None,
            max_queued_output: 1024 * 1024,
            max_buffered_total: MaxBuffered::Auto,
            refusal: RefusalMode::default(),
            retry_after: Duration::from_secs(30),
            waiting_room: 0,
            waiting_room_timeout: Duration::from_secs(5),
            max_connections_per_user: 0,
            shed: Shed::None,
            shed_rate: 100,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            ping_interval: Some(Duration::from_secs(30)),
            pong: Duration::from_secs(30),
            idle: Some(Duration::from_secs(60)),
            close: Duration::from_secs(5),
            message: Some(Duration::from_secs(60)),
            stalled: Some(Duration::from_secs(30)),
        }
    }
}

impl Default for Security {
    fn default() -> Self {
        Self { allowed_origins: Vec::new(), path: "/".to_owned() }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8404)) }
    }
}

impl Default for Degraded {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_mins(1),
            allow_broadcast: false,
            max_message_size: 64 * 1024,
            messages_per_second: NonZeroU32::new(10),
            notify_clients: true,
            memory: 95,
            memory_stalls: 0,
            descriptors: 95,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { duration: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn defaults_resolve_to_eighty_and_seventy_percent() {
        let resolved = Limits::default().resolve(100_000);
        assert_eq!(
            resolved,
            ResolvedLimits { max: 100_000, soft: 80_000, warning: 70_000, hysteresis: 5_000 }
        );
    }

    #[test]
    fn a_cap_of_one_is_not_degraded_from_the_start() {
        assert_eq!(
            Limits::default().resolve(1),
            ResolvedLimits { max: 1, soft: 1, warning: 1, hysteresis: 1 }
        );
    }

    fn portion() -> impl Strategy<Value = Portion> {
        prop_oneof![any::<u32>().prop_map(Portion::Count), (0..=100u8).prop_map(Portion::Percent)]
    }

    proptest! {
        #[test]
        fn resolved_limits_are_ordered(
            max in any::<u32>(), soft in portion(), warning in portion(), hysteresis in portion(),
        ) {
            let limits = Limits {
                soft_connections: soft,
                warning_connections: warning,
                hysteresis,
                ..Limits::default()
            };
            let resolved = limits.resolve(max);
            prop_assert!(resolved.soft <= resolved.max);
            prop_assert!(resolved.warning <= resolved.soft);
            prop_assert!(resolved.hysteresis <= resolved.warning);
        }
    }
}
