//! Single connections, as the tables of the slots show them. The tables are read while the workers write them: nobody is
//! asked, and nobody waits. So what is found may have gone when something is to be done about it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use holdfast_shared::id::{ConnectionId, SlotId};
use holdfast_shared::ipc::message::{CloseTarget, MAX_BATCH, ToWorker};
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Header, Phase, Record, scan};
use ipnet::IpNet;

use super::Cluster;
use crate::api::{ConnectionRow, ConnectionsQuery, Sort};

/// One connection, as it was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) slot: SlotId,
    pub(crate) row: u32,
    pub(crate) id: ConnectionId,
    pub(crate) active_ms: u64,
    pub(crate) is_open: bool,
    address: IpAddr,
    opened_ms: u64,
    messages_received: u64,
    queued: u32,
    phase: Phase,
}

/// What connections are told that are to go.
#[derive(Debug, Clone)]
pub(crate) struct Goodbye {
    /// The close code.
    pub(crate) code: u16,
    /// The text that goes with it.
    pub(crate) text: String,
    /// What they count as.
    pub(crate) reason: CloseReason,
    /// Only those whose clients have sent nothing since they were found.
    pub(crate) only_idle: bool,
}

/// The tables of all slots, to be read by another thread.
#[derive(Debug)]
pub(crate) struct Tables(Vec<(SlotId, Arc<OwnedFd>)>);

impl Cluster {
    pub(crate) fn tables(&self) -> Tables {
        Tables(self.slots().filter_map(|slot| Some((slot.id(), slot.table()?))).collect())
    }

    /// Has the workers of these connections tell them to go, which is [`News::Told`](super::News) for each of the workers.
    pub(crate) fn tell_to_go(&mut self, order: u64, found: &[Found], goodbye: &Goodbye) {
        for slot in self.slots.ids() {
            let of_slot = found.iter().filter(|found| found.slot == slot);
            let targets: Vec<_> = of_slot.map(|found| found.target(goodbye.only_idle)).collect();
            for targets in targets.chunks(MAX_BATCH) {
                let Goodbye { code, text, reason, .. } = goodbye.clone();
                self.tell(slot, &ToWorker::Close { order, targets: targets.to_vec(), code, text, reason });
            }
        }
    }

    /// Connections that have ended for this reason, in all slots there have been.
    pub(crate) fn closed_for(&self, reason: CloseReason) -> u64 {
        self.all_slots().map(|slot| slot.closed_for(reason)).sum()
    }
}

impl Tables {
    /// The first `limit` of the connections that are wanted, in the order of `sort`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn find(
        &self,
        sort: Sort,
        limit: usize,
        is_wanted: impl Fn(&Found) -> bool,
    ) -> io::Result<Vec<Found>> {
        let place = |found: &Found| place(found, sort);
        let mut all = Vec::new();
        for (slot, memory) in &self.0 {
            let header = Header::read(memory.as_fd())?;
            scan(memory.as_fd(), &header, |row, record| {
                let Some(found) = Found::of(*slot, row, record).filter(&is_wanted) else { return };
                all.push(found);
                // Kept at twice what is wanted, so that each is looked at a few times at most.
                if all.len() >= limit.saturating_mul(2) {
                    all.select_nth_unstable_by_key(limit, place);
                    all.truncate(limit);
                }
            })?;
        }
        all.sort_unstable_by_key(place);
        all.truncate(limit);
        Ok(all)
    }
}

impl Found {
    fn of(slot: SlotId, row: u32, record: &Record) -> Option<Self> {
        let is_elsewhere = record.flags.contains(Flags::GIVEN);
        (record.is_live() && !is_elsewhere).then(|| Self {
            slot,
            row,
            id: ConnectionId(record.id),
            active_ms: record.last_active_ms(),
            is_open: record.phase() == Phase::Open,
            address: record.address(),
            opened_ms: record.opened_ms,
            messages_received: record.messages_received,
            queued: record.queued,
            phase: record.phase(),
        })
    }

    /// Is it one that `query` asks for?
    pub(crate) fn is_asked_for(&self, query: &ConnectionsQuery) -> bool {
        query.address.is_none_or(|network| self.is_of(network))
    }

    /// Is its client in `network`?
    pub(crate) fn is_of(&self, network: IpNet) -> bool {
        network.contains(&self.address)
    }

    fn target(&self, only_idle: bool) -> CloseTarget {
        CloseTarget { row: self.row, id: self.id, idle_since_ms: if only_idle { self.active_ms } else { 0 } }
    }

    /// As operators see it at `now_ms`.
    pub(crate) fn row(&self, now_ms: u64) -> ConnectionRow {
        let since = |moment_ms: u64| now_ms.saturating_sub(moment_ms) as f64 / 1000.0;
        ConnectionRow {
            id: self.id.to_string(),
            slot: self.slot.0,
            address: self.address.to_string(),
            age_seconds: since(self.opened_ms),
            idle_seconds: since(self.active_ms),
            messages_received: self.messages_received,
            queued_bytes: self.queued.into(),
            phase: self.phase.name().to_owned(),
        }
    }
}

/// Where it comes in a list, the lowest first. Equal ones by name, so that a list is the same when it is asked for again.
fn place(found: &Found, sort: Sort) -> (u64, u64) {
    let first = match sort {
        Sort::Age => found.opened_ms,
        Sort::Idle => found.active_ms,
        Sort::Queued => u64::MAX - u64::from(found.queued),
    };
    (first, found.id.0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use holdfast_shared::sys::mapping;
    use holdfast_shared::table::{Table, size};

    use super::*;

    /// A table of these connections: row, last octet of the address, when it opened, when its client last sent a message,
    /// what is queued for it.
    fn table(slot: u16, connections: &[(u32, u8, u64, u64, u32)]) -> (SlotId, Arc<OwnedFd>) {
        const ROWS: u32 = 5_000;
        let memory = mapping::create("table", size(ROWS)).unwrap();
        let mut table = Table::format(memory.as_fd(), SlotId(slot), ROWS).unwrap();
        for &(row, octet, opened_ms, active_ms, queued) in connections {
            let record = &mut table.records_mut()[row as usize];
            let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, octet));
            let id = ConnectionId::new(SlotId(slot), row.into());
            record.begin(id.0, row.into(), address, opened_ms, u64::MAX);
            record.set_phase(Phase::Open);
            (record.active_ms, record.queued) = (active_ms, queued);
        }
        table.header_mut().rows_used = ROWS;
        (SlotId(slot), Arc::new(memory))
    }

    fn rows(found: &[Found]) -> Vec<(u16, u32)> {
        found.iter().map(|found| (found.slot.0, found.row)).collect()
    }

    #[test]
    fn the_first_of_all_slots_come_in_order() {
        let tables = Tables(vec![
            table(0, &[(3, 1, 50, 90, 0), (900, 2, 10, 95, 7)]),
            table(1, &[(7, 1, 30, 70, 9), (4_000, 200, 20, 80, 0)]),
        ]);
        let find = |sort, limit| rows(&tables.find(sort, limit, |_| true).unwrap());
        assert_eq!(find(Sort::Age, 10), [(0, 900), (1, 4_000), (1, 7), (0, 3)]);
        assert_eq!(find(Sort::Idle, 3), [(1, 7), (1, 4_000), (0, 3)]);
        assert_eq!(find(Sort::Queued, 2), [(1, 7), (0, 900)]);
        assert_eq!(find(Sort::Age, 1), [(0, 900)]);
        let query =
            ConnectionsQuery { address: Some("192.0.2.0/30".parse().unwrap()), ..ConnectionsQuery::ALL };
        let found = tables.find(Sort::Age, usize::MAX, |found| found.is_asked_for(&query)).unwrap();
        assert_eq!(rows(&found), [(0, 900), (1, 7), (0, 3)]);
        let row = found[0].row(1_010);
        assert_eq!((row.age_seconds, row.idle_seconds, row.queued_bytes), (1.0, 0.915, 7));
        assert_eq!((row.address.as_str(), row.phase.as_str()), ("192.0.2.2", "open"));
    }
}
