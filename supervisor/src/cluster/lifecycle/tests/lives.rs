//! Whole lives of a slot, as processes and pipes can live them.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// What may happen next, if the processes are in a condition for it.
#[derive(Debug, Clone, Copy)]
enum Happening {
    KeeperClones,
    KeeperTells,
    WorkerSaysHello,
    WorkerDies,
    WorkerFinishes,
    KeeperDies,
    LoneWorkerDies,
    LoneWorkerKeeps,
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
        2 => Just(Happening::LoneWorkerDies),
        4 => Just(Happening::LoneWorkerKeeps),
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
    slot: Lifecycle,
    now: Duration,
    next_pid: i32,
    keeper: Option<KeeperProcess>,
    worker: Option<WorkerProcess>,
    link: VecDeque<Event>,
    link_open: bool,
    /// Children of ours that died and are not reaped, and how.
    zombies: Vec<(Pid, Cause)>,
    spawn_failures: u32,
    spawned: u32,
    forgotten: u32,
    ending: bool,
}

impl World {
    fn new(spawn_failures: u32) -> Self {
        Self {
            slot: Lifecycle::default(),
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
            Happening::LoneWorkerDies => self.lone_worker_dies(),
            Happening::LoneWorkerKeeps => self.lone_worker_keeps(),
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
            self.zombies.push((keeper.pid, cause));
        }
    }

    fn lone_worker_dies(&mut self) {
        if !self.keeper_alive()
            && let Some(worker) = self.worker.as_mut().filter(|worker| worker.alive)
        {
            worker.alive = false;
            self.zombies.push((worker.identity.pid, KILLED));
        }
    }

    /// The worker takes its keeper's place. It notices its keeper's end only when it is ready itself.
    fn lone_worker_keeps(&mut self) {
        if !self.keeper_alive()
            && let Some(worker) = self.worker.take_if(|worker| worker.alive && worker.greeted)
        {
            let pid = worker.identity.pid;
            let unsaid = VecDeque::from([Event::WorkerKeeps { keeper: pid }]);
            self.keeper = Some(KeeperProcess { pid, alive: true, unsaid, leaving: false });
        }
    }

    fn is_ours(&self, pid: Pid) -> bool {
        let lives = self.keeper.as_ref().is_some_and(|keeper| keeper.alive && keeper.pid == pid)
            || self.worker.as_ref().is_some_and(|worker| worker.alive && worker.identity.pid == pid);
        lives || self.zombies.iter().any(|&(zombie, _)| zombie == pid)
    }

    /// As the supervisor does it: a dead process is news to the slot that knows it, if one does.
    fn reap(&mut self, last: bool) {
        if self.zombies.is_empty() {
            return;
        }
        let (pid, cause) = self.zombies.remove(if last { self.zombies.len() - 1 } else { 0 });
        let state = self.slot.state();
        if state.keeper() == Some(pid) {
            self.step(Event::KeeperReaped { cause });
        } else if state.worker().is_some_and(|worker| worker.pid == pid) {
            self.step(Event::WorkerReaped { pid });
        }
    }

    fn read_link(&mut self) {
        if let Some(event) = self.link.pop_front() {
            self.hear(event);
        } else if self.link_open && !self.keeper_alive() && !self.worker_alive() {
            self.link_open = false;
            self.step(Event::LinkClosed);
        }
    }

    /// As the supervisor does it: a newer worker or keeper means that the worker we knew is dead or the keeper, and
    /// a keeper that was reaped already is none.
    fn hear(&mut self, event: Event) {
        let known = self.slot.state().worker();
        match event {
            Event::WorkerStarted(news) | Event::Ready(news)
                if known.is_some_and(|known| known.incarnation < news.incarnation) =>
            {
                self.step(Event::WorkerDied { cause: Cause::Unknown, pause: Duration::ZERO });
            }
            Event::WorkerKeeps { keeper } if !self.is_ours(keeper) => {
                if known.is_some_and(|known| known.pid == keeper) {
                    self.step(Event::WorkerReaped { pid: keeper });
                }
                return;
            }
            _ => {}
        }
        self.step(event);
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
                assert!(self.is_ours(pid), "not ours to kill");
                self.kill(pid);
            }
            Action::KillWorker(pid) => {
                assert!(!self.keeper_alive() || !self.is_child_of_keeper(pid), "its keeper lives");
                if self.is_ours(pid) {
                    self.kill(pid);
                } else {
                    self.step(Event::WorkerReaped { pid });
                }
            }
            Action::DrainWorker => {
                if let Some(worker) = &mut self.worker {
                    worker.drains = true;
                }
            }
            Action::ForgetHoldings => {
                assert!(!self.keeper_alive() && !self.worker_alive() && !self.link_open);
                self.forgotten += 1;
                assert_eq!(self.forgotten, self.spawned, "once per keeper");
            }
            Action::Unexpected(event) => panic!("{event:?} in {:?}", self.slot.state()),
            Action::BecameReady(_)
            | Action::WorkerLost { .. }
            | Action::KeeperReplaced { .. }
            | Action::KeeperLost { .. }
            | Action::StartFailed { .. } => {}
        }
    }

    fn is_child_of_keeper(&self, pid: Pid) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.identity.pid == pid)
    }

    fn kill(&mut self, pid: Pid) {
        if self.keeper.as_ref().is_some_and(|keeper| keeper.pid == pid) {
            self.keeper_dies(KILLED);
        } else if self.is_child_of_keeper(pid) {
            self.lone_worker_dies();
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
            self.lone_worker_dies();
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
