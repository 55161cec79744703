//! The Holdfast supervisor.

pub mod check;
pub mod cli;
pub mod ledger;
pub mod level;
pub mod slot;
