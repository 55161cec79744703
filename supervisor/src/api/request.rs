//! How a request reaches the supervisor's loop and how its answer comes back.
//! Also the one list of commands with their method, path and deadline, from which routes and `holdfast ctl`
//! are made.

use std::time::Duration;

use tokio::sync::oneshot;

use super::drain::{DrainOrder, Step};
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
    /// Show the limits in effect
    Limits,
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
        Self::Limits,
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
            Self::Limits => "/limits",
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
            _ => self.path().to_owned(),
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
        String::new()
    }

    /// Whether it changes something: such commands are POST, logged with who asked, and never on the admin
    /// address.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Totals | Self::Workers | Self::Config | Self::Limits | Self::Health | Self::Metrics => {
                false
            }
            Self::Upgrade { status } => !status,
            Self::Reload | Self::Restart { .. } | Self::Rebalance | Self::Drain(_) | Self::Stop => true,
        }
    }

    /// `GET` or `POST`.
    #[must_use]
    pub fn method(&self) -> &'static str {
        if self.is_change() { "POST" } else { "GET" }
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
