//! What is being done to the cluster: reload, restart, upgrade, resize, rebalance, drain, adoption.

pub(crate) mod adoption;
pub(crate) mod drain;
pub(crate) mod rebalance;
pub(crate) mod reload;
pub(crate) mod resize;
pub(crate) mod restart;
pub(crate) mod upgrade;
