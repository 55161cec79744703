//! The Holdfast supervisor.

pub mod check;
pub mod cli;
