//! The operating system where no crate wraps it safely. Every `unsafe` block of the workspace is in this folder,
//! each behind a safe interface. Nothing here knows what a connection or a slot is.

pub mod descriptor;
pub mod listener;
pub mod mapping;
pub mod process;
