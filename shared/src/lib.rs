//! What all Holdfast processes must agree on. Imports nothing of ours.
//!
//! Who may talk to whom:
//!
//! ```text
//! supervisor <-> worker   link: SEQPACKET pair, [`ipc`]; one per slot
//! supervisor <-- keeper   the same link, only while no worker is alive
//! keeper     --> worker   clone(CLONE_FILES): shared descriptor table; exit status back
//! operator   <-> supervisor   control socket, signals
//! client     <-> worker   TCP
//! ```

pub mod address;
pub mod backoff;
pub mod channels;
pub mod clock;
pub mod config;
pub mod counters;
pub mod format;
pub mod id;
pub mod ipc;
pub mod level;
pub mod metric;
pub mod path;
pub mod reason;
pub mod route;
pub mod secret;
pub mod session;
pub mod sys;
pub mod table;
