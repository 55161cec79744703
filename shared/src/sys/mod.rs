//! The operating system, and the processor, where no crate wraps them safely. Every `unsafe` block of the
//! workspace is in this folder, each behind a safe interface. Nothing here knows what a connection or a slot
//! is.

pub mod descriptor;
pub mod listener;
pub mod mapping;
pub mod memory;
pub mod process;
pub mod rights;
pub mod shared_memory;
pub mod steering;
pub mod title;
pub mod wide;
