//! Applications and subscribers of channels: the API by its local socket, and clients that check every message they get.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::client::RawClient;
use crate::control::try_read_response;
use crate::frame::{CLOSE, PING};
use crate::handshake;
use crate::holdfast::Holdfast;
use crate::http::Response;

/// Asks the API by the socket in the run directory.
///
/// # Errors
/// When nobody answers in full, as when the hub dies.
pub fn api(run_dir: &Path, method: &str, target: &str, body: Option<&Value>) -> io::Result<Response> {
    let mut stream = UnixStream::connect(run_dir.join("api.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map_or_else(String::new, Value::to_string);
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nhost: api\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    try_read_response(&mut stream)
}

/// Publishes, once whatever dies meanwhile: asks again until there is an answer. Returns it.
///
/// # Panics
/// When there is none for long, or it is a refusal.
#[must_use]
pub fn publish(server: &Holdfast, channel: &str, data: &Value, key: &str) -> Value {
    let body = json!({ "channel": channel, "data": data, "idempotency_key": key });
    let ask =
        || api(server.run_dir(), "POST", "/api/publish", Some(&body)).map_err(|error| error.to_string());
    let answer = server.poll("the publication is answered", ask, |answer| {
        answer.as_ref().is_ok_and(|response| response.status == 200)
    });
    answer.map(|response| response.json()).unwrap_or_default()
}

/// The process of the hub.
///
/// # Panics
/// When there is none for long.
#[must_use]
pub fn hub_pid(server: &Holdfast) -> Pid {
    let is_hub = |pid: &Pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "holdfast-hub")
    };
    let find = || server.processes().into_iter().find(is_hub);
    server.poll("there is a hub", find, Option::is_some).expect("as was waited for")
}

/// A client of one channel, whose messages have an envelope.
pub struct Subscriber {
    client: RawClient,
    server: SocketAddr,
    channel: String,
    epoch: String,
    /// The number of the last publication that it has.
    pub offset: u64,
    /// How often it was closed and came back.
    pub returns: u32,
}

impl Subscriber {
    /// Subscribes, and waits until that is confirmed.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn new(server: SocketAddr, channel: &str) -> Self {
        let mut client = connect(server, channel, "");
        let welcome = welcome(&mut client);
        let (epoch, offset) =
            (welcome["epoch"].as_str().unwrap_or_default().to_owned(), welcome["offset"].as_u64());
        assert_eq!(welcome["subscribed"], channel);
        Self { client, server, channel: channel.to_owned(), epoch, offset: offset.unwrap_or(0), returns: 0 }
    }

    /// Reads until it has publication `offset`, all of them in order and none twice. When it is told to come back it does, and
    /// goes on where it was.
    ///
    /// # Panics
    /// When anything else comes.
    pub fn read_to(&mut self, offset: u64) {
        while self.offset < offset {
            let Some(frame) = self.client.frame_or_end() else {
                // Its worker died in the middle of a long frame.
                self.come_back();
                continue;
            };
            match frame.opcode() {
                CLOSE => {
                    let code =
                        frame.payload.get(..2).map_or(0, |code| u16::from_be_bytes([code[0], code[1]]));
                    assert_eq!(code, 1012, "{}", String::from_utf8_lossy(&frame.payload));
                    self.come_back();
                }
                PING => {}
                _ => {
                    let message: Value = serde_json::from_slice(&frame.payload).expect("a message in JSON");
                    assert_eq!(message["channel"], self.channel);
                    assert_eq!(message["offset"], self.offset + 1, "{message}");
                    assert_eq!(message["data"], json!({ "number": self.offset + 1 }));
                    self.offset += 1;
                }
            }
        }
    }

    fn come_back(&mut self) {
        self.returns += 1;
        let query = format!("&since={}&epoch={}", self.offset, self.epoch);
        self.client = connect(self.server, &self.channel, &query);
        let welcome = welcome(&mut self.client);
        assert_eq!(welcome["recovered"], true, "{welcome}");
    }
}

fn connect(server: SocketAddr, channel: &str, query: &str) -> RawClient {
    let mut client = RawClient::connect(server);
    let target = format!("/ws/{channel}?envelope=1{query}");
    client.send(&handshake::request("holdfast.test", &target, "")).expect("ask");
    assert_eq!(client.response().status, 101);
    client
}

fn welcome(client: &mut RawClient) -> Value {
    let frame = client.frame();
    serde_json::from_slice(&frame.payload)
        .unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&frame.payload)))
}
