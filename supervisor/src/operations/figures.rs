//! Answering questions with figures of one moment: every worker is asked, and the answer is put together when
//! all have reported. One that does not report in time is named, and its last figures stand; no figure is
//! ever reset while it is being collected.

use std::time::Duration;

use crate::api::{Answer, Command, DrainProgress, Reply};
use crate::cluster::Cluster;

/// How long a worker may take to report before it is called silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Questions that wait for the workers' reports.
#[derive(Debug)]
pub(crate) struct Figures {
    version: &'static str,
    asked: Vec<Asked>,
}

#[derive(Debug)]
struct Asked {
    /// When it is answered, whether or not all have reported.
    deadline: Duration,
    request: u64,
    command: Command,
    reply: Reply,
}

impl Figures {
    /// Of the program of this version.
    pub(crate) fn new(version: &'static str) -> Self {
        Self { version, asked: Vec::new() }
    }

    pub(crate) fn ask(&mut self, cluster: &mut Cluster, command: Command, reply: Reply) {
        let request = cluster.ask_for_reports();
        self.asked.push(Asked { deadline: cluster.now() + PATIENCE, request, command, reply });
    }

    /// Does nobody wait?
    pub(crate) fn is_quiet(&self) -> bool {
        self.asked.is_empty()
    }

    /// When there is something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.asked.iter().map(|asked| asked.deadline).min()
    }

    /// Answers what all workers have reported for, or what has waited long enough.
    pub(crate) fn turn(&mut self, cluster: &mut Cluster, drain: Option<DrainProgress>) {
        let is_due =
            |asked: &mut Asked| cluster.now() >= asked.deadline || cluster.has_reports(asked.request);
        let due: Vec<Asked> = self.asked.extract_if(.., is_due).collect();
        for Asked { request, command, reply, .. } in due {
            if !reply.is_abandoned() {
                reply.send(Ok(match command {
                    Command::Workers => Answer::Workers(cluster.worker_rows(request)),
                    Command::Metrics => {
                        Answer::Metrics(Box::new(cluster.snapshot(request, self.version, drain)))
                    }
                    _ => Answer::Totals(Box::new(cluster.totals(request, self.version, drain))),
                }));
            }
            cluster.forget_request(request);
        }
    }

    /// Those who wait for an answer, and get none from this program.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = Reply> {
        self.asked.drain(..).map(|asked| asked.reply)
    }
}
