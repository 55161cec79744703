//! Taking over the slots of a supervisor that is dead or was replaced. Their workers come to the rendezvous
//! socket by themselves; here they are received, looked at, and waited for until every process that holds the
//! slots is accounted for. Kills nobody, and changes nothing: when it fails, the slots go on without a
//! supervisor.

mod examine;
mod gate;
mod seating;
mod stepchildren;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::config::{Balance, Config};
use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::link::{LinkError, SupervisorEnd};
use holdfast_shared::ipc::message::ToSupervisor;
use holdfast_shared::ipc::rendezvous::{Door, RendezvousError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use socket2::Socket;

use crate::listeners::{ListenError, Listeners};
use crate::run_dir::{RunDir, RunDirError};
use crate::slot::Worker;
use crate::state::State;
pub(crate) use gate::Gate;
pub(crate) use seating::STEPCHILDREN;
pub(crate) use stepchildren::Stepchildren;

/// How long the processes that hold slots may take to give them to us.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at who is still missing.
const LOOK: Duration = Duration::from_millis(100);
/// Between two searches for processes that hold slots, and two words about who is waited for.
const SEARCH: Duration = Duration::from_secs(1);
/// Processes that may be connected and have not said yet what they bring.
const MAX_WAITING: usize = 64;
/// How long such a process may take, and how much it may say before: its keeper may be quicker than it is.
const WAITING_TIME: Duration = Duration::from_secs(1);
const WAITING_WORDS: u32 = 8;

/// Why slots could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The socket they come to.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Some who hold slots did not come.
    #[error(
        "processes {holders} hold slots of {} and did not give them to this supervisor within {PATIENCE:?}: they \
         are stopped, keep dying, or are no workers of Holdfast. The log says what came instead, if anything. Look at \
         them with `ps -fp {holders}`; `kill -CONT {holders}` continues those that are stopped, `kill -9 {holders}` \
         ends them and cuts their clients. Then start again. Nothing was changed, the other slots go on serving",
        path.display()
    )]
    Missing {
        /// The run directory.
        path: PathBuf,
        /// Who they are.
        holders: String,
    },
    /// The lock is held, and by nobody who can be seen.
    #[error(
        "the slots of {} are held by processes that cannot be seen from here, in another container for example: \
         end those, or set another run_dir (--run-dir) and listen address",
        path.display()
    )]
    Hidden {
        /// The run directory.
        path: PathBuf,
    },
}

/// A slot that was taken over.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) slot: SlotId,
    pub(crate) worker: Worker,
    pub(crate) keeper: Pid,
    /// Our end of its link, not read beyond its first word.
    pub(crate) link: SupervisorEnd,
    pub(crate) table: OwnedFd,
    /// In the order of `addresses`.
    pub(crate) listeners: Vec<Socket>,
    pub(crate) addresses: Vec<SocketAddr>,
    /// The lock of the run directory's slots, as all of them hold it.
    lock: OwnedFd,
}

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
    door: Door,
    waiting: Vec<Waiting>,
    adopted: BTreeMap<SlotId, Adopted>,
    /// Who held slots when that was last looked for.
    holders: Vec<Pid>,
}

/// Waits until all who hold slots of `run_dir` have given them to us; returns them by slot. None are left
/// when all holders have ended meanwhile: the run directory is then as after a clean end.
///
/// # Errors
/// See [`AdoptError`].
pub(crate) fn gather(run_dir: &mut RunDir) -> Result<Vec<Adopted>, AdoptError> {
    let door = Door::open(run_dir.path())?;
    let holders = run_dir.slot_holders();
    log::info!("adopting the slots of a supervisor that is gone; processes {} hold them", list(&holders));
    let mut gathering = Gathering { door, waiting: Vec::new(), adopted: BTreeMap::new(), holders };
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

/// How many slots there are: those `wanted`, and more if more were adopted.
pub(crate) fn slots(wanted: u16, adopted: &[Adopted]) -> u16 {
    let living = adopted.iter().map(|adopted| adopted.slot.0.saturating_add(1)).max().unwrap_or_default();
    if living > wanted {
        log::warn!(
            "{living} slots are alive and workers is {wanted}: all of them stay until the next clean start"
        );
    }
    living.max(wanted)
}

/// The listeners of the adopted slots, and new ones for those that are missing. They listen where they did,
/// whatever the configuration says now.
///
/// # Errors
/// When a new one cannot be made.
pub(crate) fn listeners(
    config: &Config,
    slots: u16,
    adopted: &mut [Adopted],
    state: &State,
) -> Result<Listeners, ListenError> {
    let addresses = adopted.first().map(|adopted| adopted.addresses.clone()).unwrap_or_default();
    let stands = |(wanted, is): (&SocketAddr, &SocketAddr)| {
        wanted.ip() == is.ip() && (wanted.port() == 0 || wanted.port() == is.port())
    };
    if config.listen.len() != addresses.len() || !config.listen.iter().zip(&addresses).all(stands) {
        log::warn!(
            "the adopted slots listen on {}, and go on doing so: listen = {} takes effect with the next clean start",
            list(&addresses),
            list(&config.listen)
        );
    }
    let sockets = adopted
        .iter_mut()
        .map(|adopted| (usize::from(adopted.slot.0), std::mem::take(&mut adopted.listeners)))
        .collect();
    let listeners = Listeners::adopt(&addresses, sockets, slots.into(), config.backlog, state.places())?;
    if listeners.places().is_none() && config.balance != Balance::Kernel {
        log::warn!(
            "several slots died while there was no supervisor, so which listener is whose cannot be told: the \
             kernel's hash chooses the workers of new clients until the next clean start"
        );
    }
    Ok(listeners)
}

impl Gathering {
    /// Waits a moment for somebody to come or to speak.
    fn turn(&mut self, run_dir: &RunDir) {
        let mut watched = vec![PollFd::new(self.door.as_fd(), PollFlags::POLLIN)];
        watched
            .extend(self.waiting.iter().map(|waiting| PollFd::new(waiting.link.as_fd(), PollFlags::POLLIN)));
        // Whatever it says, all are looked at.
        let _ = poll(&mut watched, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
        while self.waiting.len() < MAX_WAITING {
            match self.door.accept() {
                Ok(Some((socket, pid))) => {
                    let link = SupervisorEnd::new(socket);
                    self.waiting.push(Waiting { link, pid, since: clock::now(), words: 0 });
                }
                Ok(None) => break,
                Err(error @ RendezvousError::Stranger { .. }) => log::warn!("{error}; not heard"),
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
                    log::warn!("process {} on supervisor.sock {why}; not heard", waiting.pid)
                }
            }
        }
    }

    /// Reads up to the word that counts.
    fn hear(waiting: &mut Waiting) -> Heard {
        while waiting.words <= WAITING_WORDS {
            match waiting.link.receive_with() {
                Ok(Some((message @ ToSupervisor::Adopt { .. }, descriptors))) => {
                    return Heard::Adopt(message, descriptors);
                }
                // From the keeper, which speaks on the new link as soon as it is in the place of the old.
                Ok(Some((
                    ToSupervisor::Started { .. } | ToSupervisor::Died { .. } | ToSupervisor::Left { .. },
                    _,
                ))) => waiting.words += 1,
                Ok(Some(_)) => return Heard::Enough("speaks as if it were known".to_owned()),
                Ok(None) if clock::now() < waiting.since + WAITING_TIME => return Heard::Nothing,
                Ok(None) => return Heard::Enough("says nothing".to_owned()),
                Err(LinkError::Closed) => return Heard::Enough("has gone without a word".to_owned()),
                Err(error) => return Heard::Enough(format!("is not understood: {error}")),
            }
        }
        Heard::Enough("does not say what it brings".to_owned())
    }

    fn receive(&mut self, from: Waiting, message: &ToSupervisor, with: Vec<OwnedFd>, run_dir: &RunDir) {
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
                // A worker may have died since it came; its keeper has made another.
                adopted.keeper == pid
                    || adopted.worker.pid == pid
                    || examine::parent(pid) == Some(adopted.keeper)
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
    Adopt(ToSupervisor, Vec<OwnedFd>),
    /// No more of it is wanted.
    Enough(String),
}

fn is_hung_up(link: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(link, PollFlags::empty())];
    let asked = poll(&mut watched, PollTimeout::ZERO);
    asked.is_ok() && watched[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
