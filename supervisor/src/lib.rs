//! The Holdfast supervisor.

pub mod check;
pub mod cli;
pub mod ledger;
pub mod level;
pub mod slot;
pub mod control;
pub mod ctl;
pub mod metrics;
