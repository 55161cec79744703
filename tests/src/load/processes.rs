//! The parent's side of the client processes: starting them, giving orders, hearing how they do. They end
//! with it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::LoadError;
use super::wire::{Order, Outcome, Plan, Progress, Word};

/// Longest wait for a stopped process to count up.
const LAST_WORD: Duration = Duration::from_secs(30);

/// The client processes.
pub struct ClientProcesses {
    members: Vec<Member>,
    words: Receiver<(usize, Option<Word>)>,
}

struct Member {
    child: Child,
    orders: ChildStdin,
    progress: Progress,
    outcome: Option<Outcome>,
}

impl ClientProcesses {
    /// Starts `program`, which is `holdfast-load`, once for each plan.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, plans: &[Plan]) -> Result<Self, LoadError> {
        let (sender, words) = mpsc::channel();
        let mut processes = Self { members: Vec::new(), words };
        for (index, plan) in plans.iter().enumerate() {
            let (child, orders) =
                spawn(program, plan, index, &sender).map_err(|source| LoadError::Start { index, source })?;
            processes.members.push(Member { child, orders, progress: Progress::default(), outcome: None });
        }
        Ok(processes)
    }

    /// Process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.child.id()).collect()
    }

    /// Gives all an order.
    pub fn order(&mut self, order: Order) -> Result<(), LoadError> {
        for (index, member) in self.members.iter_mut().enumerate() {
            member.orders.write_all(&[order.byte()]).map_err(|_| LoadError::ChildEnded { index })?;
        }
        Ok(())
    }

    /// How all are doing, together; `undecided` is `None` until all have been heard.
    pub fn progress(&self) -> Progress {
        let all = || self.members.iter().map(|member| member.progress);
        Progress {
            open: all().map(|progress| progress.open).sum(),
            undecided: all().map(|progress| progress.undecided).sum(),
            units: all().map(|progress| progress.units).sum(),
            lost: all().map(|progress| progress.lost).sum(),
            longest_wait: all().map(|progress| progress.longest_wait).max().unwrap_or_default(),
        }
    }

    /// Listens until `deadline`, or until `enough` of the progress; calls `show` now and then. Whether it was
    /// enough.
    pub fn listen(
        &mut self,
        deadline: Instant,
        enough: impl Fn(&Progress) -> bool,
        mut show: impl FnMut(&Progress),
    ) -> Result<bool, LoadError> {
        loop {
            let progress = self.progress();
            show(&progress);
            if enough(&progress) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.hear(left)?;
        }
    }

    /// Stops all, and returns what they have counted.
    pub fn stop(mut self) -> Result<Vec<Outcome>, LoadError> {
        self.order(Order::Stop)?;
        let deadline = Instant::now() + LAST_WORD;
        while let Some(index) = self.members.iter().position(|member| member.outcome.is_none()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LoadError::ChildEnded { index });
            }
            self.hear(left)?;
        }
        Ok(self.members.iter_mut().filter_map(|member| member.outcome.take()).collect())
    }

    fn hear(&mut self, wait: Duration) -> Result<(), LoadError> {
        let Ok((index, word)) = self.words.recv_timeout(wait) else { return Ok(()) };
        let member = &mut self.members[index];
        match word {
            Some(Word::Progress(progress)) => member.progress = progress,
            Some(Word::Done(outcome)) => member.outcome = Some(outcome),
            None if member.outcome.is_some() => {}
            None => return Err(LoadError::ChildEnded { index }),
        }
        Ok(())
    }
}

impl Drop for ClientProcesses {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

/// Starts one process and a thread that passes on its words; `None` is the end of them.
fn spawn(
    program: &Path,
    plan: &Plan,
    index: usize,
    sender: &mpsc::Sender<(usize, Option<Word>)>,
) -> std::io::Result<(Child, ChildStdin)> {
    let mut command = Command::new(program);
    command.arg("client-process");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    };
    if let Err(error) = plan.write(&mut orders) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    let sender = sender.clone();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let Ok(word) = serde_json::from_str(&line) else { break };
            if sender.send((index, Some(word))).is_err() {
                return;
            }
        }
        let _ = sender.send((index, None));
    });
    Ok((child, orders))
}
