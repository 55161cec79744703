//! How many connections a descriptor limit carries: the arithmetic behind the start, pure. Every connection
//! is a descriptor of one worker, and a worker has as many as RLIMIT_NOFILE says, whatever the machine could
//! do.

use std::num::NonZero;

use holdfast_shared::config::{Config, MaxBuffered, MaxConnections, Workers};

/// Descriptors of a worker that are no connections: its link, table, listeners, epoll instance, log, and some
/// to spare.
const RESERVE: u32 = 64;

/// Descriptors that no connection ever gets: a worker that takes over when all others are used up still has
/// to open some.
const HEADROOM: u32 = 16;

/// One part in so many of the memory is for what workers keep for their clients. The kernel's own buffers for the
/// same clients are several times as large.
const BUFFER_SHARE: u64 = 4;

/// With less than this a few large messages close each other.
const LEAST_BUFFERED: u64 = 16 * 1024 * 1024;

/// The kernel spreads clients by a hash, so workers differ; this many standard deviations above the mean are
/// provided for.
const SPREAD_DEVIATIONS: f64 = 4.0;

/// What the descriptor limit has to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// RLIMIT_NOFILE of a worker.
    pub descriptors: u32,
    /// Workers.
    pub workers: u32,
    /// The cluster-wide cap, as configured.
    pub max_connections: MaxConnections,
    /// Unfinished handshakes of the whole server, as configured.
    pub max_pending_handshakes: u32,
    /// What one worker keeps for its clients, as configured.
    pub max_buffered_total: MaxBuffered,
    /// Memory that all workers together may use, in bytes.
    pub memory: u64,
}

impl Demand {
    /// What `config` asks for, by so many `workers` with so many `descriptors` each.
    pub(crate) fn of(config: &Config, workers: u16, descriptors: u32) -> Self {
        Self {
            descriptors,
            workers: workers.into(),
            max_connections: config.limits.max_connections,
            max_pending_handshakes: config.limits.max_pending_handshakes,
            max_buffered_total: config.limits.max_buffered_total,
            memory: super::kernel::memory_limit(),
        }
    }
}

/// How many workers are wanted.
pub(crate) fn workers(configured: Workers) -> u16 {
    match configured {
        Workers::Count(count) => count,
        Workers::Auto => {
            let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
            u16::try_from(cpus).unwrap_or(u16::MAX)
        }
    }
}

/// What it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The cluster-wide cap.
    pub max_connections: u32,
    /// Unfinished handshakes of one worker.
    pub pending_per_worker: u32,
    /// Rows of one worker's connection table: one for each descriptor it may ever have.
    pub rows: u32,
    /// What one worker keeps for all its clients, in bytes.
    pub buffered_per_worker: u64,
}

/// A configured cap that the descriptors do not carry, and what would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "limits.max_connections = {wanted} is not reachable: {workers} workers have up to {per_worker} connections each \
     (an equal share of {share} and {spread} for the kernel's uneven spread), with {pending} unfinished handshakes and {RESERVE} \
     for the worker itself that is {needed} descriptors per worker, but RLIMIT_NOFILE allows {available}. \
     Set limits.max_connections to {reachable} or less, or start {enough_workers} workers (workers = {enough_workers}), \
     or raise the limit (LimitNOFILE={needed} in the systemd unit, or `ulimit -n {needed}`)"
)]
pub struct Unreachable {
    wanted: u32,
    workers: u32,
    per_worker: u32,
    share: u32,
    spread: u32,
    pending: u32,
    needed: u32,
    available: u32,
    reachable: u32,
    enough_workers: u32,
}

/// What `demand` comes to.
///
/// # Errors
/// When the cap is configured and more than the descriptors carry. One that is not configured is the largest
/// reachable one, up to its ceiling.
pub fn plan(demand: Demand) -> Result<Capacity, Unreachable> {
    let reachable = reachable(demand);
    let max_connections = match demand.max_connections {
        MaxConnections::Auto => demand.max_connections.ceiling().min(reachable),
        MaxConnections::Count(wanted) if wanted > reachable => {
            return Err(unreachable(demand, wanted, reachable));
        }
        MaxConnections::Count(wanted) => wanted,
    };
    let pending_per_worker = pending_per_worker(demand);
    let rows = max_connections.saturating_add(pending_per_worker).saturating_add(RESERVE);
    Ok(Capacity {
        max_connections,
        pending_per_worker,
        rows: rows.min(demand.descriptors.saturating_sub(HEADROOM)),
        buffered_per_worker: buffered_per_worker(demand),
    })
}

/// A worker's share of the unfinished handshakes, and never more than a quarter of its descriptors.
fn pending_per_worker(demand: Demand) -> u32 {
    let share = demand.max_pending_handshakes.div_ceil(demand.workers.max(1));
    share.min(demand.descriptors.saturating_sub(RESERVE) / 4).max(1)
}

/// A share of the memory, unless it is configured.
fn buffered_per_worker(demand: Demand) -> u64 {
    match demand.max_buffered_total {
        MaxBuffered::Bytes(bytes) => bytes as u64,
        MaxBuffered::Auto => {
            (demand.memory / BUFFER_SHARE / u64::from(demand.workers.max(1))).max(LEAST_BUFFERED)
        }
    }
}

fn reachable(demand: Demand) -> u32 {
    let room = demand.descriptors.saturating_sub(RESERVE).saturating_sub(pending_per_worker(demand));
    // The largest share whose spread still fits: the sum grows with the share, so halving finds it.
    let (mut fits, mut too_many) = (0, room.saturating_add(1));
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if middle.saturating_add(spread(middle, demand.workers)) <= room {
            fits = middle;
        } else {
            too_many = middle;
        }
    }
    fits.saturating_mul(demand.workers)
}

/// How far above an equal share the busiest of several workers may come.
fn spread(share: u32, workers: u32) -> u32 {
    if workers <= 1 {
        return 0;
    }
    let deviation = f64::from(share).sqrt();
    // A square root of a u32, four times: fits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let spread = (SPREAD_DEVIATIONS * deviation).ceil() as u32;
    spread
}

fn unreachable(demand: Demand, wanted: u32, reachable: u32) -> Unreachable {
    let share = wanted.div_ceil(demand.workers.max(1));
    let spread = spread(share, demand.workers);
    // With as many descriptors as are needed, handshakes get their full share.
    let pending = demand.max_pending_handshakes.div_ceil(demand.workers.max(1));
    let per_worker = share.saturating_add(spread);
    let enough = |&workers: &u32| self::reachable(Demand { workers, ..demand }) >= wanted;
    Unreachable {
        wanted,
        workers: demand.workers,
        per_worker,
        share,
        spread,
        pending,
        needed: per_worker.saturating_add(pending).saturating_add(RESERVE),
        available: demand.descriptors,
        reachable,
        enough_workers: (demand.workers..=u32::from(u16::MAX)).find(enough).unwrap_or(u32::from(u16::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand(descriptors: u32, workers: u32, max_connections: MaxConnections) -> Demand {
        Demand {
            descriptors,
            workers,
            max_connections,
            max_pending_handshakes: 10_000,
            max_buffered_total: MaxBuffered::Auto,
            memory: 8 << 30,
        }
    }

    #[test]
    fn auto_takes_what_is_reachable_up_to_its_ceiling() {
        let plenty = plan(demand(1_048_576, 2, MaxConnections::Auto)).unwrap();
        assert_eq!(plenty.max_connections, 100_000);
        let scarce = plan(demand(20_000, 2, MaxConnections::Auto)).unwrap();
        assert!((28_000..29_900).contains(&scarce.max_connections), "{scarce:?}");
        assert_eq!(scarce.rows, 20_000 - HEADROOM);
    }

    #[test]
    fn the_table_follows_the_cap_and_not_the_descriptor_limit() {
        // Docker and systemd have been seen to set the limit to 1,073,741,816.
        let capacity = plan(demand(1_073_741_816, 8, MaxConnections::Count(1000))).unwrap();
        assert_eq!(capacity.rows, 1000 + 1250 + RESERVE);
    }

    #[test]
    fn what_is_kept_for_clients_is_a_share_of_the_memory_or_what_is_configured() {
        let plan = |memory, workers, max_buffered_total| {
            let demand = demand(20_000, workers, MaxConnections::Auto);
            plan(Demand { memory, max_buffered_total, ..demand }).unwrap().buffered_per_worker
        };
        assert_eq!(plan(8 << 30, 4, MaxBuffered::Auto), 512 << 20);
        assert_eq!(plan(1 << 20, 4, MaxBuffered::Auto), LEAST_BUFFERED);
        assert_eq!(plan(8 << 30, 4, MaxBuffered::Bytes(5)), 5);
    }

    #[test]
    fn a_cap_out_of_reach_is_refused_with_the_arithmetic_and_the_remedies() {
        let error = plan(demand(20_000, 2, MaxConnections::Count(100_000))).unwrap_err();
        let text = error.to_string();
        for part in ["100000", "50000", "5000 unfinished", "allows 20000", "LimitNOFILE=55959"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let workers = error.enough_workers;
        assert!(plan(demand(20_000, workers, MaxConnections::Count(100_000))).is_ok());
        assert!(plan(demand(20_000, workers - 1, MaxConnections::Count(100_000))).is_err());
        assert!(plan(demand(20_000, 2, MaxConnections::Count(error.reachable))).is_ok());
        assert!(plan(demand(20_000, 2, MaxConnections::Count(error.reachable + 2))).is_err());
    }

    proptest! {
        #[test]
        fn nothing_overflows_and_what_is_promised_fits(
            descriptors in 0u32.., workers in 1u32..5000, cap in 1u32.., pending in 1u32..
        ) {
            let max_connections = MaxConnections::Count(cap);
            let demand = Demand {
                max_pending_handshakes: pending, ..demand(descriptors, workers, max_connections)
            };
            if let Ok(capacity) = plan(demand) {
                let share = capacity.max_connections.div_ceil(workers);
                let used = share + capacity.pending_per_worker + RESERVE;
                prop_assert!(used <= descriptors.saturating_add(1));
                prop_assert!(capacity.rows <= descriptors);
            }
        }
    }
}
