//! The Holdfast worker.

pub mod timer_wheel;
