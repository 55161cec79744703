//! What evening out came to.

use serde::{Deserialize, Serialize};

/// The answer to `Rebalance`: slots are even.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RebalanceReport {
    /// Connections that went from one slot to another.
    pub moved: u64,
    /// Every slot, in order, as it is now.
    pub slots: Vec<RebalancedSlot>,
}

/// One slot.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RebalancedSlot {
    /// The slot.
    pub slot: u16,
    /// Its connections.
    pub connections: u64,
}
