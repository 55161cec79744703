//! One transfer: begun with a pair of sockets, over when both workers have said so, or the next worker of one
//! that died has said whom it holds.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use holdfast_shared::id::Incarnation;
use holdfast_shared::ipc::message::ToWorker;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::plan::Step;
use crate::cluster::lifecycle::State;
use crate::supervisor::Supervisor;

/// How long a giver may keep silent after the taker has seen the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections on their way.
#[derive(Debug)]
pub(super) struct Transfer {
    id: u64,
    step: Step,
    giver: Incarnation,
    taker: Incarnation,
    /// What the giver said of it in the end.
    given: Option<(u32, Option<String>)>,
    /// When the taker said that it was over.
    taken: Option<Duration>,
}

impl Transfer {
    pub(super) fn is(&self, id: u64) -> bool {
        self.id == id
    }

    pub(super) fn involves(&self, position: usize) -> bool {
        self.step.from == position || self.step.to == position
    }
}

impl Supervisor {
    /// Connections of a slot are about to go: from now on they are counted wherever they are, so they may.
    pub(crate) fn on_giving(
        &mut self,
        position: usize,
        incarnation: Incarnation,
        transfer: u64,
        addresses: Vec<IpAddr>,
    ) {
        if !self.moving.is_current(transfer) {
            return;
        }
        let slot = self.slots[position].id;
        for address in addresses {
            self.ledger.give(slot, incarnation, address);
        }
        self.remember(position);
        self.tell(position, &ToWorker::Counted { transfer });
    }

    /// Connections that were to go are in this slot after all.
    pub(crate) fn on_kept(
        &mut self,
        position: usize,
        incarnation: Incarnation,
        transfer: u64,
        addresses: Vec<IpAddr>,
    ) {
        if self.moving.is_current(transfer) {
            self.on_arrived(position, incarnation, addresses);
        }
    }

    /// Connections that were on their way are in this slot.
    pub(crate) fn on_arrived(&mut self, position: usize, incarnation: Incarnation, addresses: Vec<IpAddr>) {
        let slot = self.slots[position].id;
        for address in addresses {
            self.ledger.arrived(slot, incarnation, address);
        }
        self.remember(position);
    }

    /// The giver says that it is over.
    pub(crate) fn on_give_ended(&mut self, transfer: u64, moved: u32, stopped: Option<String>) {
        if let Some(current) = self.moving.transfer.as_mut().filter(|current| current.id == transfer) {
            current.given = Some((moved, stopped));
        }
    }

    /// The taker says that it is over.
    pub(crate) fn on_take_ended(&mut self, transfer: u64) {
        let now = self.now;
        if let Some(current) = self.moving.transfer.as_mut().filter(|current| current.id == transfer) {
            current.taken = Some(now);
        }
    }

    /// Begins a transfer. If one of the two does not get its socket, the other sees the end of it.
    pub(super) fn begin_transfer(&mut self, step: Step) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (giver_end, taker_end) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                let reason = format!("no sockets for them to move over: {error}");
                return self.note_moved(step, 0, Some(reason));
            }
        };
        self.moving.last_transfer += 1;
        let id = self.moving.last_transfer;
        let Step { from, to, count } = step;
        let (giver, taker) = (self.slots[from].worker.incarnation, self.slots[to].worker.incarnation);
        log::debug!("slot {} gives {count} connections to slot {}", self.slots[from].id, self.slots[to].id);
        self.moving.transfer = Some(Transfer { id, step, giver, taker, given: None, taken: None });
        let take = ToWorker::Take { transfer: id, from: self.slots[from].id };
        self.tell_worker(to, taker, &take, &[taker_end.as_fd()]);
        let give = ToWorker::Give { transfer: id, to: self.slots[to].id, count };
        self.tell_worker(from, giver, &give, &[giver_end.as_fd()]);
    }

    /// Ends the transfer under way once it is settled whose each connection is.
    pub(super) fn watch_transfer(&mut self) {
        let Some(transfer) = &self.moving.transfer else { return };
        let giver_is_done = transfer.given.is_some() || self.is_replaced(transfer.step.from, transfer.giver);
        let taker_is_done = transfer.taken.is_some() || self.is_replaced(transfer.step.to, transfer.taker);
        let is_clear = self.ledger.in_transit() == 0;
        let was_silent = transfer.taken.is_some_and(|taken| self.now >= taken + PATIENCE);
        let is_over = giver_is_done && (taker_is_done || is_clear) || was_silent && is_clear;
        if !is_over {
            return;
        }
        let Some(transfer) = self.moving.transfer.take() else { return };
        if self.ledger.end_transit() > 0 {
            self.count_vanished(transfer.step.from);
        }
        self.remember(transfer.step.from);
        self.remember(transfer.step.to);
        let (moved, stopped) = transfer.given.unwrap_or_else(|| {
            let slot = transfer.step.from;
            log::warn!(
                "slot {slot}: its worker died while it gave connections away; what is left goes later"
            );
            (0, Some("its worker died".to_owned()))
        });
        self.note_moved(transfer.step, moved, stopped);
    }

    /// Is this worker gone, and is it known what is left of its connections?
    fn is_replaced(&self, position: usize, incarnation: Incarnation) -> bool {
        let Some(seat) = self.slots.get(position) else { return true };
        match seat.machine.state() {
            State::Ready(_) => seat.worker.incarnation != incarnation,
            State::Empty | State::BackingOff { .. } | State::Left => true,
            State::Spawning
            | State::Starting(_)
            | State::WorkerDown(_)
            | State::Draining(_)
            | State::KeeperDown(_) => false,
        }
    }
}
