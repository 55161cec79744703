//! The Holdfast worker.
