//! What is true: the slots and their processes, who is counted where, where clients are sent. Knows no operator and
//! no plan.

pub(crate) mod admission_hold;
pub(crate) mod adopted;
pub(crate) mod heartbeat;
pub(crate) mod ledger;
pub(crate) mod level;
pub(crate) mod lifecycle;
pub(crate) mod link;
pub mod listeners;
pub(crate) mod pool;
pub(crate) mod settings;
pub(crate) mod slot;
pub(crate) mod state;
pub(crate) mod steering;
pub(crate) mod take_over;
pub(crate) mod totals;
pub(crate) mod watchdog;
