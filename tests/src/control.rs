//! A client of the control socket: one blocking HTTP/1.1 request per connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::PATIENCE;
use crate::http::Response;

/// The control socket of one run directory.
#[derive(Debug, Clone)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// The control socket in `run_dir`.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join("control.sock") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection to say anything over.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path)
            .unwrap_or_else(|error| panic!("connect to {}: {error}", self.path.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("set a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("set a write timeout");
        stream
    }

    /// Asks with GET.
    ///
    /// # Panics
    /// When no complete answer comes.
    #[must_use]
    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target)
    }

    /// Asks with POST, without a body.
    ///
    /// # Panics
    /// When no complete answer comes.
    pub fn post(&self, target: &str) -> Response {
        self.request("POST", target)
    }

    /// Asks with `method`, without a body.
    ///
    /// # Panics
    /// When no complete answer comes.
    pub fn request(&self, method: &str, target: &str) -> Response {
        let mut stream = self.connect();
        stream.write_all(request(method, target).as_bytes()).expect("send a control request");
        read_response(&mut stream)
    }

    /// Asks with `method` and a JSON body.
    ///
    /// # Panics
    /// When the supervisor does not answer.
    #[must_use]
    pub fn request_with(&self, method: &str, target: &str, body: &Value) -> Response {
        let (mut stream, body) = (self.connect(), body.to_string());
        let head = format!("{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).expect("send a control request");
        read_response(&mut stream)
    }

    /// Asks with `method`, without a body; `None` when nobody answers, or not to the end: the supervisor may
    /// be dying.
    #[must_use]
    pub fn try_request(&self, method: &str, target: &str) -> Option<Response> {
        let mut stream = UnixStream::connect(&self.path).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(request(method, target).as_bytes()).ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        Response::parse(&bytes).map(|(response, _)| response)
    }

    /// The totals.
    ///
    /// # Panics
    /// When they are refused.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let response = self.get("/totals");
        assert_eq!(response.status, 200, "{}", response.text());
        Totals(response.json())
    }

    /// All workers, by slot.
    ///
    /// # Panics
    /// When they are refused, or are no list.
    #[must_use]
    pub fn workers(&self) -> Vec<Totals> {
        let response = self.get("/workers");
        assert_eq!(response.status, 200, "{}", response.text());
        let mut workers: Vec<Totals> = match response.json() {
            Value::Array(list) => list.into_iter().map(Totals).collect(),
            other => panic!("/workers is not a list: {other}"),
        };
        workers.sort_by_key(|worker| worker.number("slot"));
        workers
    }
}

fn request(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

/// Reads one response from `stream`.
///
/// # Panics
/// When the stream ends before it is complete.
pub fn read_response(stream: &mut UnixStream) -> Response {
    try_read_response(stream).expect("read an answer")
}

/// As [`read_response`], from a server that may die meanwhile.
///
/// # Errors
/// When the stream ends before the response is complete.
pub fn try_read_response(stream: &mut UnixStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some((response, _)) = Response::parse(&bytes) {
            return Ok(response);
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
}

/// A JSON object of the control socket, asked by dotted names.
#[derive(Debug, Clone, PartialEq)]
pub struct Totals(pub Value);

impl Totals {
    /// The value at `name`, such as `rejected_total.max_connections`.
    ///
    /// # Panics
    /// When there is none: these names are promised.
    #[must_use]
    pub fn value(&self, name: &str) -> &Value {
        self.0
            .pointer(&format!("/{}", name.replace('.', "/")))
            .unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    /// The whole number at `name`.
    ///
    /// # Panics
    /// When it is something else.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.value(name).as_u64().unwrap_or_else(|| panic!("{name} is not a whole number in {}", self.0))
    }

    /// The text at `name`.
    ///
    /// # Panics
    /// When it is something else.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.value(name).as_str().unwrap_or_else(|| panic!("{name} is not text in {}", self.0))
    }

    /// The sum of a map of counters, such as `closed_total`.
    ///
    /// # Panics
    /// When it is something else.
    #[must_use]
    pub fn sum(&self, name: &str) -> u64 {
        let map = self.value(name).as_object().unwrap_or_else(|| panic!("{name} is not a map in {}", self.0));
        map.values().map(|count| count.as_u64().expect("counters are whole numbers")).sum()
    }
}
