//! One transfer of connections between two slots: begun with a pair of sockets, over when both workers have said
//! so, or the next worker of one that died has said whom it holds. The ledger counts who is in transit. How two
//! workers do it is `worker/src/moving`; who gives to whom is an operation's business.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::message::ToWorker;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::lifecycle::State;
use super::{Cluster, News};

/// How long a giver may keep silent after the taker has seen the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at a transfer.
const LOOK: Duration = Duration::from_millis(100);

/// Connections on their way.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    last: u64,
    current: Option<Transfer>,
}

#[derive(Debug)]
struct Transfer {
    id: u64,
    from: SlotId,
    to: SlotId,
    giver: Incarnation,
    taker: Incarnation,
    /// What the giver said of it in the end.
    given: Option<(u32, Option<String>)>,
    /// When the taker said that it was over.
    taken: Option<Duration>,
}

impl Transfers {
    /// When it has to be looked at next.
    pub(super) fn wakeup(&self, now: Duration) -> Option<Duration> {
        self.current.as_ref().map(|_| now + LOOK)
    }

    fn current(&mut self, id: u64) -> Option<&mut Transfer> {
        self.current.as_mut().filter(|current| current.id == id)
    }
}

impl Cluster {
    /// Are connections on their way?
    pub(crate) fn is_moving(&self) -> bool {
        self.transfers.current.is_some()
    }

    /// Is this slot giving or taking connections?
    pub(crate) fn is_moving_at(&self, slot: SlotId) -> bool {
        self.transfers.current.as_ref().is_some_and(|current| current.from == slot || current.to == slot)
    }

    /// Begins a transfer of so many connections. If one of the two does not get its socket, the other sees the end
    /// of it. What came of it is told as news.
    pub(crate) fn begin_transfer(&mut self, from: SlotId, to: SlotId, count: u32) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (giver_end, taker_end) = match socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags) {
            Ok(pair) => pair,
            Err(error) => {
                let stopped = Some(format!("no sockets for them to move over: {error}"));
                return self.news.push(News::Moved { from, to, moved: 0, stopped });
            }
        };
        self.transfers.last += 1;
        let transfer = self.transfers.last;
        let (giver, taker) = (self.slots[from].worker.incarnation, self.slots[to].worker.incarnation);
        log::debug!("slot {from} gives {count} connections to slot {to}");
        self.transfers.current =
            Some(Transfer { id: transfer, from, to, giver, taker, given: None, taken: None });
        self.tell_worker(to, taker, &ToWorker::Take { transfer, from }, &[taker_end.as_fd()]);
        self.tell_worker(from, giver, &ToWorker::Give { transfer, to, count }, &[giver_end.as_fd()]);
    }

    /// Connections of a slot are about to go: from now on they are counted wherever they are, so they may.
    pub(super) fn on_giving(
        &mut self,
        slot: SlotId,
        incarnation: Incarnation,
        transfer: u64,
        who: Vec<IpAddr>,
    ) {
        if self.transfers.current(transfer).is_none() {
            return;
        }
        for address in who {
            self.ledger.give(slot, incarnation, address);
        }
        self.remember(slot);
        self.tell(slot, &ToWorker::Counted { transfer });
    }

    /// Connections that were to go are in this slot after all.
    pub(super) fn on_kept(
        &mut self,
        slot: SlotId,
        incarnation: Incarnation,
        transfer: u64,
        who: Vec<IpAddr>,
    ) {
        if self.transfers.current(transfer).is_some() {
            self.on_arrived(slot, incarnation, who);
        }
    }

    /// Connections that were on their way are in this slot.
    pub(super) fn on_arrived(&mut self, slot: SlotId, incarnation: Incarnation, who: Vec<IpAddr>) {
        for address in who {
            self.ledger.arrived(slot, incarnation, address);
        }
        self.remember(slot);
    }

    /// The giver says that it is over.
    pub(super) fn on_give_ended(&mut self, transfer: u64, moved: u32, stopped: Option<String>) {
        if let Some(current) = self.transfers.current(transfer) {
            current.given = Some((moved, stopped));
        }
    }

    /// The taker says that it is over.
    pub(super) fn on_take_ended(&mut self, transfer: u64) {
        let now = self.now;
        if let Some(current) = self.transfers.current(transfer) {
            current.taken = Some(now);
        }
    }

    /// Ends the transfer under way once it is settled whose each connection is.
    pub(super) fn watch_transfer(&mut self) {
        let Some(transfer) = &self.transfers.current else { return };
        let giver_is_done = transfer.given.is_some() || self.is_replaced(transfer.from, transfer.giver);
        let taker_is_done = transfer.taken.is_some() || self.is_replaced(transfer.to, transfer.taker);
        let is_clear = self.ledger.in_transit() == 0;
        let was_silent = transfer.taken.is_some_and(|taken| self.now >= taken + PATIENCE);
        let is_over = giver_is_done && (taker_is_done || is_clear) || was_silent && is_clear;
        if !is_over {
            return;
        }
        let Some(Transfer { from, to, given, .. }) = self.transfers.current.take() else { return };
        if self.ledger.end_transit() > 0 {
            self.count_vanished(from);
        }
        self.remember(from);
        self.remember(to);
        let (moved, stopped) = given.unwrap_or_else(|| {
            log::warn!(
                "slot {from}: its worker died while it gave connections away; what is left goes later"
            );
            (0, Some("its worker died".to_owned()))
        });
        self.news.push(News::Moved { from, to, moved, stopped });
    }

    /// Connections that nobody holds and that nobody has seen end: they were lost between two slots. Counted
    /// with `slot`.
    pub(super) fn count_vanished(&mut self, slot: SlotId) {
        let came: u64 = self.all_slots().map(|slot| slot.book.accepted()).sum();
        let went: u64 = self.all_slots().flat_map(|slot| slot.book.closed()).sum();
        let vanished = came.saturating_sub(went).saturating_sub(self.ledger.connections());
        if vanished > 0 {
            log::error!("slot {slot}: {vanished} connections were lost on their way to another slot");
            self.slots[slot].book.vanished(vanished);
            self.remember(slot);
        }
    }

    /// Is this worker gone, and is it known what is left of its connections?
    fn is_replaced(&self, slot: SlotId, incarnation: Incarnation) -> bool {
        let Some(slot) = self.slots.get(slot) else { return true };
        match slot.state() {
            State::Ready(_) => slot.worker.incarnation != incarnation,
            State::Empty | State::BackingOff { .. } | State::Left => true,
            State::Spawning
            | State::Starting(_)
            | State::WorkerDown(_)
            | State::Draining(_)
            | State::KeeperDown(_) => false,
        }
    }
}
