//! Clients behind proxies: the address that each is counted under is its own, however the proxy says it, and stays
//! so whatever dies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, upgrade_request};
use holdfast_tests::holdfast::{Holdfast, pid_of};
use nix::sys::signal::{Signal, kill};

const PROXIED: &str =
    "workers = 2\nlimits.max_connections_per_address = 1\nproxy.trusted = [\"127.0.0.1\"]\n";

/// A PROXY header of version 2, with something behind the addresses that is not read.
fn binary(client: [u8; 4]) -> Vec<u8> {
    let ports_and_fields = [0x30, 0x39, 0x1f, 0x90, 0x04, 0, 1, 7];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10"[..], &client, &[192, 0, 2, 1], &ports_and_fields].concat()
}

fn line(client: [u8; 4]) -> Vec<u8> {
    let [a, b, c, d] = client;
    format!("PROXY TCP4 {a}.{b}.{c}.{d} 192.0.2.1 12345 8080\r\n").into_bytes()
}

/// Connects as 127.0.0.1 does with `header` in front; the client, or why it did not get in.
fn knock(server: &Holdfast, header: &[u8]) -> Result<RawClient, (u16, String)> {
    let mut client = RawClient::connect(server.address());
    // In two pieces, cut in the middle of the header.
    let request = [header, &upgrade_request("")].concat();
    client.send(&request[..header.len() / 2]).unwrap();
    client.send(&request[header.len() / 2..]).unwrap();
    let response = client.response();
    match response.status {
        101 => Ok(client),
        status => Err((status, response.json()["error"].as_str().unwrap_or_default().to_owned())),
    }
}

fn assert_is_in(server: &Holdfast, header: &[u8]) -> RawClient {
    knock(server, header).unwrap_or_else(|refusal| panic!("{refusal:?}"))
}

#[test]
fn proxy_protocol_names_the_client_and_the_name_outlives_its_worker() {
    let server = Holdfast::with(&format!("{PROXIED}proxy.proxy_protocol = true\n"));
    let full = Some((429, "max_connections_per_address".to_owned()));
    let mut first = assert_is_in(&server, &line([203, 0, 113, 1]));
    let mut second = assert_is_in(&server, &binary([203, 0, 113, 2]));
    assert_eq!(knock(&server, &binary([203, 0, 113, 1])).err(), full);
    for (slot, worker) in server.control().workers().iter().enumerate() {
        kill(pid_of(worker, "pid"), Signal::SIGKILL).unwrap();
        server.wait_for_workers("the next worker serves", |workers| workers[slot].number("incarnation") > 1);
    }
    first.assert_echoes(b"still here");
    second.assert_echoes(b"me too");
    for header in [line([203, 0, 113, 1]), binary([203, 0, 113, 2])] {
        assert_eq!(knock(&server, &header).err(), full);
    }
    let _third = assert_is_in(&server, &binary([203, 0, 113, 3]));
    // The proxy itself, with a header that says so.
    let _proxy = assert_is_in(&server, b"PROXY UNKNOWN\r\n");
    assert_eq!(knock(&server, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").err(), full);
    server.stop();
}

#[test]
fn proxy_headers_come_from_trusted_proxies_and_from_nobody_else() {
    let server = Holdfast::with(&format!("{PROXIED}proxy.proxy_protocol = true\n"));
    let bad = Some((400, "bad_request".to_owned()));
    assert_eq!(knock(&server, b"").err(), bad, "a trusted proxy must send it");
    assert_eq!(knock(&server, b"PROXY TCP4 not an address\r\n").err(), bad);
    let mut check = RawClient::connect(server.address());
    check.send(b"OPTIONS / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(check.response().status, 200, "a health check needs none");
    // From then on nobody is trusted.
    assert_eq!(server.reload("workers = 2\nproxy.proxy_protocol = true\n").status, 200);
    assert_eq!(knock(&server, &binary([203, 0, 113, 1])).err(), bad);
    let _stranger = assert_is_in(&server, b"");
    server.wait_until("all are counted", |totals| totals.number("rejected_total.bad_request") == 3);
    server.stop();
}

#[test]
fn forwarded_is_read_where_it_is_configured() {
    let server = Holdfast::with(&format!("{PROXIED}proxy.header = \"forwarded\"\n"));
    let ask = |headers: &str| {
        let mut client = RawClient::connect(server.address());
        (client.upgrade(headers).status, client)
    };
    let (status, _first) = ask("Forwarded: for=1.1.1.1, for=\"[2001:db8:1::1]:4711\";proto=https\r\n");
    assert_eq!(status, 101);
    // The same /64.
    assert_eq!(ask("FORWARDED: For=\"[2001:db8:1::2]\"\r\n").0, 429);
    let (status, _second) = ask("Forwarded: for=2.2.2.2\r\nForwarded: for=\"[2001:db8:2::1]\"\r\n");
    assert_eq!(status, 101);
    // The other header is a stranger's, and who hides counts as the proxy.
    let (status, _proxy) = ask("X-Forwarded-For: 203.0.113.9\r\n");
    assert_eq!(status, 101);
    assert_eq!(ask("Forwarded: for=203.0.113.9, for=_hidden\r\n").0, 429);
    server.stop();
}

#[test]
fn a_proxy_that_nobody_trusts_is_named_in_the_log() {
    let server = Holdfast::with("workers = 1\nlimits.max_connections_per_address = 1\n");
    let _first = RawClient::open(server.address());
    for n in 0..20 {
        let mut client = RawClient::connect(server.address());
        assert_eq!(client.upgrade(&format!("X-Forwarded-For: 203.0.113.{n}\r\n")).status, 429);
    }
    let process = server.process();
    let _ = process.wait_for_line("127.0.0.1 is at limits.max_connections_per_address");
    let warnings = process.lines().iter().filter(|line| line.contains("proxy.trusted")).count();
    assert_eq!(warnings, 1);
    server.stop();
}
