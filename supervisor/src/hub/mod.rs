//! The hub: what applications and clients say to channels becomes entries of one journal.

pub mod api;
