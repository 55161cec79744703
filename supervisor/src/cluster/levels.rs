//! What makes the level: the number of connections, a shortage of memory or descriptors, or an operator who wants to see
//! what a level does. The highest of them holds, and everybody is told when it changes.

use std::fmt;
use std::time::Duration;

use holdfast_shared::config::Degraded;
use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::level::Level;

use super::Cluster;
use super::level::LevelEdges;
use crate::host::pressure::Pressure;

/// Between two looks at memory and descriptors.
const INTERVAL: Duration = Duration::from_secs(1);

/// A shortage is over when it is this many hundredths below where it began.
const MARGIN: u8 = 5;

/// What makes the level what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Cause {
    /// The number of connections.
    #[default]
    Connections,
    /// So much memory is in use.
    Memory,
    /// Processes wait for memory for so much of the time.
    MemoryStalls,
    /// A worker uses so many of its descriptors.
    Descriptors,
    /// An operator wants to see what it does.
    Simulation,
}

impl Cause {
    /// The word users see.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Memory => "memory",
            Self::MemoryStalls => "memory_stalls",
            Self::Descriptors => "descriptors",
            Self::Simulation => "simulation",
        }
    }
}

/// What is measured of one resource, in hundredths, and where it makes the server degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Share {
    used: Option<u8>,
    edge: u8,
}

impl Share {
    /// Is it short, when it was or was not before?
    fn is_short(self, was_short: bool) -> bool {
        let holds = |used| used >= self.edge || (was_short && used > self.edge.saturating_sub(MARGIN));
        self.edge > 0 && self.used.is_some_and(holds)
    }
}

/// The level, and what makes it.
#[derive(Debug)]
pub(super) struct Levels {
    pub(super) edges: LevelEdges,
    by_count: Level,
    /// What is short, of memory, time without waiting for memory, descriptors.
    short: [bool; 3],
    shares: [Share; 3],
    simulated: Level,
    level: Level,
    cause: Cause,
    /// When memory and descriptors are looked at again.
    due: Duration,
}

impl Levels {
    /// As it was when it was last known.
    pub(super) fn new(edges: LevelEdges, level: Level) -> Self {
        Self {
            edges,
            by_count: level,
            short: [false; 3],
            shares: [Share::default(); 3],
            simulated: Level::Normal,
            level,
            cause: Cause::default(),
            due: Duration::ZERO,
        }
    }

    /// Takes new measures. Says whether the level has changed.
    fn update(&mut self, connections: u64) -> bool {
        self.by_count = self.edges.next(self.by_count, connections);
        for (short, share) in self.short.iter_mut().zip(self.shares) {
            *short = share.is_short(*short);
        }
        let causes = [Cause::Memory, Cause::MemoryStalls, Cause::Descriptors];
        let shortages = self.short.iter().zip(causes).filter(|(short, _)| **short);
        let levels = shortages.map(|(_, cause)| (Level::Degraded, cause));
        let before = self.level;
        // The first of equals: the number of connections, if that would do alone.
        (self.level, self.cause) = levels.chain([(self.simulated, Cause::Simulation)]).fold(
            (self.by_count, Cause::Connections),
            |highest, next| {
                if next.0 > highest.0 { next } else { highest }
            },
        );
        self.level != before
    }

    /// The share that is behind the cause, in words.
    fn describe(&self, connections: u64, max_connections: u32) -> impl fmt::Display {
        let used = |share: Share, what: &str| {
            format!(
                "{} % of {what}, degraded.{} = {} %",
                share.used.unwrap_or(0),
                self.cause.name(),
                share.edge
            )
        };
        match self.cause {
            Cause::Connections => format!("{connections} of {max_connections} connections"),
            Cause::Memory => used(self.shares[0], "the memory in use"),
            Cause::MemoryStalls => used(self.shares[1], "the time spent waiting for memory"),
            Cause::Descriptors => used(self.shares[2], "a worker's descriptors in use"),
            Cause::Simulation => "simulated by an operator".to_owned(),
        }
    }
}

impl Cluster {
    pub(crate) fn level(&self) -> Level {
        self.levels.level
    }

    pub(crate) fn level_cause(&self) -> Cause {
        self.levels.cause
    }

    /// From now on it is as if this level were reached. Returns the one before.
    pub(crate) fn simulate(&mut self, level: Level) -> Level {
        let before = std::mem::replace(&mut self.levels.simulated, level);
        self.watch_level();
        before
    }

    /// When memory and descriptors are looked at again.
    pub(super) fn level_deadline(&self) -> Duration {
        self.levels.due
    }

    pub(super) fn watch_level(&mut self) {
        // Until the adopted slots have reported, the count is below the truth, and the last level holds.
        if !self.is_counted() {
            return;
        }
        if self.now >= self.levels.due {
            self.levels.due = self.now + INTERVAL;
            self.levels.shares = self.measure();
        }
        let (before, connections) = (self.level(), self.ledger.connections());
        if !self.levels.update(connections) {
            return;
        }
        let level = self.level();
        log::log!(
            if level > before { log::Level::Warn } else { log::Level::Info },
            "level {before} -> {level}: {}",
            self.levels.describe(connections, self.capacity.max_connections)
        );
        self.state.set_level(level);
        self.state.count_level(level);
        self.tell_all(&self.level_message());
        self.tell_hub_level(level);
    }

    /// What workers are told of the level.
    pub(super) fn level_message(&self) -> ToWorker {
        let level = self.level();
        ToWorker::State { full: level == Level::Full, level }
    }

    fn measure(&self) -> [Share; 3] {
        let Degraded { memory, memory_stalls, descriptors, .. } = self.config().degraded;
        let pressure = Pressure::read();
        let open = self.slots().map(|slot| slot.report.open_descriptors).max().unwrap_or(0);
        let used = u64::from(open) * 100 / u64::from(self.descriptors.max(1));
        [
            Share { used: pressure.memory, edge: memory },
            Share { used: pressure.memory_stalls, edge: memory_stalls },
            Share { used: u8::try_from(used).ok(), edge: descriptors },
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn levels() -> Levels {
        Levels::new(LevelEdges { warning: 70, soft: 80, max: 100, margin: 5 }, Level::Normal)
    }

    #[test]
    fn the_highest_cause_holds_and_is_named() {
        let mut levels = levels();
        assert!(levels.update(70));
        assert_eq!((levels.level, levels.cause), (Level::Warning, Cause::Connections));
        levels.shares[2] = Share { used: Some(96), edge: 95 };
        assert!(levels.update(70));
        assert_eq!((levels.level, levels.cause), (Level::Degraded, Cause::Descriptors));
        let text = levels.describe(70, 100).to_string();
        assert_eq!(text, "96 % of a worker's descriptors in use, degraded.descriptors = 95 %");
        levels.simulated = Level::Full;
        assert!(levels.update(70));
        assert_eq!((levels.level, levels.cause), (Level::Full, Cause::Simulation));
        (levels.simulated, levels.shares[2].used) = (Level::Normal, Some(90));
        assert!(levels.update(60));
        assert_eq!((levels.level, levels.cause), (Level::Normal, Cause::Connections));
    }

    #[test]
    fn what_is_not_measured_or_not_watched_is_never_short() {
        let mut levels = levels();
        levels.shares = [
            Share { used: Some(100), edge: 0 },
            Share { used: None, edge: 1 },
            Share { used: Some(94), edge: 95 },
        ];
        assert!(!levels.update(0));
    }

    proptest! {
        #[test]
        fn a_walk_around_an_edge_enters_once(
            edge in 10..=100u8,
            steps in prop::collection::vec(0..MARGIN, 1..200),
        ) {
            let mut levels = levels();
            let mut entered = 0;
            for step in steps {
                levels.shares[0] = Share { used: Some(edge - step), edge };
                entered += u32::from(levels.update(0) && levels.level == Level::Degraded);
            }
            prop_assert!(entered <= 1);
        }

        #[test]
        fn a_random_walk_of_the_count_around_an_edge_enters_once(
            steps in prop::collection::vec(-2..=2i64, 1..300),
        ) {
            let mut levels = levels();
            let (mut count, mut entered) = (80i64, 0);
            for step in steps {
                count = (count + step).clamp(76, 84);
                let changed = levels.update(u64::try_from(count).unwrap());
                entered += u32::from(changed && levels.level == Level::Degraded);
            }
            prop_assert!(entered <= 1);
        }
    }
}
