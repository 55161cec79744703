//! Channels as text for people. What clients said is shown without what would steer a terminal.

use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::human;
use super::table;

/// The answer to a publication.
#[derive(Deserialize)]
pub struct Published {
    offset: u64,
    epoch: String,
    subscribers: u64,
}

/// Some channels.
#[derive(Deserialize)]
pub struct Channels {
    channels: Vec<Channel>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Channel {
    name: String,
    subscribers: u64,
    offset: u64,
    epoch: String,
}

/// Who is there.
#[derive(Deserialize)]
pub struct Presence {
    presence: Vec<Present>,
}

#[derive(Deserialize)]
struct Present {
    connection: String,
    user: Option<String>,
    info: Option<Box<RawValue>>,
}

/// What was published.
#[derive(Deserialize)]
pub struct History {
    publications: Vec<Publication>,
    epoch: String,
    offset: u64,
    recovered: bool,
}

#[derive(Deserialize)]
struct Publication {
    offset: u64,
    time_ms: u64,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

/// What became of a publication.
pub fn published(published: &Published) -> String {
    let Published { offset, epoch, subscribers } = published;
    format!("offset {offset} in epoch {epoch}, {} subscribers", human::count(*subscribers))
}

/// A list of channels.
pub fn channels(list: &Channels) -> String {
    let row = |channel: &Channel| {
        let Channel { name, subscribers, offset, epoch } = channel;
        [plain(name), human::count(*subscribers), offset.to_string(), epoch.clone()]
    };
    let rows = table(["CHANNEL", "SUBSCRIBERS", "OFFSET", "EPOCH"], list.channels.iter().map(row)).trim_fmt();
    match &list.next {
        None => rows,
        Some(next) => format!("{rows}\nthere are more: --cursor {}", plain(next)),
    }
}

/// Who is in a channel.
pub fn presence(presence: &Presence) -> String {
    if presence.presence.is_empty() {
        return "nobody is subscribed".to_owned();
    }
    let text = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), plain);
    let row = |there: &Present| {
        [
            plain(&there.connection),
            text(there.user.as_deref()),
            text(there.info.as_deref().map(RawValue::get)),
        ]
    };
    table(["CONNECTION", "USER", "INFO"], presence.presence.iter().map(row)).trim_fmt()
}

/// What was published in a channel, of which what came after `since` was asked for.
pub fn history(since: Option<u64>, history: &History) -> String {
    let row = |publication: &Publication| {
        let data = match (&publication.data, &publication.data_base64) {
            (Some(json), _) => plain(json.get()),
            (None, Some(base64)) => format!("base64 {}", plain(base64)),
            (None, None) => "null".to_owned(),
        };
        [publication.offset.to_string(), time(publication.time_ms), data]
    };
    let rows = table(["OFFSET", "TIME", "DATA"], history.publications.iter().map(row)).trim_fmt();
    let mut lines = vec![rows, format!("offset {} in epoch {}", history.offset, plain(&history.epoch))];
    if let (Some(since), false) = (since, history.recovered) {
        lines.push(format!("not all that came after {since} is kept"));
    }
    lines.join("\n")
}

fn time(ms: u64) -> String {
    // Beyond the year 9999 there is no such text, and a number is no worse.
    match UNIX_EPOCH.checked_add(Duration::from_millis(ms)) {
        Some(time) if ms < 253_402_300_800_000 => humantime::format_rfc3339_millis(time).to_string(),
        _ => ms.to_string(),
    }
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_a_table_and_says_what_is_missing() {
        let body = r#"{"publications":[{"offset":7,"time_ms":0,"data":{"x":1.50}},{"offset":8,"time_ms":1,"data":null},
            {"offset":9,"time_ms":18446744073709551615,"data_base64":"AA=="}],"epoch":"k3","offset":9,"recovered":false}"#;
        let text = history(Some(3), &serde_json::from_str(body).unwrap());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["7", "1970-01-01T00:00:00.000Z", r#"{"x":1.50}"#]);
        assert_eq!((lines[2][2], &lines[3][1..]), ("null", &["18446744073709551615", "base64", "AA=="][..]));
        assert_eq!(lines[4], ["offset", "9", "in", "epoch", "k3"]);
        assert!(text.ends_with("not all that came after 3 is kept"), "{text}");
    }

    #[test]
    fn nothing_of_a_client_steers_the_terminal() {
        let body = "{\"presence\":[{\"connection\":\"7\",\"user\":\"\\u001b[2J\",\"info\":\"\u{9b}2J\"}]}";
        let text = presence(&serde_json::from_str(body).unwrap());
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
