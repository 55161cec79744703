//! The Holdfast supervisor: policy. Configuration, admission, totals, the control socket; which slots there
//! are and whether they live. Reads no client byte.
//!
//! `host` and `api` are at the bottom, beside them `hub`; `operator` and `cluster` know those, `operations` know the cluster, the
//! loop in `supervisor` knows all.

mod api;
pub mod cluster;
mod host;
pub mod hub;
mod logging;
mod operations;
mod operator;
mod role;
mod start;
mod supervisor;

pub use holdfast_worker::Program;
pub use role::main;
