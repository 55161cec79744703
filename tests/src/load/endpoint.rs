//! Where connections go and where they come from. Parses both; opens nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use super::LoadError;

/// Connections of one source address to one destination. Linux's default range has 28,232 ports (32768 to
/// 60999), but connect(2) tries those of one parity first, one by one: beyond half of them every connect
/// walks through 14,116 ports.
pub const PORTS_PER_SOURCE: usize = 14_000;

/// More would be a typing mistake.
const MOST_SOURCES: u32 = 65_536;

/// The server: `ws://host:port/path`, or only `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host and port as in the Host header.
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// The first address the host has.
    pub fn resolve(&self) -> Result<SocketAddr, LoadError> {
        let host = &self.host;
        let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        let resolved = host.to_socket_addrs().and_then(|mut all| all.next().ok_or_else(none));
        resolved.map_err(|source| LoadError::Resolve { host: host.clone(), source })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ws://{}{}", self.host, self.path)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("wss://") {
            return Err("TLS is not spoken here; aim behind the TLS proxy, with ws://".to_owned());
        }
        let rest = text.strip_prefix("ws://").unwrap_or(text);
        let (host, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if host.is_empty() || path.contains([' ', '\r', '\n']) {
            return Err("expected ws://host:port/path".to_owned());
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { host, path: path.to_owned() })
    }
}

/// The addresses clients come from, used in turn: `127.0.0.2-127.0.0.40`, or a list with commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources(Vec<IpAddr>);

impl Sources {
    /// The address of client `index`; `None` when the kernel is to choose.
    pub fn of(&self, index: usize) -> Option<IpAddr> {
        (!self.0.is_empty()).then(|| self.0[index % self.0.len()])
    }

    /// How many there are to use in turn, at least one.
    pub fn count(&self) -> usize {
        self.0.len().max(1)
    }

    /// Loopback addresses for `clients`, at most `each` from one, when the target is loopback; elsewhere the
    /// kernel chooses.
    pub fn for_target(target: SocketAddr, clients: usize, each: usize) -> Self {
        if target.ip().is_ipv4() && target.ip().is_loopback() {
            let count = clients.div_ceil(each).max(1);
            let first = u32::from(Ipv4Addr::LOCALHOST);
            let addresses = (first..).take(count).map(|address| IpAddr::V4(Ipv4Addr::from(address)));
            return Self(addresses.collect());
        }
        Self(Vec::new())
    }
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => addresses.push(part.parse().map_err(|error| format!("{part}: {error}"))?),
                Some((first, last)) => addresses.extend(range(first, last)?),
            }
        }
        Ok(Self(addresses))
    }
}

fn range(first: &str, last: &str) -> Result<impl Iterator<Item = IpAddr>, String> {
    let number = |text: &str| {
        text.parse::<Ipv4Addr>().map(u32::from).map_err(|error| format!("{text}: {error} (ranges are IPv4)"))
    };
    let (first, last) = (number(first)?, number(last)?);
    match last.checked_sub(first) {
        None => Err("the range ends before it begins".to_owned()),
        Some(count) if count >= MOST_SOURCES => Err(format!("more than {MOST_SOURCES} addresses")),
        Some(_) => Ok((first..=last).map(|address| IpAddr::V4(Ipv4Addr::from(address)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_defaults() {
        let target: Target = "ws://example.org/chat?room=1".parse().unwrap();
        assert_eq!((target.host.as_str(), target.path.as_str()), ("example.org:80", "/chat?room=1"));
        let target: Target = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(target.to_string(), "ws://127.0.0.1:8080/");
        assert!("wss://example.org".parse::<Target>().is_err());
        assert!("ws:///".parse::<Target>().is_err());
    }

    #[test]
    fn sources_are_used_in_turn() {
        let sources: Sources = "127.0.0.255-127.0.1.1,127.9.9.9".parse().unwrap();
        let seen: Vec<String> = (0..5).filter_map(|n| sources.of(n)).map(|ip| ip.to_string()).collect();
        assert_eq!(seen, ["127.0.0.255", "127.0.1.0", "127.0.1.1", "127.9.9.9", "127.0.0.255"]);
        assert!("127.0.0.2-127.0.0.1".parse::<Sources>().is_err());
        assert!("0.0.0.0-255.255.255.255".parse::<Sources>().is_err());
    }

    #[test]
    fn loopback_gets_as_many_sources_as_ports_demand() {
        let loopback = "127.0.0.1:80".parse().unwrap();
        assert_eq!(Sources::for_target(loopback, 300_000, PORTS_PER_SOURCE).0.len(), 22);
        assert_eq!(Sources::for_target("192.0.2.1:80".parse().unwrap(), 300_000, 100).of(0), None);
    }
}
