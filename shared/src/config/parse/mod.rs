//! Untyped values to typed ones and back: each pair spells one kind of value. Says what is wrong and what is
//! allowed; knows no key, no place and no other value.

mod channels;
mod name;
mod quantity;
mod routes;

use super::Value;

pub(super) use channels::{
    api_listen, audience, channel_rules, events_url, optional_file, show_api_listen, show_channel_rules,
    show_optional_file,
};
pub(super) use name::{
    balance, boolean, forwarding_header, listen, networks, optional_address, origins, path, refusal_mode,
    run_dir, shed, show_balance, show_forwarding_header, show_refusal_mode, show_run_dir, show_shed,
};
pub(super) use quantity::{
    count, duration, duration_or_never, limit, max_buffered, max_connections, percent, portion,
    show_duration, show_max_buffered, show_max_connections, show_percent, show_portion, show_size,
    show_workers, size, workers,
};
pub(super) use routes::{routes, show_routes, unknown_protocols};

/// Why a value is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Which item of a list is meant.
    pub item: Option<usize>,
    /// Which key of the item, when it has some.
    pub field: Option<&'static str>,
    pub what: String,
    pub allowed: String,
}

/// Everything wrong with a value; never empty.
#[derive(Debug)]
pub(super) struct Problems(pub Vec<Problem>);

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl Problem {
    pub(super) fn new(what: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { item: None, field: None, what: what.into(), allowed: allowed.into() }
    }
}

/// One item, or a list of them; reports every bad item.
fn list<T>(value: &Value, item: impl Fn(&Value) -> Result<T, Problem>) -> Result<Vec<T>, Problems> {
    let Value::List(items) = value else {
        return Ok(vec![item(value)?]);
    };
    let mut taken = Vec::with_capacity(items.len());
    let mut problems = Vec::new();
    for (index, value) in items.iter().enumerate() {
        match item(value) {
            Ok(value) => taken.push(value),
            Err(problem) => problems.push(Problem { item: Some(index), ..problem }),
        }
    }
    if problems.is_empty() { Ok(taken) } else { Err(Problems(problems)) }
}

pub(super) fn show_list<T: ToString>(items: &[T]) -> Value {
    Value::List(items.iter().map(|item| Value::text(item.to_string())).collect())
}
