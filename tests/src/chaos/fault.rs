//! The faults there are, how often each comes and what it may cost: the table to add a line to. What a fault
//! does is in `strike`.

/// Something that happens to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to a worker.
    KillWorker,
    /// SIGSEGV to a worker.
    CrashWorker,
    /// SIGSTOP to a worker, which then lives and does nothing.
    WedgeWorker,
    /// SIGKILL to a keeper, whose worker takes its place.
    KillKeeper,
    /// SIGKILL to a keeper and its worker at the same moment, so that neither can take the other's place.
    KillSlot,
    /// SIGKILL to the supervisor; another one is started in the same run directory.
    KillSupervisor,
    /// SIGHUP with other limits, caps and balance.
    Reload,
    /// SIGUSR1.
    RestartBySignal,
    /// `POST /restart`.
    RestartAll,
    /// `POST /restart?slot=N`.
    RestartSlot,
    /// Another program at the program's path, and `POST /upgrade`.
    Upgrade,
    /// As `Upgrade`, but the program is not fit; then the one that was there, and `POST /upgrade` again.
    UpgradeRefused,
    /// SIGHUP with another number of workers.
    Scale,
    /// `POST /rebalance`.
    Rebalance,
}

/// What a fault may cost, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// No connection at all.
    Nothing,
    /// Connections that a worker was in the middle of: a half frame read, output queued, an event. Never an
    /// idle one.
    MidEvent,
    /// All connections of one slot.
    Slot,
}

/// Whose end a fault brings about, of the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Nobody,
    /// The worker of the slot it goes to.
    One,
    /// Every slot's, one after the other.
    All,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::KillWorker,
        Self::CrashWorker,
        Self::WedgeWorker,
        Self::KillKeeper,
        Self::KillSlot,
        Self::KillSupervisor,
        Self::Reload,
        Self::RestartBySignal,
        Self::RestartAll,
        Self::RestartSlot,
        Self::Upgrade,
        Self::UpgradeRefused,
        Self::Scale,
        Self::Rebalance,
    ];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "kill worker",
            Self::CrashWorker => "crash worker",
            Self::WedgeWorker => "wedge worker",
            Self::KillKeeper => "kill keeper",
            Self::KillSlot => "kill keeper and worker",
            Self::KillSupervisor => "kill supervisor",
            Self::Reload => "reload",
            Self::RestartBySignal => "restart by signal",
            Self::RestartAll => "restart all",
            Self::RestartSlot => "restart one",
            Self::Upgrade => "upgrade",
            Self::UpgradeRefused => "unfit upgrade",
            Self::Scale => "other workers",
            Self::Rebalance => "rebalance",
        }
    }

    /// How often it comes, relative to the others. A wedge takes seconds to be seen, so it is rare.
    #[must_use]
    pub fn weight(self) -> u32 {
        match self {
            Self::KillWorker => 6,
            Self::KillSupervisor | Self::Reload | Self::KillKeeper | Self::Scale => 4,
            Self::CrashWorker
            | Self::RestartBySignal
            | Self::RestartAll
            | Self::RestartSlot
            | Self::Upgrade => 3,
            Self::UpgradeRefused | Self::Rebalance => 2,
            Self::KillSlot | Self::WedgeWorker => 1,
        }
    }

    /// What it may cost when it comes alone.
    #[must_use]
    pub fn cost(self) -> Cost {
        match self {
            Self::KillWorker | Self::CrashWorker | Self::WedgeWorker => Cost::MidEvent,
            Self::KillSlot => Cost::Slot,
            // The keeper's worker knows what it was in the middle of, and leaves it to the next one.
            Self::KillKeeper
            | Self::KillSupervisor
            | Self::Reload
            | Self::RestartBySignal
            | Self::RestartAll
            | Self::RestartSlot
            | Self::Upgrade
            | Self::UpgradeRefused
            | Self::Scale
            | Self::Rebalance => Cost::Nothing,
        }
    }

    /// Whether the two, the one at `slot` and the other at `others_slot`, may cost all connections of a slot
    /// though neither may alone: a worker that leaves counts on its keeper.
    #[must_use]
    pub fn costs_slot_with(self, slot: u16, other: Self, others_slot: u16) -> bool {
        let ends_its_worker = |fault: Self, here: bool| match fault.ends() {
            Ends::Nobody => false,
            Ends::One => here,
            Ends::All => true,
        };
        let here = slot == others_slot;
        (self == Self::KillKeeper && ends_its_worker(other, here))
            || (other == Self::KillKeeper && ends_its_worker(self, here))
    }

    /// Whether the two may come at once. A restart by signal tells nobody when it is over, so it comes alone.
    /// A worker that is stopped gives its slot to no new supervisor, which then says so and ends or goes back:
    /// for people to decide. While the program is one that is not fit, nobody may need a new keeper or another
    /// supervisor, which would be made of it. Of those that are being moved, a death may cost any, so that no
    /// worker dies meanwhile.
    #[must_use]
    pub fn goes_with(self, other: Self) -> bool {
        match (self.min(other), self.max(other)) {
            (Self::RestartBySignal, _) | (_, Self::RestartBySignal) => false,
            (Self::WedgeWorker, Self::KillSupervisor | Self::Upgrade) => false,
            (
                Self::WedgeWorker | Self::KillKeeper | Self::KillSlot | Self::KillSupervisor | Self::Upgrade,
                Self::UpgradeRefused,
            ) => false,
            (
                Self::KillWorker
                | Self::CrashWorker
                | Self::WedgeWorker
                | Self::KillKeeper
                | Self::KillSlot
                | Self::UpgradeRefused,
                Self::Scale | Self::Rebalance,
            ) => false,
            (one, another) => one != another,
        }
    }

    fn ends(self) -> Ends {
        match self {
            Self::KillWorker | Self::CrashWorker | Self::WedgeWorker | Self::KillSlot | Self::RestartSlot => {
                Ends::One
            }
            Self::RestartBySignal | Self::RestartAll | Self::Upgrade | Self::UpgradeRefused => Ends::All,
            Self::KillKeeper | Self::KillSupervisor | Self::Reload | Self::Scale | Self::Rebalance => {
                Ends::Nobody
            }
        }
    }
}
