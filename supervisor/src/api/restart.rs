//! What a planned restart came to.

use serde::{Deserialize, Serialize};

/// The answer to `Restart`: every slot that was to be restarted was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartReport {
    /// One after the other, in the order they were restarted.
    pub slots: Vec<RestartedSlot>,
}

/// One slot with a new worker.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartedSlot {
    /// The slot.
    pub slot: u16,
    /// Connections that the new worker goes on with.
    pub kept: u32,
    /// Connections that had to be closed.
    pub lost: u32,
    /// From when the last worker stopped serving until the new one served everybody, in milliseconds. Clients
    /// that were active last are served before that.
    pub pause_ms: f64,
}
