//! The keys by which clients' tokens are checked, and how public ones are read from a JSON Web Key Set (RFC 7517). Checks no
//! token, reads no file.

use std::collections::BTreeSet;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What tokens are checked by. Travels by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenKeys {
    /// Of tokens signed by HS256.
    pub secret: Option<Secret>,
    /// Of those signed by RS256 and ES256.
    pub public: Vec<PublicKey>,
    /// Whom they must be for; `None` lets any be.
    pub audience: Option<String>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// What tokens call it.
    pub kid: String,
    /// The key itself.
    pub numbers: Numbers,
}

/// A public key's numbers, big-endian. The kind of key says the only algorithm that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Numbers {
    /// For RS256: modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// For ES256: a point of the curve P-256.
    P256(Vec<u8>, Vec<u8>),
}

/// What is wrong with a set of keys. Repeats nothing that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("line {line}, column {column}: not a JSON object with a list \"keys\"")]
    NoSet { line: usize, column: usize },
    #[error("key {0} is not a JSON Web Key")]
    NoKey(usize),
    #[error("key {0} has no kid, so that no token can name it")]
    NoName(usize),
    #[error("key {0} has the kid of another")]
    Twice(usize),
    #[error("key {0} is a private one, which has no business here: leave out what is not public")]
    Private(usize),
    #[error("{at}, of key {key}, is missing or wrong")]
    Numbers { key: usize, at: &'static str },
    #[error("no key is for RS256 or ES256")]
    None,
    #[error("more than {MOST_KEYS} keys")]
    TooMany,
}

const MOST_KEYS: usize = 100;
/// RFC 7518, section 3.3: at least 2048 bits. Above 8192 checking takes long, which a client could make us do.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
const P256_BYTES: usize = 32;

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

/// The keys of a set that are for RS256 and ES256; others are passed over. Keys are counted from 1.
///
/// # Errors
/// See [`KeySetError`].
pub fn read_key_set(text: &str) -> Result<Vec<PublicKey>, KeySetError> {
    let set: Set = serde_json::from_str(text)
        .map_err(|error| KeySetError::NoSet { line: error.line(), column: error.column() })?;
    if set.keys.len() > MOST_KEYS {
        return Err(KeySetError::TooMany);
    }
    let mut keys = Vec::new();
    let mut names = BTreeSet::new();
    for (at, key) in (1..).zip(set.keys) {
        let jwk: Jwk = serde_json::from_value(key).map_err(|_| KeySetError::NoKey(at))?;
        if jwk.d.is_some() {
            return Err(KeySetError::Private(at));
        }
        let Some(numbers) = numbers(at, &jwk)? else { continue };
        let kid = jwk.kid.filter(|kid| !kid.is_empty()).ok_or(KeySetError::NoName(at))?;
        if !names.insert(kid.clone()) {
            return Err(KeySetError::Twice(at));
        }
        keys.push(PublicKey { kid, numbers });
    }
    if keys.is_empty() { Err(KeySetError::None) } else { Ok(keys) }
}

/// `None` for a key that is for something else.
fn numbers(key: usize, jwk: &Jwk) -> Result<Option<Numbers>, KeySetError> {
    let is_for = |algorithm| {
        jwk.alg.as_deref().is_none_or(|alg| alg == algorithm)
            && jwk.used_for.as_deref().is_none_or(|used_for| used_for == "sig")
    };
    let number = |at: &'static str, text: &Option<String>, bytes: std::ops::RangeInclusive<usize>| {
        let decoded = text.as_ref().and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok());
        decoded.filter(|number| bytes.contains(&number.len())).ok_or(KeySetError::Numbers { key, at })
    };
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) if is_for("RS256") => {
            Ok(Some(Numbers::Rsa(number("n", &jwk.n, RSA_BYTES)?, number("e", &jwk.e, 1..=8)?)))
        }
        ("EC", Some("P-256")) if is_for("ES256") => {
            let coordinate = |at, text| number(at, text, P256_BYTES..=P256_BYTES);
            Ok(Some(Numbers::P256(coordinate("x", &jwk.x)?, coordinate("y", &jwk.y)?)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn point() -> String {
        BASE64URL_NOPAD.encode(&[7; 32])
    }

    fn set(keys: &serde_json::Value) -> Result<Vec<PublicKey>, KeySetError> {
        read_key_set(&json!({ "keys": keys }).to_string())
    }

    #[test]
    fn keys_for_other_ends_are_passed_over() {
        let (n, point) = (BASE64URL_NOPAD.encode(&[9; 256]), point());
        let keys = set(&json!([
            {"kty": "OKP", "crv": "Ed25519", "x": point},
            {"kty": "RSA", "kid": "e", "use": "enc", "n": n, "e": "AQAB"},
            {"kty": "RSA", "kid": "p", "alg": "PS256", "n": n, "e": "AQAB"},
            {"kty": "RSA", "kid": "r", "alg": "RS256", "use": "sig", "n": n, "e": "AQAB", "x5t": "other"},
            {"kty": "EC", "kid": "c", "crv": "P-256", "x": point, "y": point},
        ]));
        let expected = [
            PublicKey { kid: "r".into(), numbers: Numbers::Rsa(vec![9; 256], vec![1, 0, 1]) },
            PublicKey { kid: "c".into(), numbers: Numbers::P256(vec![7; 32], vec![7; 32]) },
        ];
        assert_eq!(keys.unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_repeated() {
        let (short, point) = (BASE64URL_NOPAD.encode(&[9; 128]), point());
        let key = json!({"kty": "EC", "kid": "c", "crv": "P-256", "x": point, "y": point});
        let mut private = key.clone();
        private["d"] = json!("hush");
        for (keys, expected) in [
            (json!([]), KeySetError::None),
            (json!(["hush"]), KeySetError::NoKey(1)),
            (json!([private]), KeySetError::Private(1)),
            (json!([key, key]), KeySetError::Twice(2)),
            (json!([{"kty": "EC", "crv": "P-256", "x": point, "y": point}]), KeySetError::NoName(1)),
            (
                json!([{"kty": "EC", "kid": "c", "crv": "P-256", "x": point}]),
                KeySetError::Numbers { key: 1, at: "y" },
            ),
            (
                json!([{"kty": "RSA", "kid": "r", "n": short, "e": "AQAB"}]),
                KeySetError::Numbers { key: 1, at: "n" },
            ),
        ] {
            let error = set(&keys).unwrap_err();
            assert!(!error.to_string().contains("hush"));
            assert_eq!(error, expected);
        }
        assert_eq!(set(&json!(vec![key; MOST_KEYS + 1])), Err(KeySetError::TooMany));
        let error = read_key_set("\"hush\"").unwrap_err();
        assert!(matches!(error, KeySetError::NoSet { line: 1, .. }) && !error.to_string().contains("hush"));
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in any::<String>(), kty in "RSA|EC", value in "[A-Za-z0-9_-]{0,60}") {
            let _ = read_key_set(&text);
            let _ = set(&json!([{"kty": kty, "crv": "P-256", "kid": "k", "n": value, "e": value, "x": value, "y": value}]));
        }
    }
}
