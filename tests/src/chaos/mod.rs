//! The chaos test: clients of every behaviour at work while faults strike the service in an order that a seed
//! determines, and all the while checks that nobody is lost who need not be, no limit is passed, no total
//! goes back, no byte is changed and nothing leaks.
//!
//! A step is one fault or two at once; then the service must become whole, the clients come to rest, and
//! everything that can be counted at rest is counted. `fault` is the table of faults, `strike` what each
//! does, `upgrade` what the upgrades do, `schedule` their order; `clients` are the clients, `cap_watch` looks all
//! the time, `service` is what is struck, `summary` what came of it.

mod clients;
mod fault;
mod run;
mod schedule;
mod service;
mod strike;
mod summary;
mod upgrade;

pub use fault::{Cost, Fault};
pub use run::{Plan, clean_up, run};
pub use schedule::{Aimed, Schedule, Step};
pub use summary::Summary;
