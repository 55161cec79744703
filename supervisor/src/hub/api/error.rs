//! Why a call was not carried out: an HTTP status, a code for programs, a message for people.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::api::Failure;

/// A refusal; nothing has changed. The body is `{"error":{"code":...,"message":...}}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status, 4xx or 5xx.
    pub status: u16,
    /// What programs look at: a word that stays.
    pub code: &'static str,
    /// What went wrong, where, and what to do.
    pub message: String,
}

impl ApiError {
    /// An error with an HTTP `status`.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// An error whose status says all that a program has to know.
    pub fn of_status(status: u16, message: impl Into<String>) -> Self {
        Self::new(status, code_of(status), message)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::of_status(failure.status, failure.error)
    }
}

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Inner<'a> {
            code: &'a str,
            message: &'a str,
        }
        let mut object = serializer.serialize_map(Some(1))?;
        object.serialize_entry("error", &Inner { code: self.code, message: &self.message })?;
        object.end()
    }
}

fn code_of(status: u16) -> &'static str {
    match status {
        400 => "bad_request",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        405 => "method_not_allowed",
        408 => "request_timeout",
        413 => "too_large",
        415 => "unsupported_media_type",
        503 => "unavailable",
        504 => "timeout",
        _ => "internal",
    }
}
