//! What a run came to, as a table for people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::clients::{Behaviour, Loss, Tally};
use super::schedule::Step;
use crate::cap_watch::Looks;
use crate::control::Totals;

/// Steps of one kind.
#[derive(Debug, Clone, Default)]
struct Row {
    times: u64,
    longest_pause: Duration,
    idle_lost: usize,
    echoing_lost: usize,
    /// The most in one step.
    most_echoing: usize,
    others_lost: usize,
    losses: BTreeMap<(Behaviour, Loss), usize>,
}

/// A run that went as it must.
#[derive(Debug)]
pub struct Summary {
    seed: u64,
    clients: usize,
    rows: BTreeMap<String, Row>,
    echoes: u64,
    pub(super) looks: Looks,
    /// Before and after.
    pub(super) memory: (u64, u64),
    pub(super) supervisors: usize,
    pub(super) totals: Option<Totals>,
}

impl Summary {
    pub(super) fn new(seed: u64, clients: usize) -> Self {
        Self {
            seed,
            clients,
            rows: BTreeMap::new(),
            echoes: 0,
            looks: Looks::default(),
            memory: (0, 0),
            supervisors: 1,
            totals: None,
        }
    }

    pub(super) fn add(&mut self, step: &Step, tally: &Tally) {
        let mut names: Vec<&str> = step.faults.iter().map(|aimed| aimed.fault.name()).collect();
        names.sort_unstable();
        let row = self.rows.entry(names.join(" + ")).or_default();
        row.times += 1;
        row.longest_pause = row.longest_pause.max(tally.longest_pause);
        row.most_echoing = row.most_echoing.max(tally.lost(Behaviour::Echoing));
        row.echoing_lost += tally.lost(Behaviour::Echoing);
        row.idle_lost += tally.lost(Behaviour::Idle);
        row.others_lost += [Behaviour::HalfFrame, Behaviour::Slow, Behaviour::Restless]
            .map(|behaviour| tally.lost(behaviour))
            .iter()
            .sum::<usize>();
        for (&key, &count) in &tally.losses {
            *row.losses.entry(key).or_default() += count;
        }
        self.echoes = tally.echoes;
    }

    /// How many steps there were.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.rows.values().map(|row| row.times).sum()
    }

    /// Messages that came back, every byte as sent.
    #[must_use]
    pub fn echoes(&self) -> u64 {
        self.echoes
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:36} {:>6} {:>14} {:>10} {:>13} {:>8} {:>12}",
            "fault", "times", "longest pause", "idle lost", "echoing lost", "at most", "others lost"
        )?;
        for (name, row) in &self.rows {
            let pause = format!("{} ms", row.longest_pause.as_millis());
            writeln!(
                f,
                "{name:36} {:>6} {pause:>14} {:>10} {:>13} {:>8} {:>12}",
                row.times, row.idle_lost, row.echoing_lost, row.most_echoing, row.others_lost
            )?;
        }
        writeln!(f, "\n{:36} {:12} {:22} {:>8}", "fault", "clients", "lost or refused", "times")?;
        for (name, row) in &self.rows {
            for ((behaviour, loss), count) in &row.losses {
                writeln!(f, "{name:36} {:12} {:22} {count:>8}", format!("{behaviour:?}"), loss.to_string())?;
            }
        }
        let Looks { control, most_reported, kernel, most_established } = self.looks;
        writeln!(
            f,
            "\nseed {}: {} steps, {} clients, {} messages echoed with every byte intact, {} supervisors",
            self.seed,
            self.steps(),
            self.clients,
            self.echoes,
            self.supervisors
        )?;
        writeln!(
            f,
            "looked {control} times at the totals (at most {most_reported} connections) and {kernel} times at the \
             kernel's table (at most {most_established}): no cap passed, no total went back"
        )?;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        writeln!(
            f,
            "memory without clients: {} MiB before, {} MiB after",
            mib(self.memory.0),
            mib(self.memory.1)
        )?;
        if let Some(totals) = &self.totals {
            writeln!(
                f,
                "accepted {}, resumed {}, restarts {}, lost {}, holdings at the end 0",
                totals.number("accepted_total"),
                totals.number("resumed_total"),
                totals.number("restarts_total"),
                totals.number("lost_total")
            )?;
        }
        Ok(())
    }
}
