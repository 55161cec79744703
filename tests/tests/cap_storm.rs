//! Many more clients than the cap, all at once: exactly as many as the cap get in, whatever dies meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::Duration;

use holdfast_tests::cap_watch::never_above;
use holdfast_tests::client::loopback;
use holdfast_tests::clients::{Clients, End, Group, GroupId, Role};
use holdfast_tests::holdfast::{Holdfast, pid_of};
use nix::sys::signal::{Signal, kill};

const CAP: usize = 500;
const CROWD: usize = 2_000;

/// How often a hundred leave and others come.
const ROUNDS: usize = 5;

const CONFIG: &str = "
    workers = 4
    limits.max_connections = 500
    limits.max_connections_per_address = 0
    timeouts.ping_interval = \"24h\"
    timeouts.idle = \"0s\"
";

fn crowd(clients: usize) -> Group {
    Group::new(clients, Role::Idle).from((0..40).map(loopback)).at_once()
}

#[test]
fn exactly_the_cap_gets_in() {
    // Mistake 1: caps kept per worker. Mistake 3: checked before the handshake, counted after it.
    // Mistake 6: cap / workers as a static quota.
    let server = Holdfast::with(CONFIG);
    let mut clients = Clients::of(&server);
    let (storm, looks) = never_above(&server, || {
        let storm = clients.add(crowd(CROWD));
        clients.run_until("everybody has an answer", |clients| clients.stats(storm).undecided() == 0);
        assert_eq!(clients.stats(storm).open, CAP);
        assert_eq!(clients.stats(storm).refused(503), CROWD - CAP, "{:?}", clients.stats(storm));
        for round in 1..=ROUNDS {
            clients.leave(storm, 100);
            clients.run_until("a hundred leave", |clients| clients.stats(storm).left() == 100 * round);
            server.wait_until("a hundred slots are free", |totals| totals.number("connections") == 400);
            let newcomers = clients.add(crowd(300));
            clients.run_until("the newcomers have an answer", |clients| {
                clients.stats(newcomers).undecided() == 0
            });
            assert_eq!((clients.stats(newcomers).open, clients.stats(newcomers).refused(503)), (100, 200));
        }
        storm
    });
    eprintln!("{looks:?}");
    assert_eq!((looks.most_reported, looks.most_established), (500, 500));
    check_spread(&clients, storm, CROWD - CAP);
    let refused = u64::try_from(CROWD - CAP + 200 * ROUNDS).unwrap();
    let totals = server.wait_until("all are counted", |totals| totals.sum("rejected_total") == refused);
    assert_eq!(totals.number("rejected_total.max_connections"), refused);
    assert_eq!((totals.number("connections"), totals.number("restarts_total")), (500, 0));
    server.stop();
}

/// So many refusals are complete, and ask for times that are spread over what is configured.
fn check_spread(clients: &Clients, group: GroupId, refusals: usize) {
    let mut waits = Vec::new();
    for refusal in clients.refusals(group) {
        refusal.assert_refusal(503, "max_connections");
        waits.push(refusal.header("retry-after").unwrap().parse::<u32>().unwrap());
    }
    assert_eq!(waits.len(), refusals);
    waits.sort_unstable();
    assert!((15..=45).contains(&waits[0]) && (15..=45).contains(&waits[waits.len() - 1]), "{waits:?}");
    waits.dedup();
    assert!(waits.len() > 10, "a refused crowd is told to come back together: {waits:?}");
}

#[test]
fn never_above_the_cap_while_workers_are_killed_and_every_slot_comes_back() {
    // Mistake 2: counts decremented twice, and so drifting.
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let server = Holdfast::with(CONFIG);
    let mut clients = Clients::of(&server);
    let ((storm, kills), looks) = never_above(&server, || {
        let storm = clients.add(crowd(CROWD));
        let kills = std::thread::scope(|scope| {
            let killer = scope.spawn(|| kill_at_random(&server, seed));
            while !killer.is_finished() {
                clients.turn(Duration::from_millis(5));
                clients.retry(storm, |end| matches!(end, End::Failed(_) | End::Refused(_)));
            }
            killer.join().unwrap()
        });
        settle(&mut clients, storm);
        (storm, kills)
    });
    eprintln!("{kills} kills, {looks:?}, {:?}", clients.stats(storm));
    let in_now = clients.stats(storm).open;
    let totals = server.wait_until("the count is the clients' own", |totals| {
        totals.number("connections") == u64::try_from(in_now).unwrap()
    });
    assert_eq!(totals.number("restarts_total"), kills);
    clients.leave(storm, in_now);
    clients.run_until("all have left", |clients| clients.stats(storm).left() == in_now);
    server.wait_until("every slot has come back", |totals| totals.number("connections") == 0);
    let after = clients.add(crowd(600));
    clients.run_until("a new crowd has its answers", |clients| clients.stats(after).undecided() == 0);
    assert_eq!(
        (clients.stats(after).open, clients.stats(after).refused(503)),
        (CAP, 100),
        "{:?}",
        clients.stats(after)
    );
    server.stop();
}

#[test]
fn fifty_thousand_attempts_against_a_cap_that_moves_while_workers_die_fill_it_each_time_and_never_pass_it() {
    const FIRST_CAP: usize = 5_000;
    const EVERYBODY: usize = 15_500;
    let config = |cap: usize| {
        format!(
            "workers = 8
            limits.max_connections = {cap}
            limits.max_connections_per_address = 0
            limits.max_pending_handshakes = 40000
            timeouts.handshake = \"5m\"
            timeouts.ping_interval = \"24h\"
            timeouts.idle = \"0s\""
        )
    };
    let server = Holdfast::with(&config(FIRST_CAP));
    let mut clients = Clients::of(&server);
    let ((attempts, refused), looks) = never_above(&server, || {
        let storm = clients.add(crowd(EVERYBODY));
        let (mut attempts, mut refused) = (EVERYBODY, 0);
        // Less than before, more, and as it was.
        for (victim, cap) in [FIRST_CAP, 4_000, 5_500, FIRST_CAP].into_iter().enumerate() {
            if victim > 0 {
                // So many leave that no cap is below the count.
                clients.leave(storm, 2_000);
                clients.run_until("they have left", |clients| clients.stats(storm).left() == 2_000);
                let count = u64::try_from(clients.stats(storm).open).unwrap();
                server.wait_until("their places are free", |totals| totals.number("connections") == count);
                assert_eq!(server.reload(&config(cap)).status, 200);
                attempts += clients.retry(storm, |end| matches!(end, End::Refused(_) | End::Left));
            }
            let restarts = server.totals().number("restarts_total");
            clients.turn(Duration::from_millis(50));
            kill(server.worker_pids()[victim], Signal::SIGKILL).unwrap();
            settle(&mut clients, storm);
            server.wait_until("it is replaced", |totals| totals.number("restarts_total") == restarts + 1);
            let stats = clients.stats(storm);
            assert_eq!((stats.open, stats.refused(503)), (cap, EVERYBODY - cap), "{stats:?}");
            refused += stats.refused(503);
        }
        check_spread(&clients, storm, EVERYBODY - FIRST_CAP);
        (attempts, refused)
    });
    assert!(attempts >= 50_000, "{attempts}");
    eprintln!("{attempts} attempts, {refused} refused, {looks:?}");
    let totals = server.totals();
    // A client whose worker died after it was refused and before the answer left is refused again.
    assert!(totals.number("rejected_total.max_connections") >= u64::try_from(refused).unwrap());
    assert_eq!(totals.sum("rejected_total"), totals.number("rejected_total.max_connections"), "{totals:?}");
    server.stop();
}

/// Kills eight random workers, each as soon as it is back from the last time; returns how many.
fn kill_at_random(server: &Holdfast, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let kills = 8;
    for n in 0..kills {
        server
            .wait_until("the last killed worker is replaced", |totals| totals.number("restarts_total") == n);
        let workers = server
            .wait_for_workers("a full set", |workers| workers.iter().all(|worker| worker.0["pid"].is_u64()));
        let victim = &workers[random.usize(..workers.len())];
        kill(pid_of(victim, "pid"), Signal::SIGKILL).unwrap();
        server.process().pause(Duration::from_millis(random.u64(1..60)), "the next kill");
    }
    server
        .wait_until("the last killed worker is replaced", |totals| totals.number("restarts_total") == kills);
    kills
}

/// Clients cut off before an answer come again, until everybody has one.
fn settle(clients: &mut Clients, group: GroupId) {
    loop {
        clients.run_until("everybody has an answer", |clients| clients.stats(group).undecided() == 0);
        if clients.retry(group, |end| matches!(end, End::Failed(_))) == 0 {
            return;
        }
    }
}
