//! Upgrades: the program at the path we were started from takes this one's place, and no client notices. It is
//! asked first (`candidate`), then executed in this process, where it adopts the slots as if their supervisor had
//! died (`replace`), then the workers follow by a planned restart with the new program. Until it is executed,
//! whatever is wrong leaves everything as it was; after that, a slot that fails goes on with the old program.

mod candidate;
mod handoff;
mod record;
mod replace;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};
use mio::Token;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::api::Reply;
use crate::api::{Answer, Failure, RestartedSlot, UpgradeReport};
use crate::cluster::lifecycle::Cause;
use crate::host::launch::OURSELVES;
use crate::operator::probe::Identity;
use crate::supervisor::{Stage as Service, Supervisor};
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
    Rolling,
    /// It is done, or was stopped; the record says which.
    Over,
}

/// The upgrade under way, or the last one.
#[derive(Debug)]
pub(crate) struct Upgrade {
    stage: Stage,
    record: Record,
    /// Whoever waits to hear whether it can be.
    reply: Option<Reply>,
}

impl Upgrade {
    /// The upgrade that has brought this program here.
    pub(crate) fn inherited(handoff: &ReceivedHandoff, version: &str) -> Self {
        let record = Record::inherited(handoff, version);
        let stage = match handoff.failed {
            Some(_) => Stage::Over,
            None => Stage::TakingOver { left: handoff.left },
        };
        Self { stage, record, reply: None }
    }

    /// When there is something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self.stage {
            Stage::Opening { deadline, .. } | Stage::Asking { deadline, in_time: true, .. } => Some(deadline),
            Stage::Leaving { until, .. } | Stage::Closing { until, .. } => Some(until),
            Stage::Asking { in_time: false, .. }
            | Stage::TakingOver { .. }
            | Stage::Rolling
            | Stage::Over => None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Has the new program not been executed yet?
    fn is_revocable(&self) -> bool {
        matches!(
            self.stage,
            Stage::Opening { .. } | Stage::Asking { .. } | Stage::Leaving { .. } | Stage::Closing { .. }
        )
    }
}

impl Supervisor {
    /// Begins an upgrade. Whoever asked is answered when the new program is about to take over, or when it is
    /// clear that it will not.
    pub(crate) fn upgrade(&mut self, reply: Option<Reply>) {
        if let Some(objection) = self.objection_to_upgrade() {
            log::warn!("not upgrading: {objection}");
            if let Some(reply) = reply {
                reply.send(Err(Failure::new(409, objection)));
            }
            return;
        }
        log::info!("upgrading: looking at {}", self.launch.path.display());
        let (sender, opened) = crossbeam_channel::bounded(1);
        let (path, waker) = (self.launch.path.clone(), Arc::clone(&self.waker));
        let opener = std::thread::Builder::new().name("upgrade".to_owned()).spawn(move || {
            // Errors here mean that nobody waits any more.
            let _ = sender.send(candidate::open(&path));
            let _ = waker.wake();
        });
        let stage = Stage::Opening { opened, deadline: self.now + candidate::PATIENCE };
        let record = Record::new(self.program.version, self.now);
        self.upgrade = Some(Upgrade { stage, record, reply });
        if let Err(source) = opener {
            let path = self.launch.path.clone();
            self.refuse_upgrade(&Refusal::Ask { path, source });
        }
    }

    /// Goes on with an upgrade under way, if there is one.
    pub(crate) fn continue_upgrade(&mut self) {
        let now = self.now;
        let Some(upgrade) = &mut self.upgrade else { return };
        if upgrade.is_revocable() && self.stage.is_ending() {
            return self.fail_upgrade(409, "the service began to shut down".to_owned());
        }
        match &mut upgrade.stage {
            Stage::Opening { opened, deadline } => match opened.try_recv() {
                Ok(Ok(file)) => self.ask_candidate(file),
                Ok(Err(refusal)) => self.refuse_upgrade(&refusal),
                Err(TryRecvError::Empty) if now < *deadline => {}
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    let path = self.launch.path.clone();
                    self.refuse_upgrade(&Refusal::Unopened { path });
                }
            },
            Stage::Asking { question, deadline, in_time } => {
                question.read();
                if *in_time && now >= *deadline {
                    *in_time = false;
                    end_child(question.pid);
                }
            }
            Stage::Leaving { program, until } => {
                if now >= *until || (self.gathers.is_empty() && self.reloads.is_empty()) {
                    let program = Arc::clone(program);
                    upgrade.stage = Stage::Closing { program, until: now + CLOSING_GRACE };
                    self.turn_away_the_waiting();
                    self.control.leave();
                }
            }
            Stage::Closing { until, .. } => {
                if now >= *until || self.control.has_left() {
                    self.make_way();
                }
            }
            Stage::TakingOver { left } => {
                if self.stage == Service::Running {
                    upgrade.record.takeover = Some(now.saturating_sub(*left));
                    self.roll_workers();
                } else if self.stage.is_ending() {
                    self.fail_upgrade(
                        409,
                        "the service began to shut down before its workers followed".to_owned(),
                    );
                }
            }
            Stage::Rolling | Stage::Over => {}
        }
    }

    /// A child has ended. Was it the program that was asked?
    pub(crate) fn note_candidate_end(&mut self, pid: Pid, cause: Cause) -> bool {
        let Some(upgrade) = &mut self.upgrade else { return false };
        if !matches!(&upgrade.stage, Stage::Asking { question, .. } if question.pid == pid) {
            return false;
        }
        let Stage::Asking { question, in_time, .. } = std::mem::replace(&mut upgrade.stage, Stage::Over)
        else {
            return false;
        };
        match question.judge(cause, in_time, &Identity::of(self.program)) {
            Ok((program, identity)) => {
                log::info!("upgrading: {} is version {}", self.launch.path.display(), identity.version);
                upgrade.record.to = identity.version;
                upgrade.stage = Stage::Leaving { program: Arc::new(program), until: self.now + GRACE };
                let reply = upgrade.reply.take();
                if let Some(reply) = reply {
                    reply.send(Ok(Answer::UpgradeBegun(Box::new(self.upgrade_progress()))));
                }
            }
            Err(refusal) => self.refuse_upgrade(&refusal),
        }
        true
    }

    /// How far the last upgrade has come.
    pub(crate) fn upgrade_progress(&self) -> UpgradeReport {
        let done = self.restart.as_ref().map(|restart| restart.done()).unwrap_or_default();
        let report = self.upgrade.as_ref().map(|upgrade| {
            let versions = self.slots.iter().map(|seat| (seat.id, seat.version.as_str()));
            let done = if matches!(upgrade.stage, Stage::Rolling) { done } else { &upgrade.record.slots };
            upgrade.record.report(upgrade.stage.state(&upgrade.record), self.now, versions, done)
        });
        report.unwrap_or_default()
    }

    /// The workers have followed, or one has not.
    pub(crate) fn note_rolled(&mut self, slots: Vec<RestartedSlot>, failure: Option<Failure>) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.record.slots = slots;
        if let Some(failure) = failure {
            return self.fail_upgrade(failure.status, failure.error);
        }
        upgrade.record.ended = Some(self.now);
        upgrade.stage = Stage::Over;
        log::info!("upgrade done: {}", upgrade.record);
    }

    /// Why there can be no upgrade now, if there cannot.
    fn objection_to_upgrade(&self) -> Option<&'static str> {
        if self.is_upgrading() {
            return Some("another upgrade is under way; `holdfast ctl upgrade --status` shows how far it is");
        }
        if self.restart.is_some() {
            return Some("a restart is under way; wait for its end");
        }
        if self.moving.is_under_way() {
            return Some("connections are being moved between slots; wait for the end of that");
        }
        match self.stage {
            Service::Starting => Some("the service is still starting; wait until it is ready"),
            Service::Draining(_) | Service::Stopping { .. } => Some("the service is shutting down"),
            Service::Running => None,
        }
    }

    /// Is an upgrade under way?
    pub(crate) fn is_upgrading(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| !upgrade.is_over())
    }

    fn ask_candidate(&mut self, file: File) {
        let asked = Question::ask(file, &self.launch, self.poll.registry(), ANSWER);
        match (asked, &mut self.upgrade) {
            (Ok(question), Some(upgrade)) => {
                let deadline = self.now + candidate::PATIENCE;
                upgrade.stage = Stage::Asking { question, deadline, in_time: true };
            }
            (Ok(question), None) => end_child(question.pid),
            (Err(refusal), _) => self.refuse_upgrade(&refusal),
        }
    }

    fn refuse_upgrade(&mut self, refusal: &Refusal) {
        self.fail_upgrade(refusal.status(), refusal.to_string());
    }

    /// Ends the upgrade without success, and tells whoever waits and whoever asks later.
    fn fail_upgrade(&mut self, status: u16, reason: String) {
        let Some(upgrade) = &mut self.upgrade else { return };
        match &upgrade.stage {
            Stage::Asking { question, .. } => end_child(question.pid),
            Stage::Closing { .. } => {
                match self.control.start_again(Arc::clone(&self.waker), self.program.version) {
                    Ok(requests) => self.requests = requests,
                    Err(error) => log::error!("the control socket is gone: {error}"),
                }
            }
            _ => {}
        }
        if upgrade.is_revocable() || upgrade.reply.is_some() {
            log::error!("upgrade refused, nothing has changed: {reason}");
        } else {
            log::error!("upgrade failed: {reason}");
        }
        upgrade.stage = Stage::Over;
        upgrade.record.ended = Some(self.now);
        upgrade.record.reason = Some(reason.clone());
        if let Some(reply) = upgrade.reply.take() {
            reply.send(Err(Failure::new(status, reason)));
        }
    }

    /// Executes the new program in this process. Goes on as before if that cannot be done.
    fn make_way(&mut self) {
        let Some(Upgrade { stage: Stage::Closing { program, .. }, record, .. }) = &self.upgrade else {
            return;
        };
        let (program, record) = (Arc::clone(program), record.clone());
        let error = self.execute(&program, &record);
        self.fail_upgrade(500, format!("cannot execute {}: {error}", self.launch.path.display()));
    }

    /// Lets the workers follow this program.
    fn roll_workers(&mut self) {
        if let Some(upgrade) = &mut self.upgrade {
            log::info!("upgrading: {}", upgrade.record.describe_takeover());
            upgrade.stage = Stage::Rolling;
        }
        match File::open(OURSELVES) {
            Ok(program) => self.restart_with(None, Some(program.into()), None),
            Err(error) => {
                let reason = format!("cannot open this program for the workers: {error}");
                self.note_rolled(Vec::new(), Some(Failure::new(500, reason)));
            }
        }
    }
}

/// Kills a child of ours that was not waited for yet, so that its number is its own.
fn end_child(pid: Pid) {
    if let Err(error) = kill(pid, Signal::SIGKILL) {
        log::error!("cannot kill process {pid}: {error}");
    }
}
