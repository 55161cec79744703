//! Upgrades: the program at the path we were started from takes this one's place, and no client notices. It is
//! asked first (`candidate`), then executed in this process (by the loop, with `replace`), where it adopts the
//! slots as if their supervisor had died, then the workers follow by a rolling restart with the new program. Until
//! it is executed, whatever is wrong leaves everything as it was; after that, a slot that fails goes on with the
//! old program.

mod candidate;
mod handoff;
mod record;
pub(crate) mod replace;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};
use holdfast_worker::Program;
use mio::{Token, Waker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::restart::{Replacement, slots};
use super::{Kind, Operation, Turn};
use crate::api::{Answer, Failure, Reply, RestartReport, RestartedSlot, UpgradeReport};
use crate::cluster::lifecycle::Cause;
use crate::cluster::{Cluster, News, Phase, Slot};
use crate::host::launch::{Launch, OURSELVES};
use crate::host::probe::Identity;
use candidate::{Question, Refusal};
pub(crate) use handoff::ReceivedHandoff;
pub(crate) use record::Record;
pub(crate) use replace::{go_back, receive};

/// The program that was asked says something.
pub(crate) const ANSWER: Token = Token(usize::MAX - 3);

/// How long requests that are being answered may hold up the new program.
const GRACE: Duration = Duration::from_secs(2);

/// And how long a control thread that should have ended by itself before that. exec ends it too.
const CLOSING_GRACE: Duration = Duration::from_secs(2);

/// What an upgrade starts from.
#[derive(Clone)]
pub(crate) struct Place {
    /// The one that runs.
    pub(crate) program: Program,
    pub(crate) launch: Launch,
    /// Wakes the loop from other threads.
    pub(crate) waker: Arc<Waker>,
}

/// What the loop has to do for an upgrade.
#[derive(Debug)]
pub(crate) enum Departure {
    /// Nothing: this program stays.
    Stay,
    /// Everybody who waits is to be answered, and the control thread to take nothing new.
    Close,
    /// The control thread is still to end.
    Wait,
    /// The program is to be executed.
    Execute(Candidate),
}

/// A program that is to be executed in place of this one.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) program: Arc<File>,
    pub(crate) record: Record,
}

/// Where an upgrade stands.
#[derive(Debug)]
enum Stage {
    /// A thread opens the new program, which takes as long as its file system likes.
    Opening { opened: Receiver<Result<File, Refusal>>, deadline: Duration },
    /// The new program was asked, and its end is awaited.
    Asking { question: Question, deadline: Duration, in_time: bool },
    /// Whoever asked for the upgrade has the answer; others get theirs, then the new program is executed.
    Leaving { program: Arc<File>, until: Duration },
    /// The control thread takes nothing new, and ends when its answers are read; then the new program is executed.
    Closing { program: Arc<File>, until: Duration },
    /// We are the new program, and not every slot has reported yet.
    TakingOver { left: Duration },
    /// Workers are replaced one after the other.
    Rolling { replacement: Replacement },
    /// It is done, or was stopped; the record says which.
    Over,
}

/// The upgrade under way, or the last one.
pub(crate) struct Upgrade {
    place: Place,
    stage: Stage,
    record: Record,
    /// Whoever waits to hear whether it can be.
    reply: Option<Reply>,
}

impl Upgrade {
    /// The upgrade that has brought this program here.
    pub(crate) fn inherited(handoff: &ReceivedHandoff, place: &Place) -> Self {
        let record = Record::inherited(handoff, place.program.version);
        let stage = match handoff.failed {
            Some(_) => Stage::Over,
            None => Stage::TakingOver { left: handoff.left },
        };
        Self { place: place.clone(), stage, record, reply: None }
    }

    pub(super) fn begin(cluster: &Cluster, place: &Place, reply: Option<Reply>) -> Self {
        let path = place.launch.path.clone();
        log::info!("upgrading: looking at {}", path.display());
        let (sender, opened) = crossbeam_channel::bounded(1);
        let waker = Arc::clone(&place.waker);
        let opener = std::thread::Builder::new().name("upgrade".to_owned()).spawn(move || {
            // Errors here mean that nobody waits any more.
            let _ = sender.send(candidate::open(&path));
            let _ = waker.wake();
        });
        let stage = Stage::Opening { opened, deadline: cluster.now() + candidate::PATIENCE };
        let record = Record::new(place.program.version, cluster.now());
        let mut upgrade = Self { place: place.clone(), stage, record, reply };
        if let Err(source) = opener {
            upgrade.refuse(cluster, &Refusal::Ask { path: place.launch.path.clone(), source });
        }
        upgrade
    }

    /// How far it has come.
    pub(super) fn progress(&self, cluster: &Cluster) -> UpgradeReport {
        let versions = cluster.slots().map(|slot: &Slot| (slot.id(), slot.version()));
        let done = match &self.stage {
            Stage::Rolling { replacement } => replacement.done(),
            _ => &self.record.slots,
        };
        self.record.report(self.stage.state(&self.record), cluster.now(), versions, done)
    }

    /// What the loop is to do now. `is_quiet` if nobody waits for an answer, `has_left` once the control thread has
    /// ended; both are waited for, but not for ever.
    pub(super) fn departure(&mut self, now: Duration, is_quiet: bool, has_left: bool) -> Departure {
        match &self.stage {
            Stage::Leaving { program, until } if is_quiet || now >= *until => {
                let program = Arc::clone(program);
                self.stage = Stage::Closing { program, until: now + CLOSING_GRACE };
                Departure::Close
            }
            Stage::Closing { program, until } if has_left || now >= *until => {
                Departure::Execute(Candidate { program: Arc::clone(program), record: self.record.clone() })
            }
            Stage::Closing { .. } => Departure::Wait,
            _ => Departure::Stay,
        }
    }

    /// It was to be executed, and could not be.
    pub(super) fn execution_failed(&mut self, cluster: &Cluster, error: &str) {
        let path = self.place.launch.path.display();
        let reason = format!("cannot execute {path}: {error}");
        self.fail(cluster, 500, reason);
    }

    /// Has the new program not been executed yet?
    fn is_revocable(&self) -> bool {
        matches!(
            self.stage,
            Stage::Opening { .. } | Stage::Asking { .. } | Stage::Leaving { .. } | Stage::Closing { .. }
        )
    }

    /// The program that was asked has ended.
    fn on_end(&mut self, cluster: &Cluster, pid: Pid, cause: Cause) {
        if !matches!(&self.stage, Stage::Asking { question, .. } if question.pid == pid) {
            return;
        }
        let Stage::Asking { question, in_time, .. } = std::mem::replace(&mut self.stage, Stage::Over) else {
            return;
        };
        match question.judge(cause, in_time, &Identity::of(self.place.program)) {
            Ok((program, identity)) => {
                let path = self.place.launch.path.display();
                log::info!("upgrading: {path} is version {}", identity.version);
                self.record.to = identity.version;
                self.stage = Stage::Leaving { program: Arc::new(program), until: cluster.now() + GRACE };
                if let Some(reply) = self.reply.take() {
                    reply.send(Ok(Answer::UpgradeBegun(Box::new(self.progress(cluster)))));
                }
            }
            Err(refusal) => self.refuse(cluster, &refusal),
        }
    }

    fn ask(&mut self, cluster: &Cluster, file: File) {
        match Question::ask(file, &self.place.launch, cluster.registry(), ANSWER) {
            Ok(question) => {
                let deadline = cluster.now() + candidate::PATIENCE;
                self.stage = Stage::Asking { question, deadline, in_time: true };
            }
            Err(refusal) => self.refuse(cluster, &refusal),
        }
    }

    /// Lets the workers follow this program.
    fn replace_workers(&mut self, cluster: &mut Cluster) {
        log::info!("upgrading: {}", self.record.describe_takeover());
        let begun = slots(cluster, None).and_then(|slots| match File::open(OURSELVES) {
            Ok(program) => Ok(Replacement::begin(cluster, slots, Some(program.into()))),
            Err(error) => {
                Err(Failure::new(500, format!("cannot open this program for the workers: {error}")))
            }
        });
        match begun {
            Ok(replacement) => self.stage = Stage::Rolling { replacement },
            Err(failure) => self.fail(cluster, failure.status, failure.error),
        }
    }

    /// The workers have followed, or one has not.
    fn on_rolled(
        &mut self,
        cluster: &Cluster,
        outcome: Result<RestartReport, Failure>,
        done: Vec<RestartedSlot>,
    ) {
        match outcome {
            Ok(report) => {
                self.record.slots = report.slots;
                self.record.ended = Some(cluster.now());
                self.stage = Stage::Over;
                log::info!("upgrade done: {}", self.record);
            }
            Err(failure) => {
                self.record.slots = done;
                self.fail(cluster, failure.status, failure.error);
            }
        }
    }

    fn refuse(&mut self, cluster: &Cluster, refusal: &Refusal) {
        self.fail(cluster, refusal.status(), refusal.to_string());
    }

    /// Ends the upgrade without success, and tells whoever waits and whoever asks later.
    fn fail(&mut self, cluster: &Cluster, status: u16, reason: String) {
        if let Stage::Asking { question, .. } = &self.stage {
            end_child(question.pid);
        }
        if self.is_revocable() || self.reply.is_some() {
            log::error!("upgrade refused, nothing has changed: {reason}");
        } else {
            log::error!("upgrade failed: {reason}");
        }
        self.stage = Stage::Over;
        self.record.ended = Some(cluster.now());
        self.record.reason = Some(reason.clone());
        if let Some(reply) = self.reply.take() {
            reply.send(Err(Failure::new(status, reason)));
        }
    }
}

impl Operation for Upgrade {
    fn kind(&self) -> Option<Kind> {
        (!matches!(self.stage, Stage::Over)).then_some(Kind::Upgrade)
    }

    fn deadline(&self, cluster: &Cluster) -> Option<Duration> {
        match &self.stage {
            Stage::Opening { deadline, .. } | Stage::Asking { deadline, in_time: true, .. } => {
                Some(*deadline)
            }
            Stage::Leaving { until, .. } | Stage::Closing { until, .. } => Some(*until),
            Stage::Rolling { replacement } => replacement.deadline(cluster.now()),
            Stage::Asking { in_time: false, .. } | Stage::TakingOver { .. } | Stage::Over => None,
        }
    }

    /// Over only when the next begins: what it came to can be asked for.
    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
        for news in turn.news {
            if let News::ChildEnded { pid, cause } = *news {
                self.on_end(cluster, pid, cause);
            }
        }
        if self.is_revocable() && turn.running.is_ending() {
            self.fail(cluster, 409, "the service began to shut down".to_owned());
        }
        let now = cluster.now();
        match &mut self.stage {
            Stage::Opening { opened, deadline } => match opened.try_recv() {
                Ok(Ok(file)) => self.ask(cluster, file),
                Ok(Err(refusal)) => self.refuse(cluster, &refusal),
                Err(TryRecvError::Empty) if now < *deadline => {}
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    let path = self.place.launch.path.clone();
                    self.refuse(cluster, &Refusal::Unopened { path });
                }
            },
            Stage::Asking { question, deadline, in_time } => {
                question.read();
                if *in_time && now >= *deadline {
                    *in_time = false;
                    end_child(question.pid);
                }
            }
            Stage::TakingOver { left } => {
                if cluster.phase() == Phase::Running {
                    self.record.takeover = Some(now.saturating_sub(*left));
                    self.replace_workers(cluster);
                } else if turn.running.is_ending() {
                    let reason = "the service began to shut down before its workers followed";
                    self.fail(cluster, 409, reason.to_owned());
                }
            }
            Stage::Rolling { replacement } => {
                if let Some(outcome) = replacement.turn(cluster, turn) {
                    let done = replacement.done().to_vec();
                    self.on_rolled(cluster, outcome, done);
                }
            }
            Stage::Leaving { .. } | Stage::Closing { .. } | Stage::Over => {}
        }
        false
    }
}

/// Kills a child of ours that was not waited for yet, so that its number is its own.
fn end_child(pid: Pid) {
    if let Err(error) = kill(pid, Signal::SIGKILL) {
        log::error!("cannot kill process {pid}: {error}");
    }
}
