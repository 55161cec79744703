//! Subprotocols: clients that offer some are answered as their route says.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, upgrade_request};
use holdfast_tests::holdfast::Holdfast;
use holdfast_tests::http::Response;

const ROUTES: &str = r#"
workers = 2

[[routes]]
path = "/"
protocol = "echo"

[[routes]]
path = "/graphql"
protocol = "echo"
subprotocols = ["graphql-transport-ws", "graphql-ws"]

[[routes]]
path = "/mqtt"
protocol = "echo"
subprotocols = ["mqtt"]
subprotocol_required = true

[[routes]]
path = "/any"
protocol = "echo"
subprotocols = "any"
"#;

fn ask(server: &Holdfast, path: &str, offers: &[&str]) -> (Response, RawClient) {
    let lines: String = offers.iter().map(|offer| format!("Sec-WebSocket-Protocol: {offer}\r\n")).collect();
    let request = String::from_utf8(upgrade_request(&lines)).unwrap();
    let mut client = RawClient::connect(server.address());
    client.send(request.replacen("GET /", &format!("GET {path}"), 1).as_bytes()).unwrap();
    (client.response(), client)
}

#[test]
fn the_first_offer_that_the_route_speaks_is_chosen() {
    let server = Holdfast::with(ROUTES);
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
    for (path, offers, chosen) in [
        ("/", &["mqtt"][..], None),
        ("/graphql", &["graphql-ws, graphql-transport-ws"], Some("graphql-ws")),
        ("/graphql", &["soap", "graphql-transport-ws"], Some("graphql-transport-ws")),
        ("/graphql", &["soap"], None),
        ("/graphql/deeper", &["graphql-ws"], Some("graphql-ws")),
        ("/graphql", &[], None),
        ("/mqtt", &["mqttv3.1, mqtt"], Some("mqtt")),
        ("/any", &["whatever, mqtt"], Some("whatever")),
        ("/any", &[token], Some(token)),
        ("/any", &[], None),
    ] {
        let (response, mut client) = ask(&server, path, offers);
        assert_eq!(response.status, 101, "{path} {offers:?}");
        assert_eq!(response.header("sec-websocket-protocol"), chosen, "{path} {offers:?}");
        client.assert_echoes(b"as always");
    }
    for (path, offers) in [("/mqtt", &["mqttv3.1"][..]), ("/mqtt", &[]), ("/any", &["a b"]), ("/", &["a/b"])]
    {
        let (response, _) = ask(&server, path, offers);
        response.assert_refusal(400, "bad_request");
    }
    server.stop();
}

#[test]
fn a_reload_changes_what_a_route_speaks_for_new_clients() {
    let server = Holdfast::with("workers = 1");
    assert_eq!(ask(&server, "/", &["mqtt"]).0.header("sec-websocket-protocol"), None);
    let route = "workers = 1\n[[routes]]\npath = \"/\"\nprotocol = \"echo\"\nsubprotocols = \"any\"\n";
    assert_eq!(server.reload(route).status, 200);
    assert_eq!(ask(&server, "/", &["mqtt"]).0.header("sec-websocket-protocol"), Some("mqtt"));
    server.stop();
}
