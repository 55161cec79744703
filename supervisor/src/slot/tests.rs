//! Every pair of state and event; then whole lives, as processes and pipes can live them.

use std::collections::VecDeque;

use holdfast_shared::id::Incarnation;
use nix::unistd::Pid;
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1000);
const KEEPER: Pid = Pid::from_raw(10);
const KILLED: Cause = Cause::Signal(9);

fn worker(pid: i32) -> Worker {
    Worker { pid: Pid::from_raw(pid), incarnation: Incarnation(1) }
}

fn in_state(state: State) -> Slot {
    Slot { state, ..Slot::default() }
}

fn events() -> [Event; 12] {
    [
        Event::Tick,
        Event::Spawned { keeper: KEEPER },
        Event::SpawnFailed,
        Event::WorkerStarted(worker(11)),
        Event::Ready(worker(11)),
        Event::WorkerDied { cause: KILLED, pause: Duration::ZERO },
        Event::WorkerLeft,
        Event::LinkClosed,
        Event::KeeperReaped { cause: KILLED },
        Event::OrphanReaped { pid: Pid::from_raw(11) },
        Event::Drain,
        Event::Stop,
    ]
}

/// The state after each event of [`events`], by its initials; `!!` where the event is unexpected.
#[rustfmt::skip]
fn table() -> Vec<(State, &'static str)> {
    let idle = Life { keeper: KEEPER, since: NOW, worker: None };
    let busy = Life { worker: Some(worker(11)), ..idle };
    let other = Life { worker: Some(worker(12)), ..idle };
    let down = busy.remains(NOW);
    let closed = Remains { link_open: false, ..down };
    let reaped = Remains { keeper: None, cause: Some(KILLED), ..down };
    let last = Remains { worker: None, ..reaped };
    let later = NOW + Duration::from_secs(1);
    vec![
        // events in columns: tick, spawned, spawn failed, started, hello, died, left, closed, keeper, orphan, drain, stop
        (State::Empty,                           "SP !! !! !! !! !! !! !! !! !! LE LE"),
        (State::BackingOff { until: NOW },       "SP !! !! !! !! !! !! !! !! !! LE LE"),
        (State::BackingOff { until: later },     "BO !! !! !! !! !! !! !! !! !! LE LE"),
        (State::Left,                            "LE !! !! !! !! !! !! !! !! !! LE LE"),
        (State::Spawning,                        "SP ST SP !! !! !! !! !! !! !! SP SP"),
        (State::Starting(idle),                  "ST !! !! ST RD ST !! KD KD !! DR KD"),
        (State::Starting(busy),                  "ST !! !! ST RD ST ST KD KD KD DR KD"),
        (State::Starting(other),                 "ST !! !! !! !! ST ST KD KD !! DR KD"),
        (State::Ready(busy),                     "RD !! !! RD !! WD WD KD KD KD DR KD"),
        (State::Ready(other),                    "RD !! !! !! !! WD WD KD KD !! DR KD"),
        (State::WorkerDown(idle),                "WD !! !! WD RD WD !! KD KD !! DR KD"),
        (State::WorkerDown(busy),                "WD !! !! WD RD WD WD KD KD KD DR KD"),
        (State::Draining(idle),                  "DR !! !! DR DR DR !! KD KD !! DR KD"),
        (State::Draining(busy),                  "DR !! !! DR DR DR DR KD KD KD DR KD"),
        (State::KeeperDown(down),                "KD !! !! KD KD KD KD KD KD KD KD KD"),
        (State::KeeperDown(closed),              "KD !! !! !! !! !! !! !! KD KD KD KD"),
        (State::KeeperDown(reaped),              "KD !! !! KD KD KD KD KD !! KD KD KD"),
        (State::KeeperDown(last),                "KD !! !! KD KD KD KD SP !! KD KD KD"),
    ]
}

fn initials(state: State) -> &'static str {
    match state {
        State::Empty => "EM",
        State::Spawning => "SP",
        State::Starting(_) => "ST",
        State::Ready(_) => "RD",
        State::WorkerDown(_) => "WD",
        State::Draining(_) => "DR",
        State::KeeperDown(_) => "KD",
        State::BackingOff { .. } => "BO",
        State::Left => "LE",
    }
}

#[test]
fn every_state_has_an_answer_to_every_event() {
    for (state, row) in table() {
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells.len(), events().len(), "{state:?}");
        for (event, cell) in events().into_iter().zip(cells) {
            let mut slot = in_state(state);
            let actions = slot.step(event, NOW);
            if cell == "!!" {
                assert_eq!((slot.state, actions), (state, vec![Action::Unexpected(event)]));
            } else {
                assert_eq!(initials(slot.state), cell, "{state:?} {event:?}");
                assert!(!actions.contains(&Action::Unexpected(event)), "{state:?} {event:?}");
            }
        }
    }
}

#[test]
fn up_is_not_ready_until_hello() {
    let mut slot = Slot::default();
    assert_eq!(slot.step(Event::Tick, NOW), [Action::SpawnKeeper]);
    assert_eq!(slot.step(Event::Spawned { keeper: KEEPER }, NOW), []);
    assert_eq!(slot.step(Event::WorkerStarted(worker(11)), NOW), []);
    assert_eq!(slot.state().name(), "starting");
    assert_eq!(slot.step(Event::Ready(worker(11)), NOW), [Action::BecameReady(worker(11))]);
    assert_eq!((slot.state().keeper(), slot.state().worker()), (Some(KEEPER), Some(worker(11))));
}

#[test]
fn a_start_that_cannot_work_is_reported_once() {
    let mut slot = in_state(State::Starting(Life { keeper: KEEPER, since: NOW, worker: None }));
    let cause = Cause::Exit(1);
    let died = Event::WorkerDied { cause, pause: Duration::ZERO };
    let reports: Vec<bool> = (0..5)
        .map(|_| {
            let _ = slot.step(Event::WorkerStarted(worker(11)), NOW);
            slot.step(died, NOW).contains(&Action::StartFailed { cause })
        })
        .collect();
    assert_eq!(reports, [false, false, true, false, false]);
}

#[test]
fn a_keeper_that_cannot_be_spawned_is_a_failed_start_and_backs_off() {
    let mut slot = in_state(State::Spawning);
    let lost = |millis| Action::KeeperLost { cause: Cause::NotSpawned, pause: Duration::from_millis(millis) };
    assert_eq!(slot.step(Event::SpawnFailed, NOW), [lost(0), Action::SpawnKeeper]);
    assert_eq!(slot.step(Event::SpawnFailed, NOW), [lost(0), Action::SpawnKeeper]);
    let third = slot.step(Event::SpawnFailed, NOW);
    assert_eq!(third, [lost(100), Action::StartFailed { cause: Cause::NotSpawned }]);
    assert_eq!(slot.wakeup(), Some(NOW + Duration::from_millis(100)));
}

#[test]
fn a_slot_that_has_served_never_reports_a_failed_start() {
    let mut slot = in_state(State::Starting(Life { keeper: KEEPER, since: NOW, worker: None }));
    let cause = KILLED;
    let _ = slot.step(Event::Ready(worker(11)), NOW);
    for _ in 0..5 {
        let actions = slot.step(Event::WorkerDied { cause, pause: Duration::ZERO }, NOW);
        assert_eq!(actions, [Action::WorkerLost { cause, pause: Duration::ZERO }]);
    }
}

#[test]
fn holdings_are_forgotten_only_when_link_keeper_and_worker_are_gone() {
    let life = Life { keeper: KEEPER, since: NOW, worker: Some(worker(11)) };
    let mut slot = in_state(State::Ready(life));
    let kill = Action::KillWorker(Pid::from_raw(11));
    assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), [kill]);
    assert_eq!(slot.step(Event::LinkClosed, NOW), []);
    let lost = Action::KeeperLost { cause: KILLED, pause: Duration::ZERO };
    let rebuilt = [Action::ForgetHoldings, lost, Action::SpawnKeeper];
    assert_eq!(slot.step(Event::OrphanReaped { pid: Pid::from_raw(11) }, NOW), rebuilt);
}

#[test]
fn an_orphan_may_be_reaped_before_its_keeper() {
    let life = Life { keeper: KEEPER, since: NOW, worker: Some(worker(11)) };
    let mut slot = in_state(State::Ready(life));
    assert_eq!(slot.step(Event::OrphanReaped { pid: Pid::from_raw(11) }, NOW), []);
    assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), []);
    let lost = Action::KeeperLost { cause: KILLED, pause: Duration::ZERO };
    assert_eq!(slot.step(Event::LinkClosed, NOW), [Action::ForgetHoldings, lost, Action::SpawnKeeper]);
}

#[test]
fn a_worker_that_comes_up_while_draining_is_told_to_drain() {
    let mut slot = in_state(State::WorkerDown(Life { keeper: KEEPER, since: NOW, worker: None }));
    assert_eq!(slot.step(Event::Drain, NOW), []);
    assert_eq!(slot.step(Event::Ready(worker(11)), NOW), [Action::DrainWorker]);
    assert_eq!(slot.step(Event::WorkerLeft, NOW), []);
    assert_eq!(slot.step(Event::LinkClosed, NOW), [Action::KillKeeper(KEEPER)]);
    assert_eq!(slot.step(Event::KeeperReaped { cause: Cause::Exit(0) }, NOW), [Action::ForgetHoldings]);
    assert_eq!(slot.state(), State::Left);
}

#[test]
fn a_drain_or_stop_that_overtakes_the_spawn_ends_the_keeper() {
    for event in [Event::Drain, Event::Stop] {
        let mut slot = in_state(State::Spawning);
        assert_eq!(slot.step(event, NOW), []);
        assert_eq!(slot.step(Event::Spawned { keeper: KEEPER }, NOW), [Action::KillKeeper(KEEPER)]);
    }
}

/// What may happen next, if the processes are in a condition for it.
#[derive(Debug, Clone, Copy)]
enum Happening {
    KeeperClones,
    KeeperTells,
    WorkerSaysHello,
    WorkerDies,
    WorkerFinishes,
    KeeperDies,
    OrphanDies,
    Reap(bool),
    ReadLink,
    Pass(u64),
    Drain,
    Stop,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::KeeperClones),
        8 => Just(Happening::KeeperTells),
        6 => Just(Happening::WorkerSaysHello),
        3 => Just(Happening::WorkerDies),
        4 => Just(Happening::WorkerFinishes),
        2 => Just(Happening::KeeperDies),
        3 => Just(Happening::OrphanDies),
        6 => any::<bool>().prop_map(Happening::Reap),
        12 => Just(Happening::ReadLink),
        6 => (0..40_000_u64).prop_map(Happening::Pass),
    ]
}

struct KeeperProcess {
    pid: Pid,
    alive: bool,
    /// Written to the link in this order; lost if it dies before.
    unsaid: VecDeque<Event>,
    leaving: bool,
}

struct WorkerProcess {
    identity: Worker,
    alive: bool,
    greeted: bool,
    drains: bool,
}

/// The processes of one slot, its link, and a supervisor that does what the slot says.
struct World {
    slot: Slot,
    now: Duration,
    next_pid: i32,
    keeper: Option<KeeperProcess>,
    worker: Option<WorkerProcess>,
    link: VecDeque<Event>,
    link_open: bool,
    /// Children of ours that died and are not reaped.
    zombies: Vec<Event>,
    spawn_failures: u32,
    spawned: u32,
    forgotten: u32,
    ending: bool,
}

impl World {
    fn new(spawn_failures: u32) -> Self {
        Self {
            slot: Slot::default(),
            now: Duration::ZERO,
            next_pid: 100,
            keeper: None,
            worker: None,
            link: VecDeque::new(),
            link_open: false,
            zombies: Vec::new(),
            spawn_failures,
            spawned: 0,
            forgotten: 0,
            ending: false,
        }
    }

    fn new_pid(&mut self) -> Pid {
        self.next_pid += 1;
        Pid::from_raw(self.next_pid)
    }

    fn keeper_alive(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| keeper.alive)
    }

    fn worker_alive(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.alive)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::KeeperClones => self.keeper_clones(),
            Happening::KeeperTells => self.keeper_tells(),
            Happening::WorkerSaysHello => self.worker_says_hello(),
            Happening::WorkerDies if self.keeper_alive() && self.worker_alive() => {
                self.worker = None;
                self.tell(Event::WorkerDied { cause: KILLED, pause: Duration::ZERO });
            }
            Happening::WorkerFinishes
                if self.keeper_alive() && self.worker.as_ref().is_some_and(|worker| worker.drains) =>
            {
                self.worker = None;
                self.tell(Event::WorkerLeft);
                self.keeper.as_mut().unwrap().leaving = true;
            }
            Happening::WorkerDies | Happening::WorkerFinishes => {}
            Happening::KeeperDies => self.keeper_dies(KILLED),
            Happening::OrphanDies => self.orphan_dies(),
            Happening::Reap(last) => self.reap(last),
            Happening::ReadLink => self.read_link(),
            Happening::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.step(Event::Tick);
            }
            Happening::Drain => self.end(Event::Drain),
            Happening::Stop => self.end(Event::Stop),
        }
    }

    fn keeper_clones(&mut self) {
        let idle = |keeper: &KeeperProcess| keeper.alive && keeper.unsaid.is_empty() && !keeper.leaving;
        if self.keeper.as_ref().is_some_and(idle) && !self.worker_alive() {
            let identity =
                Worker { pid: self.new_pid(), incarnation: Incarnation(self.next_pid.unsigned_abs()) };
            self.worker = Some(WorkerProcess { identity, alive: true, greeted: false, drains: false });
            self.tell(Event::WorkerStarted(identity));
        }
    }

    fn tell(&mut self, event: Event) {
        self.keeper.as_mut().unwrap().unsaid.push_back(event);
    }

    fn keeper_tells(&mut self) {
        let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.alive) else { return };
        match keeper.unsaid.pop_front() {
            Some(event) => self.link.push_back(event),
            None if keeper.leaving => self.keeper_dies(Cause::Exit(0)),
            None => {}
        }
    }

    fn worker_says_hello(&mut self) {
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.alive && !worker.greeted) {
            worker.greeted = true;
            self.link.push_back(Event::Ready(worker.identity));
        }
    }

    fn keeper_dies(&mut self, cause: Cause) {
        if let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.alive) {
            keeper.alive = false;
            self.zombies.push(Event::KeeperReaped { cause });
        }
    }

    fn orphan_dies(&mut self) {
        if !self.keeper_alive()
            && let Some(worker) = self.worker.as_mut().filter(|worker| worker.alive)
        {
            worker.alive = false;
            self.zombies.push(Event::OrphanReaped { pid: worker.identity.pid });
        }
    }

    fn reap(&mut self, last: bool) {
        if self.zombies.is_empty() {
            return;
        }
        let event = if last { self.zombies.remove(self.zombies.len() - 1) } else { self.zombies.remove(0) };
        match event {
            Event::OrphanReaped { pid } => {
                self.worker.take_if(|worker| worker.identity.pid == pid);
                // A worker of which no message was read yet belongs to no slot that we know.
                if self.slot.state().worker().is_some_and(|worker| worker.pid == pid) {
                    self.step(event);
                }
            }
            event => {
                self.keeper = None;
                self.step(event);
            }
        }
    }

    fn read_link(&mut self) {
        if let Some(event) = self.link.pop_front() {
            self.step(event);
        } else if self.link_open && !self.keeper_alive() && !self.worker_alive() {
            self.link_open = false;
            self.step(Event::LinkClosed);
        }
    }

    fn end(&mut self, event: Event) {
        self.ending = true;
        self.step(event);
    }

    fn step(&mut self, event: Event) {
        let was_ready = matches!(self.slot.state(), State::Ready(_));
        let actions = self.slot.step(event, self.now);
        let is_ready = matches!(self.slot.state(), State::Ready(_));
        assert!(was_ready || !is_ready || matches!(event, Event::Ready(_)), "ready without a hello");
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::SpawnKeeper => self.spawn_keeper(),
            Action::KillKeeper(pid) => {
                assert_eq!(self.keeper.as_ref().map(|keeper| keeper.pid), Some(pid), "not ours to kill");
                self.keeper_dies(KILLED);
            }
            Action::KillWorker(pid) => {
                assert!(self.keeper.is_none(), "the worker may still be its keeper's child");
                if self.worker.as_ref().is_some_and(|worker| worker.identity.pid == pid) {
                    self.orphan_dies();
                } else {
                    self.step(Event::OrphanReaped { pid });
                }
            }
            Action::DrainWorker => {
                if let Some(worker) = &mut self.worker {
                    worker.drains = true;
                }
            }
            Action::ForgetHoldings => {
                assert!(self.keeper.is_none() && !self.worker_alive() && !self.link_open);
                self.forgotten += 1;
                assert_eq!(self.forgotten, self.spawned, "once per keeper");
            }
            Action::Unexpected(event) => panic!("{event:?} in {:?}", self.slot.state()),
            Action::BecameReady(_)
            | Action::WorkerLost { .. }
            | Action::KeeperLost { .. }
            | Action::StartFailed { .. } => {}
        }
    }

    fn spawn_keeper(&mut self) {
        assert!(!self.ending, "respawned after drain or stop");
        assert_eq!(self.forgotten, self.spawned, "the keeper before is not accounted for");
        if self.spawn_failures > 0 {
            self.spawn_failures -= 1;
            return self.step(Event::SpawnFailed);
        }
        let pid = self.new_pid();
        self.keeper = Some(KeeperProcess { pid, alive: true, unsaid: VecDeque::new(), leaving: false });
        (self.worker, self.link_open) = (None, true);
        self.spawned += 1;
        self.step(Event::Spawned { keeper: pid });
    }

    /// Kills what lives and lets all news arrive.
    fn collapse(&mut self) {
        self.keeper_dies(KILLED);
        let lives = self.spawned;
        for _ in 0..1000 {
            if self.spawned > lives {
                break;
            }
            self.orphan_dies();
            self.reap(true);
            self.read_link();
            self.happen(Happening::Pass(1000));
        }
    }
}

proptest! {
    #[test]
    fn every_keeper_is_accounted_for_once_and_followed_by_another(
        spawn_failures in 0..4_u32,
        before in prop::collection::vec(happening(), 0..200),
        end in prop::option::of(prop_oneof![Just(Happening::Drain), Just(Happening::Stop)]),
        after in prop::collection::vec(prop_oneof![20 => happening(), 1 => Just(Happening::Stop)], 0..100),
    ) {
        let mut world = World::new(spawn_failures);
        before.into_iter().for_each(|happening| world.happen(happening));
        if let Some(end) = end {
            world.happen(end);
            after.into_iter().for_each(|happening| world.happen(happening));
        }
        let lives = world.spawned;
        world.collapse();
        if world.ending {
            prop_assert_eq!(world.slot.state(), State::Left);
            prop_assert_eq!((world.spawned, world.forgotten), (lives, lives));
        } else {
            prop_assert_eq!((world.spawned, world.forgotten), (lives + 1, lives));
        }
    }
}
