//! What an operator may ask about single connections: a list of them, or their end. Reads and writes words.

use std::net::IpAddr;

use holdfast_shared::id::ConnectionId;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Failure, Query};

/// What is listed when nobody says how many.
const USUAL: usize = 100;
/// The most that is listed.
const MOST: usize = 100_000;
/// RFC 6455, section 5.5: a control frame has 125 bytes, of which the code takes two.
const LONGEST_REASON: usize = 123;

/// Which connections come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sort {
    /// Those that have been there longest
    #[default]
    Age,
    /// Those that have sent no message for longest
    Idle,
    /// Those with the most unread output
    Queued,
}

/// Which connections are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ConnectionsQuery {
    /// Only those of this address or network
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub address: Option<IpNet>,
    /// So many at most [default: 100]
    #[arg(long, value_name = "N", value_parser = limit)]
    pub(crate) limit: Option<usize>,
    /// Which come first [default: age]
    #[arg(long, value_name = "BY")]
    pub(crate) sort: Option<Sort>,
}

impl ConnectionsQuery {
    /// All that has a default.
    pub const ALL: Self = Self { address: None, limit: None, sort: None };

    /// How many at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(USUAL)
    }

    /// Which come first.
    #[must_use]
    pub fn sort(&self) -> Sort {
        self.sort.unwrap_or_default()
    }

    /// Its path with what else it says.
    #[must_use]
    pub fn target(&self) -> String {
        let sort = self.sort.map(|sort| match sort {
            Sort::Age => "age",
            Sort::Idle => "idle",
            Sort::Queued => "queued",
        });
        let fields = [
            ("address", self.address.map(|address| address.to_string())),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("sort", sort.map(str::to_owned)),
        ];
        target("/connections", fields)
    }

    /// What a query says.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        let sort = |text: &str| <Sort as clap::ValueEnum>::from_str(text, false);
        Ok(Self {
            address: query.take("address", network)?,
            limit: query.take("limit", limit)?,
            sort: query
                .take("sort", |text| sort(text).map_err(|_| format!("{text} is not age, idle or queued")))?,
        })
    }
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionRow {
    /// Its name, which it keeps wherever it moves: a number, as text since not every reader has 64 bits for one.
    pub id: String,
    /// The slot that has it.
    pub slot: u16,
    /// The client's address.
    pub address: String,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// Seconds since its client last sent a message.
    pub idle_seconds: f64,
    /// Messages from the client.
    pub messages_received: u64,
    /// Output that waits for the client to read it, in bytes.
    pub queued_bytes: u64,
    /// Where it is in its life, such as handshake, open, closing.
    pub phase: String,
}

/// An order to close connections.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CloseOrder {
    /// The one of this name, as `ctl connections` shows it
    #[arg(value_name = "ID", value_parser = connection, required_unless_present = "address", conflicts_with = "address")]
    id: Option<ConnectionId>,
    /// All of this address or network, limits.shed_rate a second
    #[arg(long, value_name = "CIDR", value_parser = network)]
    address: Option<IpNet>,
    /// The close code they get: 1000 to 1003, 1007 to 1014, or 3000 to 4999 [default: 1008]
    #[arg(long, value_name = "N", value_parser = code)]
    code: Option<u16>,
    /// The reason they get, of at most 123 bytes [default: Closed by an operator]
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
}

/// Whom an order is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The one of this name.
    One(ConnectionId),
    /// All of a network.
    Network(IpNet),
}

impl CloseOrder {
    /// Of one connection, which the path names.
    pub const ONE: Self = Self { id: Some(ConnectionId(0)), address: None, code: None, reason: None };
    /// Of all connections of a network, which the query names.
    pub const MANY: Self = Self { id: None, address: None, code: None, reason: None };

    /// Whom it is about.
    ///
    /// # Errors
    /// 400 when it does not say.
    pub fn whom(&self) -> Result<Whom, Failure> {
        match (self.id, self.address) {
            (Some(id), _) => Ok(Whom::One(id)),
            (None, Some(network)) => Ok(Whom::Network(network)),
            (None, None) => Err(Failure::new(400, "/connections: say whose, such as ?address=192.0.2.0/24")),
        }
    }

    /// The close code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.code.unwrap_or(1008)
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or("Closed by an operator")
    }

    /// The path of its kind: what follows a slash at the end is the name of a connection.
    #[must_use]
    pub fn path(&self) -> &'static str {
        if self.id.is_some() { "/connections/" } else { "/connections" }
    }

    /// Its path with what else it says.
    #[must_use]
    pub fn target(&self) -> String {
        let name = self.id.map(|id| id.to_string()).unwrap_or_default();
        let fields = [
            ("address", self.address.map(|address| address.to_string())),
            ("code", self.code.map(|code| code.to_string())),
            ("reason", self.reason.clone()),
        ];
        target(&format!("{}{name}", self.path()), fields)
    }

    /// The order with what the path names, if it is of one connection.
    ///
    /// # Errors
    /// 400 when that is no name of a connection.
    pub fn with_name(self, name: &str) -> Result<Self, Failure> {
        if self.id.is_none() {
            return Ok(self);
        }
        let id =
            connection(name).map_err(|error| Failure::new(400, format!("/connections/{name}: {error}")))?;
        Ok(Self { id: Some(id), ..self })
    }

    /// The order with what a query says of it.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        let address = if self.id.is_none() { query.take("address", network)? } else { None };
        let order =
            Self { address, code: query.take("code", code)?, reason: query.take("reason", reason)?, ..self };
        order.whom()?;
        Ok(order)
    }
}

/// How far closing has come.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CloseReport {
    /// Connections that were found.
    pub found: u64,
    /// Those of them that have been told to go.
    pub told: u64,
    /// Those that are still to be told.
    pub remaining: u64,
    /// Until the last one is told.
    pub seconds_left: f64,
}

pub(super) fn target<const N: usize>(path: &str, fields: [(&str, Option<String>); N]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A network, or an address for the network of that one; mapped IPv4 is IPv4.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = |text: &str| text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    text.parse::<IpNet>()
        .or_else(|_| address(text))
        .map(|network| network.trunc())
        .map_err(|_| format!("{text} is no address or network, such as 192.0.2.7 or 2001:db8::/32"))
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    limit.ok_or_else(|| format!("{text} is not a number from 1 to {MOST}"))
}

fn connection(text: &str) -> Result<ConnectionId, String> {
    text.parse()
        .map(ConnectionId)
        .map_err(|_| format!("{text} is no name of a connection, which is a number"))
}

/// RFC 6455, section 7.4: the others are not for an endpoint to send.
fn code(text: &str) -> Result<u16, String> {
    let code = text.parse().ok().filter(|code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999));
    code.ok_or_else(|| {
        format!("{text} is no code to close with: 1000 to 1003, 1007 to 1014, or 3000 to 4999")
    })
}

fn reason(text: &str) -> Result<String, String> {
    if text.len() <= LONGEST_REASON {
        return Ok(text.to_owned());
    }
    Err(format!("{} bytes are too many for a reason, which has at most {LONGEST_REASON}", text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<ConnectionsQuery, Failure> {
        let mut query = Query::parse("/connections", text);
        let asked = ConnectionsQuery::ALL.with_query(&mut query)?;
        query.end()?;
        Ok(asked)
    }

    fn close(path: &str, text: &str) -> Result<CloseOrder, Failure> {
        let order = match path.strip_prefix("/connections/") {
            Some(name) => CloseOrder::ONE.with_name(name)?,
            None => CloseOrder::MANY,
        };
        let mut query = Query::parse("/connections", text);
        let order = order.with_query(&mut query)?;
        query.end()?;
        Ok(order)
    }

    #[test]
    fn a_list_is_asked_for_in_a_target() {
        let asked = query("address=192.0.2.0/24&limit=7&sort=idle").unwrap();
        assert_eq!((asked.limit(), asked.sort()), (7, Sort::Idle));
        assert_eq!(asked.target(), "/connections?address=192.0.2.0%2F24&limit=7&sort=idle");
        assert_eq!(query(asked.target().split_once('?').unwrap().1), Ok(asked));
        assert_eq!(query("").unwrap().target(), "/connections");
        assert_eq!(query("address=::ffff:192.0.2.1").unwrap().address, Some("192.0.2.1/32".parse().unwrap()));
    }

    #[test]
    fn an_end_is_asked_for_in_a_target() {
        let order = close("/connections/7", "code=4001&reason=Come+back%2C+later").unwrap();
        assert_eq!((order.whom(), order.code()), (Ok(Whom::One(ConnectionId(7))), 4001));
        assert_eq!(order.reason(), "Come back, later");
        assert_eq!(order.target(), "/connections/7?code=4001&reason=Come+back%2C+later");
        let order = close("/connections", "address=2001:db8::7").unwrap();
        assert_eq!(order.whom(), Ok(Whom::Network("2001:db8::7/128".parse().unwrap())));
        assert_eq!(order.target(), "/connections?address=2001%3Adb8%3A%3A7%2F128");
    }

    #[test]
    fn what_is_not_understood_is_400() {
        for text in ["address=x", "limit=0", "limit=1000000", "sort=size", "sort=", "order=age"] {
            assert_eq!(query(text).unwrap_err().status, 400, "{text}");
        }
        let long = format!("reason={}", "x".repeat(124));
        for (path, text) in [
            ("/connections", ""),
            ("/connections", "code=1000"),
            ("/connections/", ""),
            ("/connections/x", ""),
            ("/connections/1", "address=::1"),
            ("/connections/1", "code=1005"),
            ("/connections/1", "code=999"),
            ("/connections/1", &long),
        ] {
            assert_eq!(close(path, text).unwrap_err().status, 400, "{path}?{text}");
        }
    }
}
