//! The kinds of operations, and which of them exclude each other: one table. Pure.

use crate::api::Failure;

/// What can be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not all slots serve yet, or have said whom they hold: the start itself, and adoption.
    Start,
    Reload,
    Restart,
    Upgrade,
    /// Slots retire.
    Resize,
    Rebalance,
    /// Connections are on their way from one slot to another.
    Move,
    Drain,
    Stop,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Start,
        Self::Reload,
        Self::Restart,
        Self::Upgrade,
        Self::Resize,
        Self::Rebalance,
        Self::Move,
        Self::Drain,
        Self::Stop,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Upgrade => "upgrade",
            Self::Resize => "resize",
            Self::Rebalance => "rebalance",
            Self::Move => "move",
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }

    /// What is said when it is in the way of `wanted`.
    fn refusal(self, wanted: Self) -> String {
        let article = if self == wanted {
            "another"
        } else if self == Self::Upgrade {
            "an"
        } else {
            "a"
        };
        match self {
            Self::Start => "the service is still starting; wait until it is ready".to_owned(),
            Self::Stop if wanted == Self::Drain => "the service is stopping already".to_owned(),
            Self::Drain | Self::Stop => "the service is shutting down".to_owned(),
            Self::Resize => {
                "slots are being retired, which moves their connections; wait for the end of that".to_owned()
            }
            Self::Move => "connections are being moved between slots; wait for the end of that".to_owned(),
            Self::Upgrade if wanted == Self::Upgrade => {
                "another upgrade is under way; `holdfast ctl upgrade --status` shows how far it is".to_owned()
            }
            Self::Reload | Self::Restart | Self::Rebalance | Self::Upgrade => {
                format!("{article} {} is under way; wait for its end", self.name())
            }
        }
    }
}

/// While `running` is under way, `wanted` does not begin.
fn excludes(running: Kind, wanted: Kind) -> bool {
    use Kind::{Drain, Move, Rebalance, Resize, Restart, Start, Stop, Upgrade};
    match running {
        Kind::Reload => false,
        Start => matches!(wanted, Upgrade | Resize | Rebalance | Move),
        Restart | Upgrade => matches!(wanted, Restart | Upgrade | Rebalance | Move),
        // Slots that retire for long, having nowhere to give their connections to, stop nobody but who wants to move
        // some as well.
        Resize => matches!(wanted, Rebalance),
        Rebalance => matches!(wanted, Restart | Upgrade | Rebalance),
        Move => matches!(wanted, Restart | Upgrade | Move),
        Drain => !matches!(wanted, Drain | Stop),
        Stop => true,
    }
}

/// The kinds that are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Running(u16);

impl Running {
    pub(super) fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    /// May one of these begin now?
    pub(super) fn admits(self, wanted: Kind) -> Result<(), Failure> {
        // The end of the service comes last in the list, and is what matters most.
        let in_the_way = Kind::ALL.into_iter().rev().find(|&kind| self.has(kind) && excludes(kind, wanted));
        in_the_way.map_or(Ok(()), |kind| Err(Failure::new(409, kind.refusal(wanted))))
    }

    pub(super) fn is_ending(self) -> bool {
        self.has(Kind::Drain) || self.has(Kind::Stop)
    }
}

impl FromIterator<Kind> for Running {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |all, kind| all | (1 << kind as u16)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row for what is under way, a column for what is wanted: `x` is refused.
    const TABLE: [(Kind, &str); 9] = [
        //               start reload restart upgrade resize rebalance move drain stop
        (Kind::Start, "...xxxx.."),
        (Kind::Reload, "........."),
        (Kind::Restart, "..xx.xx.."),
        (Kind::Upgrade, "..xx.xx.."),
        (Kind::Resize, ".....x..."),
        (Kind::Rebalance, "..xx.x..."),
        (Kind::Move, "..xx..x.."),
        (Kind::Drain, "xxxxxxx.."),
        (Kind::Stop, "xxxxxxxxx"),
    ];

    #[test]
    fn every_pair_is_as_in_the_table() {
        for ((running, row), kind) in TABLE.into_iter().zip(Kind::ALL) {
            assert_eq!(running, kind);
            let found: String = Kind::ALL
                .map(|wanted| if excludes(running, wanted) { 'x' } else { '.' })
                .into_iter()
                .collect();
            assert_eq!(found, row, "while {running:?} is under way");
        }
    }

    #[test]
    fn a_refusal_names_what_is_in_the_way() {
        let refused = |running: &[Kind], wanted| {
            running.iter().copied().collect::<Running>().admits(wanted).map_err(|failure| failure.error)
        };
        assert_eq!(refused(&[], Kind::Upgrade), Ok(()));
        assert_eq!(refused(&[Kind::Reload, Kind::Resize], Kind::Restart), Ok(()));
        for running in Kind::ALL {
            for wanted in Kind::ALL.into_iter().filter(|&wanted| excludes(running, wanted)) {
                let text = refused(&[running], wanted).unwrap_err();
                let names = match running {
                    Kind::Start => "starting",
                    Kind::Resize => "retired",
                    Kind::Move => "moved",
                    Kind::Drain => "shutting down",
                    Kind::Stop if wanted == Kind::Drain => "stopping already",
                    Kind::Stop => "shutting down",
                    other => other.name(),
                };
                assert!(text.contains(names), "{running:?} {wanted:?}: {text}");
            }
        }
        let text = refused(&[Kind::Restart, Kind::Drain], Kind::Restart).unwrap_err();
        assert_eq!(text, "the service is shutting down");
        let text = refused(&[Kind::Restart], Kind::Restart).unwrap_err();
        assert_eq!(text, "another restart is under way; wait for its end");
    }
}
