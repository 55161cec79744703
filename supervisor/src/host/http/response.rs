//! Complete answers.

use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Serialize;

/// A complete answer.
pub type Response = http::Response<Full<Bytes>>;

/// `value` as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = text("application/json", body);
            *response.status_mut() = status;
            response
        }
        Err(error) => {
            let mut response = text("text/plain; charset=utf-8", error.to_string());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// A body of another type.
pub fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::from(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// `response` as the last one of its connection.
pub fn last(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
