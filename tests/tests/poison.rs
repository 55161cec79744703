//! A message that kills its worker costs its sender the connection, and nobody else anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options};

/// A server whose application dies of "poison" and "panic".
fn start(config: &str) -> Holdfast {
    Holdfast::start(&Options::config(config).program(env!("CARGO_BIN_EXE_holdfast-poison")))
}

#[test]
fn a_server_is_named_by_the_version_of_its_program() {
    let server = start("workers = 2");
    let version = concat!(env!("CARGO_PKG_VERSION"), "-poison");
    assert_eq!(server.totals().text("version"), version);
    for worker in server.control().workers() {
        assert_eq!(worker.text("version"), version);
    }
    let metrics = server.control().get("/metrics").text();
    assert!(metrics.contains(&format!("holdfast_build_info{{version=\"{version}\"}} 1")), "{metrics}");
    let mut client = RawClient::open(server.address());
    client.send(&masked(FIN | TEXT, b"anything else")).unwrap();
    assert_eq!(client.message(), b"anything else");
    server.stop();
}
