//! What is told of an upgrade: while it is under way, and of the last one. Knows no more of it than that.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_shared::id::SlotId;

use super::Stage;
use super::handoff::ReceivedHandoff;
use crate::api::{RestartedSlot, UpgradeReport, UpgradeState, UpgradedSlot};

/// What is told of an upgrade.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) from: String,
    /// Empty while it is not known.
    pub(super) to: String,
    /// Seconds since 1970.
    pub(crate) started_at: u64,
    /// The same, by the monotonic clock, which one boot's programs share.
    pub(crate) began: Duration,
    pub(super) ended: Option<Duration>,
    /// From when the old program left until the new one answered everybody.
    pub(super) takeover: Option<Duration>,
    /// Slots that have followed, when it is over.
    pub(super) slots: Vec<RestartedSlot>,
    /// Why it failed.
    pub(super) reason: Option<String>,
}

impl Record {
    /// Of one that begins now.
    pub(super) fn new(from: &str, now: Duration) -> Self {
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { from: from.to_owned(), started_at, began: now, ..Self::default() }
    }

    /// Of the one that has brought this program, of `version`, here.
    pub(super) fn inherited(handoff: &ReceivedHandoff, version: &str) -> Self {
        let begun = Self {
            from: handoff.from.clone(),
            to: version.to_owned(),
            started_at: handoff.started_at,
            began: handoff.began,
            ..Self::default()
        };
        match &handoff.failed {
            Some(failed) => Self {
                to: failed.to.clone(),
                reason: Some(failed.reason.clone()),
                ended: Some(handoff.left),
                ..begun
            },
            None => begun,
        }
    }

    /// What is answered `now`: `slots` are all slots and their workers' versions, `done` those that have
    /// followed.
    pub(super) fn report<'a>(
        &self,
        state: UpgradeState,
        now: Duration,
        slots: impl Iterator<Item = (SlotId, &'a str)>,
        done: &[RestartedSlot],
    ) -> UpgradeReport {
        let slots = slots.map(|(id, version)| {
            let followed = done.iter().find(|done| done.slot == id.0);
            UpgradedSlot {
                done: followed.is_some(),
                version: version.to_owned(),
                result: followed.cloned().unwrap_or(RestartedSlot { slot: id.0, ..RestartedSlot::default() }),
            }
        });
        UpgradeReport {
            state,
            from: self.from.clone(),
            to: self.to.clone(),
            started_at: self.started_at,
            seconds: self.ended.unwrap_or(now).saturating_sub(self.began).as_secs_f64(),
            takeover_ms: self.takeover.map(milliseconds),
            slots: slots.collect(),
            kept: done.iter().map(|slot| u64::from(slot.kept)).sum(),
            lost: done.iter().map(|slot| u64::from(slot.lost)).sum(),
            longest_pause_ms: done.iter().map(|slot| slot.pause_ms).fold(0.0, f64::max),
            reason: self.reason.clone(),
        }
    }

    pub(super) fn describe_takeover(&self) -> String {
        let Self { from, to, takeover, .. } = self;
        let takeover = milliseconds(takeover.unwrap_or_default());
        format!(
            "supervisor {to} has taken over from {from}; clients who came waited {takeover:.1} ms at most"
        )
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, slots, .. } = self;
        write!(f, "{from} -> {to}")?;
        for RestartedSlot { slot, kept, lost, pause_ms } in slots {
            write!(f, "; slot {slot}: {kept} connections kept, {lost} lost, pause {pause_ms:.1} ms")?;
        }
        Ok(())
    }
}

impl Stage {
    /// As it is told.
    pub(super) fn state(&self, record: &Record) -> UpgradeState {
        match self {
            Self::Opening { .. } | Self::Asking { .. } => UpgradeState::Asking,
            Self::Leaving { .. } | Self::Closing { .. } | Self::TakingOver { .. } => UpgradeState::TakingOver,
            Self::Rolling { .. } => UpgradeState::Rolling,
            Self::Over if record.reason.is_some() => UpgradeState::Failed,
            Self::Over => UpgradeState::Done,
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
