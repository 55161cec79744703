//! Upgrades under fire: the programs that may be at the service's path, and how it is seen that the service has
//! followed, or has rightly refused to.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::service::Service;
use crate::control::{Control, Totals};
use crate::http::Response;

/// A program that there may be at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Build {
    /// The one it began with.
    First,
    /// Another version.
    Next,
    /// No program.
    Text,
    /// A program that has another layout of the connection table.
    OtherLayout,
    /// A program that takes over and whose workers abort before they serve.
    WorkersAbort,
}

impl Build {
    const ALL: [Self; 5] = [Self::First, Self::Next, Self::Text, Self::OtherLayout, Self::WorkersAbort];

    /// One of those that are not fit.
    pub(super) fn unfit(choice: u64) -> Self {
        match choice % 4 {
            0 => Self::Text,
            1 => Self::OtherLayout,
            // The one that gets furthest.
            _ => Self::WorkersAbort,
        }
    }

    fn other(self) -> Self {
        if self == Self::First { Self::Next } else { Self::First }
    }

    fn is_fit(self) -> bool {
        matches!(self, Self::First | Self::Next)
    }

    fn file_name(self) -> String {
        format!("{self:?}")
    }
}

/// The path of the service's program, and what may be put there.
pub(super) struct Installed {
    directory: TempDir,
}

impl Installed {
    /// `first` is at the path; `next` is `holdfast-next`, which is made unfit by what is written behind its end.
    pub(super) fn new(first: &Path, next: &Path) -> Self {
        let installed = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let behaving = |behaviour: &[u8]| [read(next).as_slice(), b"behaviour:", behaviour].concat();
        for build in Build::ALL {
            let content = match build {
                Build::First => read(first),
                Build::Next => read(next),
                Build::Text => b"#!/bin/sh\nexit 0\n".to_vec(),
                Build::OtherLayout => behaving(b"layout"),
                Build::WorkersAbort => behaving(b"worker-crashes"),
            };
            let bytes = installed.directory.path().join("bytes");
            fs::write(&bytes, content).expect("write a program");
            // Not by this process: what another thread starts has its open files for a moment, and a program
            // that somebody may write to is not executed (ETXTBSY).
            let to = installed.directory.path().join(build.file_name());
            let status = Command::new("install").args(["-m", "755"]).arg(&bytes).arg(to).status();
            assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "install: {status:?}");
        }
        installed.put(Build::First);
        installed
    }

    /// Where the program is.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("holdfast")
    }

    /// Replaces the program, as a package manager does it.
    fn put(&self, build: Build) {
        let [from, new] = [&build.file_name(), "new"].map(|name| self.directory.path().join(name));
        fs::hard_link(from, &new).expect("link a program");
        fs::rename(&new, self.path()).expect("replace the program");
        // Of two names of one file, rename(2) leaves both.
        let _ = fs::remove_file(new);
    }
}

/// Upgrades, one after the other.
pub(super) struct Upgrading {
    todo: VecDeque<Build>,
    stage: Stage,
    strict: bool,
}

enum Stage {
    /// The next program is to be put at the path.
    Begin,
    /// Whoever asked waits for an answer.
    Asking(JoinHandle<Option<Response>>),
    /// The service is upgrading, or has refused to.
    Following,
}

impl Upgrading {
    /// To the fit program that is not there now. If `strict`, it must succeed.
    pub(super) fn to_the_other(service: &mut Service, strict: bool) -> Self {
        service.build = service.build.other();
        Self::begin([service.build].into(), service, strict)
    }

    /// To one that is not fit, and then to what was there before: after workers that abort, the supervisor is
    /// of that program. If `strict`, the first must fail and the second succeed.
    pub(super) fn to_unfit(unfit: Build, service: &Service, strict: bool) -> Self {
        Self::begin([unfit, service.build].into(), service, strict)
    }

    fn begin(todo: VecDeque<Build>, service: &Service, strict: bool) -> Self {
        let mut upgrading = Self { todo, stage: Stage::Begin, strict };
        upgrading.ask(service);
        upgrading
    }

    /// Puts the next program at the path and asks for the upgrade.
    fn ask(&mut self, service: &Service) {
        let Some(&build) = self.todo.front() else { return };
        service.installed.put(build);
        let control = service.control().clone();
        self.stage = Stage::Asking(thread::spawn(move || control.try_request("POST", "/upgrade")));
    }

    /// Whether all are over; goes on with what is to be done next.
    pub(super) fn is_over(&mut self, service: &Service) -> bool {
        let Some(&build) = self.todo.front() else { return true };
        match std::mem::replace(&mut self.stage, Stage::Begin) {
            Stage::Begin => self.ask(service),
            Stage::Asking(asking) if !asking.is_finished() => self.stage = Stage::Asking(asking),
            Stage::Asking(asking) => {
                let answer = asking.join().ok().flatten();
                let said = answer.as_ref().map(|answer| (answer.status, answer.text().trim_end().to_owned()));
                eprintln!("        upgrade to {build:?}: {said:?}");
                // A fault that came at the same time may have a restart or start under way: ask again.
                let must_wait = |text: &str| text.contains("under way") || text.contains("still starting");
                let refused = said.is_some_and(|(status, text)| status == 409 && must_wait(&text));
                self.stage = if refused { Stage::Begin } else { Stage::Following };
            }
            Stage::Following => match settled(service.control()) {
                None => self.stage = Stage::Following,
                Some(report) => {
                    self.judge(build, &report, service);
                    self.todo.pop_front();
                }
            },
        }
        self.todo.is_empty()
    }

    fn judge(&self, build: Build, report: &Totals, service: &Service) {
        eprintln!("        upgrade to {build:?}: {}", report.0);
        if !self.strict {
            return;
        }
        let state = report.text("state");
        assert_eq!(state, if build.is_fit() { "done" } else { "failed" }, "{build:?}: {}", report.0);
        if build.is_fit() {
            let workers = service.workers().unwrap_or_default();
            let totals = service.totals();
            let all = totals.iter().chain(&workers);
            let versions: Vec<&str> = all.map(|one| one.text("version")).collect();
            assert!(
                versions.iter().all(|version| *version == report.text("to")),
                "{versions:?}: {}",
                report.0
            );
        }
    }
}

/// What is said of the last upgrade once it is over. One whose supervisor died is none to the next supervisor.
fn settled(control: &Control) -> Option<Totals> {
    let answer = control.try_request("GET", "/upgrade").filter(|answer| answer.status == 200)?;
    let report = Totals(answer.json());
    ["none", "done", "failed"].contains(&report.text("state")).then_some(report)
}
