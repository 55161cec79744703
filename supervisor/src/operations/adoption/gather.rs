//! Waiting for the slots of a supervisor that is gone: who comes to the reconnect socket is heard for a moment,
//! what it brings is looked at in `examine`, and who holds slots and does not come is known by name. The number
//! of those who wait is bounded, as is their time.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::link::{LinkError, SupervisorEnd};
use holdfast_shared::ipc::message::{Envelope, ToSupervisor, WorkerMessage};
use holdfast_shared::ipc::reconnect::{ReconnectError, ReconnectListener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{AdoptError, PATIENCE, examine, list};
use crate::cluster::Adopted;
use crate::host::kernel::parent;
use crate::host::run_dir::RunDir;

/// Between two looks at who is still missing.
const LOOK: Duration = Duration::from_millis(100);
/// Between two searches for processes that hold slots, and two words about who is waited for.
const SEARCH: Duration = Duration::from_secs(1);
/// Processes that may be connected and have not said yet what they bring.
const MAX_WAITING: usize = 64;
/// How long such a process may take, and how much it may say before: its keeper may be quicker than it is.
const WAITING_TIME: Duration = Duration::from_secs(1);
const WAITING_WORDS: u32 = 8;

/// Somebody who has not said yet what it brings.
#[derive(Debug)]
struct Waiting {
    link: SupervisorEnd,
    pid: Pid,
    since: Duration,
    words: u32,
}

/// What has come so far.
#[derive(Debug)]
struct Gathering {
    listener: ReconnectListener,
    waiting: Vec<Waiting>,
    adopted: BTreeMap<SlotId, Adopted>,
    /// Who held slots when that was last looked for.
    holders: Vec<Pid>,
}

/// Waits until all who hold slots of `run_dir` have given them to us; returns them by slot. They come to `listener`,
/// if it is open already. None are left when all holders have ended meanwhile: the run directory is then as
/// after a clean end.
///
/// # Errors
/// See [`AdoptError`].
pub(crate) fn gather(run_dir: &mut RunDir, listener: Option<OwnedFd>) -> Result<Vec<Adopted>, AdoptError> {
    let (listener, holders) = match listener {
        // Slots have come to it already. Who else there may be is looked for when they are in.
        Some(socket) => (ReconnectListener::inherit(socket, run_dir.path()), Vec::new()),
        None => {
            let (listener, holders) = (ReconnectListener::open(run_dir.path())?, run_dir.slot_holders());
            let list = list(&holders);
            log::info!("adopting the slots of a supervisor that is gone; processes {list} hold them");
            (listener, holders)
        }
    };
    let mut gathering = Gathering { listener, waiting: Vec::new(), adopted: BTreeMap::new(), holders };
    let began = clock::now();
    let mut searched = began;
    loop {
        gathering.turn(run_dir);
        let now = clock::now();
        gathering.forget_the_gone();
        if gathering.missing().is_empty() || now >= searched + SEARCH {
            searched = now;
            gathering.holders = run_dir.slot_holders();
            if gathering.is_complete(run_dir)? {
                return Ok(gathering.adopted.into_values().collect());
            }
            let slots: Vec<SlotId> = gathering.adopted.keys().copied().collect();
            log::info!("adopting: slots {} came; waiting for {}", list(&slots), list(&gathering.missing()));
        }
        if now >= began + PATIENCE {
            return Err(gathering.give_up(run_dir));
        }
    }
}

impl Gathering {
    /// Waits a moment for somebody to come or to speak.
    fn turn(&mut self, run_dir: &RunDir) {
        let mut watched = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        watched
            .extend(self.waiting.iter().map(|waiting| PollFd::new(waiting.link.as_fd(), PollFlags::POLLIN)));
        // Whatever it says, all are looked at.
        let _ = poll(&mut watched, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
        while self.waiting.len() < MAX_WAITING {
            match self.listener.accept() {
                Ok(Some((socket, pid))) => {
                    let link = SupervisorEnd::new(socket);
                    self.waiting.push(Waiting { link, pid, since: clock::now(), words: 0 });
                }
                Ok(None) => break,
                Err(error @ ReconnectError::Stranger { .. }) => log::warn!("{error}; not heard"),
                Err(error) => {
                    log::error!("{error}");
                    break;
                }
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            match Self::hear(&mut waiting) {
                Heard::Nothing => self.waiting.push(waiting),
                Heard::Adopt(message, descriptors) => self.receive(waiting, &message, descriptors, run_dir),
                Heard::Enough(why) => {
                    log::warn!("process {} on supervisor.sock {why}; not heard", waiting.pid);
                }
            }
        }
    }

    /// Reads up to the word that counts.
    fn hear(waiting: &mut Waiting) -> Heard {
        while waiting.words <= WAITING_WORDS {
            match waiting.link.receive_with() {
                Ok(Some((envelope, descriptors))) => match envelope.message {
                    ToSupervisor::Worker(WorkerMessage::Adopt { .. }) => {
                        return Heard::Adopt(envelope, descriptors);
                    }
                    // It speaks on the new link as soon as that is in the place of the old.
                    ToSupervisor::Keeper(_) => waiting.words += 1,
                    ToSupervisor::Worker(_) => return Heard::Enough("speaks as if it were known".to_owned()),
                },
                Ok(None) if clock::now() < waiting.since + WAITING_TIME => return Heard::Nothing,
                Ok(None) => return Heard::Enough("says nothing".to_owned()),
                Err(LinkError::Closed) => return Heard::Enough("has gone without a word".to_owned()),
                Err(error) => return Heard::Enough(format!("is not understood: {error}")),
            }
        }
        Heard::Enough("does not say what it brings".to_owned())
    }

    fn receive(
        &mut self,
        from: Waiting,
        message: &Envelope<ToSupervisor>,
        with: Vec<OwnedFd>,
        run_dir: &RunDir,
    ) {
        let Waiting { link, pid, .. } = from;
        let adopted = examine::examine(message, with, pid, run_dir).and_then(|brought| {
            let others = self.adopted.values().next();
            examine::agree(&brought, self.adopted.contains_key(&brought.slot), others)?;
            Ok(brought)
        });
        match adopted {
            Ok(brought) => {
                log::debug!("slot {} came with worker {}", brought.slot, brought.worker.pid);
                self.adopted.insert(brought.slot, brought.with_link(link));
            }
            Err(objection) => log::warn!("process {pid} on supervisor.sock: {objection}; not adopted"),
        }
    }

    /// Whoever has closed its link is gone, or will come anew.
    fn forget_the_gone(&mut self) {
        self.adopted.retain(|slot, adopted| {
            let is_here = !is_hung_up(adopted.link.as_fd());
            if !is_here {
                log::warn!("slot {slot} is gone again");
            }
            is_here
        });
    }

    /// Who holds slots and did not come.
    fn missing(&self) -> Vec<Pid> {
        let came = |pid: Pid| {
            self.adopted.values().any(|adopted| {
                // A worker may have died since it came, and its keeper has made another; or the keeper has, and
                // the worker, in its place, has made another.
                let heads = [adopted.keeper, adopted.worker.pid];
                heads.contains(&pid) || parent(pid).is_some_and(|parent| heads.contains(&parent))
            })
        };
        self.holders.iter().copied().filter(|&pid| !came(pid)).collect()
    }

    fn is_complete(&self, run_dir: &mut RunDir) -> Result<bool, AdoptError> {
        if !self.missing().is_empty() {
            return Ok(false);
        }
        match self.adopted.values().next() {
            Some(adopted) => {
                run_dir.share_slots(&adopted.lock)?;
                Ok(true)
            }
            None => Ok(run_dir.claim_slots()?),
        }
    }

    fn give_up(&self, run_dir: &RunDir) -> AdoptError {
        let path = run_dir.path().to_path_buf();
        let missing = self.missing();
        if missing.is_empty() {
            AdoptError::Hidden { path }
        } else {
            AdoptError::Missing { path, holders: list(&missing) }
        }
    }
}

/// What somebody has said so far.
#[derive(Debug)]
enum Heard {
    Nothing,
    Adopt(Envelope<ToSupervisor>, Vec<OwnedFd>),
    /// No more of it is wanted.
    Enough(String),
}

fn is_hung_up(link: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(link, PollFlags::empty())];
    let asked = poll(&mut watched, PollTimeout::ZERO);
    asked.is_ok() && watched[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}
