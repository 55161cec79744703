//! Harness of the black-box tests: starts real `holdfast` processes and plays real clients against them.
//!
//! A test blocks on facts (a log line, an answer of the control socket, a process exit, a client's read),
//! each with a deadline that only a broken server reaches, and each failing at once when the server dies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

pub mod cap_watch;
pub mod channels;
pub mod chaos;
pub mod client;
pub mod clients;
pub mod control;
pub mod exposition;
pub mod frame;
mod handshake;
pub mod holdfast;
pub mod http;
pub mod kernel;
pub mod load;
pub mod process;
pub mod watch;

use std::time::Duration;

/// How long any single fact may take to become true. Long enough for a machine that is busy with something
/// else.
pub const PATIENCE: Duration = Duration::from_secs(60);
