//! What the service manager is told (sd_notify(3), Type=notify-reload).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::os::unix::net::UnixDatagram;

use holdfast_tests::PATIENCE;
use holdfast_tests::holdfast::{Holdfast, Options};
use nix::sys::signal::Signal;

/// The next message that contains `word`.
fn wait_for(socket: &UnixDatagram, word: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {word}: {error}"));
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.lines().any(|line| line == word) {
            return message;
        }
    }
}

#[test]
fn ready_reloading_and_stopping_are_announced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = "workers = 2\ndrain.duration = \"1s\"";
    let options = Options::config(config).environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let server = Holdfast::start(&options);
    wait_for(&socket, "READY=1");
    assert_eq!(server.totals().number("workers_ready"), 2, "READY=1 before every slot was");

    server.signal(Signal::SIGHUP);
    let reloading = wait_for(&socket, "RELOADING=1");
    assert!(reloading.lines().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading}");
    wait_for(&socket, "READY=1");

    // A refused reload must end as well, or the manager waits for it until it gives up.
    server.write_config("workers = \"none\"");
    server.signal(Signal::SIGHUP);
    wait_for(&socket, "RELOADING=1");
    wait_for(&socket, "READY=1");

    server.signal(Signal::SIGTERM);
    wait_for(&socket, "STOPPING=1");
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}

#[test]
fn nothing_is_announced_before_a_start_that_fails() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let options = Options::config("workers = 0").environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let starting = holdfast_tests::holdfast::Starting::new(&options);
    let (status, log) = starting.wait_for_exit();
    assert_eq!(status.code(), Some(2), "{log}");
    let mut buffer = [0; 4096];
    if let Ok(length) = socket.recv(&mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(!message.contains("READY=1"), "{message}");
    }
}
