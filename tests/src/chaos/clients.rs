//! The clients, in a thread of their own: of every behaviour, at work until they are told to come to rest.
//! Whoever loses its connection is counted and connects anew.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::PATIENCE;
use crate::client::loopback;
use crate::clients::{Clients, End, Group, GroupId, Role};

/// Longest wait of the event loop.
const TURN: Duration = Duration::from_millis(5);
/// Between two looks at who has ended, and two turns of the restless.
const INTERVAL: Duration = Duration::from_millis(40);
/// How many intervals the half frames are held for, at most.
const LONGEST_HALF: u32 = 25;
/// What a slow reader reads in a turn, at work and when it is to catch up.
const SLOW_READ: usize = 2 * 1024;
const CATCH_UP_READ: usize = 64 * 1024;
/// Client addresses.
const SOURCES: u16 = 16;

/// What kind of client it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behaviour {
    /// Says nothing.
    Idle,
    /// Has several messages in flight and checks every byte.
    Echoing,
    /// Sends half a frame, and the rest some time later.
    HalfFrame,
    /// Reads less than it asks for.
    Slow,
    /// Comes and goes, with and without a close frame.
    Restless,
}

impl Behaviour {
    const ALL: [Self; 5] = [Self::Idle, Self::Echoing, Self::HalfFrame, Self::Slow, Self::Restless];

    /// How many of so many clients are of it.
    pub(super) fn count(self, clients: usize) -> usize {
        (clients * self.share() / 100).max(1)
    }

    /// Out of a hundred clients.
    fn share(self) -> usize {
        match self {
            Self::Idle => 50,
            Self::Echoing => 20,
            Self::HalfFrame => 10,
            Self::Slow => 5,
            Self::Restless => 15,
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Idle | Self::Restless => Role::Idle,
            Self::Echoing => Role::Echo { in_flight: 4, size: 1500 },
            Self::HalfFrame => Role::InParts { size: 9000 },
            Self::Slow => Role::Slow { in_flight: 6, size: 24 * 1024 },
        }
    }
}

/// How a client was lost or not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A close frame it did not ask for, with this code.
    Closed(u16),
    /// The connection ended without a close frame.
    Cut,
    /// No connection, or no complete answer to its upgrade request.
    Unanswered,
    /// Refused with this status.
    Refused(u16),
}

impl Display for Loss {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(code) => write!(f, "closed with {code}"),
            Self::Cut => f.write_str("cut off"),
            Self::Unanswered => f.write_str("unanswered"),
            Self::Refused(status) => write!(f, "refused with {status}"),
        }
    }
}

/// What was seen since the last rest.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Who was lost, and how.
    pub losses: BTreeMap<(Behaviour, Loss), usize>,
    /// Clients whose connection is open now.
    pub open: usize,
    /// Messages that came back, since the beginning.
    pub echoes: u64,
    /// Longest wait of a client with messages in flight for the next one to come back.
    pub longest_pause: Duration,
}

impl Tally {
    /// How many open connections clients of this behaviour lost.
    pub(super) fn lost(&self, behaviour: Behaviour) -> usize {
        let lost = |loss: &Loss| matches!(loss, Loss::Closed(_) | Loss::Cut);
        self.losses
            .iter()
            .filter(|((whose, loss), _)| *whose == behaviour && lost(loss))
            .map(|(_, count)| count)
            .sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Working,
    /// Nothing new is begun; what was begun is finished.
    Resting,
    /// All close.
    Leaving,
}

/// The handle of the thread that the clients live in.
pub struct ClientThread {
    orders: Sender<Activity>,
    rests: Receiver<Tally>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ClientThread {
    /// So many clients come to `server` and start to work.
    #[must_use]
    pub fn start(server: SocketAddr, clients: usize, seed: u64) -> Self {
        let (orders, receiver) = mpsc::channel();
        let (sender, rests) = mpsc::channel();
        let thread = thread::spawn(move || ClientLoop::new(server, clients, seed).run(&receiver, &sender));
        Self { orders, rests, thread: Some(thread) }
    }

    /// Lets them do what they do for so long.
    ///
    /// # Panics
    /// When a client saw what it must not see.
    pub fn wait(&mut self, duration: Duration) {
        match self.rests.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.ended(),
            Ok(_) => unreachable!("nobody told them to rest"),
        }
    }

    /// Waits until nothing is in flight and nobody is on the way in or out; they stay so until
    /// [`ClientThread::work`].
    ///
    /// # Panics
    /// When that does not happen, or a client saw what it must not see.
    pub fn rest(&mut self) -> Tally {
        self.until(Activity::Resting)
    }

    /// Goes on after a rest.
    ///
    /// # Panics
    /// When a client saw what it must not see.
    pub fn work(&mut self) {
        if self.orders.send(Activity::Working).is_err() {
            self.ended();
        }
    }

    /// After a rest: all close their connections and are gone.
    ///
    /// # Panics
    /// As [`ClientThread::rest`].
    #[must_use]
    pub fn leave(mut self) -> Tally {
        self.until(Activity::Leaving)
    }

    fn until(&mut self, activity: Activity) -> Tally {
        if self.orders.send(activity).is_err() {
            self.ended();
        }
        // The clients give up before that, and say why.
        self.rests.recv_timeout(2 * PATIENCE).unwrap_or_else(|_| self.ended())
    }

    fn ended(&mut self) -> ! {
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => panic!("the clients ended"),
        }
    }
}

/// What runs in the thread.
struct ClientLoop {
    clients: Clients,
    groups: BTreeMap<Behaviour, GroupId>,
    random: Rng,
    activity: Activity,
    tally: Tally,
    turns_at_rest: usize,
    last_interval: Instant,
    /// Intervals until the half frames are finished, or begun again.
    until_half: u32,
    half_sent: bool,
}

impl ClientLoop {
    fn new(server: SocketAddr, count: usize, seed: u64) -> Self {
        let mut clients = Clients::new(server);
        let groups = Behaviour::ALL.map(|behaviour| {
            let group = Group::new(behaviour.count(count), behaviour.role()).from((0..SOURCES).map(loopback));
            (behaviour, clients.add(group))
        });
        Self {
            clients,
            groups: groups.into_iter().collect(),
            random: Rng::with_seed(seed),
            activity: Activity::Working,
            tally: Tally::default(),
            turns_at_rest: 0,
            last_interval: Instant::now(),
            until_half: 0,
            half_sent: false,
        }
    }

    fn run(mut self, orders: &Receiver<Activity>, rests: &Sender<Tally>) {
        let mut since = Instant::now();
        loop {
            match orders.try_recv() {
                Ok(activity) => {
                    since = Instant::now();
                    self.enter(activity);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            self.clients.turn(TURN);
            self.clients.read_some(
                self.groups[&Behaviour::Slow],
                if self.activity == Activity::Working { SLOW_READ } else { CATCH_UP_READ },
            );
            if self.last_interval.elapsed() >= INTERVAL {
                self.last_interval = Instant::now();
                self.note_losses();
                if self.activity == Activity::Working {
                    self.come_and_go();
                }
            }
            if self.activity != Activity::Working && self.has_come_to_rest() {
                self.activity = Activity::Working;
                if rests.send(self.take_tally()).is_err() {
                    return;
                }
                match orders.recv() {
                    Ok(activity) => self.enter(activity),
                    Err(_) => return,
                }
                since = Instant::now();
            }
            assert!(
                self.activity == Activity::Working || since.elapsed() < PATIENCE,
                "the clients do not come to rest: {:#?}",
                self.by_behaviour(|clients, group| (clients.in_flight(group), clients.stats(group).clone())),
            );
        }
    }

    fn enter(&mut self, activity: Activity) {
        self.activity = activity;
        self.turns_at_rest = 0;
        for group in self.groups.values().copied() {
            match activity {
                Activity::Working => self.clients.release(group),
                Activity::Resting => self.clients.hold(group),
                Activity::Leaving => self.clients.leave(group, self.clients.stats(group).open),
            }
        }
        if activity == Activity::Resting && std::mem::take(&mut self.half_sent) {
            self.clients.finish_messages(self.groups[&Behaviour::HalfFrame]);
        }
    }

    /// What the restless and the half frames do now and then.
    fn come_and_go(&mut self) {
        let restless = self.groups[&Behaviour::Restless];
        let open = self.clients.stats(restless).open;
        self.clients.leave(restless, self.random.usize(..=open / 4));
        let open = self.clients.stats(restless).open;
        self.clients.vanish(restless, self.random.usize(..=open / 8));
        self.clients.retry(restless, |end| end == End::Left);

        let half = self.groups[&Behaviour::HalfFrame];
        match self.until_half.checked_sub(1) {
            Some(left) => self.until_half = left,
            None => {
                self.until_half = self.random.u32(1..LONGEST_HALF);
                match self.half_sent {
                    true => self.clients.finish_messages(half),
                    false => self.clients.begin_messages(half),
                }
                self.half_sent = !self.half_sent;
            }
        }
    }

    /// Counts those that ended against their will, and lets them come anew. The refused wait for the next
    /// work.
    fn note_losses(&mut self) {
        let working = self.activity == Activity::Working;
        for (&behaviour, &group) in &self.groups {
            let loss = |end| match end {
                End::Left => None,
                End::Refused(status) => working.then_some(Loss::Refused(status)),
                End::Closed(code) => Some(Loss::Closed(code)),
                End::Lost(_) => Some(Loss::Cut),
                End::Failed(_) => Some(Loss::Unanswered),
            };
            for (&end, &count) in self.clients.stats(group).ends.iter().filter(|(_, count)| **count > 0) {
                if let Some(loss) = loss(end) {
                    *self.tally.losses.entry((behaviour, loss)).or_default() += count;
                }
            }
            self.clients.retry(group, |end| loss(end).is_some());
        }
    }

    /// Nothing is on its way, and has not been for as long as it takes to hear of every connection's end.
    fn has_come_to_rest(&mut self) -> bool {
        let still = self.groups.values().all(|&group| {
            let stats = self.clients.stats(group);
            // Who was refused waits for the next work, who left may stay away; all others come back.
            let over = |end: &End| !matches!(end, End::Left | End::Refused(_));
            let over: usize = stats.ends.iter().filter(|(end, _)| over(end)).map(|(_, count)| count).sum();
            stats.undecided() + stats.leaving + over == 0 && self.clients.in_flight(group) == 0
        });
        self.turns_at_rest = if still { self.turns_at_rest + 1 } else { 0 };
        let open: usize = self.groups.values().map(|&group| self.clients.stats(group).open).sum();
        self.turns_at_rest > open / 1024 + 3
    }

    fn take_tally(&mut self) -> Tally {
        let mut tally = std::mem::take(&mut self.tally);
        let groups: Vec<GroupId> = self.groups.values().copied().collect();
        tally.open = groups.iter().map(|&group| self.clients.stats(group).open).sum();
        tally.echoes = groups.iter().map(|&group| self.clients.stats(group).echoes).sum();
        tally.longest_pause = self.clients.take_longest_stall(self.groups[&Behaviour::Echoing]);
        tally
    }

    fn by_behaviour<T>(&self, of: impl Fn(&Clients, GroupId) -> T) -> BTreeMap<Behaviour, T> {
        self.groups.iter().map(|(&behaviour, &group)| (behaviour, of(&self.clients, group))).collect()
    }
}
