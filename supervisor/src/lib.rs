//! The Holdfast supervisor.
