//! The Holdfast supervisor.

pub mod check;
pub mod cli;
pub mod control;
pub mod ctl;
pub mod ledger;
pub mod level;
pub mod metrics;
pub mod slot;
