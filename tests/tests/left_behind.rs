//! Slots whose supervisor does not come back: an operator is told of them, and can end them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::process::ExitStatus;

use holdfast_tests::client::RawClient;
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, pid_of, run};
use nix::sys::signal::{Signal, kill};

fn ctl(server: &Holdfast, command: &str) -> (ExitStatus, String, String) {
    run(&["ctl", "--run-dir", server.run_dir().to_str().unwrap(), command])
}

fn lose_supervisor(server: &Holdfast) {
    server.signal(Signal::SIGKILL);
    let _ = server.process().wait_for_exit();
}

#[test]
fn slots_without_a_supervisor_are_named_and_can_be_ended() {
    let server = Holdfast::with("workers = 2");
    let mut client = RawClient::open(server.address());
    let workers = server.control().workers();
    // While there is a supervisor, it alone decides what a signal means; later it does not count.
    for worker in &workers {
        kill(pid_of(worker, "pid"), Signal::SIGTERM).unwrap();
    }
    lose_supervisor(&server);
    for command in ["totals", "reload", "upgrade"] {
        let (status, _, complaint) = ctl(&server, command);
        assert_eq!(status.code(), Some(1));
        assert!(complaint.contains("no supervisor") && complaint.contains("serve on"), "{complaint}");
        assert!(
            complaint.contains(&format!("ctl --run-dir {} stop", server.run_dir().display())),
            "{complaint}"
        );
        for (worker, name) in workers.iter().flat_map(|worker| [(worker, "pid"), (worker, "keeper_pid")]) {
            assert!(complaint.contains(&pid_of(worker, name).to_string()), "{complaint}");
        }
    }
    client.send(&masked(FIN | TEXT, b"on and on")).unwrap();
    assert_eq!(client.message(), b"on and on");

    let (status, said, complaint) = ctl(&server, "stop");
    assert!(status.success(), "{complaint}");
    assert!(said.contains(&pid_of(&workers[0], "pid").to_string()), "{said}");
    assert_eq!(client.close_frame().0, 1001);
    assert_eq!(server.processes(), []);
    let (_, _, complaint) = ctl(&server, "stop");
    assert!(complaint.contains("start holdfast again"), "{complaint}");
}

#[test]
fn a_worker_that_does_not_hear_is_killed() {
    let server = Holdfast::with("workers = 2");
    let workers = server.control().workers();
    lose_supervisor(&server);
    kill(pid_of(&workers[0], "pid"), Signal::SIGSTOP).unwrap();
    let (status, _, complaint) = ctl(&server, "stop");
    assert!(status.success(), "{complaint}");
    assert_eq!(server.processes(), []);
}
