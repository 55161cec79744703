//! Which slot gets a new client: keeps a program in the kernel that chooses by what the slots are like now,
//! or leaves the choice to the kernel. Owns when to think again; how to weigh is in `weights`, how to tell
//! the kernel in `program`.
//!
//! Steering is never worth a client: where the kernel refuses, that is said once, and its hash chooses.

mod program;
#[cfg(test)]
mod tests;
mod weights;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use holdfast_shared::config::Balance;
use holdfast_shared::id::SlotId;
use holdfast_shared::sys::steering::{attach, detach};

use super::Cluster;
use super::slot::Slot;
use weights::Weights;

/// How long weights hold if counts have moved, but fewer clients have come than the weights were made for.
const PERIOD: Duration = Duration::from_millis(250);
/// How long they hold however many come. Until then the newest are on their way through accept and handshake,
/// and not in every count.
const SHORTEST_PERIOD: Duration = Duration::from_millis(10);

/// What a slot is like at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    /// Connections it holds.
    held: u64,
    /// Clients on their way in: in its accept queues, or accepted and not yet admitted.
    coming: u64,
    /// Whether clients should be sent to it.
    serves: bool,
    /// Whether it is on its way out: then it must not get any, whoever chooses.
    retires: bool,
}

/// What was decided last, and from what.
#[derive(Debug)]
struct Plan {
    balance: Balance,
    loads: Vec<Load>,
    /// Connections admitted until then, over all slots.
    admitted: u64,
    /// How many newcomers the weights are made for.
    volume: u64,
    made_at: Duration,
    /// What is in force; `None` is the kernel's hash.
    weights: Option<Weights>,
}

/// How fast clients come.
#[derive(Debug, Default)]
struct Pace {
    since: Duration,
    admitted: u64,
    /// How many came in the shortest period before `since`, or lately when more did: crowds come in waves.
    recent: u64,
}

/// Which slot a place in the groups of listeners belongs to: the kernel's answer is a place.
#[derive(Debug, Default)]
enum Places {
    /// That of the same number.
    #[default]
    InOrder,
    /// These, by place.
    Of(Vec<usize>),
    /// There is no telling.
    Unknown,
}

/// The steering of all groups of listeners.
#[derive(Debug, Default)]
pub(crate) struct Steering {
    places: Places,
    /// `None` before the first turn: what the kernel has then is not known.
    plan: Option<Plan>,
    pace: Pace,
    refused: bool,
    wakeup: Option<Duration>,
}

/// The kernel takes no program.
#[derive(Debug, thiserror::Error)]
#[error("cannot steer new clients of {address}: {source}")]
struct Refused {
    address: SocketAddr,
    source: io::Error,
}

/// One socket of each group, which stands for all of it.
type Groups<'a> = [(SocketAddr, BorrowedFd<'a>)];

impl Cluster {
    /// Thinks again about who gets new clients, if it is time.
    pub(super) fn steer(&mut self) {
        let balance = self.effective.config.balance;
        let load = |slot: &Slot| {
            let held = self.ledger.held_by(slot.id);
            Load { held, coming: 0, serves: slot.serves(), retires: slot.retires }
        };
        let mut loads: Vec<Load> = self.slots().map(load).collect();
        let admitted = self.slots().map(|slot| slot.book.accepted()).sum();
        if !self.steering.is_due(balance, &loads, admitted, self.now) {
            return;
        }
        for (slot, load) in self.slots().zip(&mut loads) {
            let queued = u64::from(self.listeners.accept_queue(slot.id).length);
            // Read after the queue: whoever moves from one to the other meanwhile is counted twice, not missed.
            let here = slot.connections_now().unwrap_or(0);
            load.coming = here.saturating_add(queued).saturating_sub(load.held);
        }
        let groups: Vec<_> = self.listeners.groups().collect();
        self.steering.renew(balance, loads, admitted, self.now, &groups);
    }
}

impl Steering {
    /// The steering of groups whose places belong to these slots; `None` if that is not known. So many clients
    /// were `admitted` before: they are no measure of how fast others come.
    pub(crate) fn new(places: Option<&[usize]>, admitted: u64) -> Self {
        let places = match places {
            Some(places) if places.is_sorted() => Places::InOrder,
            Some(places) => Places::Of(places.to_vec()),
            None => Places::Unknown,
        };
        Self { places, pace: Pace { admitted, ..Pace::default() }, ..Self::default() }
    }

    /// When to be called again even if nothing else happens.
    pub(crate) fn wakeup(&self) -> Option<Duration> {
        self.wakeup
    }

    /// The part of new clients that a slot gets, in thousandths; `None` if the kernel's hash decides.
    pub(crate) fn share(&self, slot: SlotId) -> Option<u16> {
        self.plan.as_ref()?.weights.as_ref()?.share(usize::from(slot.0))
    }

    /// The world may have changed: a kernel that refused is asked again.
    pub(crate) fn reconsider(&mut self) {
        self.plan = None;
        self.refused = false;
    }

    fn is_due(&mut self, balance: Balance, loads: &[Load], admitted: u64, now: Duration) -> bool {
        self.pace.note(admitted, now);
        self.wakeup = self.plan.as_ref().map_or(Some(now), |plan| plan.expires(balance, loads, admitted));
        self.wakeup.is_some_and(|moment| now >= moment)
    }

    fn renew(
        &mut self,
        balance: Balance,
        loads: Vec<Load>,
        admitted: u64,
        now: Duration,
        groups: &Groups<'_>,
    ) {
        self.wakeup = None;
        if self.plan.as_ref().is_some_and(|plan| plan.balance != balance) {
            self.reconsider();
        }
        let volume = weights::volume(&loads, self.pace.expected(admitted));
        let wanted = match balance {
            Balance::Kernel if !loads.iter().any(|load| load.retires) => None,
            _ if self.refused || matches!(self.places, Places::Unknown) => None,
            Balance::LeastConnections => Weights::by_load(&loads, volume),
            // The kernel's hash knows all slots; as even a choice among some is a random one.
            Balance::Kernel | Balance::SourceAddress => Weights::equal(&loads),
        };
        let stands = self.plan.as_ref().is_some_and(|plan| plan.weights == wanted);
        let weights = if stands { wanted } else { self.enforce(balance, wanted, groups) };
        self.plan = Some(Plan { balance, loads, admitted, volume, made_at: now, weights });
    }

    /// Tells the kernel; returns what it does now.
    fn enforce(
        &mut self,
        balance: Balance,
        weights: Option<Weights>,
        groups: &Groups<'_>,
    ) -> Option<Weights> {
        let by_place = weights.as_ref().map(|weights| match &self.places {
            Places::Of(slots) => weights.by_place(slots),
            Places::InOrder | Places::Unknown => weights.clone(),
        });
        let told = match &by_place {
            Some(weights) => groups.iter().try_for_each(|&(address, member)| {
                let program = program::build(balance, weights, address);
                attach(member, &program).map_err(|source| Refused { address, source })
            }),
            None => Ok(()),
        };
        if let Err(error) = &told {
            self.refused = true;
            log::warn!("{error}; the kernel's hash chooses their workers, until the next reload");
        }
        if told.is_ok() && weights.is_some() {
            return weights;
        }
        for &(address, member) in groups {
            // A kernel that knows no programs cannot detach one either: nothing to warn of.
            if let Err(error) = detach(member) {
                log::debug!("cannot leave the steering of {address} to the kernel: {error}");
            }
        }
        None
    }
}

impl Pace {
    fn note(&mut self, admitted: u64, now: Duration) {
        if now.saturating_sub(self.since) >= SHORTEST_PERIOD {
            self.recent = self.arrived(admitted).max(self.recent / 2);
            self.since = now;
            self.admitted = admitted;
        }
    }

    /// How many will come in the shortest period.
    fn expected(&self, admitted: u64) -> u64 {
        self.recent.max(self.arrived(admitted))
    }

    /// Counted each turn, so however long nothing happened before, these have come in at most one turn more
    /// than the shortest period.
    fn arrived(&self, admitted: u64) -> u64 {
        admitted.saturating_sub(self.admitted)
    }
}

impl Plan {
    /// When this plan is to be replaced; `None` while it is as good as a new one.
    fn expires(&self, balance: Balance, loads: &[Load], admitted: u64) -> Option<Duration> {
        let serving = |loads: &[Load]| loads.iter().map(|load| load.serves).collect::<Vec<_>>();
        let retiring = |loads: &[Load]| loads.iter().map(|load| load.retires).collect::<Vec<_>>();
        if balance != self.balance || retiring(loads) != retiring(&self.loads) {
            return Some(Duration::ZERO);
        }
        if balance == Balance::Kernel && !loads.iter().any(|load| load.retires) {
            return None;
        }
        if serving(loads) != serving(&self.loads) {
            return Some(Duration::ZERO);
        }
        if balance != Balance::LeastConnections {
            return None;
        }
        if admitted.saturating_sub(self.admitted) >= self.volume {
            return Some(self.made_at + SHORTEST_PERIOD);
        }
        // Less than an eighth of what the weights were made for changes them too little to matter.
        let mut moved = loads.iter().zip(&self.loads).map(|(new, old)| new.held.abs_diff(old.held));
        moved.any(|moved| moved.saturating_mul(8) >= self.volume).then(|| self.made_at + PERIOD)
    }
}
