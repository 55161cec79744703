//! The load generator behind `holdfast-load`: many WebSocket clients, cheap enough not to be what is
//! measured.
//!
//! One parent (`run`) starts client processes, tells them when to connect, go, measure and stop, and watches
//! the server's costs meanwhile. Each client process (`client_process`) is one event loop over its share of the
//! clients. They talk in single bytes and JSON lines (`wire`). Nothing here knows Holdfast: any WebSocket
//! echo server can be measured.

pub mod cli;
mod client_process;
mod endpoint;
mod kernel;
mod pacer;
pub mod processes;
mod report;
mod run;
mod server;
mod watch;
pub mod wire;

pub use client_process::serve_parent;
pub use report::Report;
pub use run::run;

use std::path::PathBuf;

/// Why a load could not be made or measured. What happens to clients is counted in the report instead.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The target names no host.
    #[error("no address for {host}: {source}; give a host and port such as ws://127.0.0.1:8080/")]
    Resolve {
        /// Host and port as given.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// More sockets than the processes may open.
    #[error(
        "{clients} clients in {processes} processes, but each may open {limit} descriptors; use --processes {needed} or raise `ulimit -n`"
    )]
    Descriptors {
        /// Clients wanted.
        clients: usize,
        /// Processes wanted.
        processes: usize,
        /// RLIMIT_NOFILE.
        limit: u64,
        /// Processes that would do.
        needed: usize,
    },
    /// The server's process cannot be read.
    #[error("cannot read {}: {source}; is the pid right, and the process ours?", path.display())]
    Process {
        /// The file below /proc.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file below /proc reads differently from what proc(5) says.
    #[error("{} reads differently from what proc(5) says", path.display())]
    ProcFormat {
        /// The file below /proc.
        path: PathBuf,
    },
    /// A client process could not be started.
    #[error("cannot start client process {index}: {source}")]
    Start {
        /// Which one.
        index: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A client process ended, or spoke nonsense.
    #[error("client process {index} ended before its report; its own words are above")]
    ChildEnded {
        /// Which one.
        index: usize,
    },
    /// The event loop of a client process failed.
    #[error("cannot {doing}: {source}")]
    EventLoop {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Not one client was let in.
    #[error("no client could connect to {target}: {why}")]
    NobodyIn {
        /// Where to.
        target: String,
        /// The commonest outcome.
        why: String,
    },
}

impl LoadError {
    fn event_loop(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::EventLoop { doing, source }
    }
}
