//! What an operator may ask and say about who is let in. Reads and writes words.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::connections::{network, target};
use super::{Failure, Query};

/// An address to explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct ExplainQuery {
    /// The client's address
    #[arg(value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
}

impl ExplainQuery {
    /// Path and query.
    #[must_use]
    pub fn target(&self) -> String {
        target("/explain", [("address", self.address.map(|address| address.to_string()))])
    }

    /// What a query says.
    ///
    /// # Errors
    /// 400 when it names no address.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        Ok(Self { address: query.take_as("address", "an address")?.or(self.address) })
    }

    /// The address.
    ///
    /// # Errors
    /// 400 when none is named.
    pub fn address(&self) -> Result<IpAddr, Failure> {
        self.address.ok_or_else(|| Failure::new(400, "/explain: say whose, such as ?address=192.0.2.7"))
    }
}

/// A network to ban, or to let in again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct BanOrder {
    /// An address or a network
    #[arg(value_name = "CIDR", value_parser = network, required = true)]
    network: Option<IpNet>,
    /// Only so long, such as 10m [default: until it is unbanned, or the service ends]
    #[arg(long = "for", value_name = "D", value_parser = time)]
    pub time: Option<Duration>,
}

/// A network to let in again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct UnbanOrder {
    /// The address or network, as it was banned
    #[arg(value_name = "CIDR", value_parser = network, required = true)]
    network: Option<IpNet>,
}

impl BanOrder {
    /// Of no network yet.
    pub const NONE: Self = Self { network: None, time: None };

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> String {
        let time = self.time.map(|time| format!("{}ms", time.as_millis()));
        target("/ban", [("address", self.network.map(|network| network.to_string())), ("for", time)])
    }

    /// What a query says.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        Ok(Self { network: query.take("address", network)?.or(self.network), time: query.take("for", time)? })
    }

    /// The network.
    ///
    /// # Errors
    /// 400 when none is named.
    pub fn network(&self) -> Result<IpNet, Failure> {
        named(self.network, "/ban")
    }
}

impl UnbanOrder {
    /// Of no network yet.
    pub const NONE: Self = Self { network: None };

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> String {
        target("/unban", [("address", self.network.map(|network| network.to_string()))])
    }

    /// What a query says.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        Ok(Self { network: query.take("address", network)?.or(self.network) })
    }

    /// The network.
    ///
    /// # Errors
    /// 400 when none is named.
    pub fn network(&self) -> Result<IpNet, Failure> {
        named(self.network, "/unban")
    }
}

fn named(network: Option<IpNet>, path: &str) -> Result<IpNet, Failure> {
    network.ok_or_else(|| Failure::new(400, format!("{path}: say which, such as ?address=192.0.2.0/24")))
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{text}: {error}"))?;
    Some(time).filter(|time| !time.is_zero()).ok_or_else(|| format!("{text} is no time"))
}

/// Why an address would be let in or refused now.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The address.
    pub address: String,
    /// `admitted`, `waits`, or what it would be refused for.
    pub verdict: String,
    /// It has no limit and no rate of its own.
    pub exempt: bool,
    /// What it says about its clients' addresses is believed: then theirs count, and not its own.
    pub trusted_proxy: bool,
    /// The ban that it would be refused for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ban: Option<BanRow>,
    /// Every rule, in the order in which they are asked.
    pub rules: Vec<RuleRow>,
}

/// What one rule says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleRow {
    /// Its name: the reason for which it refuses.
    pub rule: String,
    /// Its limit; absent if it has none.
    pub limit: Option<u64>,
    /// What counts against it now.
    pub value: u64,
    /// `passed`, `waits` or `refused`.
    pub verdict: String,
}

/// A banned network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BanRow {
    /// As it was named.
    pub network: String,
    /// Until it is let in again; absent if that is not until it is unbanned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_is_asked_for_in_a_target() {
        let ban = |text: &str| {
            let mut query = Query::parse("/ban", text);
            let order = BanOrder::NONE.with_query(&mut query)?;
            query.end()?;
            order.network().map(|network| (order, network))
        };
        let (order, network) = ban("address=192.0.2.7%2F24&for=10m").unwrap();
        assert_eq!((order.time, network), (Some(Duration::from_mins(10)), "192.0.2.0/24".parse().unwrap()));
        assert_eq!(order.target(), "/ban?address=192.0.2.0%2F24&for=600000ms");
        for text in
            ["", "for=10m", "address=x", "address=::1&for=0s", "address=::1&for=soon", "address=::1&x"]
        {
            assert_eq!(ban(text).unwrap_err().status, 400, "{text}");
        }
    }
}
