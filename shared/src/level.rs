//! The word for how full the cluster is. The supervisor computes it (`supervisor/src/cluster/level.rs`) and pushes it
//! to workers; metrics, logs and the control socket show it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How full the cluster is, from the count of connections against the configured edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Level {
    /// Below every edge.
    #[default]
    Normal,
    /// `limits.warning_connections` was reached: operators should look, clients notice nothing.
    Warning,
    /// `limits.soft_connections` was reached: the `[degraded]` settings hold.
    Degraded,
    /// `limits.max_connections` was reached: the health check tells balancers to look elsewhere.
    Full,
}

impl Level {
    /// All of them, emptiest first; the place in it is the value of the `holdfast_level` metric.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Warning, Self::Degraded, Self::Full];

    /// The word users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
            Self::Degraded => "degraded",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_order_and_complete() {
        assert!(Level::ALL.is_sorted());
        assert!(Level::ALL.iter().enumerate().all(|(place, level)| *level as usize == place));
        assert_eq!(Level::ALL.last(), Some(&Level::Full));
    }
}
