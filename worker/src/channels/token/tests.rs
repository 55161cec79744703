//! Tokens that another implementation has signed, tokens signed here, and what a client could try.

use holdfast_shared::channels::token_keys::read_key_set;
use holdfast_shared::secret::Secret;
use jsonwebtoken::{EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const SECRET: &str = "a secret of more than 32 bytes, all of which count";

/// Public keys "r" (RSA) and "e" (P-256), and tokens that Python's `cryptography` signed with their private halves.
const KEY_SET: &[&str] = &[
    r#"{"keys":[{"kty":"RSA","kid":"r","alg":"RS256","use":"sig","n":"j5MJpdY_uO9Sk3UoukBEKxuwP-FlTkkLK0HpT"#,
    r#"Ffs2gk0v4aRD3h6I9vydMlSYMwq4iC8grTO9A3IyS5knkD-52_hEviY1IQLNL_n-OvYR6njWpAoB055fNr1t5crAY4zfQJHVEnXX"#,
    r#"CXFfwZ12h46rwu2JZDorjSzvXD5WBQf4ArjmnD5C8Fr52AxO0eJ7NdIERJBkSfIdKuUCdrgpCR7_Mt2ldUDRb9kaVWyZjybr25hO"#,
    r#"1iuRgIZ382h9DYfU9nkY3ZmJoeMYpreCUXf55-XpjUZmutTX-FPRunFu7bp5cXg_xLXlROvsStLolW5qoIgOHOWu6Q86dtHD5dG5"#,
    r#"O2NqQ","e":"AQAB"},{"kty":"EC","kid":"e","crv":"P-256","x":"TdA0nmCY9aYK5kYD3alDARSROJbydso5EdLNJSV9"#,
    r#"c0s","y":"X1KO0zwqfcT-ziO7WjIT_pi-orHaw6ZZRW53PmPIR9E"}]}"#,
];
const RS256: &[&str] = &[
    "eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiI1NiIsImV4cCI6MjAwMDAwMDAwMCwiY2hhbm5lbHMiOlsiY2hhdDoqI",
    "iwibmV3cyJdfQ.H2l76sDR_8zdb3uG_aFh5ds-usE08TZgm1LoXfOuF_Fv-OP58w8zdAIHdTU-bemTlfIOSc3jsc4e7Iy3M70GnT",
    "QPmUJNtLt0epd4kF02Xutj-HYQMevE1Fwddukbhd0S7v8GJUFt7slpkKdFrYKczYJCq1syL0qdQw4CjahzNMwzOzpGvoHnN6IZrm",
    "XBf2aWHiqwmwo9dUTAfS_5k_wNK2B3uDV6mIZpv0_z0wmaLAGa1oyBCdvhZLkSIAtwPlOwjlQUk_1NIenhq-t7NTKohJY3X5xsBs",
    "4fYnU5QTBUEa0sOd9j_bzKz4fMm-HaPw9o5hdoky390AiTi_hXVVNuJg",
];
const ES256: &[&str] = &[
    "eyJhbGciOiJFUzI1NiIsImtpZCI6ImUifQ.eyJzdWIiOiI1NiIsImV4cCI6MjAwMDAwMDAwMCwiY2hhbm5lbHMiOlsiY2hhdDoqI",
    "iwibmV3cyJdfQ.ehBtZiA4-5wxzwxO46D6hlI15uW5sUj38Xnv7GCUIDmjSWV-NVOtqgL3fFneT2lNsN4j-ZSPzN_vjfpgvmK5Uw",
];
const RS256_BY_ANOTHER_KID: &[&str] = &[
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImUifQ.eyJzdWIiOiI1NiIsImV4cCI6MjAwMDAwMDAwMCwiY2hhbm5lbHMiOlsiY2hhdDoqI",
    "iwibmV3cyJdfQ.hPe5V_vP8nshKLjNmZkOkrr-na4R59Tj33CWgllQoQmG5LbJB2tezxO22zfL7JbYSOKpgUxOHOqvRDNl1Ha-Vf",
    "8BfhhcnxUcbE8Yl681Anq8uk668GmgpW-OBXUlyb5gLx2onUL7rTJ2FeUui1JeHoodabhhg8LsOTS5FmLV9DcCsGRvopAQG2s5wu",
    "oL081v8GhwOZKZ9BtItVZne4IKasyyKxRcj4GTuXZ_RffO38n_EYaepJMV1MLI7bCIDJfMIyGg_k96cKfAwZwExkxoypUWb19s9Q",
    "FZDlDv6csoJdMv8Ih9bwUPwtVeLM8icUbO_QgZDXhZ4XFwgGI2ES1U7Q",
];

fn keys() -> TokenKeys {
    TokenKeys {
        secret: Some(Secret::new(SECRET)),
        public: read_key_set(&KEY_SET.concat()).unwrap(),
        audience: None,
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn signed(header: &Header, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn verify(claims: &Value) -> Result<Grant, TokenError> {
    Tokens::new(&keys()).verify(&signed(&Header::default(), claims), at(1000))
}

fn allows(grant: &Grant, channel: &str) -> bool {
    grant.allows(&ChannelName::new(channel).unwrap())
}

#[test]
fn a_good_token_says_who_may_go_where_and_until_when() {
    let claims = json!({
        "sub": "56", "exp": 1000.5, "nbf": 1000, "channels": ["chat:*", "news"], "info": {"name": "Ann"}, "iss": "shop", "aud": ["x"],
    });
    let grant = verify(&claims).unwrap();
    assert_eq!((grant.user.as_deref(), grant.info.as_deref()), (Some("56"), Some(r#"{"name":"Ann"}"#)));
    assert_eq!(grant.expires, at(1000) + Duration::from_millis(500));
    let reach = ["chat:1", "chat:", "news", "chat", "newsletter"].map(|name| allows(&grant, name));
    assert_eq!(reach, [true, true, true, false, false]);
    let nobody = verify(&json!({"exp": 1001})).unwrap();
    assert_eq!((&nobody.user, allows(&nobody, "news")), (&None, false));
}

#[test]
fn tokens_of_another_implementation_are_taken() {
    let tokens = Tokens::new(&keys());
    for token in [RS256, ES256] {
        let grant = tokens.verify(&token.concat(), at(1_999_999_999)).unwrap();
        assert_eq!((grant.user.as_deref(), allows(&grant, "chat:7")), (Some("56"), true));
        assert_eq!(tokens.verify(&token.concat(), at(2_000_000_000)), Err(TokenError::Expired));
    }
}

#[test]
fn a_key_is_for_its_own_algorithm_alone() {
    let claims = json!({"exp": 1001});
    let unsigned = |header: Value| {
        let part = |value: &Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        format!("{}.{}.", part(&header), part(&claims))
    };
    let tokens = Tokens::new(&keys());
    let verify = |token: &str| tokens.verify(token, at(1000)).unwrap_err();
    assert_eq!(verify(&unsigned(json!({"alg": "none"}))), TokenError::Malformed);
    assert_eq!(verify(&unsigned(json!({"alg": "HS256"}))), TokenError::Signature);
    assert_eq!(verify(&signed(&Header::new(Algorithm::HS512), &claims)), TokenError::Algorithm);
    assert_eq!(verify(&RS256_BY_ANOTHER_KID.concat()), TokenError::UnknownKey);
    // What everybody knows, the public key, is no secret of HS256, with and without the kid of that key.
    for kid in [None, Some("r".to_owned()), Some("e".to_owned())] {
        let header = Header { kid, ..Header::default() };
        for public in &tokens.public {
            let known = match public.2.kind() {
                jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes) => bytes,
                jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => n,
            };
            let token = encode(&header, &claims, &EncodingKey::from_secret(known)).unwrap();
            assert_eq!(verify(&token), TokenError::Signature);
            let without = Tokens::new(&TokenKeys { secret: None, ..keys() });
            assert_eq!(without.verify(&token, at(1000)), Err(TokenError::Algorithm));
        }
    }
    let critical = Header { crit: Some(vec!["b64".to_owned()]), ..Header::default() };
    assert_eq!(verify(&signed(&critical, &claims)), TokenError::Malformed);
    let none = Tokens::default();
    for token in [RS256, ES256] {
        assert_eq!(none.verify(&token.concat(), at(1000)), Err(TokenError::Algorithm));
    }
}

#[test]
fn a_token_is_good_from_its_first_moment_to_the_one_before_its_last() {
    for (claims, expected) in [
        (json!({"exp": 1001, "nbf": 1000}), None),
        (json!({"exp": 1000}), Some(TokenError::Expired)),
        (json!({"exp": 0}), Some(TokenError::Expired)),
        (json!({}), Some(TokenError::NoExpiry)),
        (json!({"exp": null}), Some(TokenError::NoExpiry)),
        (json!({"exp": "1001"}), Some(TokenError::Claims)),
        (json!({"exp": -1}), Some(TokenError::Claims)),
        (json!({"exp": 1e300}), Some(TokenError::Claims)),
        (json!({"exp": 1001, "nbf": 1001}), Some(TokenError::NotYet)),
        (json!({"exp": 1001, "nbf": "0"}), Some(TokenError::Claims)),
    ] {
        assert_eq!(verify(&claims).err(), expected, "{claims}");
    }
}

#[test]
fn claims_are_bounded() {
    let with = |name: &str, claim: Value| {
        let mut claims = json!({"exp": 1001});
        claims[name] = claim;
        verify(&claims).err()
    };
    assert_eq!(with("sub", json!("u".repeat(128))), None);
    for claim in [json!(""), json!("u".repeat(129)), json!(7), json!("a\nb")] {
        assert_eq!(with("sub", claim), Some(TokenError::User));
    }
    for claim in [json!("news"), json!(["a b"]), json!(["@events"]), json!(["a*b"]), json!([1])] {
        assert_eq!(with("channels", claim), Some(TokenError::Channels));
    }
    for claim in [json!("Ann"), json!({"name": "n".repeat(1024)})] {
        assert_eq!(with("info", claim), Some(TokenError::Info));
    }
    assert_eq!(with("sub", json!("u".repeat(MAX_TOKEN))), Some(TokenError::TooLong));
}

#[test]
fn an_audience_that_is_asked_for_must_be_named() {
    let tokens = Tokens::new(&TokenKeys { audience: Some("holdfast".to_owned()), ..keys() });
    for (claim, is_good) in [
        (json!("holdfast"), true),
        (json!(["shop", "holdfast"]), true),
        (json!("shop"), false),
        (json!([]), false),
        (json!(7), false),
        (json!(null), false),
    ] {
        let token = signed(&Header::default(), &json!({"exp": 1001, "aud": claim}));
        let expected = if is_good { None } else { Some(TokenError::Audience) };
        assert_eq!(tokens.verify(&token, at(1000)).err(), expected, "{claim}");
    }
    let token = signed(&Header::default(), &json!({"exp": 1001}));
    assert_eq!(tokens.verify(&token, at(1000)), Err(TokenError::Audience));
}

#[test]
fn neither_keys_nor_claims_are_shown() {
    let shown = format!("{:?} {:?}", keys(), Tokens::new(&keys()));
    assert!(!shown.contains("secret of more"), "{shown}");
}

fn good_tokens() -> impl Strategy<Value = String> {
    let hs256 = signed(&Header::default(), &json!({"exp": 2_000_000_000, "sub": "56"}));
    proptest::sample::select(vec![hs256, RS256.concat(), ES256.concat()])
}

proptest! {
    #[test]
    fn a_token_of_which_a_bit_is_changed_is_refused(token in good_tokens(), at_byte in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let tokens = Tokens::new(&keys());
        prop_assert!(tokens.verify(&token, at(1000)).is_ok());
        let mut bytes = token.into_bytes();
        let place = at_byte.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(changed) = String::from_utf8(bytes) {
            prop_assert!(tokens.verify(&changed, at(1000)).is_err());
        }
    }

    #[test]
    fn garbage_is_refused(text in any::<String>(), parts in "[A-Za-z0-9_-]{0,40}[.][A-Za-z0-9_-]{0,40}[.][A-Za-z0-9_-]{0,40}") {
        let tokens = Tokens::new(&keys());
        prop_assert!(tokens.verify(&text, at(1000)).is_err());
        prop_assert!(tokens.verify(&parts, at(1000)).is_err());
    }

    #[test]
    fn claims_of_any_kind_are_taken_or_refused(exp in any::<f64>(), sub in any::<String>(), names in proptest::collection::vec(any::<String>(), 0..3)) {
        let grant = verify(&json!({"exp": exp, "sub": sub, "channels": names}));
        if let Ok(grant) = grant {
            prop_assert!(grant.expires > at(1000));
            prop_assert!(grant.user.is_some_and(|user| user == sub && user.len() <= MAX_USER));
        }
    }
}
