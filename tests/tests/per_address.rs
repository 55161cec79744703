//! The per-address cap is one number for the whole cluster, and the address is the client's own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::net::IpAddr;

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::holdfast::Holdfast;

const CAP: &str = "workers = 4\nlimits.max_connections_per_address = 10\n";
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Connects from `source` with these header lines; the client if it got in, or the status of the refusal.
fn knock(server: &Holdfast, source: IpAddr, headers: &str) -> Result<RawClient, u16> {
    let mut client = RawClient::connect_from(source, server.address());
    let response = client.upgrade(headers);
    match response.status {
        101 => Ok(client),
        status => {
            response.assert_refusal(status, "max_connections_per_address");
            assert!(response.header("retry-after").is_some(), "{response:?}");
            Err(status)
        }
    }
}

/// Ten get in with the headers that `header` makes of their number, and no more than ten.
fn ten_and_no_more(server: &Holdfast, source: IpAddr, header: impl Fn(u32) -> String) -> Vec<RawClient> {
    let inside: Vec<RawClient> = (0..10)
        .map(|n| knock(server, source, &header(n)).unwrap_or_else(|status| panic!("{status} for number {n}")))
        .collect();
    for n in 10..15 {
        assert_eq!(knock(server, source, &header(n)).err(), Some(429), "number {n}");
    }
    inside
}

#[test]
fn the_eleventh_gets_429_from_whichever_worker() {
    // Mistake 1: per-address caps kept per worker, so that the true cap is workers x limit.
    let server = Holdfast::with(CAP);
    let source = loopback(0);
    let mut inside: Vec<RawClient> = (0..10).map(|_| knock(&server, source, "").unwrap()).collect();
    for _ in 0..60 {
        assert_eq!(knock(&server, source, "").err(), Some(429));
    }
    let other = knock(&server, loopback(1), "").unwrap();
    let workers = server.wait_for_workers("all have reported", |workers| {
        workers.iter().map(|worker| worker.number("connections")).sum::<u64>() == 11
    });
    let busy = workers.iter().filter(|worker| worker.number("accepted_total") > 0).count();
    assert!(busy > 1, "only one worker was ever asked: {workers:?}");

    inside.pop();
    server.wait_until("one has left", |totals| totals.number("connections") == 10);
    inside.push(knock(&server, source, "").unwrap());
    assert_eq!(knock(&server, source, "").err(), Some(429));
    let totals = server.wait_until("all are counted", |totals| {
        totals.number("rejected_total.max_connections_per_address") == 61
    });
    assert_eq!(totals.number("connections"), 11);
    drop((inside, other));
    server.stop();
}

#[test]
fn a_trusted_proxys_clients_are_counted_one_by_one() {
    let server = Holdfast::with(&format!("{CAP}proxy.trusted = [\"127.0.0.1/32\", \"10.0.0.0/8\"]"));
    let one = ten_and_no_more(&server, PROXY, |_| "X-Forwarded-For: 198.51.100.7\r\n".into());
    let another = knock(&server, PROXY, "X-Forwarded-For: 198.51.100.8\r\n").unwrap();
    // Proxies behind proxies: the right-most entry that no trusted proxy vouches for, in however many lines.
    let chained = ten_and_no_more(&server, PROXY, |n| {
        format!("X-Forwarded-For: 198.51.100.9, 10.0.0.{n}\r\nX-Forwarded-For: 10.1.2.3\r\n")
    });
    // Without the header the proxy itself is the client.
    let direct = ten_and_no_more(&server, PROXY, |_| String::new());
    drop((one, another, chained, direct));
    server.stop();
}

#[test]
fn the_left_most_forwarded_address_is_not_believed() {
    // Mistake 4: whoever connects writes the left-most entry himself.
    let server = Holdfast::with(&format!("{CAP}proxy.trusted = [\"127.0.0.1/32\"]"));
    let inside =
        ten_and_no_more(&server, PROXY, |n| format!("X-Forwarded-For: 203.0.113.{n}, 198.51.100.7\r\n"));
    drop(inside);
    server.stop();
}

#[test]
fn an_untrusted_peers_header_changes_nothing() {
    let server = Holdfast::with(&format!("{CAP}proxy.trusted = [\"127.0.0.1/32\"]"));
    let inside = ten_and_no_more(&server, loopback(0), |n| format!("X-Forwarded-For: 198.51.100.{n}\r\n"));
    drop(inside);
    server.stop();
}

#[test]
fn ipv6_is_counted_per_64() {
    let server = Holdfast::with(&format!("{CAP}proxy.trusted = [\"127.0.0.1/32\"]"));
    let inside =
        ten_and_no_more(&server, PROXY, |n| format!("X-Forwarded-For: 2001:db8:0:1:{n:x}::{n:x}\r\n"));
    let neighbour = knock(&server, PROXY, "X-Forwarded-For: 2001:db8:0:2::1\r\n").unwrap();
    drop((inside, neighbour));
    server.stop();
}

#[test]
fn exempt_addresses_have_no_cap() {
    let server = Holdfast::with(&format!("{CAP}limits.exempt_addresses = [\"127.0.0.2/32\"]"));
    let exempt: Vec<RawClient> = (0..30).map(|_| knock(&server, loopback(0), "").unwrap()).collect();
    let inside = ten_and_no_more(&server, loopback(1), |_| String::new());
    drop((exempt, inside));
    server.stop();
}
