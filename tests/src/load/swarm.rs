//! One client process: an event loop over its share of the clients, obeying its parent's orders.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::LoadError;
use super::client::{Client, Readiness, Shared, Step};
use super::pacer::Pacer;
use super::pattern::{Kind, Pattern};
use super::tally::Tally;
use super::wire::{Order, Outcome, Plan, Progress, Role, Word};

/// The parent's orders on standard input.
const ORDERS: Token = Token(usize::MAX - 1);
/// The pacer's timer.
const PACER: Token = Token(usize::MAX - 2);

const EVENTS_PER_TURN: usize = 1024;
const SCRATCH_SIZE: usize = 256 * 1024;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Reads a plan from standard input, then plays its clients until standard input says stop or ends.
///
/// # Errors
/// When the event loop fails; what clients meet is counted and reported.
pub fn serve_parent() -> Result<(), LoadError> {
    // Not `io::stdin()`: it reads ahead, and what lies in its buffer brings no event.
    let input =
        io::stdin().as_fd().try_clone_to_owned().map_err(LoadError::event_loop("open standard input"))?;
    let mut input = File::from(input);
    let plan = Plan::read(&mut input).map_err(LoadError::event_loop("read the plan"))?;
    Swarm::new(plan, input)?.run()
}

struct Swarm {
    /// The parent's orders.
    input: File,
    poll: Poll,
    shared: Shared,
    clients: Vec<Client>,
    /// Clients to connect, in order.
    waiting: VecDeque<usize>,
    connecting: usize,
    most_connecting: usize,
    open: u64,
    /// Clients that were told to connect and are neither in nor refused.
    undecided: Option<u64>,
    tally: Tally,
    clock: Instant,
    scratch: Vec<u8>,
    pacer: Option<Pacer>,
    /// Due messages that found no client free: when they were due.
    overdue: VecDeque<u64>,
    next_paced: usize,
}

impl Swarm {
    fn new(plan: Plan, input: File) -> Result<Self, LoadError> {
        let (size, kind, in_flight, raw) = match plan.role {
            Role::Echo { size, kind, in_flight, raw, .. } => (size, kind, in_flight, raw),
            Role::Flood { size } | Role::Burst { size } => (size, Kind::Binary, 1, false),
            Role::Idle | Role::Handshake => (0, Kind::Binary, 1, false),
        };
        let pattern = Pattern::new(size, kind, in_flight, raw);
        let source = |n: usize| plan.sources.get(n % plan.sources.len().max(1)).copied().flatten();
        let clients = (0..plan.clients).map(|n| Client::new(source(n), n as u64, &pattern)).collect();
        let shared = Shared {
            server: plan.server,
            request: plan.request.into_bytes(),
            pattern,
            role: plan.role,
            running: false,
        };
        Ok(Self {
            input,
            poll: Poll::new().map_err(LoadError::event_loop("make an event queue"))?,
            shared,
            clients,
            waiting: VecDeque::new(),
            connecting: 0,
            most_connecting: plan.connecting,
            open: 0,
            undecided: None,
            tally: Tally::new(size as u64),
            clock: Instant::now(),
            scratch: vec![0; SCRATCH_SIZE],
            pacer: None,
            overdue: VecDeque::new(),
            next_paced: 0,
        })
    }

    fn run(mut self) -> Result<(), LoadError> {
        let stdin = self.input.as_raw_fd();
        let registered = self.poll.registry().register(&mut SourceFd(&stdin), ORDERS, Interest::READABLE);
        registered.map_err(LoadError::event_loop("watch standard input"))?;
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        let mut last_progress = Instant::now();
        loop {
            match self.poll.poll(&mut events, Some(PROGRESS_INTERVAL)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(LoadError::EventLoop { doing: "wait for events", source: error });
                }
                _ => {}
            }
            let decided_before = self.undecided == Some(0);
            for event in &events {
                self.tally.now = self.now();
                match event.token() {
                    ORDERS => {
                        if self.obey()? {
                            return self.say(&Word::Done(self.outcome()));
                        }
                    }
                    PACER => self.pace(),
                    Token(index) => {
                        let over = event.is_read_closed() || event.is_write_closed() || event.is_error();
                        self.ready(index, Readiness { over });
                    }
                }
            }
            self.connect_more();
            let all_decided = self.undecided == Some(0) && !decided_before;
            if all_decided || last_progress.elapsed() >= PROGRESS_INTERVAL {
                last_progress = Instant::now();
                self.say(&Word::Progress(self.progress()))?;
            }
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
                Order::Connect => self.start_connecting(),
                Order::Go => self.go()?,
                Order::Measure => self.measure(),
                Order::Stop => return Ok(true),
            }
        }
        Ok(false)
    }

    fn start_connecting(&mut self) {
        self.waiting = (0..self.clients.len()).collect();
        self.undecided = Some(self.clients.len() as u64);
    }

    fn go(&mut self) -> Result<(), LoadError> {
        self.shared.running = true;
        match self.shared.role {
            Role::Handshake => self.start_connecting(),
            Role::Echo { rate: Some(rate), .. } => self.start_pacing(rate)?,
            Role::Burst { .. } => {
                self.tally.now = self.now();
                let now = self.tally.now;
                self.each_open(|client, shared| client.talk.begin(&shared.pattern, now));
            }
            _ => {
                for index in 0..self.clients.len() {
                    self.tally.now = self.now();
                    self.ready(index, Readiness { over: false });
                }
            }
        }
        Ok(())
    }

    fn measure(&mut self) {
        self.tally.start_measuring();
        if let Role::Burst { .. } = self.shared.role {
            self.each_open(|client, shared| client.talk.finish(&shared.pattern));
        }
    }

    /// Gives every open client something to say, and lets it send what the kernel takes.
    fn each_open(&mut self, mut give: impl FnMut(&mut Client, &Shared)) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.is_open() {
                give(client, &self.shared);
                let step = client.send(&self.shared, &mut self.tally);
                self.took(index, step);
            }
        }
    }

    fn start_pacing(&mut self, rate: f64) -> Result<(), LoadError> {
        let pacer = Pacer::start(rate, self.now()).map_err(LoadError::event_loop("set a timer"))?;
        let registered =
            self.poll.registry().register(&mut SourceFd(&pacer.descriptor()), PACER, Interest::READABLE);
        registered.map_err(LoadError::event_loop("watch a timer"))?;
        self.pacer = Some(pacer);
        Ok(())
    }

    /// Gives due messages to clients in turn, each to the next one that may have another in flight.
    fn pace(&mut self) {
        let (Some(pacer), Role::Echo { in_flight, .. }) = (&mut self.pacer, self.shared.role) else { return };
        let now = self.tally.now;
        self.overdue.extend((0..pacer.due(now)).map(|_| now));
        let mut busy = 0;
        while busy < self.clients.len() {
            let Some(&due) = self.overdue.front() else { return };
            let index = self.next_paced;
            self.next_paced = (index + 1) % self.clients.len();
            let client = &mut self.clients[index];
            if !client.is_open() || client.talk.in_flight() >= in_flight as u64 {
                busy += 1;
                continue;
            }
            busy = 0;
            self.overdue.pop_front();
            client.talk.say(&self.shared.pattern, 1, due);
            let step = client.send(&self.shared, &mut self.tally);
            self.took(index, step);
        }
    }

    fn ready(&mut self, index: usize, readiness: Readiness) {
        let client = &mut self.clients[index];
        let step = client.ready(readiness, &self.shared, &mut self.tally, &mut self.scratch);
        self.took(index, step);
    }

    fn took(&mut self, index: usize, step: Step) {
        match step {
            Step::Same => {}
            Step::More => self.watch(index, true),
            Step::Lost => self.open -= 1,
            Step::Opened => {
                self.decided();
                self.open += 1;
                if self.shared.running && self.pacer.is_none() {
                    self.ready(index, Readiness { over: false });
                }
            }
            Step::Decided => {
                self.decided();
                if self.shared.role == Role::Handshake {
                    self.waiting.push_back(index);
                }
            }
        }
    }

    fn decided(&mut self) {
        self.connecting -= 1;
        self.undecided = self.undecided.map(|count| count.saturating_sub(1));
    }

    fn connect_more(&mut self) {
        // Those that fail at once come back to the queue when they do handshakes: not more than once a turn.
        for _ in 0..self.waiting.len() {
            if self.connecting >= self.most_connecting {
                return;
            }
            let Some(index) = self.waiting.pop_front() else { return };
            self.connecting += 1;
            let now = self.now();
            match self.clients[index].connect(&self.shared, now) {
                Ok(()) => self.watch(index, false),
                Err(what) => {
                    self.tally.failed(what);
                    self.took(index, Step::Decided);
                }
            }
        }
    }

    /// Registers a client's socket, or asks for its readiness anew.
    fn watch(&mut self, index: usize, again: bool) {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(stream) = self.clients[index].stream() else { return };
        let registry = self.poll.registry();
        let watched = match again {
            true => registry.reregister(stream, Token(index), interest),
            false => registry.register(stream, Token(index), interest),
        };
        // Fails only for want of kernel memory or of fs.epoll.max_user_watches.
        if let Err(error) = watched {
            self.tally.failed(format!("watch a socket: {error}"));
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn progress(&self) -> Progress {
        Progress {
            open: self.open,
            undecided: self.undecided,
            units: self.tally.counts.units,
            lost: self.tally.counts.lost.values().sum(),
            longest_wait: Duration::from_nanos(self.tally.latencies.longest()),
        }
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            open: self.open,
            undecided: self.undecided.unwrap_or(0),
            counts: self.tally.counts.clone(),
            latencies: self.tally.latencies.to_pairs(),
        }
    }

    fn say(&self, word: &Word) -> Result<(), LoadError> {
        let mut line =
            serde_json::to_vec(word).map_err(|error| LoadError::event_loop("report")(error.into()))?;
        line.push(b'\n');
        io::stdout()
            .write_all(&line)
            .and_then(|()| io::stdout().flush())
            .map_err(LoadError::event_loop("report"))
    }
}
