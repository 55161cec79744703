//! What an operator may say about limits while the service runs: to show them, to change some, to see what a change
//! would do. Reads and writes words; which limits there are, and what they may be, the configuration knows.

use holdfast_shared::config::Value;
use holdfast_shared::level::Level;
use serde::{Deserialize, Serialize};

use super::{Change, ConnectionRow, Failure, Query};

/// Not a limit, but a level to act as if it were reached.
const SIMULATE: &str = "simulate";

/// An order about limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct LimitsOrder {
    /// Limits to change, such as max_connections=5000; simulate=degraded acts as if that level
    /// were reached, until simulate=normal
    #[arg(value_name = "KEY=VALUE", value_parser = assignment)]
    pub changes: Vec<(String, Value)>,
    /// Only say what would change, and who would be closed
    #[arg(long, requires = "changes")]
    pub dry_run: bool,
    /// It is about a change, whatever that is.
    #[arg(skip)]
    is_change: bool,
}

impl LimitsOrder {
    /// To show them.
    pub const SHOW: Self = Self { changes: Vec::new(), dry_run: false, is_change: false };
    /// To change those that the body names.
    pub const CHANGE: Self = Self { changes: Vec::new(), dry_run: false, is_change: true };

    /// Does it change something?
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.is_change || !self.changes.is_empty()
    }

    /// Its path with what else it says.
    #[must_use]
    pub fn target(&self) -> String {
        if self.dry_run { "/limits?dry_run=true".to_owned() } else { "/limits".to_owned() }
    }

    /// The order with what a query says of it.
    ///
    /// # Errors
    /// 400 when `dry_run` is neither `true` nor `false`.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        match self.is_change() {
            true => Ok(Self { dry_run: query.take_as("dry_run", "true or false")?.unwrap_or(false), ..self }),
            false => Ok(self),
        }
    }

    /// The order with the changes of `body`, a JSON object.
    ///
    /// # Errors
    /// 400 when it is no object, or an empty one.
    pub fn with_body(self, body: &[u8]) -> Result<Self, Failure> {
        let refuse = |why: String| {
            let allowed = r#"an object of limits such as {"max_connections": 5000}"#;
            Failure::new(400, format!("/limits: the body is {why}; allowed: {allowed}"))
        };
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).map_err(|error| refuse(format!("not understood: {error}")))?;
        if fields.is_empty() {
            return Err(refuse("empty".to_owned()));
        }
        let changes = fields.into_iter().map(|(name, value)| (name, untyped(value))).collect();
        Ok(Self { changes, ..self })
    }

    /// The body that says the changes.
    #[must_use]
    pub fn body(&self) -> String {
        // A map of text and numbers: nothing that JSON cannot say.
        let fields = self.changes.iter().map(|(name, value)| (name.clone(), json(value)));
        serde_json::Value::Object(fields.collect()).to_string()
    }

    /// The changes of limits.
    pub fn limits(&self) -> impl Iterator<Item = &(String, Value)> {
        self.changes.iter().filter(|(name, _)| name != SIMULATE)
    }

    /// The level to simulate, if it says one.
    ///
    /// # Errors
    /// 422 when there is no such level.
    pub fn simulated(&self) -> Result<Option<Level>, Failure> {
        let level = |value: &Value| {
            Level::ALL.into_iter().find(|level| *value == Value::text(level.name())).ok_or_else(|| {
                let levels = Level::ALL.map(Level::name).join(", ");
                Failure::new(422, format!("{SIMULATE}: {value} is no level; allowed: {levels}"))
            })
        };
        let last = self.changes.iter().rev().find(|(name, _)| name == SIMULATE);
        last.map(|(_, value)| level(value)).transpose()
    }
}

/// What became of a change of limits, or would.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsReport {
    /// Every limit that has changed.
    pub changes: Vec<Change>,
    /// Nothing was changed: this is what would be.
    pub dry_run: bool,
    /// How full the server is after it; in a dry run, before it.
    pub level: Level,
    /// Who is closed, if the cap is below the count and `limits.shed` says that they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shed: Option<ShedPlan>,
}

/// Who is closed until the count is at the cap.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShedPlan {
    /// How many.
    pub connections: u64,
    /// How many a second.
    pub rate: u32,
    /// How long that takes.
    pub seconds: f64,
    /// Those that would be first, in a dry run.
    pub first: Vec<ConnectionRow>,
}

/// As `--set` reads it.
fn assignment(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), Value::parse(value.trim())))
        }
        _ => Err("expected KEY=VALUE, such as max_connections=5000".to_owned()),
    }
}

fn json(value: &Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn untyped(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::String(text) => Value::Text(text),
        serde_json::Value::Bool(boolean) => Value::Boolean(boolean),
        serde_json::Value::Number(number) => {
            number.as_i64().map_or(Value::Other("a number that is no whole one"), Value::Integer)
        }
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(untyped).collect()),
        serde_json::Value::Object(_) => Value::Other("an object"),
        serde_json::Value::Null => Value::Other("null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_the_same_on_the_command_line_and_in_a_body() {
        let said = ["max_connections=5000", "shed=idlest", "exempt_addresses=[\"::1\"]", "simulate=degraded"];
        let changes: Vec<_> = said.iter().map(|text| assignment(text).unwrap()).collect();
        let order = LimitsOrder { changes, ..LimitsOrder::default() };
        assert!(order.is_change());
        let again = LimitsOrder::CHANGE.with_body(order.body().as_bytes()).unwrap();
        let (mut before, mut after) = (order.changes.clone(), again.changes.clone());
        before.sort_by(|(a, _), (b, _)| a.cmp(b));
        after.sort_by(|(a, _), (b, _)| a.cmp(b));
        assert_eq!(before, after);
        assert_eq!((order.limits().count(), order.simulated()), (3, Ok(Some(Level::Degraded))));
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (body, why) in [
            ("", "not understood"),
            ("[1]", "not understood"),
            ("{}", "empty"),
            (r#"{"max_connections": 5"#, "not understood"),
        ] {
            let failure = LimitsOrder::CHANGE.with_body(body.as_bytes()).unwrap_err();
            assert!(failure.status == 400 && failure.error.contains(why), "{body}: {failure}");
        }
        let order = LimitsOrder::CHANGE.with_body(br#"{"simulate": "mild"}"#).unwrap();
        assert_eq!(order.simulated().unwrap_err().status, 422);
        assert!(assignment("max_connections").is_err());
    }
}
