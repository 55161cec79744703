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
    /// SIGKILL to a keeper.
    KillKeeper,
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
}

/// What a fault may cost, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// No connection at all.
    Nothing,
    /// Connections that the worker was in the middle of: a half frame read, output queued, an event. Never an
    /// idle one.
    MidEvent,
    /// All connections of one slot.
    Slot,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::KillWorker,
        Self::CrashWorker,
        Self::WedgeWorker,
        Self::KillKeeper,
        Self::KillSupervisor,
        Self::Reload,
        Self::RestartBySignal,
        Self::RestartAll,
        Self::RestartSlot,
    ];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "kill worker",
            Self::CrashWorker => "crash worker",
            Self::WedgeWorker => "wedge worker",
            Self::KillKeeper => "kill keeper",
            Self::KillSupervisor => "kill supervisor",
            Self::Reload => "reload",
            Self::RestartBySignal => "restart by signal",
            Self::RestartAll => "restart all",
            Self::RestartSlot => "restart one",
        }
    }

    /// How often it comes, relative to the others. A wedge takes seconds to be seen, so it is rare.
    #[must_use]
    pub fn weight(self) -> u32 {
        match self {
            Self::KillWorker => 6,
            Self::CrashWorker | Self::RestartBySignal | Self::RestartAll | Self::RestartSlot => 3,
            Self::KillSupervisor | Self::Reload => 4,
            Self::KillKeeper => 2,
            Self::WedgeWorker => 1,
        }
    }

    /// What it may cost when it comes alone.
    #[must_use]
    pub fn cost(self) -> Cost {
        match self {
            Self::KillWorker | Self::CrashWorker | Self::WedgeWorker => Cost::MidEvent,
            Self::KillKeeper => Cost::Slot,
            Self::KillSupervisor
            | Self::Reload
            | Self::RestartBySignal
            | Self::RestartAll
            | Self::RestartSlot => Cost::Nothing,
        }
    }

    /// Whether the two may come at once. A restart by signal tells nobody when it is over, so it comes alone.
    /// A worker that is stopped gives its slot to no new supervisor, which then says so and ends: for people
    /// to decide.
    #[must_use]
    pub fn goes_with(self, other: Self) -> bool {
        match (self.min(other), self.max(other)) {
            (Self::RestartBySignal, _) | (_, Self::RestartBySignal) => false,
            (Self::WedgeWorker, Self::KillSupervisor) => false,
            (one, another) => one != another,
        }
    }
}
