//! What a client asks for in its request: a channel by the path, where it was by the query, and a token. Decides nothing.

use holdfast_shared::channels::up_ring::Subscribe;
use serde::{Deserialize, Serialize};

use crate::websocket::handshake::Request;

/// A request for a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Asked {
    /// The channel's name, unchecked.
    pub(crate) channel: String,
    pub(crate) since: Option<u64>,
    pub(crate) epoch: Option<String>,
    /// Messages are to say what they are of.
    pub(crate) envelope: bool,
    pub(crate) token: Option<String>,
    /// The subprotocol that the token came as, which the answer has to name.
    pub(crate) subprotocol: Option<String>,
}

/// What is kept in a client's session: what it asks for until it is answered, and who it is for as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asks: Option<Subscribe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) info: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) envelope: bool,
    /// Channels besides the one in the record: number, and the position from which on they count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) more: Vec<(u32, u64)>,
}

impl Kept {
    pub(crate) fn read(session: &[u8]) -> Self {
        serde_json::from_slice(session).unwrap_or_default()
    }

    /// Nothing if there is nothing to keep.
    pub(crate) fn write(&self) -> Vec<u8> {
        if *self == Self::default() {
            return Vec::new();
        }
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The prefix of a subprotocol that carries a token, for browsers, whose scripts can set no header.
const TOKEN_SUBPROTOCOL: &str = "holdfast.token.";

/// Reads what `request` asks for; `Err` says what is wrong with it.
pub(crate) fn read(request: &Request<'_>) -> Result<Asked, &'static str> {
    let mut asked = Asked { channel: decode(request.below)?, ..Asked::default() };
    for (name, value) in form_urlencoded::parse(request.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "since" => {
                asked.since = Some(value.parse().map_err(|_| "since is not the number of a publication")?);
            }
            "epoch" => asked.epoch = Some(value.into_owned()),
            "envelope" => asked.envelope = matches!(&*value, "1" | "true"),
            "token" => asked.token = Some(value.into_owned()),
            // Others are the application's, as the numbers against caches are.
            _ => {}
        }
    }
    if asked.since.is_some() != asked.epoch.is_some() {
        return Err("since and epoch go together");
    }
    if asked.token.is_none()
        && let Some(name) = request.subprotocols().iter().find(|name| name.starts_with(TOKEN_SUBPROTOCOL))
    {
        asked.token = name.strip_prefix(TOKEN_SUBPROTOCOL).map(str::to_owned);
        asked.subprotocol = Some(name.clone());
    }
    Ok(asked)
}

fn decode(path: &str) -> Result<String, &'static str> {
    const WRONG: &str = "The channel in the path is no text";
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).map_err(|_| WRONG)?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| WRONG)?);
                rest = after;
            }
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, below: &str, subprotocols: &[String]) -> Result<Asked, &'static str> {
        let head = format!("GET {target} HTTP/1.1\r\n\r\n");
        let path = target.split('?').next().unwrap_or_default();
        read(&Request { head: head.as_bytes(), path, below, subprotocols })
    }

    #[test]
    fn the_path_names_the_channel_and_the_query_the_rest() {
        let target = "/ws/chat%3a42?since=7&epoch=k3&envelope=1&token=a.b.c&_=1";
        let expected = Asked {
            channel: "chat:42".to_owned(),
            since: Some(7),
            epoch: Some("k3".to_owned()),
            envelope: true,
            token: Some("a.b.c".to_owned()),
            subprotocol: None,
        };
        assert_eq!(asked(target, "chat%3a42", &[]), Ok(expected));
        assert!(asked("/ws/x?since=7", "x", &[]).is_err());
        assert!(asked("/ws/x?since=-1&epoch=k", "x", &[]).is_err());
        assert!(asked("/ws/%ff", "%ff", &[]).is_err());
        assert_eq!(asked("/ws/%4", "%4", &[]).unwrap().channel, "%4");
    }

    #[test]
    fn a_token_may_come_as_a_subprotocol() {
        let offered = ["chat".to_owned(), "holdfast.token.a.b.c".to_owned()];
        let asked = asked("/ws/x", "x", &offered).unwrap();
        assert_eq!(asked.token.as_deref(), Some("a.b.c"));
        assert_eq!(asked.subprotocol.as_deref(), Some("holdfast.token.a.b.c"));
    }

    #[test]
    fn nothing_to_keep_takes_no_session() {
        assert!(Kept::default().write().is_empty());
        let kept = Kept { user: Some("7".to_owned()), more: vec![(2, 8)], ..Kept::default() };
        assert_eq!(Kept::read(&kept.write()), kept);
        assert_eq!(Kept::read(b"\x00"), Kept::default());
    }
}
