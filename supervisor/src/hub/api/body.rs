//! The JSON of a request's body, field by field. A field that nobody reads is refused: it would be believed to have
//! done something.

use holdfast_shared::channels::rules::ChannelName;
use holdfast_shared::id::ConnectionId;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{ApiError, Broadcast, Command, Data, Disconnect, Publish, Send, Subscription, Target};

/// Most channels of a broadcast, and most commands of a batch.
pub const MAX_PARTS: usize = 1000;

/// Most bytes that one call adds to the journal: a broadcast adds its data once for each channel.
const MAX_PUBLISHED: usize = 8 << 20;

/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 128;

/// Longest name of a user, in bytes.
const MAX_USER: usize = 128;

/// RFC 6455, section 5.5: a control frame has 125 bytes, of which the code takes two.
const MAX_REASON: usize = 123;

/// The command that `body` of a request for `path` holds.
///
/// # Errors
/// 400 with the place.
pub fn read<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let error = error.to_string();
        let suggestion =
            suggestion(&error).map_or_else(String::new, |name| format!("; did you mean {name}?"));
        ApiError::of_status(400, format!("{path}: {error}{suggestion}"))
    })
}

/// What was meant by the unknown name in an error of serde, which lists the known ones: "unknown field `a`, expected
/// one of `b`, `c` at line 1 column 4".
fn suggestion(error: &str) -> Option<&str> {
    let is_about_a_name =
        ["unknown field `", "unknown variant `"].iter().any(|start| error.starts_with(start));
    let mut names = error.split('`').skip(1).step_by(2);
    let unknown = names.next().filter(|_| is_about_a_name)?;
    let alike = names.map(|name| (strsim::jaro_winkler(name, unknown), name));
    alike.filter(|(likeness, _)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// One command of a batch, under its name.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Publish(Publish),
    Broadcast(Broadcast),
    Subscribe(Subscription),
    Unsubscribe(Subscription),
    Send(Send),
    Disconnect(Disconnect),
}

impl From<Part> for Command {
    fn from(part: Part) -> Self {
        match part {
            Part::Publish(publish) => Self::Publish(publish),
            Part::Broadcast(broadcast) => Self::Broadcast(broadcast),
            Part::Subscribe(subscription) => Self::Subscribe(subscription),
            Part::Unsubscribe(subscription) => Self::Unsubscribe(subscription),
            Part::Send(send) => Self::Send(send),
            Part::Disconnect(disconnect) => Self::Disconnect(disconnect),
        }
    }
}

/// The commands of a batch.
#[derive(Deserialize)]
#[serde(try_from = "BatchBody")]
pub struct Batch(pub Vec<Command>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    commands: Vec<Part>,
}

impl TryFrom<BatchBody> for Batch {
    type Error = String;

    fn try_from(body: BatchBody) -> Result<Self, String> {
        let count = body.commands.len();
        if count > MAX_PARTS {
            return Err(format!("there are {count} commands, and at most {MAX_PARTS} are taken"));
        }
        let commands: Vec<Command> = body.commands.into_iter().map(Command::from).collect();
        let published = commands.iter().map(published).sum();
        bounded(published)?;
        Ok(Self(commands))
    }
}

/// Bytes that a command adds to the journal.
fn published(command: &Command) -> usize {
    match command {
        Command::Publish(publish) => publish.data.bytes().len(),
        Command::Send(send) => send.data.bytes().len(),
        Command::Broadcast(broadcast) => broadcast.channels.len() * broadcast.data.bytes().len(),
        _ => 0,
    }
}

fn bounded(published: usize) -> Result<(), String> {
    if published <= MAX_PUBLISHED {
        return Ok(());
    }
    Err(format!("this would publish {published} bytes, and one call publishes at most {MAX_PUBLISHED}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishBody {
    channel: ChannelName,
    #[serde(default, deserialize_with = "even_null")]
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
    #[serde(default, deserialize_with = "key")]
    idempotency_key: Option<String>,
    #[serde(default, deserialize_with = "connection")]
    exclude: Option<ConnectionId>,
}

impl TryFrom<PublishBody> for Publish {
    type Error = String;

    fn try_from(body: PublishBody) -> Result<Self, String> {
        let PublishBody { channel, idempotency_key, exclude, .. } = body;
        Ok(Self {
            channel,
            data: Data::read(body.data, body.data_base64.as_deref())?,
            idempotency_key,
            exclude,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BroadcastBody {
    channels: Vec<ChannelName>,
    #[serde(default, deserialize_with = "even_null")]
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
    #[serde(default, deserialize_with = "key")]
    idempotency_key: Option<String>,
    #[serde(default, deserialize_with = "connection")]
    exclude: Option<ConnectionId>,
}

impl TryFrom<BroadcastBody> for Broadcast {
    type Error = String;

    fn try_from(body: BroadcastBody) -> Result<Self, String> {
        let BroadcastBody { channels, idempotency_key, exclude, .. } = body;
        let data = Data::read(body.data, body.data_base64.as_deref())?;
        let count = channels.len();
        if count > MAX_PARTS {
            return Err(format!("there are {count} channels, and at most {MAX_PARTS} are taken"));
        }
        bounded(count * data.bytes().len())?;
        Ok(Self { channels, data, idempotency_key, exclude })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscriptionBody {
    channel: ChannelName,
    #[serde(default, deserialize_with = "connection")]
    connection: Option<ConnectionId>,
    #[serde(default, deserialize_with = "user")]
    user: Option<String>,
}

impl TryFrom<SubscriptionBody> for Subscription {
    type Error = &'static str;

    fn try_from(body: SubscriptionBody) -> Result<Self, &'static str> {
        Ok(Self { channel: body.channel, target: target(body.connection, body.user)? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SendBody {
    #[serde(default, deserialize_with = "connection")]
    connection: Option<ConnectionId>,
    #[serde(default, deserialize_with = "user")]
    user: Option<String>,
    #[serde(default, deserialize_with = "even_null")]
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

impl TryFrom<SendBody> for Send {
    type Error = String;

    fn try_from(body: SendBody) -> Result<Self, String> {
        let target = target(body.connection, body.user)?;
        Ok(Self { target, data: Data::read(body.data, body.data_base64.as_deref())? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DisconnectBody {
    #[serde(default, deserialize_with = "connection")]
    connection: Option<ConnectionId>,
    #[serde(default, deserialize_with = "user")]
    user: Option<String>,
    code: Option<u16>,
    reason: Option<String>,
}

impl TryFrom<DisconnectBody> for Disconnect {
    type Error = String;

    fn try_from(body: DisconnectBody) -> Result<Self, String> {
        let target = target(body.connection, body.user)?;
        let code = body.code.unwrap_or(1000);
        if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
            return Err(format!(
                "{code} is no code to close with: 1000 to 1003, 1007 to 1014, or 3000 to 4999"
            ));
        }
        let reason = body.reason.unwrap_or_default();
        let length = reason.len();
        if length > MAX_REASON {
            return Err(format!("the reason has {length} bytes, and a close frame takes {MAX_REASON}"));
        }
        Ok(Self { target, code, reason })
    }
}

/// Bodies that become what is asked, or say why not.
macro_rules! read_as {
    ($($target:ty: $body:ty),*) => {$(
        impl<'de> Deserialize<'de> for $target {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$body>::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
            }
        }
    )*};
}

read_as!(Publish: PublishBody, Broadcast: BroadcastBody, Subscription: SubscriptionBody);
read_as!(Send: SendBody, Disconnect: DisconnectBody);

fn target(connection: Option<ConnectionId>, user: Option<String>) -> Result<Target, &'static str> {
    match (connection, user) {
        (Some(connection), None) => Ok(Target::Connection(connection)),
        (None, Some(user)) => Ok(Target::User(user)),
        (None, None) => Err("say whom: connection or user"),
        (Some(_), Some(_)) => Err("connection and user exclude each other"),
    }
}

/// `null` is a value to publish, not a field that is missing.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

fn connection<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ConnectionId>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let id = text.parse().map_err(|_| D::Error::custom(format!("\"{text}\" is no name of a connection")))?;
    Ok(Some(ConnectionId(id)))
}

fn user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let user = Option::<String>::deserialize(deserializer)?;
    user.map(|user| sized("user", user, MAX_USER)).transpose().map_err(D::Error::custom)
}

fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let key = Option::<String>::deserialize(deserializer)?;
    key.map(|key| sized("idempotency_key", key, MAX_KEY)).transpose().map_err(D::Error::custom)
}

fn sized(name: &str, text: String, limit: usize) -> Result<String, String> {
    match text.len() {
        length if length == 0 || length > limit => {
            Err(format!("{name} has {length} bytes, and takes 1 to {limit}"))
        }
        _ => Ok(text),
    }
}
