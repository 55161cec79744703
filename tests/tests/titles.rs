//! What `ps` and `top` show: who is who, whichever way a process came to be what it is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;

use holdfast_tests::holdfast::{Holdfast, pid_of, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// As `ps -o args` and `top` name a process.
fn names(pid: Pid) -> (String, String) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    (read("cmdline").trim_end_matches('\0').replace('\0', " "), read("comm").trim_end().to_owned())
}

fn assert_named(server: &Holdfast) {
    for (slot, worker) in server.control().workers().iter().enumerate() {
        let worker_names = (format!("holdfast: worker {slot}"), format!("holdfast-w{slot}"));
        assert_eq!(names(pid_of(worker, "pid")), worker_names);
        let keeper_names = (format!("holdfast: keeper {slot}"), format!("holdfast-k{slot}"));
        assert_eq!(names(pid_of(worker, "keeper_pid")), keeper_names);
    }
    let (line, name) = names(server.process().pid());
    assert!(line.starts_with("holdfast: supervisor run --config /"), "{line}");
    assert!(line.contains("--run-dir "), "how it was started is not lost: {line}");
    assert_eq!(name, "holdfast");
}

#[test]
fn processes_say_who_they_are() {
    let server = Holdfast::with("workers = 2");
    assert_named(&server);

    let workers = server.control().workers();
    kill(pid_of(&workers[0], "pid"), Signal::SIGKILL).unwrap();
    kill(pid_of(&workers[1], "keeper_pid"), Signal::SIGKILL).unwrap();
    server.wait_for_workers("both are replaced", |now| {
        let is_back = |slot: usize| {
            now[slot].text("state") == "ready"
                && now[slot].number("incarnation") > workers[slot].number("incarnation")
        };
        is_back(0) && is_back(1)
    });
    assert_named(&server);

    let (status, _, complaint) = run(&["ctl", "--run-dir", server.run_dir().to_str().unwrap(), "upgrade"]);
    assert!(status.success(), "{complaint}");
    assert_named(&server);
    server.stop();
}
