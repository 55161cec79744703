//! Every violation of RFC 6455 gets the close code the RFC names, then the close: never a hang, never a dead
//! worker.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::frame::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, close_payload, masked, promise, unmasked,
};
use holdfast_tests::holdfast::Holdfast;

const PROTOCOL_ERROR: u16 = 1002;
const INVALID_DATA: u16 = 1007;
const TOO_BIG: u16 = 1009;

fn cases() -> Vec<(String, Vec<u8>, u16)> {
    let mut cases: Vec<(String, Vec<u8>, u16)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>, code: u16| cases.push((name.to_owned(), bytes, code));
    case("unmasked (5.1)", unmasked(FIN | TEXT, b"hello"), PROTOCOL_ERROR);
    for bit in [0x40, 0x20, 0x10] {
        case("reserved bit (5.2)", masked(FIN | bit | TEXT, b"hello"), PROTOCOL_ERROR);
        case("reserved bit on a control frame (5.2)", masked(FIN | bit | PING, b""), PROTOCOL_ERROR);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        case("reserved opcode (5.2)", masked(FIN | opcode, b""), PROTOCOL_ERROR);
    }
    case(
        "length not in its shortest form, 16 bit (5.2)",
        [&[FIN | TEXT, 0xfe, 0, 5][..], &[0; 9]].concat(),
        PROTOCOL_ERROR,
    );
    case(
        "length not in its shortest form, 64 bit (5.2)",
        [&[FIN | TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0, 200][..], &[0; 204]].concat(),
        PROTOCOL_ERROR,
    );
    case("length with its highest bit set (5.2)", promise(FIN | BINARY, 1 << 63), PROTOCOL_ERROR);
    case("fragmented ping (5.5)", masked(PING, b""), PROTOCOL_ERROR);
    case("fragmented close (5.5)", masked(CLOSE, b""), PROTOCOL_ERROR);
    case("ping of 126 bytes (5.5)", masked(FIN | PING, &[0; 126]), PROTOCOL_ERROR);
    case("pong of 126 bytes (5.5)", masked(FIN | PONG, &[0; 126]), PROTOCOL_ERROR);
    case("close of 126 bytes (5.5)", masked(FIN | CLOSE, &[3, 232].repeat(63)), PROTOCOL_ERROR);
    case("continuation of nothing (5.4)", masked(FIN | CONTINUATION, b"x"), PROTOCOL_ERROR);
    case("continuation of nothing, unfinished (5.4)", masked(CONTINUATION, b"x"), PROTOCOL_ERROR);
    case(
        "message inside a message (5.4)",
        [masked(TEXT, b"x"), masked(FIN | TEXT, b"y")].concat(),
        PROTOCOL_ERROR,
    );
    case("close with half a code (5.5.1)", masked(FIN | CLOSE, &[3]), PROTOCOL_ERROR);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        case(
            &format!("close code {code} (7.4)"),
            masked(FIN | CLOSE, &close_payload(code, "")),
            PROTOCOL_ERROR,
        );
    }
    case("close reason that is not UTF-8 (5.5.1)", masked(FIN | CLOSE, &[3, 232, 0xff]), INVALID_DATA);
    case("text that is not UTF-8 (8.1)", masked(FIN | TEXT, b"\xc0\xaf"), INVALID_DATA);
    case("a surrogate in text (8.1)", masked(FIN | TEXT, b"\xed\xa0\x80"), INVALID_DATA);
    case("text that ends inside a character (8.1)", masked(FIN | TEXT, b"\xe4\xb8"), INVALID_DATA);
    case("unfinished text that can no longer be UTF-8 (8.1)", masked(TEXT, b"ab\xff"), INVALID_DATA);
    let mut first_bytes = promise(FIN | TEXT, 1000);
    first_bytes.extend(masked(0, b"ab\xff").split_off(6));
    case("text frame whose first bytes can no longer be UTF-8 (8.1)", first_bytes, INVALID_DATA);
    case(
        "character cut by the last fragment (8.1)",
        [masked(TEXT, b"\xe4"), masked(FIN | CONTINUATION, b"x")].concat(),
        INVALID_DATA,
    );
    case("more than the limit (7.4.1)", promise(FIN | BINARY, 1025), TOO_BIG);
    case("far more than the limit (7.4.1)", promise(FIN | BINARY, 1 << 62), TOO_BIG);
    case(
        "more than the limit in fragments (7.4.1)",
        [masked(BINARY, &[0; 600]), promise(CONTINUATION, 600)].concat(),
        TOO_BIG,
    );
    cases
}

/// Sends `bytes` in pieces of `size` and says what the server makes of them.
fn verdict(server: &Holdfast, bytes: &[u8], size: usize) -> u16 {
    let mut client = RawClient::open(server.address());
    for piece in bytes.chunks(size) {
        // The server may have closed before the last piece.
        let _ = client.send(piece);
    }
    let (code, _) = client.close_frame();
    let _ = client.send(&masked(FIN | CLOSE, &close_payload(code, "")));
    client.finish_sending();
    let _ = client.ending();
    code
}

#[test]
fn every_violation_gets_the_close_code_of_the_rfc() {
    let server = Holdfast::with("workers = 2\nlimits.max_message_size = \"1KiB\"");
    let mut wrong = Vec::new();
    let cases = cases();
    for (name, bytes, expected) in &cases {
        for size in [bytes.len(), 1] {
            let code = verdict(&server, bytes, size);
            if code != *expected {
                wrong.push(format!("{name}, in pieces of {size}: {code} instead of {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let count = |code| 2 * u64::try_from(cases.iter().filter(|case| case.2 == code).count()).unwrap();
    let totals = server.wait_until("all are counted", |totals| totals.number("connections") == 0);
    assert_eq!(totals.number("closed_total.protocol_error"), count(PROTOCOL_ERROR));
    assert_eq!(totals.number("closed_total.invalid_utf8"), count(INVALID_DATA));
    assert_eq!(totals.number("closed_total.message_too_big"), count(TOO_BIG));
    assert_eq!(totals.number("restarts_total"), 0, "a worker died of bad frames");
    server.stop();
}

#[test]
fn random_bytes_after_the_upgrade_end_in_a_close_and_harm_nobody() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = Holdfast::with("workers = 2\nlimits.max_message_size = \"1KiB\"");
    let mut bystander = RawClient::open(server.address());
    for _ in 0..200 {
        let mut client = RawClient::open(server.address());
        let mut bytes = vec![0; random.usize(1..4096)];
        random.fill(&mut bytes);
        let _ = client.send(&bytes);
        client.finish_sending();
        let _ = client.ending();
    }
    bystander.assert_echoes(b"still here");
    let totals = server.wait_until("they are gone", |totals| totals.number("connections") == 1);
    assert_eq!((totals.number("restarts_total"), totals.sum("closed_total")), (0, 200));
    server.stop();
}
