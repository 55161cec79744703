//! Which faults come when: an endless sequence that its seed determines. Pure; nothing happens here.

use std::time::Duration;

use fastrand::Rng;

use super::fault::Fault;

/// One step in so many brings two faults at once.
const PAIRS: u32 = 4;

/// The clients work undisturbed for up to this long before a step.
const LONGEST_PAUSE_MS: u64 = 800;

/// A fault and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aimed {
    /// The fault.
    pub fault: Fault,
    /// The slot it goes to, if it is about one.
    pub slot: u16,
    /// Decides the details, such as what a reload changes.
    pub detail: u64,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// How long the clients work before it.
    pub pause: Duration,
    /// One fault, or two at once.
    pub faults: Vec<Aimed>,
}

/// All steps, without end.
#[derive(Debug, Clone)]
pub struct Schedule {
    random: Rng,
    slots: u16,
}

impl Schedule {
    /// The schedule that `seed` stands for, against a service of so many slots.
    #[must_use]
    pub fn new(seed: u64, slots: u16) -> Self {
        Self { random: Rng::with_seed(seed), slots }
    }

    fn aimed(&mut self) -> Aimed {
        let total: u32 = Fault::ALL.iter().map(|fault| fault.weight()).sum();
        let mut drawn = self.random.u32(..total);
        let mut fault = Fault::ALL[0];
        for candidate in Fault::ALL {
            fault = candidate;
            match drawn.checked_sub(candidate.weight()) {
                Some(rest) => drawn = rest,
                None => break,
            }
        }
        Aimed { fault, slot: self.random.u16(..self.slots), detail: self.random.u64(..) }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let pause = Duration::from_millis(self.random.u64(..LONGEST_PAUSE_MS));
        let first = self.aimed();
        let mut faults = vec![first];
        if self.random.u32(..PAIRS) == 0 {
            let second = self.aimed();
            if first.fault.goes_with(second.fault) {
                faults.push(second);
            }
        }
        Some(Step { pause, faults })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_schedule_and_every_fault_comes() {
        for seed in 0..20 {
            let steps: Vec<Step> = Schedule::new(seed, 3).take(500).collect();
            assert_eq!(steps, Schedule::new(seed, 3).take(500).collect::<Vec<_>>());
            assert_ne!(steps, Schedule::new(seed + 1, 3).take(500).collect::<Vec<_>>());
            let aimed: Vec<&Aimed> = steps.iter().flat_map(|step| &step.faults).collect();
            let seen: BTreeSet<Fault> = aimed.iter().map(|aimed| aimed.fault).collect();
            assert_eq!(seen.len(), Fault::ALL.len(), "{seen:?}");
            assert!(aimed.iter().all(|aimed| aimed.slot < 3));
            assert!(steps.iter().any(|step| step.faults.len() == 2));
            assert!(steps.iter().all(|step| match &step.faults[..] {
                [_] => true,
                [one, other] => one.fault.goes_with(other.fault),
                _ => false,
            }));
        }
    }
}
