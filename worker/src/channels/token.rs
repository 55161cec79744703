//! Clients' tokens (JSON Web Tokens, RFC 7519): whether one is good, and what it lets its bearer do. Pure: keys and the time are
//! given, and no error repeats what a token says.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_shared::channels::rules::{ChannelName, Pattern};
use holdfast_shared::channels::token_keys::{Numbers, TokenKeys};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A request has no room for much more.
const MAX_TOKEN: usize = 8 * 1024;
/// Of `sub`, in bytes.
const MAX_USER: usize = 128;
/// Of `info` in JSON, in bytes.
const MAX_INFO: usize = 1024;

/// Checks tokens.
#[derive(Debug, Default)]
pub struct Tokens {
    secret: Option<DecodingKey>,
    public: Vec<(String, Algorithm, DecodingKey)>,
    audience: Option<String>,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who its bearer is.
    pub user: Option<String>,
    /// Until when; no longer then.
    pub expires: SystemTime,
    /// What presence shows of its bearer: an object in JSON.
    pub info: Option<String>,
    channels: Vec<Pattern>,
}

impl Grant {
    /// Does it let its bearer into this channel?
    #[must_use]
    pub fn allows(&self, channel: &ChannelName) -> bool {
        self.channels.iter().any(|pattern| pattern.matches(channel.as_str()))
    }
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.detail())]
pub enum TokenError {
    TooLong,
    Malformed,
    Algorithm,
    UnknownKey,
    Signature,
    NoExpiry,
    Expired,
    NotYet,
    Audience,
    User,
    Channels,
    Info,
    Claims,
}

impl TokenError {
    /// In a sentence for whoever shows it.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Self::TooLong => "The token has more than 8192 bytes",
            Self::Malformed => "Not a JSON Web Token signed by HS256, RS256 or ES256",
            Self::Algorithm => "No key is configured for the token's algorithm",
            Self::UnknownKey => "The token's kid names no key for its algorithm",
            Self::Signature => "The token's signature is not of its key",
            Self::NoExpiry => "The token has no exp",
            Self::Expired => "The token has expired",
            Self::NotYet => "The token is not good yet",
            Self::Audience => "The token is for another audience",
            Self::User => "The token's sub is not text of 1 to 128 bytes without control characters",
            Self::Channels => "The token's channels are not names of channels, or their beginnings and a *",
            Self::Info => "The token's info is not an object of at most 1024 bytes",
            Self::Claims => "The token's claims are not what RFC 7519 says of them",
        }
    }
}

/// Before they are checked. Dates may have a fraction (RFC 7519, section 2).
#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<f64>,
    nbf: Option<f64>,
    channels: Option<Value>,
    info: Option<Value>,
}

impl Tokens {
    /// Checks by these keys.
    #[must_use]
    pub fn new(keys: &TokenKeys) -> Self {
        let public = |key: &holdfast_shared::channels::token_keys::PublicKey| match &key.numbers {
            Numbers::Rsa(modulus, exponent) => {
                let decoding = DecodingKey::from_rsa_raw_components(modulus, exponent);
                (key.kid.clone(), Algorithm::RS256, decoding)
            }
            Numbers::P256(x, y) => {
                // SEC 1, section 2.3.3: 4 says that both coordinates follow.
                let point = [&[4], x.as_slice(), y].concat();
                (key.kid.clone(), Algorithm::ES256, DecodingKey::from_ec_der(&point))
            }
        };
        Self {
            secret: keys.secret.as_ref().map(|secret| DecodingKey::from_secret(secret.expose())),
            public: keys.public.iter().map(public).collect(),
            audience: keys.audience.clone(),
        }
    }

    /// What a token says, if it is good at the time `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Grant, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        // RFC 7515, section 4.1.11: what must be understood and is not makes a token bad.
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let key = self.key(header.alg, header.kid.as_deref())?;
        let claims =
            decode(token, key, &self.validation(header.alg)).map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::InvalidAudience | ErrorKind::MissingRequiredClaim(_) => TokenError::Audience,
                ErrorKind::Json(_) => TokenError::Claims,
                _ => TokenError::Malformed,
            })?;
        grant(claims.claims, now)
    }

    /// A key is for one algorithm, whatever a token says: else one could be signed by what everybody knows.
    fn key(&self, algorithm: Algorithm, kid: Option<&str>) -> Result<&DecodingKey, TokenError> {
        if algorithm == Algorithm::HS256 {
            return self.secret.as_ref().ok_or(TokenError::Algorithm);
        }
        let mut keys = self.public.iter().filter(|(_, of, _)| *of == algorithm).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::Algorithm);
        }
        keys.find(|(name, ..)| Some(name.as_str()) == kid).map(|(.., key)| key).ok_or(TokenError::UnknownKey)
    }

    /// What is left to the library: signature and audience. It would ask the clock for the rest.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.required_spec_claims = HashSet::new();
        validation.validate_aud = false;
        if let Some(audience) = &self.audience {
            validation.validate_aud = true;
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["aud"]);
        }
        validation
    }
}

fn grant(claims: Claims, now: SystemTime) -> Result<Grant, TokenError> {
    let expires = date(claims.exp.ok_or(TokenError::NoExpiry)?)?;
    if expires <= now {
        return Err(TokenError::Expired);
    }
    if claims.nbf.map(date).transpose()?.is_some_and(|from| from > now) {
        return Err(TokenError::NotYet);
    }
    Ok(Grant {
        user: claims.sub.map(user).transpose()?,
        expires,
        info: claims.info.map(info).transpose()?,
        channels: claims.channels.map_or_else(|| Ok(Vec::new()), channels)?,
    })
}

fn date(seconds: f64) -> Result<SystemTime, TokenError> {
    let since = Duration::try_from_secs_f64(seconds).map_err(|_| TokenError::Claims)?;
    UNIX_EPOCH.checked_add(since).ok_or(TokenError::Claims)
}

fn user(claim: Value) -> Result<String, TokenError> {
    let is_sound = |user: &str| (1..=MAX_USER).contains(&user.len()) && !user.contains(char::is_control);
    match claim {
        Value::String(user) if is_sound(&user) => Ok(user),
        _ => Err(TokenError::User),
    }
}

fn info(claim: Value) -> Result<String, TokenError> {
    let info: Map<String, Value> = serde_json::from_value(claim).map_err(|_| TokenError::Info)?;
    let text = serde_json::to_string(&info).map_err(|_| TokenError::Info)?;
    if text.len() <= MAX_INFO { Ok(text) } else { Err(TokenError::Info) }
}

fn channels(claim: Value) -> Result<Vec<Pattern>, TokenError> {
    let names: Vec<String> = serde_json::from_value(claim).map_err(|_| TokenError::Channels)?;
    names.into_iter().map(|name| Pattern::new(name).map_err(|_| TokenError::Channels)).collect()
}

#[cfg(test)]
mod tests;
