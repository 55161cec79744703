//! From the configuration to what each part of the cluster enforces. Pure.

use holdfast_shared::config::{Config, ResolvedLimits};

use super::ledger::LedgerLimits;
use super::level::LevelEdges;
use crate::host::capacity::Capacity;

/// What the ledger enforces.
#[must_use]
pub fn for_ledger(config: &Config, capacity: &Capacity) -> LedgerLimits {
    LedgerLimits {
        max_connections: capacity.max_connections.into(),
        max_connections_per_address: config.limits.max_connections_per_address.map_or(0, Into::into),
        ipv6_prefix: config.limits.ipv6_prefix,
        connect_rate: config.limits.connect_rate,
        connect_rate_per_address: config.limits.connect_rate_per_address,
        exempt: config.limits.exempt_addresses.clone(),
    }
}

/// The counts at which levels begin.
#[must_use]
pub fn for_levels(limits: &ResolvedLimits) -> LevelEdges {
    LevelEdges {
        warning: limits.warning.into(),
        soft: limits.soft.into(),
        max: limits.max.into(),
        margin: limits.hysteresis.into(),
    }
}
