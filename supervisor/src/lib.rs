//! The Holdfast supervisor: policy. Configuration, admission, totals, the control socket; which slots there
//! are and whether they live. Reads no client byte.

mod adopt;
pub mod capacity;
pub mod check;
pub mod cli;
pub mod control;
pub mod ctl;
mod drain;
pub mod heartbeat;
pub mod host;
pub mod ledger;
pub mod level;
mod link;
pub mod listeners;
pub mod logging;
pub mod metrics;
mod moving;
mod notify;
mod pool;
pub mod probe;
mod reload;
mod restart;
mod role;
pub mod run_dir;
mod scale;
mod seat;
mod settings;
mod signals;
pub mod slot;
pub mod spawn;
pub mod start;
mod state;
mod steering;
pub mod supervisor;
mod totals;
mod upgrade;
mod watchdog;

pub use holdfast_worker::Program;
pub use role::main;
