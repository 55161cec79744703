//! One client process: an event loop over its share of the clients, obeying its parent's orders.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::Token;

use super::LoadError;
use super::pacer::Pacer;
use super::wire::{Order, Outcome, Plan, Progress, Word};
use crate::clients::{Clients, Group, GroupId, Pattern, Role, Stats};

/// The parent's orders on standard input.
const ORDERS: Token = Token(usize::MAX - 1);
/// The pacer's timer.
const PACER: Token = Token(usize::MAX - 2);

const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Messages that are not alike, at least.
const DISTINCT: usize = 2;

/// Reads a plan from standard input, then plays its clients until standard input says stop or ends.
///
/// # Errors
/// When the event loop fails; what happens to clients is counted and reported.
pub fn serve_parent() -> Result<(), LoadError> {
    // Not `io::stdin()`: it reads ahead, and what lies in its buffer brings no event.
    let input =
        io::stdin().as_fd().try_clone_to_owned().map_err(LoadError::event_loop("open standard input"))?;
    let mut input = File::from(input);
    let plan = Plan::read(&mut input).map_err(LoadError::event_loop("read the plan"))?;
    ClientProcess::new(plan, input).run()
}

struct ClientProcess {
    /// The parent's orders.
    input: File,
    role: Role,
    /// Messages per second.
    rate: Option<f64>,
    count: usize,
    clients: Clients,
    group: GroupId,
    /// The clients were told to connect.
    told: bool,
    pacer: Option<Pacer>,
    /// Due messages that found no client free: when they were due.
    overdue: VecDeque<u64>,
    next_paced: usize,
}

impl ClientProcess {
    fn new(plan: Plan, input: File) -> Self {
        let (in_flight, size) = plan.role.messages();
        let in_flight = usize::try_from(in_flight).unwrap_or(usize::MAX);
        let mut clients = Clients::new(plan.server);
        clients.most_connecting = plan.connecting;
        let group = clients.add(Group {
            clients: plan.clients,
            role: plan.role,
            sources: plan.sources,
            request: plan.request.into_bytes(),
            at_once: false,
            pattern: Pattern::new(size, plan.kind, in_flight, plan.raw, DISTINCT),
            running: false,
            paced: plan.rate.is_some(),
            strict: false,
        });
        Self {
            input,
            role: plan.role,
            rate: plan.rate,
            count: plan.clients,
            clients,
            group,
            told: false,
            pacer: None,
            overdue: VecDeque::new(),
            next_paced: 0,
        }
    }

    fn run(mut self) -> Result<(), LoadError> {
        let watched = self.clients.watch(self.input.as_raw_fd(), ORDERS);
        watched.map_err(LoadError::event_loop("watch standard input"))?;
        let mut last_progress = Instant::now();
        let mut all_were_decided = false;
        loop {
            self.clients.wait(PROGRESS_INTERVAL).map_err(LoadError::event_loop("wait for events"))?;
            if self.clients.is_ready(ORDERS) && self.obey()? {
                return say(&Word::Done(Outcome::of(self.stats(), self.role)));
            }
            if self.pacer.is_some() && self.clients.is_ready(PACER) {
                self.pace();
            }
            self.clients.serve();
            if self.told {
                self.clients.connect_more();
            }
            let all_decided = self.told && self.stats().undecided() == 0;
            if (all_decided && !all_were_decided) || last_progress.elapsed() >= PROGRESS_INTERVAL {
                last_progress = Instant::now();
                say(&Word::Progress(Progress::of(self.stats(), self.role, self.told)))?;
            }
            all_were_decided = all_decided;
        }
    }

    /// Reads orders; true means stop.
    fn obey(&mut self) -> Result<bool, LoadError> {
        let mut bytes = [0; 16];
        let count = self.input.read(&mut bytes).map_err(LoadError::event_loop("read orders"))?;
        if count == 0 {
            // The parent has gone, and so has whoever would read a report.
            std::process::exit(1);
        }
        for order in bytes[..count].iter().filter_map(|byte| Order::from_byte(*byte)) {
            match order {
                Order::Connect => self.told = true,
                Order::Go => self.go()?,
                Order::Measure => self.measure(),
                Order::Stop => return Ok(true),
            }
        }
        Ok(false)
    }

    fn go(&mut self) -> Result<(), LoadError> {
        self.told = true;
        self.clients.release(self.group);
        if let Role::InParts { .. } = self.role {
            self.clients.begin_messages(self.group);
        }
        if let Some(rate) = self.rate {
            let pacer =
                Pacer::start(rate, self.clients.now()).map_err(LoadError::event_loop("set a timer"))?;
            self.clients.watch(pacer.descriptor(), PACER).map_err(LoadError::event_loop("watch a timer"))?;
            self.pacer = Some(pacer);
        }
        Ok(())
    }

    fn measure(&mut self) {
        self.clients.start_measuring(self.group);
        if let Role::InParts { .. } = self.role {
            self.clients.finish_messages(self.group);
        }
    }

    /// Gives due messages to clients in turn, each to the next one that may have another in flight.
    fn pace(&mut self) {
        let Some(pacer) = &mut self.pacer else { return };
        let now = self.clients.now();
        self.overdue.extend((0..pacer.due(now)).map(|_| now));
        let mut busy = 0;
        while busy < self.count {
            let Some(&due) = self.overdue.front() else { return };
            let index = self.next_paced;
            self.next_paced = (index + 1) % self.count;
            if self.clients.say(index, due) {
                busy = 0;
                self.overdue.pop_front();
            } else {
                busy += 1;
            }
        }
    }

    fn stats(&self) -> &Stats {
        self.clients.stats(self.group)
    }
}

fn say(word: &Word) -> Result<(), LoadError> {
    let mut line = serde_json::to_vec(word).map_err(|error| LoadError::event_loop("report")(error.into()))?;
    line.push(b'\n');
    io::stdout().write_all(&line).and_then(|()| io::stdout().flush()).map_err(LoadError::event_loop("report"))
}
