//! What clients must not be able to do, and what they are told.

use std::io::Write;

use super::server::BOUNDS;
use super::*;

fn refused(rig: &Rig, request: &str) -> (u16, String) {
    let mut client = rig.client();
    client.send(request.as_bytes());
    let reply = client.reply();
    (reply.status, refusal(&reply).1)
}

#[test]
fn without_a_right_key_nothing_is_read_and_the_connection_ends() {
    let rig = Rig::new(Deadlines::default());
    for header in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp5\r\n"] {
        let mut client = rig.client();
        // The body that is announced never comes.
        client.send(
            format!("POST /api/publish HTTP/1.1\r\n{header}Content-Length: 1000000\r\n\r\n").as_bytes(),
        );
        let reply = client.reply();
        assert_eq!((reply.status, refusal(&reply).0), (401, "unauthorized".to_owned()));
        assert!(reply.head.contains("www-authenticate: bearer realm=\"holdfast\""), "{}", reply.head);
        assert_eq!(client.rest(), "");
    }
    assert_eq!(rig.server().counts().read()[1], ("refused", 3));
}

#[test]
fn the_own_user_needs_no_key() {
    let rig = Rig::echoing();
    assert_eq!(rig.local().ask("GET", "/api/channels").status, 200);
}

#[test]
fn what_is_not_understood_says_where() {
    let rig = Rig::echoing();
    let long = "x".repeat(129);
    let close = |body: &str| format!(r#"{{"user":"u",{body}}}"#);
    let cases: &[(&str, String, &str)] = &[
        (
            "publish",
            r#"{"channel":"a","data":1"#.to_owned(),
            "EOF while parsing an object at line 1 column 23",
        ),
        ("publish", "{\"channel\":\"a\",\n \"data\":tru}".to_owned(), "at line 2 column"),
        ("publish", r#"{"chanel":"a","data":1}"#.to_owned(), "unknown field `chanel`"),
        ("publish", r#"{"chanel":"a","data":1}"#.to_owned(), "; did you mean channel?"),
        ("publish", r#"{"data":1}"#.to_owned(), "missing field `channel`"),
        ("publish", r#"{"channel":"a"}"#.to_owned(), "neither data nor data_base64"),
        ("publish", r#"{"channel":"a","data":1,"data_base64":""}"#.to_owned(), "exclude each other"),
        ("publish", r#"{"channel":"a","data_base64":"?"}"#.to_owned(), "data_base64 is no base64"),
        ("publish", r#"{"channel":"@a","data":1}"#.to_owned(), "begin with @"),
        ("publish", format!(r#"{{"channel":"{long}","data":1}}"#), "128"),
        (
            "publish",
            r#"{"channel":"a","data":1,"idempotency_key":""}"#.to_owned(),
            "has 0 bytes, and takes 1 to 128",
        ),
        ("publish", format!(r#"{{"channel":"a","data":1,"idempotency_key":"{long}"}}"#), "has 129 bytes"),
        (
            "publish",
            r#"{"channel":"a","data":1,"exclude":"x"}"#.to_owned(),
            "\"x\" is no name of a connection",
        ),
        ("publish", String::new(), "EOF"),
        ("batch", r#"{"commands":[{"publsh":{}}]}"#.to_owned(), "; did you mean publish?"),
        ("batch", r#"{"commands":[{"batch":{}}]}"#.to_owned(), "unknown variant `batch`"),
        ("subscribe", r#"{"channel":"a"}"#.to_owned(), "say whom: connection or user"),
        ("send", r#"{"user":"u","connection":"1","data":1}"#.to_owned(), "exclude each other"),
        ("send", r#"{"user":"","data":1}"#.to_owned(), "user has 0 bytes"),
        ("disconnect", close(r#""code":1005"#), "1005 is no code"),
        ("disconnect", close(&format!(r#""reason":"{long}""#)), "the reason has 129 bytes"),
    ];
    let mut client = rig.client();
    for (command, body, why) in cases {
        let target = format!("/api/{command}");
        let reply = client.call("POST", &target, body);
        let (code, message) = refusal(&reply);
        assert_eq!((reply.status, code.as_str()), (400, "bad_request"), "{body}");
        assert!(message.starts_with(&format!("{target}: ")) && message.contains(why), "{body}: {message}");
    }
    for (target, why) in [
        ("/api/channels?prefx=a", "?prefx: it takes no such field"),
        ("/api/channels?limit=0", "?limit: 0 is no number from 1 to 10000"),
        ("/api/channels/%ff", "/api/channels/: "),
        ("/api/history", "/api/history: say which"),
        ("/api/history?channel=a&since=-1", "?since: -1 is not an offset"),
        ("/api/events?wait=2m", "?wait: 2m is too long"),
        ("/api/events?wait=30", "?wait: 30: "),
        ("/api/connections?address=x", "?address: x is not an address"),
    ] {
        let reply = client.call("GET", target, "");
        assert_eq!(reply.status, 400, "{target}");
        assert!(refusal(&reply).1.contains(why), "{target}: {}", refusal(&reply).1);
    }
    assert_eq!(client.call("GET", "/api/channels", "{}").status, 400, "a body that nobody reads");
    assert_eq!(client.call("POST", "/api/send?user=u", "{}").status, 400, "a query that nobody reads");
}

#[test]
fn too_many_parts_or_bytes_are_refused() {
    let rig = Rig::echoing();
    let mut client = rig.client();
    let channels = vec![r#""a""#; 1001].join(",");
    let reply = client.call("POST", "/api/broadcast", &format!(r#"{{"channels":[{channels}],"data":1}}"#));
    assert!(refusal(&reply).1.contains("there are 1001 channels"), "{}", reply.body);
    let commands = vec![r#"{"send":{"user":"u","data":1}}"#; 1001].join(",");
    let reply = client.call("POST", "/api/batch", &format!(r#"{{"commands":[{commands}]}}"#));
    assert!(refusal(&reply).1.contains("there are 1001 commands"), "{}", reply.body);
    let (channels, data) = ([r#""a""#; 9].join(","), "9".repeat(1 << 20));
    let reply =
        client.call("POST", "/api/broadcast", &format!(r#"{{"channels":[{channels}],"data":{data}}}"#));
    assert!(refusal(&reply).1.contains("one call publishes at most 8388608"), "{}", reply.body);
    let reply = client.call("POST", "/api/publish", &format!(r#"{{"channel":"a","data":{data}}}"#));
    assert_eq!(reply.status, 200, "as long as may be");
    let reply = client.call("POST", "/api/publish", &format!(r#"{{"channel":"a","data":{data}0}}"#));
    assert!(refusal(&reply).1.contains("the data has 1048577 bytes"), "{}", reply.body);
}

#[test]
fn a_huge_body_is_413() {
    let rig = Rig::echoing();
    let mut client = rig.client();
    let head = format!("Authorization: Bearer {KEY}\r\nContent-Length: {}\r\n\r\n", BOUNDS.body + 1);
    client.send(format!("POST /api/publish HTTP/1.1\r\n{head}").as_bytes());
    let reply = client.reply();
    assert_eq!((reply.status, refusal(&reply).0.as_str()), (413, "too_large"), "before it is sent");
}

#[test]
fn wrong_paths_methods_and_types_are_told_the_right_ones() {
    let rig = Rig::echoing();
    let key = format!("Authorization: Bearer {KEY}\r\n");
    let (status, message) = refused(&rig, &format!("GET /api/nothing HTTP/1.1\r\n{key}\r\n"));
    assert_eq!(status, 404);
    assert!(message.contains("POST /api/publish") && message.contains("GET /api/events"), "{message}");
    assert_eq!(refused(&rig, &format!("GET / HTTP/1.1\r\n{key}\r\n")).0, 404);
    assert_eq!(refused(&rig, &format!("POST /api/publish/x HTTP/1.1\r\n{key}\r\n")).0, 404);

    let mut client = rig.client();
    let reply = client.call("GET", "/api/publish", "");
    assert_eq!(reply.status, 405);
    assert!(reply.head.contains("allow: post\r\n"), "{}", reply.head);
    let reply = client.call("DELETE", "/api/channels/a", "");
    assert!(reply.status == 405 && reply.head.contains("allow: get, head\r\n"), "{}", reply.head);

    let typed = |value: &str| {
        format!("POST /api/publish HTTP/1.1\r\n{key}Content-Type: {value}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    let (status, message) = refused(&rig, &typed("application/x-www-form-urlencoded"));
    assert_eq!(status, 415);
    assert!(message.contains("application/json") && message.contains("x-www-form-urlencoded"), "{message}");
    assert_eq!(refused(&rig, &typed("Application/JSON; charset=utf-8")).0, 400, "it is read");
}

#[test]
fn ten_thousand_slow_clients_keep_no_fast_one_out() {
    let rig = Rig::echoing();
    let mut known = rig.client();
    assert_eq!(known.call("GET", "/api/channels", "").status, 200);
    let mut slow = std::collections::VecDeque::new();
    for round in 0..10_000 {
        let mut client = rig.client();
        // Fails where the server has already closed it.
        let _ = client.0.write_all(b"POST /api/publish HTTP/1.1\r\n");
        slow.push_back(client);
        if slow.len() > 2 * BOUNDS.connections {
            slow.pop_front();
        }
        if round % 1000 == 999 {
            assert_eq!(rig.client().call("GET", "/api/channels", "").status, 200, "after {round} slow ones");
        }
    }
    assert_eq!(known.call("GET", "/api/channels", "").status, 200, "who has shown the key stays");
}
