//! How far an upgrade has come.

use serde::{Deserialize, Serialize};

use super::RestartedSlot;

/// Where the last upgrade stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeState {
    /// There was none since the service was started.
    #[default]
    None,
    /// The new program is being asked whether it would start.
    Asking,
    /// The new program takes the supervisor's place and adopts the slots.
    TakingOver,
    /// The new supervisor serves; workers are replaced one after the other.
    Rolling,
    /// All workers run the new program.
    Done,
    /// It was refused, or stopped; the reason says where.
    Failed,
}

impl UpgradeState {
    /// The word users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Asking => "asking",
            Self::TakingOver => "taking over",
            Self::Rolling => "rolling",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// The answer to `Upgrade`: the upgrade under way, or the last one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeReport {
    /// Where it stands.
    pub state: UpgradeState,
    /// The version before it.
    pub from: String,
    /// The version it leads to; empty while that is not known.
    pub to: String,
    /// When it began, in seconds since 1970; 0 if there was none.
    pub started_at: u64,
    /// How long it has taken so far, or took.
    pub seconds: f64,
    /// From when the old supervisor left until the new one answered everybody, in milliseconds; absent before.
    /// New clients waited for that long, those that were in did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takeover_ms: Option<f64>,
    /// Every slot, in order.
    pub slots: Vec<UpgradedSlot>,
    /// Connections that the new workers go on with.
    pub kept: u64,
    /// Connections that had to be closed.
    pub lost: u64,
    /// The longest pause of a slot, in milliseconds.
    pub longest_pause_ms: f64,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One slot of an upgrade.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradedSlot {
    /// Its worker runs the new program.
    pub done: bool,
    /// The version its worker runs.
    pub version: String,
    /// What became of its connections; zeros before it is done.
    #[serde(flatten)]
    pub result: RestartedSlot,
}
