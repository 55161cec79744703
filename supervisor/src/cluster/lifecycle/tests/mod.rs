//! Every pair of state and event, and what has to be done at each turn; whole lives are in `lives`.

mod lives;

use holdfast_shared::id::Incarnation;
use nix::unistd::Pid;

use super::*;

const NOW: Duration = Duration::from_secs(1000);
const KEEPER: Pid = Pid::from_raw(10);
const KILLED: Cause = Cause::Signal(9);

fn worker(pid: i32) -> Worker {
    Worker { pid: Pid::from_raw(pid), incarnation: Incarnation(1) }
}

fn in_state(state: State) -> Lifecycle {
    Lifecycle { state, ..Lifecycle::default() }
}

fn events() -> [Event; 13] {
    [
        Event::Tick,
        Event::Spawned { keeper: KEEPER },
        Event::SpawnFailed,
        Event::WorkerStarted(worker(11)),
        Event::Ready(worker(11)),
        Event::WorkerDied { cause: KILLED, pause: Duration::ZERO },
        Event::WorkerLeft,
        Event::WorkerKeeps { keeper: Pid::from_raw(11) },
        Event::LinkClosed,
        Event::KeeperReaped { cause: KILLED },
        Event::WorkerReaped { pid: Pid::from_raw(11) },
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
    let successor = Remains { keeper: None, cause: Some(KILLED), ..busy.inheritance(NOW) };
    let stranger = Remains { worker: Some(worker(12)), ..successor };
    let later = NOW + Duration::from_secs(1);
    vec![
        // events in columns: tick, spawned, spawn failed, started, hello, died, left, keeps, closed, keeper, worker, drain, stop
        (State::Empty,                           "SP !! !! !! !! !! !! !! !! !! !! LE LE"),
        (State::BackingOff { until: NOW },       "SP !! !! !! !! !! !! !! !! !! !! LE LE"),
        (State::BackingOff { until: later },     "BO !! !! !! !! !! !! !! !! !! !! LE LE"),
        (State::Left,                            "LE !! !! !! !! !! !! !! !! !! !! LE LE"),
        (State::Spawning,                        "SP ST SP !! !! !! !! !! !! !! !! SP SP"),
        (State::Starting(idle),                  "ST !! !! ST RD ST !! ST KD KD !! DR KD"),
        (State::Starting(busy),                  "ST !! !! ST RD ST ST ST KD KD KD DR KD"),
        (State::Starting(other),                 "ST !! !! !! !! ST ST !! KD KD !! DR KD"),
        (State::Ready(busy),                     "RD !! !! RD !! WD WD WD KD KD KD DR KD"),
        (State::Ready(other),                    "RD !! !! !! !! WD WD !! KD KD !! DR KD"),
        (State::WorkerDown(idle),                "WD !! !! WD RD WD !! WD KD KD !! DR KD"),
        (State::WorkerDown(busy),                "WD !! !! WD RD WD WD WD KD KD KD DR KD"),
        (State::Draining(idle),                  "DR !! !! DR DR DR !! DR KD KD !! DR KD"),
        (State::Draining(busy),                  "DR !! !! DR DR DR DR DR KD KD KD DR KD"),
        (State::KeeperDown(down),                "KD !! !! KD KD KD KD KD KD KD KD KD KD"),
        (State::KeeperDown(closed),              "KD !! !! !! !! !! !! !! !! KD KD KD KD"),
        (State::KeeperDown(reaped),              "KD !! !! KD KD KD KD KD KD !! KD KD KD"),
        (State::KeeperDown(last),                "KD !! !! KD KD KD KD KD SP !! KD KD KD"),
        (State::KeeperDown(successor),           "KD !! !! KD KD KD KD ST KD !! KD KD KD"),
        (State::KeeperDown(stranger),            "KD !! !! !! !! KD KD !! KD !! KD KD KD"),
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
    let mut slot = Lifecycle::default();
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

fn ready() -> Lifecycle {
    let life = Life { keeper: KEEPER, since: NOW, worker: Some(worker(11)) };
    Lifecycle { has_served: true, ..in_state(State::Ready(life)) }
}

#[test]
fn holdings_are_forgotten_only_when_link_keeper_and_worker_are_gone() {
    let mut slot = ready();
    let kill = Action::KillWorker(Pid::from_raw(11));
    assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), []);
    assert_eq!(slot.step(Event::LinkClosed, NOW), [kill]);
    let lost = Action::KeeperLost { cause: KILLED, pause: Duration::ZERO };
    let rebuilt = [Action::ForgetHoldings, lost, Action::SpawnKeeper];
    assert_eq!(slot.step(Event::WorkerReaped { pid: Pid::from_raw(11) }, NOW), rebuilt);
}

#[test]
fn a_lone_worker_may_be_reaped_before_its_keeper() {
    let mut slot = ready();
    assert_eq!(slot.step(Event::WorkerReaped { pid: Pid::from_raw(11) }, NOW), []);
    assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), []);
    let lost = Action::KeeperLost { cause: KILLED, pause: Duration::ZERO };
    assert_eq!(slot.step(Event::LinkClosed, NOW), [Action::ForgetHoldings, lost, Action::SpawnKeeper]);
}

#[test]
fn a_worker_takes_the_place_of_its_dead_keeper() {
    let successor = Pid::from_raw(11);
    let replaced = Action::KeeperReplaced { keeper: successor };
    for is_reaped_first in [true, false] {
        let mut slot = ready();
        if is_reaped_first {
            assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), []);
            assert_eq!((slot.state().keeper(), slot.state().name()), (None, "keeper_down"));
        }
        assert_eq!(slot.step(Event::WorkerKeeps { keeper: successor }, NOW), [replaced]);
        assert_eq!((slot.state().keeper(), slot.state().worker()), (Some(successor), None));
        assert_eq!(slot.step(Event::WorkerStarted(worker(12)), NOW), []);
        assert_eq!(slot.step(Event::Ready(worker(12)), NOW), [Action::BecameReady(worker(12))]);
        // And again.
        assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), []);
        let next = Pid::from_raw(12);
        let replaced = Action::KeeperReplaced { keeper: next };
        assert_eq!(slot.step(Event::WorkerKeeps { keeper: next }, NOW), [replaced]);
    }
}

#[test]
fn a_worker_that_does_not_take_its_keepers_place_is_killed() {
    let mut slot = ready();
    assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, NOW), []);
    let until = slot.wakeup().unwrap();
    assert!(until > NOW);
    assert_eq!(slot.step(Event::Tick, until - Duration::from_millis(1)), []);
    let kill = Action::KillWorker(Pid::from_raw(11));
    assert_eq!(slot.step(Event::Tick, until), [kill]);
    assert_eq!(slot.wakeup(), None);
    // It comes too late: what it is as a keeper dies as well, and the worker that it has made.
    let late = Pid::from_raw(11);
    assert_eq!(slot.step(Event::WorkerKeeps { keeper: late }, until), [Action::KillKeeper(late)]);
    assert_eq!(slot.step(Event::WorkerStarted(worker(12)), until), []);
    let kill = Action::KillWorker(Pid::from_raw(12));
    assert_eq!(slot.step(Event::KeeperReaped { cause: KILLED }, until), [kill]);
}

#[test]
fn a_drain_outlives_a_keeper_and_a_stop_ends_its_successor() {
    let successor = Pid::from_raw(11);
    let mut slot = ready();
    let _ = slot.step(Event::KeeperReaped { cause: KILLED }, NOW);
    assert_eq!(slot.step(Event::Drain, NOW), []);
    let _ = slot.step(Event::WorkerKeeps { keeper: successor }, NOW);
    assert_eq!(slot.state().name(), "draining");
    assert_eq!(slot.step(Event::Ready(worker(12)), NOW), [Action::DrainWorker]);

    let mut slot = ready();
    let _ = slot.step(Event::KeeperReaped { cause: KILLED }, NOW);
    assert_eq!(slot.step(Event::Stop, NOW), [Action::KillWorker(successor)]);
    assert_eq!(slot.step(Event::WorkerReaped { pid: successor }, NOW), []);
    assert_eq!(slot.step(Event::LinkClosed, NOW), [Action::ForgetHoldings]);
    assert_eq!(slot.state(), State::Left);
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
