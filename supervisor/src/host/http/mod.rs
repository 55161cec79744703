//! HTTP/1.1 as the program's own sites speak it: accepts, bounds connections, heads, bodies and times, ends in good
//! order. What a request means is said by a [`Service`]; nothing here knows a path.
//!
//! Whatever clients do (stall, flood, send garbage, go away) costs a site at most [`Bounds::connections`]. At that
//! bound whoever has been silent longest makes room, so that a client who speaks gets in however many are silent.

mod connection;
mod deadline;
mod places;
mod response;
mod site;
#[cfg(test)]
pub mod tests;

use std::future::Future;
use std::time::Duration;

use http::request::Parts;
use hyper::body::Bytes;

pub use places::Places;
use response::last;
pub use response::{Response, json, text};
pub use site::{Accepting, Listener, Site};

/// What requests mean at one site.
pub trait Service: Send + Sync + 'static {
    /// What a client may do here.
    type Access: Send;

    /// Who may ask, by the head alone: the body of anybody else is not read.
    ///
    /// # Errors
    /// The answer that they get, which is the last of their connection.
    fn admit(&self, peer: Peer, head: &Parts) -> Result<Self::Access, Box<Response>>;

    /// The answer to a whole request.
    fn answer(&self, head: Parts, body: Bytes, access: Self::Access)
    -> impl Future<Output = Response> + Send;

    /// The answer to what is no request.
    fn refuse(&self, status: u16, error: String) -> Response;
}

/// Who is at the other end, as far as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host, as it was at connect(2) (`SO_PEERCRED`), which it cannot forge.
    Process {
        /// Its user.
        uid: u32,
        /// Its number, where it is in our pid namespace.
        pid: Option<i32>,
    },
    /// Somebody at an address.
    Address,
    /// Nobody could tell.
    Unknown,
}

/// How much clients of one site may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Open connections.
    pub connections: usize,
    /// Longest request line and headers, in bytes; more is answered 431.
    pub head: usize,
    /// Longest body, in bytes; more is answered 413.
    pub body: usize,
}

/// How long a client may take over each part of an exchange, and the loop over an answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the connection, or the end of the last answer, to the end of a request head.
    pub head: Duration,
    /// From the head to the end of the body.
    pub body: Duration,
    /// Without reading anything of an answer.
    pub write: Duration,
    /// For the loop, instead of what the command itself says.
    pub answer: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        let patience = Duration::from_secs(10);
        Self { head: patience, body: patience, write: patience, answer: None }
    }
}
