//! The operator's side: the control socket and the admin address, `holdfast ctl`, metrics, the command line. Talks to
//! the supervisor's loop in the words of `api`, and names nothing of the cluster.

pub(crate) mod check;
pub(crate) mod cli;
pub mod control;
pub mod ctl;
pub mod metrics;
