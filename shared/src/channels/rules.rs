//! Which channels there may be, and what holds for each: rules by name or prefix. Knows neither files nor how values are
//! spelled.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::directory::MAX_NAME;

/// The channel of lifecycle events, whose name no client can use.
pub const EVENTS: &str = "@events";

/// What is wrong with the name of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a channel has a name")]
    Empty,
    #[error("the name of a channel has at most {MAX_NAME} bytes")]
    TooLong,
    #[error("the name of a channel has printable ASCII characters, without space, \", \\, *, ? and #")]
    Character,
    #[error("names that begin with @ are the server's own")]
    Reserved,
}

/// The name of a channel that clients may use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(String);

impl ChannelName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"\\*?#".contains(&byte);
        match name.as_bytes() {
            [] => Err(NameError::Empty),
            bytes if bytes.len() > MAX_NAME => Err(NameError::TooLong),
            bytes if !bytes.iter().all(|&byte| is_allowed(byte)) => Err(NameError::Character),
            [b'@', ..] => Err(NameError::Reserved),
            _ => Ok(Self(name)),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ChannelName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name, or all names that begin so: it ends with `*` then.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pattern(pub String);

impl Pattern {
    /// Checks a pattern: a name, or the beginning of names and a `*`.
    ///
    /// # Errors
    /// What is wrong with the name or the beginning.
    pub fn new(pattern: impl Into<String>) -> Result<Self, NameError> {
        let pattern = pattern.into();
        match pattern.strip_suffix('*') {
            Some("") => {}
            Some(prefix) => drop(ChannelName::new(prefix)?),
            None => drop(ChannelName::new(&*pattern)?),
        }
        Ok(Self(pattern))
    }

    /// Does it name this channel?
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.strip_suffix('*').map_or(self.0 == name, |prefix| name.starts_with(prefix))
    }
}

/// What a subscriber that is too slow for `max_lag` comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lag {
    /// It is closed.
    #[default]
    Close,
    /// It goes on with the newest.
    Latest,
}

/// What holds for the channels that it matches. Travels by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Which channels.
    pub matches: Pattern,
    /// Publications that can be had again, at most.
    pub history: u32,
    /// For how long; zero is as long as the journal has them.
    pub history_ttl: Duration,
    /// Who is there can be asked.
    pub presence: bool,
    /// Clients may subscribe without a token.
    pub client_subscribe: bool,
    /// Clients may publish.
    pub client_publish: bool,
    /// Subscribers at most; 0 is no limit.
    pub max_subscribers: u32,
    /// Publications in a second at most; 0 is no limit.
    pub publish_rate: u32,
    /// What becomes of slow subscribers.
    pub lag: Lag,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            matches: Pattern::default(),
            history: 0,
            history_ttl: Duration::ZERO,
            presence: false,
            client_subscribe: true,
            client_publish: false,
            max_subscribers: 0,
            publish_rate: 0,
            lag: Lag::Close,
        }
    }
}

/// The first rule that matches.
#[must_use]
pub fn find<'a>(rules: &'a [Rule], name: &str) -> Option<&'a Rule> {
    rules.iter().find(|rule| rule.matches.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_printable_and_bounded() {
        for (name, expected) in [
            ("", Err(NameError::Empty)),
            ("chat:42/a", Ok(())),
            ("@events", Err(NameError::Reserved)),
            ("a b", Err(NameError::Character)),
            ("a*", Err(NameError::Character)),
            ("ä", Err(NameError::Character)),
        ] {
            assert_eq!(ChannelName::new(name).map(drop), expected, "{name}");
        }
        assert_eq!(ChannelName::new("x".repeat(MAX_NAME)).map(drop), Ok(()));
        assert_eq!(ChannelName::new("x".repeat(MAX_NAME + 1)), Err(NameError::TooLong));
        assert!(serde_json::from_str::<ChannelName>("\"a b\"").is_err());
    }

    #[test]
    fn the_first_rule_that_matches_holds() {
        let rule = |pattern: &str| Rule { matches: Pattern(pattern.to_owned()), ..Rule::default() };
        let rules = [rule("chat:vip"), rule("chat:*"), rule("news")];
        let found = |name| find(&rules, name).map(|rule| rule.matches.0.as_str());
        assert_eq!(found("chat:vip"), Some("chat:vip"));
        assert_eq!(found("chat:vip2"), Some("chat:*"));
        assert_eq!((found("news"), found("newsletter")), (Some("news"), None));
        assert_eq!(find(&[rule("*")], "any").map(|rule| rule.presence), Some(false));
    }

    #[test]
    fn a_pattern_is_a_name_or_its_beginning() {
        for (pattern, expected) in [
            ("*", Ok(())),
            ("chat:*", Ok(())),
            ("news", Ok(())),
            ("", Err(NameError::Empty)),
            ("a*b*", Err(NameError::Character)),
            ("**", Err(NameError::Character)),
            ("@*", Err(NameError::Reserved)),
        ] {
            assert_eq!(Pattern::new(pattern).map(drop), expected, "{pattern}");
        }
    }
}
