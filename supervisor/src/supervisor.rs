//! The supervisor's loop: readiness becomes an [`Event`], an event is one match arm. After the batch the cluster
//! takes in what has happened to its slots, the operations go on, and whoever asked for figures is answered.
//!
//! It reads no client byte and blocks on nothing.

mod execute;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use holdfast_shared::config::Inputs;
use holdfast_shared::id::SlotId;
use holdfast_worker::Program;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::api::{Answer, Command, Reply, Report, Request};
use crate::cluster::hub::{HUB_LINK, HUB_PROCESS};
use crate::cluster::lifecycle::{Cause, Lifecycle};
use crate::cluster::listeners::ListenError;
use crate::cluster::state::StateError;
use crate::cluster::{ADOPTED_PROCESSES, Cluster, Foundation, FoundationError, News, Phase, TICK};
use crate::host::capacity::Unreachable;
use crate::host::launch::{InheritedSockets, Launch};
use crate::host::notify;
use crate::host::run_dir::RunDirError;
use crate::host::signals::Signals;
use crate::operations::Operations;
use crate::operations::adoption::AdoptError;
use crate::operations::figures::Figures;
use crate::operations::upgrade::{ANSWER, Place, ReceivedHandoff, Upgrade};
use crate::operator::control::{self, Control, Sockets};

const SIGNALS: Token = Token(usize::MAX);
const REQUESTS: Token = Token(usize::MAX - 1);
const EVENTS_PER_TURN: usize = 256;

/// Why the supervisor could not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupervisorError {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Foundation(#[from] FoundationError),
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error(transparent)]
    Capacity(#[from] Unreachable),
    /// No slot can be made to serve.
    #[error(
        "slot {slot} could not start in {attempts} attempts, the last ended with {cause}; the log says why"
    )]
    Start { slot: SlotId, attempts: u32, cause: Cause },
    /// Something the loop cannot do without.
    #[error("cannot {doing}: {source}")]
    Kernel { doing: &'static str, source: io::Error },
}

/// What readiness means.
enum Event {
    /// A signal arrived.
    Signals,
    /// The control thread has requests, or another thread has done what it was asked.
    Requests,
    /// A process ended that is ours to look after and no child of ours.
    AdoptedProcesses,
    /// A program that was asked whether it could take our place says something, or has ended.
    Candidate,
    /// The hub said something, reads again, or has ended.
    Hub,
    /// A slot said something, or reads again.
    Link(SlotId),
}

/// How the process was started, and what an earlier program in it has left.
pub(crate) struct Origin<'a> {
    pub(crate) program: Program,
    pub(crate) launch: Launch,
    pub(crate) inputs: Inputs,
    pub(crate) signals: Signals,
    pub(crate) handoff: Option<&'a ReceivedHandoff>,
    pub(crate) sockets: InheritedSockets,
}

/// The loop, and what it gives its turns to.
pub(crate) struct Supervisor {
    place: Place,
    inputs: Inputs,
    poll: Poll,
    signals: Signals,
    control: Control,
    requests: Receiver<Request>,
    cluster: Cluster,
    operations: Operations,
    figures: Figures,
    /// The control thread was told to end, for another program.
    is_closed: bool,
    /// Children may have ended since they were last looked for.
    look_for_dead: bool,
    /// Why it ends with a failure, if it does.
    failure: Option<SupervisorError>,
}

impl Supervisor {
    pub(crate) fn new(origin: Origin<'_>, foundation: Foundation) -> Result<Self, SupervisorError> {
        let kernel = |doing| move |source| SupervisorError::Kernel { doing, source };
        let Origin { program, launch, inputs, mut signals, handoff, sockets } = origin;
        let poll = Poll::new().map_err(kernel("make an event loop"))?;
        let watched = poll.registry().register(&mut signals, SIGNALS, Interest::READABLE);
        watched.map_err(kernel("watch signals"))?;
        let waker = Arc::new(Waker::new(poll.registry(), REQUESTS).map_err(kernel("make a waker"))?);
        let admin = foundation.effective.config.admin.listen;
        let sockets = Sockets::bind(foundation.run_dir.path(), admin, sockets)?;
        let (control, requests) = Control::start(sockets, Arc::clone(&waker), program.version)?;
        let registry = poll.registry().try_clone().map_err(kernel("copy an event loop's handle"))?;
        let place = Place { program, launch, waker };
        let upgrade = handoff.map(|handoff| Upgrade::inherited(handoff, &place));
        let operations = Operations::new(upgrade, Arc::clone(&place.waker));
        let (cluster, figures) = (Cluster::new(foundation, registry)?, Figures::new(program.version));
        Ok(Self {
            place,
            inputs,
            poll,
            signals,
            control,
            requests,
            cluster,
            operations,
            figures,
            is_closed: false,
            look_for_dead: false,
            failure: None,
        })
    }

    /// Runs until the service has ended.
    ///
    /// # Errors
    /// When it could not start, or the kernel's readiness can no longer be had.
    pub(crate) fn run(mut self) -> Result<(), SupervisorError> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        loop {
            self.after_batch();
            if self.cluster.has_ended() {
                return self.end();
            }
            if let Err(source) = self.poll.poll(&mut events, Some(self.timeout()))
                && source.kind() != io::ErrorKind::Interrupted
            {
                return Err(SupervisorError::Kernel { doing: "wait for events", source });
            }
            self.cluster.wake();
            // A turn that nothing caused is the time to see whether a signal was missed.
            self.look_for_dead |= events.is_empty();
            for event in &events {
                match name(event.token()) {
                    Some(Event::Signals) => self.on_signals(),
                    Some(Event::Requests) => self.on_requests(),
                    Some(Event::AdoptedProcesses) => self.look_for_dead = true,
                    // Read after the batch.
                    Some(Event::Candidate | Event::Hub) | None => {}
                    Some(Event::Link(slot)) => self.cluster.on_link(slot),
                }
            }
        }
    }

    fn after_batch(&mut self) {
        let before = self.cluster.phase();
        self.cluster.take_in(std::mem::take(&mut self.look_for_dead));
        let news = self.cluster.take_news();
        for news in &news {
            if let News::StartFailed { slot, cause } = *news {
                let attempts = Lifecycle::START_ATTEMPTS;
                self.failure = Some(SupervisorError::Start { slot, attempts, cause });
                self.cluster.abort();
            }
        }
        self.operations.turn(&mut self.cluster, &news);
        self.cluster.conclude();
        // Not before: a client that comes at once is steered as all later ones are.
        if before == Phase::Starting && self.cluster.phase() == Phase::Running {
            self.announce_ready();
        }
        let drain = self.operations.drain_progress(&self.cluster);
        self.figures.turn(&mut self.cluster, drain);
        let (is_quiet, has_left) = (self.figures.is_quiet(), self.control.has_left());
        let departure = self.operations.departure(&self.cluster, is_quiet, has_left);
        self.depart(departure);
    }

    fn timeout(&self) -> Duration {
        let deadlines =
            [self.cluster.deadline(), self.operations.deadline(&self.cluster), self.figures.deadline()];
        let next = deadlines.into_iter().flatten().min();
        next.map_or(TICK, |moment| moment.saturating_sub(self.cluster.now())).min(TICK)
    }

    fn announce_ready(&self) {
        let listen = self.cluster.addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
        let admin =
            self.control.admin_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
        log::info!(
            "ready listen={} admin={admin} workers={} max_connections={} run_dir={}",
            listen.join(","),
            self.cluster.slots().count(),
            self.cluster.capacity().max_connections,
            self.cluster.run_dir().path().display()
        );
        notify::ready(&format!("serving on {}", listen.join(", ")));
    }

    /// Acts on every signal that has come.
    fn on_signals(&mut self) {
        for signal in self.signals.pending() {
            match signal {
                SIGHUP => self.reload(None),
                SIGUSR1 => self.operations.restart(&mut self.cluster, None, None),
                SIGUSR2 => self.operations.upgrade(&mut self.cluster, &self.place, None),
                SIGINT | SIGTERM => self.operations.on_end_signal(&mut self.cluster),
                SIGCHLD => self.look_for_dead = true,
                // No other was installed.
                _ => {}
            }
        }
    }

    /// Takes every request the control thread has put into the channel.
    fn on_requests(&mut self) {
        while let Ok(Request { command, reply }) = self.requests.try_recv() {
            let Self { cluster, operations, figures, .. } = self;
            match command {
                Command::Totals | Command::Workers | Command::Metrics => figures.ask(cluster, command, reply),
                Command::Config => reply.send(Ok(Answer::Config(cluster.config_entries()))),
                Command::Connections(query) => operations.list(cluster, query, reply),
                Command::Close(order) => operations.close(cluster, &order, reply),
                Command::Explain(query) => reply.send(
                    query.address().map(|address| Answer::Explanation(Box::new(cluster.explain(address)))),
                ),
                Command::Ban(order) => reply.send(
                    order.network().and_then(|network| cluster.ban(network, order.time)).map(Answer::Bans),
                ),
                Command::Unban(order) => {
                    reply.send(order.network().and_then(|network| cluster.unban(network)).map(Answer::Bans));
                }
                Command::Bans => reply.send(Ok(Answer::Bans(cluster.bans()))),
                Command::Limits(order) if order.is_change() => operations.set_limits(cluster, &order, reply),
                Command::Limits(_) => reply.send(Ok(Answer::Limits(cluster.limits_view()))),
                Command::Health => reply.send(Ok(Answer::Health(cluster.health()))),
                Command::Reload => self.reload(Some(reply)),
                Command::Restart { slot } => operations.restart(cluster, slot, Some(reply)),
                Command::Upgrade { status: false } => operations.upgrade(cluster, &self.place, Some(reply)),
                Command::Upgrade { status: true } => {
                    reply.send(Ok(Answer::Upgrade(Box::new(operations.upgrade_progress(cluster)))));
                }
                Command::Rebalance => operations.rebalance(cluster, Some(reply)),
                Command::Drain(order) => reply.send(operations.order_drain(cluster, order)),
                Command::Stop => {
                    reply.send(Ok(Answer::Done(Report {
                        message: "stopping: connections are cut, the service exits".to_owned(),
                        connections: cluster.connections(),
                        drain: None,
                    })));
                    operations.begin_stop(cluster);
                }
            }
        }
    }

    fn reload(&mut self, reply: Option<Reply>) {
        let control = &mut self.control;
        let rebind = |address| control.rebind(address).map(drop).map_err(|error| error.to_string());
        self.operations.reload(&mut self.cluster, &self.inputs, rebind, reply);
    }

    fn end(self) -> Result<(), SupervisorError> {
        drop(self.requests);
        self.control.stop();
        self.cluster.end();
        match self.failure {
            Some(failure) => Err(failure),
            None => {
                log::info!("stopped");
                Ok(())
            }
        }
    }
}

fn name(token: Token) -> Option<Event> {
    Some(match token {
        SIGNALS => Event::Signals,
        REQUESTS => Event::Requests,
        ADOPTED_PROCESSES => Event::AdoptedProcesses,
        ANSWER => Event::Candidate,
        HUB_LINK | HUB_PROCESS => Event::Hub,
        Token(number) => Event::Link(SlotId(u16::try_from(number).ok()?)),
    })
}
