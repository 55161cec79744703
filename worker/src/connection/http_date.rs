//! The date that answers carry, written once a second.

use std::time::SystemTime;

/// The wall clock in the form of RFC 9110, section 5.6.7.
#[derive(Debug, Default)]
pub(super) struct HttpDate {
    text: String,
    /// The second of the monotonic clock in which it was written, plus one.
    written: u64,
}

impl HttpDate {
    /// The date now, which is `now_ms` of the monotonic clock.
    pub(super) fn at(&mut self, now_ms: u64) -> &str {
        let second = now_ms / 1000 + 1;
        if self.written != second {
            self.written = second;
            self.text = httpdate::fmt_http_date(SystemTime::now());
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_a_second() {
        let mut date = HttpDate::default();
        assert!(httpdate::parse_http_date(date.at(0)).is_ok());
        date.text = "as it was".to_owned();
        assert_eq!(date.at(999), "as it was");
        assert!(httpdate::parse_http_date(date.at(1000)).is_ok());
    }
}
