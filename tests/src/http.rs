//! HTTP/1.1 responses as clients of the tests read them. Builds nothing and opens nothing.

use serde_json::Value;

/// The most headers a response of ours may carry.
const MAX_HEADERS: usize = 32;

/// One complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names as sent, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, as long as Content-Length says; empty for 101.
    pub body: Vec<u8>,
}

impl Response {
    /// The response at the start of `bytes` and its length, or `None` while it is incomplete.
    ///
    /// # Panics
    /// When the bytes cannot become a response, or when its end would only be known by end of file.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let status = head.parse(bytes).unwrap_or_else(|error| {
            panic!("not an HTTP response: {error}: {:?}", String::from_utf8_lossy(bytes))
        });
        let httparse::Status::Complete(head_length) = status else { return None };
        let headers: Vec<(String, String)> = head
            .headers
            .iter()
            .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
            .collect();
        let mut response = Self { status: head.code.unwrap_or_default(), headers, body: Vec::new() };
        let length = head_length + response.content_length();
        response.body = bytes.get(head_length..length)?.to_vec();
        Some((response, length))
    }

    /// The value of a header, whatever its case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is something else.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("body is not JSON: {error}: {}", self.text()))
    }

    /// Checks what every refusal owes its client: a length, an announced close, and a JSON body that names
    /// `reason`.
    ///
    /// # Panics
    /// When one of them is missing.
    pub fn assert_refusal(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.header("content-length").is_some(), "no Content-Length: {self:?}");
        let connection = self.header("connection").unwrap_or_default().to_ascii_lowercase();
        assert!(
            connection.split(',').any(|option| option.trim() == "close"),
            "no Connection: close: {self:?}"
        );
        assert!(self.json().is_object(), "{self:?}");
        assert!(self.text().contains(reason), "the body does not name {reason}: {self:?}");
    }

    fn content_length(&self) -> usize {
        match (self.status, self.header("content-length")) {
            (101 | 204 | 304, _) => 0,
            (_, Some(length)) => length.trim().parse().expect("Content-Length is a number"),
            (_, None) => panic!("a response without Content-Length: {self:?}"),
        }
    }
}
