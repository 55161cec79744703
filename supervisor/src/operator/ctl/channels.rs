//! What people ask of channels, and say to them, over the API's socket in the run directory.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use data_encoding::BASE64;
use holdfast_shared::channels::rules::{ChannelName, NameError};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::client::{self, Request, Response};
use super::{CtlError, tables};
use crate::host::api_sockets::LOCAL_SOCKET;

/// How long the API waits for the hub.
const DEADLINE: Duration = Duration::from_secs(10);

/// What `holdfast ctl` asks of channels.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum ChannelsCommand {
    /// Publish to a channel
    ///
    /// What is no JSON is published as a JSON string.
    Publish {
        /// The channel, such as chat:42
        #[arg(value_parser = channel)]
        channel: ChannelName,
        /// What to publish [default: what standard input says]
        data: Option<String>,
    },
    /// List channels, by name
    Channels {
        /// Only those whose names begin so
        #[arg(long)]
        prefix: Option<String>,
        /// Go on where a list before this one ended
        #[arg(long)]
        cursor: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// List who is subscribed to a channel
    Presence {
        /// The channel
        #[arg(value_parser = channel)]
        channel: ChannelName,
    },
    /// Show what was published in a channel, as far back as it is kept
    History {
        /// The channel
        #[arg(value_parser = channel)]
        channel: ChannelName,
        /// Only what came after this offset
        #[arg(long, value_name = "OFFSET")]
        since: Option<u64>,
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
}

/// Asks the hub of `run_dir`; the text to print. What to publish may come from `input`.
pub fn ask(
    run_dir: &Path,
    json: bool,
    command: &ChannelsCommand,
    input: impl Read,
) -> Result<String, CtlError> {
    let path = run_dir.join(LOCAL_SOCKET);
    let request = request(command, input)?;
    let response = client::exchange(&path, &request).map_err(|error| match error {
        // Where not even a supervisor is, that is what people must hear.
        CtlError::Connect { path, source }
            if source.kind() == io::ErrorKind::NotFound && super::socket_path(run_dir).exists() =>
        {
            CtlError::NoChannels { path }
        }
        other => other,
    })?;
    if response.status != 200 {
        return Err(CtlError::Refused { status: response.status, error: why(&response) });
    }
    if json {
        return Ok(response.body);
    }
    render(command, &response.body).map_err(|error| CtlError::Understand { path, reason: error.to_string() })
}

fn render(command: &ChannelsCommand, body: &str) -> serde_json::Result<String> {
    Ok(match command {
        ChannelsCommand::Publish { .. } => tables::published(&serde_json::from_str(body)?),
        ChannelsCommand::Channels { .. } => tables::channel_list(&serde_json::from_str(body)?),
        ChannelsCommand::Presence { .. } => tables::presence(&serde_json::from_str(body)?),
        ChannelsCommand::History { since, .. } => tables::history(*since, &serde_json::from_str(body)?),
    })
}

fn request(command: &ChannelsCommand, input: impl Read) -> Result<Request, CtlError> {
    let (method, target, body) = match command {
        ChannelsCommand::Publish { channel, data } => {
            let data = match data {
                Some(data) => data.clone().into_bytes(),
                None => read(input).map_err(CtlError::Read)?,
            };
            let body = publication(channel, data).map_err(|error| CtlError::Read(error.into()))?;
            ("POST", "/api/publish".to_owned(), body)
        }
        ChannelsCommand::Channels { prefix, cursor, limit } => {
            let limit = limit.to_string();
            let fields =
                [("prefix", prefix.as_deref()), ("cursor", cursor.as_deref()), ("limit", Some(&limit))];
            ("GET", target("/api/channels", &fields), String::new())
        }
        ChannelsCommand::Presence { channel } => {
            ("GET", target("/api/presence", &[("channel", Some(channel.as_str()))]), String::new())
        }
        ChannelsCommand::History { channel, since, limit } => {
            let (since, limit) = (since.map(|since| since.to_string()), limit.to_string());
            let fields = [
                ("channel", Some(channel.as_str())),
                ("since", since.as_deref()),
                ("limit", Some(limit.as_str())),
            ];
            ("GET", target("/api/history", &fields), String::new())
        }
    };
    Ok(Request { method, target, body, deadline: DEADLINE })
}

/// All of it; a line end behind it is the terminal's or `echo`'s.
fn read(mut input: impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    input.read_to_end(&mut data)?;
    if data.ends_with(b"\n") {
        data.pop();
    }
    Ok(data)
}

/// JSON as it is, other text as a string, bytes in base64.
fn publication(channel: &ChannelName, data: Vec<u8>) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Publication<'a> {
        channel: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<Box<RawValue>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        data_base64: Option<String>,
    }
    let (data, data_base64) = match String::from_utf8(data) {
        Ok(text) => match RawValue::from_string(text.trim().to_owned()) {
            Ok(json) => (Some(json), None),
            Err(_) => (Some(to_raw_value(&text)?), None),
        },
        Err(error) => (None, Some(BASE64.encode(error.as_bytes()))),
    };
    serde_json::to_string(&Publication { channel: channel.as_str(), data, data_base64 })
}

fn target(path: &str, fields: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    format!("{path}?{}", query.finish())
}

/// What a refusal says.
fn why(response: &Response) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        message: String,
    }
    match serde_json::from_str::<Body>(&response.body) {
        Ok(body) => body.error.message,
        Err(_) => format!("the hub answered {} {}", response.status, response.body).trim_end().to_owned(),
    }
}

fn channel(text: &str) -> Result<ChannelName, NameError> {
    ChannelName::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(data: &[u8]) -> String {
        let command = ChannelsCommand::Publish { channel: ChannelName::new("a").unwrap(), data: None };
        request(&command, data).unwrap().body
    }

    #[test]
    fn json_is_published_as_it_is_and_the_rest_as_a_string() {
        for (data, said) in [
            (&b"{ \"x\": 1.50 }\n"[..], r#"{"channel":"a","data":{ "x": 1.50 }}"#),
            (b"hello, world\n", r#"{"channel":"a","data":"hello, world"}"#),
            (b"\"", r#"{"channel":"a","data":"\""}"#),
            (b"null", r#"{"channel":"a","data":null}"#),
            (b"", r#"{"channel":"a","data":""}"#),
            (b"\xff\n", r#"{"channel":"a","data_base64":"/w=="}"#),
        ] {
            assert_eq!(body(data), said);
        }
    }

    #[test]
    fn without_a_socket_the_missing_configuration_or_the_missing_server_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let command = ChannelsCommand::Presence { channel: ChannelName::new("a").unwrap() };
        let ask = || ask(dir.path(), false, &command, io::empty()).unwrap_err();
        assert!(matches!(ask(), CtlError::Connect { .. }), "{}", ask());
        std::fs::write(super::super::socket_path(dir.path()), "").unwrap();
        let error = ask().to_string();
        assert!(error.contains("[[channels.rules]]") && error.contains("api.sock"), "{error}");
    }
}
