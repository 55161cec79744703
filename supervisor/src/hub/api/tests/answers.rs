//! Every request, what the loop is asked, and what the client gets.

use std::time::Duration;

use holdfast_shared::channels::rules::ChannelName;
use holdfast_shared::id::{ConnectionId, SlotId};

use super::*;

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

/// What the loop is asked when `body` is sent to `target`.
fn asked(method: &str, target: &str, body: &str) -> Command {
    let mut rig = Rig::new(Deadlines::default());
    let mut client = rig.client();
    client.send(request(method, target, body).as_bytes());
    rig.call().command
}

#[test]
fn every_post_is_its_command() {
    let text = |text: &str| Data::text(text.to_owned());
    let publish = Publish {
        channel: name("chat:42"),
        data: text("{\"a\" : 1.50}"),
        idempotency_key: Some("k".to_owned()),
        exclude: Some(ConnectionId(7)),
    };
    let said = r#"{"channel":"chat:42","data":{"a" : 1.50},"idempotency_key":"k","exclude":"7"}"#;
    assert_eq!(asked("POST", "/api/publish", said), Command::Publish(publish.clone()));
    let broadcast = Broadcast {
        channels: vec![name("a"), name("b")],
        data: Data::binary(vec![0, 255]),
        idempotency_key: None,
        exclude: None,
    };
    let said = r#"{"channels":["a","b"],"data_base64":"AP8="}"#;
    assert_eq!(asked("POST", "/api/broadcast", said), Command::Broadcast(broadcast));
    let subscription = Subscription { channel: name("a"), target: Target::User("u".to_owned()) };
    let said = r#"{"channel":"a","user":"u"}"#;
    assert_eq!(asked("POST", "/api/subscribe", said), Command::Subscribe(subscription.clone()));
    assert_eq!(asked("POST", "/api/unsubscribe", said), Command::Unsubscribe(subscription));
    let target = Target::Connection(ConnectionId(u64::MAX));
    let send = Send { target: target.clone(), data: text("null") };
    let said = r#"{"connection":"18446744073709551615","data":null}"#;
    assert_eq!(asked("POST", "/api/send", said), Command::Send(send));
    let disconnect = Disconnect { target, code: 4001, reason: "enough".to_owned() };
    let said = r#"{"connection":"18446744073709551615","code":4001,"reason":"enough"}"#;
    assert_eq!(asked("POST", "/api/disconnect", said), Command::Disconnect(disconnect));
    let said = r#"{"commands":[{"publish":{"channel":"chat:42","data":{"a" : 1.50},"idempotency_key":"k","exclude":"7"}},
        {"send":{"user":"u","data":"x"}}]}"#;
    let send = Send { target: Target::User("u".to_owned()), data: text("\"x\"") };
    let batch = Command::Batch(vec![Command::Publish(publish), Command::Send(send)]);
    assert_eq!(asked("POST", "/api/batch", said), batch);
}

#[test]
fn every_get_is_its_command() {
    let cursor = Some("b".to_owned());
    let channels = ChannelsQuery { prefix: "chat:".to_owned(), cursor, limit: 7 };
    assert_eq!(
        asked("GET", "/api/channels?prefix=chat%3A&cursor=b&limit=7", ""),
        Command::Channels(channels)
    );
    let all = ChannelsQuery { limit: 100, ..ChannelsQuery::default() };
    assert_eq!(asked("GET", "/api/channels", ""), Command::Channels(all));
    assert_eq!(asked("GET", "/api/channels/chat:42", ""), Command::Channel(name("chat:42")));
    assert_eq!(asked("GET", "/api/channels/a%2Fb+c", ""), Command::Channel(name("a/b+c")));
    let history = HistoryQuery { channel: name("a"), since: Some(3), epoch: Some("e".to_owned()), limit: 9 };
    assert_eq!(asked("GET", "/api/history?channel=a&since=3&epoch=e&limit=9", ""), Command::History(history));
    assert_eq!(asked("GET", "/api/presence?channel=a", ""), Command::Presence(name("a")));
    let (user, address) = (Some("u".to_owned()), Some("::1".parse().unwrap()));
    let connections = ConnectionsQuery { user, address, limit: 100 };
    assert_eq!(asked("GET", "/api/connections?user=u&address=::1", ""), Command::Connections(connections));
    let events = EventsQuery { after: 8812, wait: Duration::from_secs(30), limit: 100 };
    assert_eq!(asked("GET", "/api/events?after=8812&wait=30s", ""), Command::Events(events));
}

#[test]
fn answers_have_the_documented_form() {
    let row = ChannelRow { name: "a".to_owned(), subscribers: 3, offset: 9, epoch: "e".to_owned() };
    let publication = |data| Publication { offset: 9, time_ms: 5, data };
    let text = |text: &str| Data::text(text.to_owned());
    let event = Event {
        seq: 8812,
        time_ms: 5,
        name: EventName::Disconnected,
        connection: Some(ConnectionId(7)),
        user: Some("56".to_owned()),
        channel: None,
        code: Some(1006),
        reason: Some("ping_timeout".to_owned()),
        channels: vec!["a".to_owned()],
    };
    let connection = ConnectionRow {
        connection: ConnectionId(7),
        user: None,
        address: "::1".to_owned(),
        slot: SlotId(2),
        channels: vec!["a".to_owned()],
    };
    let there = PresenceRow {
        connection: ConnectionId(7),
        user: Some("u".to_owned()),
        info: Some(serde_json::value::to_raw_value(&["x"]).unwrap()),
    };
    let failed = Outcome::Failed(ApiError::new(409, "full", "no room"));
    let done = Outcome::Done(Answer::Reached(Reached { connections: 2 }));
    for (answer, text) in [
        (
            Answer::Channels(Channels { channels: vec![row.clone()], next: None }),
            r#"{"channels":[{"name":"a","subscribers":3,"offset":9,"epoch":"e"}],"next":null}"#,
        ),
        (
            Answer::Channel(ChannelView { row, history: 4 }),
            r#"{"name":"a","subscribers":3,"offset":9,"epoch":"e","history":4}"#,
        ),
        (
            Answer::History(History {
                publications: vec![
                    publication(text("{ \"x\":1e0}")),
                    publication(text("not json")),
                    publication(Data::binary(vec![0, 255])),
                ],
                epoch: "e".to_owned(),
                offset: 9,
                recovered: true,
            }),
            r#"{"publications":[{"offset":9,"time_ms":5,"data":{ "x":1e0}},{"offset":9,"time_ms":5,"data":"not json"},{"offset":9,"time_ms":5,"data_base64":"AP8="}],"epoch":"e","offset":9,"recovered":true}"#,
        ),
        (
            Answer::Presence(Presence { presence: vec![there] }),
            r#"{"presence":[{"connection":"7","user":"u","info":["x"]}]}"#,
        ),
        (
            Answer::Connections(Connections { connections: vec![connection] }),
            r#"{"connections":[{"connection":"7","user":null,"address":"::1","slot":2,"channels":["a"]}]}"#,
        ),
        (
            Answer::Events(Events { events: vec![event.render().unwrap()], next: 8813 }),
            r#"{"events":[{"seq":8812,"time_ms":5,"name":"disconnected","connection":"7","user":"56","code":1006,"reason":"ping_timeout","channels":["a"]}],"next":8813}"#,
        ),
        (
            Answer::Results { results: vec![failed, done] },
            r#"{"results":[{"error":{"code":"full","message":"no room"}},{"connections":2}]}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
    }
}

#[test]
fn a_connection_is_kept_and_answers_come_in_order() {
    let rig = Rig::echoing();
    let mut client = rig.client();
    let lengths = [3, 1, 7, 2];
    let requests: String = lengths
        .map(|length| {
            let data = "9".repeat(length);
            request("POST", "/api/publish", &format!(r#"{{"channel":"a","data":{data}}}"#))
        })
        .concat();
    client.send(requests.as_bytes());
    for length in lengths {
        let reply = client.reply();
        assert_eq!(reply.body, format!(r#"{{"offset":1,"epoch":"e1","subscribers":{length}}}"#));
        assert!(reply.head.contains("content-type: application/json"), "{}", reply.head);
    }
    assert_eq!(client.call("GET", "/api/channels/a", "").status, 200);
    let [succeeded, ..] = rig.server().counts().read();
    assert_eq!(succeeded, ("succeeded", 5));
}

#[test]
fn an_error_of_the_loop_has_its_status_and_code() {
    let rig = Rig::echoing();
    let mut client = rig.client();
    let reply = client.call("POST", "/api/publish", r#"{"channel":"full","data":1}"#);
    assert_eq!((reply.status, refusal(&reply)), (409, ("full".to_owned(), "no room".to_owned())));
    let reply = client.call("POST", "/api/broadcast", r#"{"channels":["full","a"],"data":1}"#);
    assert!(reply.body.starts_with(r#"{"results":[{"error":{"code":"full","#), "{}", reply.body);
    assert_eq!(reply.status, 200, "a part that fails keeps no other from being done");
}

#[test]
fn a_loop_that_drops_or_forgets_a_call_is_said_to() {
    let mut rig = Rig::new(Deadlines { answer: Some(Duration::from_millis(20)), ..Deadlines::default() });
    let mut client = rig.client();
    client.send(request("GET", "/api/channels", "").as_bytes());
    drop(rig.call());
    assert_eq!(client.reply().status, 500);
    client.send(request("GET", "/api/channels", "").as_bytes());
    let _call = rig.call();
    assert_eq!(client.reply().status, 504);
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    let mut rig = Rig::new(Deadlines::default());
    let mut client = rig.client();
    client.send(request("GET", "/api/events?wait=60s", "").as_bytes());
    let call = rig.call();
    assert!(call.reply.is_wanted());
    drop(client);
    while call.reply.is_wanted() {
        std::thread::yield_now();
    }
}

#[test]
fn keys_and_listener_change_while_clients_are_connected() {
    let rig = Rig::echoing();
    let mut client = rig.client();
    assert_eq!(client.call("GET", "/api/channels", "").status, 200);
    let next = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = next.local_addr().unwrap();
    rig.server().set_listener(Some(Listener::from_descriptor(next.into()).unwrap()));
    assert_eq!(client.call("GET", "/api/channels", "").status, 200, "who is in stays");
    assert_eq!(tcp(address).call("GET", "/api/channels", "").status, 200);
    while TcpStream::connect(rig.address).is_ok() {
        std::thread::yield_now();
    }
    rig.server().set_keys(Keys::new(["another"]));
    assert_eq!(client.call("GET", "/api/channels", "").status, 401);
}

#[test]
fn what_was_answered_is_delivered_at_the_end() {
    let mut rig = Rig::new(Deadlines::default());
    let mut client = rig.client();
    client.send(request("GET", "/api/channels", "").as_bytes());
    let call = rig.call();
    call.reply.send(Ok(Answer::Reached(Reached { connections: 3 })));
    rig.server.take().unwrap().stop();
    assert_eq!(client.reply().body, r#"{"connections":3}"#);
    assert_eq!(client.rest(), "");
}
