//! How a request reaches the supervisor's loop and how its answer comes back.
//! Also the one list of commands with their method, path and deadline, from which routes and `holdfast ctl`
//! are made.

use std::time::Duration;

use tokio::sync::oneshot;

use super::connections::{CloseOrder, ConnectionsQuery};
use super::drain::{DrainOrder, Step};
use super::limits::LimitsOrder;
use super::rules::{BanOrder, ExplainQuery, UnbanOrder};
use super::{Answer, Failure, Query};

/// What an operator or a monitoring system can ask. The sentences are also the help of `holdfast ctl`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Show connections, messages and refusals over all workers
    Totals,
    /// Show each worker
    Workers,
    /// Show the configuration in effect and where each value came from
    Config,
    /// List connections of all workers
    Connections(ConnectionsQuery),
    /// Close one connection, or all of an address or network
    Close(CloseOrder),
    /// Say what each rule of admission says about an address, and whether it would be let in
    Explain(ExplainQuery),
    /// Let nobody in from an address or network; who is in stays
    Ban(BanOrder),
    /// Let a banned network in again
    Unban(UnbanOrder),
    /// Show which networks are banned
    Bans,
    /// Show the limits in effect, or change some while the service runs
    ///
    /// A change holds for all workers when the answer comes, and until the configuration is read again: by a reload, an
    /// upgrade or a new supervisor. When the cap is lowered below the
    /// number of connections, new clients are refused; with limits.shed = "idlest" the idlest are closed as well,
    /// limits.shed_rate a second.
    Limits(LimitsOrder),
    /// Show whether the server takes connections
    Health,
    /// Show the metrics as Prometheus reads them
    Metrics,
    /// Read the configuration again and apply it
    Reload,
    /// Replace workers one by one, keeping all connections
    Restart {
        /// Only the worker of this slot
        slot: Option<u16>,
    },
    /// Replace this program by the one that is at its path now, keeping all connections
    ///
    /// The new program is asked first whether it would start with this configuration. Workers follow one by
    /// one; one that fails goes on with the old program.
    Upgrade {
        /// Only show how far the last upgrade has come
        #[arg(long)]
        status: bool,
    },
    /// Even out the connections among the workers, without anybody noticing
    Rebalance,
    /// Let nobody in any more, tell clients to go one by one, then exit
    ///
    /// The longest idle are told first, spread over drain.duration. With --pause nobody is told until
    /// --resume, and still nobody is let in. SIGTERM begins a drain too, or lets a paused one go on with
    /// the time it had left; one more ends it at once.
    Drain(DrainOrder),
    /// Close all connections and exit at once
    Stop,
}

impl Command {
    /// All of them, as the documentation lists them.
    pub const ALL: &[Self] = &[
        Self::Totals,
        Self::Workers,
        Self::Config,
        Self::Connections(ConnectionsQuery::ALL),
        Self::Close(CloseOrder::ONE),
        Self::Close(CloseOrder::MANY),
        Self::Explain(ExplainQuery { address: None }),
        Self::Ban(BanOrder::NONE),
        Self::Unban(UnbanOrder::NONE),
        Self::Bans,
        Self::Limits(LimitsOrder::SHOW),
        Self::Limits(LimitsOrder::CHANGE),
        Self::Health,
        Self::Metrics,
        Self::Reload,
        Self::Restart { slot: None },
        Self::Upgrade { status: false },
        Self::Upgrade { status: true },
        Self::Rebalance,
        Self::Drain(DrainOrder::new(Step::Begin)),
        Self::Drain(DrainOrder::new(Step::Pause)),
        Self::Drain(DrainOrder::new(Step::Resume)),
        Self::Stop,
    ];

    /// Its path on the control socket.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match self {
            Self::Totals => "/totals",
            Self::Workers => "/workers",
            Self::Config => "/config",
            Self::Connections(_) => "/connections",
            Self::Close(order) => order.path(),
            Self::Explain(_) => "/explain",
            Self::Ban(_) => "/ban",
            Self::Unban(_) => "/unban",
            Self::Bans => "/bans",
            Self::Limits(_) => "/limits",
            Self::Health => "/health",
            Self::Metrics => "/metrics",
            Self::Reload => "/reload",
            Self::Restart { .. } => "/restart",
            Self::Upgrade { .. } => "/upgrade",
            Self::Rebalance => "/rebalance",
            Self::Drain(order) => order.path(),
            Self::Stop => "/stop",
        }
    }

    /// Its path with what else it says.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::Restart { slot: Some(slot) } => format!("{}?slot={slot}", self.path()),
            Self::Drain(order) => order.target(),
            Self::Connections(query) => query.target(),
            Self::Close(order) => order.target(),
            Self::Explain(query) => query.target(),
            Self::Ban(order) => order.target(),
            Self::Unban(order) => order.target(),
            Self::Limits(order) => order.target(),
            _ => self.path().to_owned(),
        }
    }

    /// The command with the name that a request's path ends in.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_name(self, name: &str) -> Result<Self, Failure> {
        match self {
            Self::Close(order) => order.with_name(name).map(Self::Close),
            other => Ok(other),
        }
    }

    /// The command with what a request's query says of it.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_query(self, query: &str) -> Result<Self, Failure> {
        let mut query = Query::parse(self.path(), query);
        let command = match self {
            Self::Restart { .. } => Self::Restart { slot: query.take_as("slot", "the number of a slot")? },
            Self::Drain(order) => Self::Drain(order.with_query(&mut query)?),
            Self::Connections(asked) => Self::Connections(asked.with_query(&mut query)?),
            Self::Close(order) => Self::Close(order.with_query(&mut query)?),
            Self::Explain(asked) => Self::Explain(asked.with_query(&mut query)?),
            Self::Ban(order) => Self::Ban(order.with_query(&mut query)?),
            Self::Unban(order) => Self::Unban(order.with_query(&mut query)?),
            Self::Limits(order) => Self::Limits(order.with_query(&mut query)?),
            // Load balancers and scrapers bring queries of their own.
            Self::Health | Self::Metrics => return Ok(self),
            other => other,
        };
        query.end()?;
        Ok(command)
    }

    /// The command with what a request's body says of it.
    ///
    /// # Errors
    /// 400 when that is not understood.
    pub fn with_body(self, body: &[u8]) -> Result<Self, Failure> {
        match self {
            Self::Limits(order) if order.is_change() => order.with_body(body).map(Self::Limits),
            _ if body.is_empty() => Ok(self),
            _ => {
                let (path, length) = (self.path(), body.len());
                Err(Failure::new(400, format!("{path} takes no body, and this one has {length} bytes")))
            }
        }
    }

    /// What a request for it has as its body.
    #[must_use]
    pub fn body(&self) -> String {
        match self {
            Self::Limits(order) if order.is_change() => order.body(),
            _ => String::new(),
        }
    }

    /// Whether it changes something: such commands are logged with who asked, and never on the admin address.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Totals
            | Self::Workers
            | Self::Config
            | Self::Connections(_)
            | Self::Explain(_)
            | Self::Bans
            | Self::Health
            | Self::Metrics => false,
            Self::Limits(order) => order.is_change(),
            Self::Upgrade { status } => !status,
            Self::Close(_)
            | Self::Ban(_)
            | Self::Unban(_)
            | Self::Reload
            | Self::Restart { .. }
            | Self::Rebalance
            | Self::Drain(_)
            | Self::Stop => true,
        }
    }

    /// The method of its request.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::Close(_) => "DELETE",
            Self::Limits(_) if self.is_change() => "PATCH",
            _ if self.is_change() => "POST",
            _ => "GET",
        }
    }

    /// How long the loop may take to answer before the client hears 504.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(match self {
            // Many slots, one after the other; one that is not back in time ends it early.
            Self::Restart { .. } | Self::Rebalance => 600,
            _ if self.is_change() => 60,
            _ => 5,
        })
    }
}

/// One question to the loop.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes.
    pub reply: Reply,
}

impl Request {
    /// A request and the end at which its answer arrives.
    #[must_use]
    pub fn new(command: Command) -> (Self, oneshot::Receiver<Result<Answer, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { command, reply: Reply(sender) }, receiver)
    }
}

/// The way back to whoever asked. Dropping it unused tells them so (500).
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<Answer, Failure>>);

impl Reply {
    /// Answers. Never blocks, and does nothing if nobody waits any more.
    pub fn send(self, answer: Result<Answer, Failure>) {
        // An error here is the value coming back because the client has gone: nobody is left to tell.
        let _ = self.0.send(answer);
    }

    /// Whether whoever asked has gone or has run out of patience, so that there is no point in working on it.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}
