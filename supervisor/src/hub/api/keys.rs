//! The keys of the API. Kept as digests, compared in a time that says nothing of them, shown to nobody.

use std::fmt;

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::ApiError;

/// Keys, of which whoever shows one may ask everything.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// These.
    pub fn new<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self(keys.into_iter().map(|key| Sha256::digest(key.as_ref()).into()).collect())
    }

    /// Whether a request with `headers` shows one of them.
    ///
    /// # Errors
    /// 401; what was shown is not repeated.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        const MISSING: &str = "no key: send `Authorization: Bearer KEY` with a key of [api] keys_file";
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (shown.next(), shown.next()) else { return Err(unauthorized(MISSING)) };
        let Some(key) = bearer(value.as_bytes()) else { return Err(unauthorized(MISSING)) };
        let shown = Sha256::digest(key);
        // All of them are compared, wherever the right one stands.
        let is_known = self.0.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(&shown));
        if is_known.into() { Ok(()) } else { Err(unauthorized("the key is none of [api] keys_file")) }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// The key in `Bearer KEY`. RFC 9110, section 11.1: the scheme is spelled in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::of_status(401, message)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn one_right_key_is_enough_and_no_other_is() {
        let keys = Keys::new(["first", "second"]);
        let check = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            keys.check(&headers).is_ok()
        };
        for right in ["Bearer first", "bearer second", "BEARER  second "] {
            assert!(check(&[right]), "{right}");
        }
        for wrong in [
            "Bearer",
            "Bearer ",
            "Bearer firs",
            "Bearer firstx",
            "Basic first",
            "first",
            "Bearer first second",
        ] {
            assert!(!check(&[wrong]), "{wrong}");
        }
        assert!(!check(&[]) && !check(&["Bearer first", "Bearer first"]));
        assert!(Keys::default().check(&HeaderMap::new()).is_err());
        assert_eq!(format!("{keys:?}"), "2 keys");
    }
}
