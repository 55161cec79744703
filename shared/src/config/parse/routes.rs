//! Routes: tables with a path, a protocol, and the subprotocols it speaks.

use std::collections::{BTreeMap, BTreeSet};

use super::{Problem, Problems, boolean, list, path, show_list};
use crate::config::Value;
use crate::route::{Route, Subprotocols};

const PATH: &str = "path";
const PROTOCOL: &str = "protocol";
const SUBPROTOCOLS: &str = "subprotocols";
const REQUIRED: &str = "subprotocol_required";
const FIELDS: [&str; 4] = [PATH, PROTOCOL, SUBPROTOCOLS, REQUIRED];

const ALLOWED: &str = "one or more [[routes]], each with a path and a protocol";

/// At least one route, each with a path of its own.
pub(in crate::config) fn routes(value: &Value) -> Result<Vec<Route>, Problems> {
    let routes = list(value, route)?;
    if routes.is_empty() {
        return Err(Problem::new("no route", ALLOWED).into());
    }
    let mut seen = BTreeSet::new();
    let twice = routes.iter().enumerate().filter(|(_, route)| !seen.insert(&*route.path));
    let problems: Vec<Problem> = twice
        .map(|(index, route)| Problem {
            item: Some(index),
            field: Some(PATH),
            what: format!("{} has a route already", Value::text(&*route.path)),
            allowed: "each path once".to_owned(),
        })
        .collect();
    if problems.is_empty() { Ok(routes) } else { Err(Problems(problems)) }
}

fn route(value: &Value) -> Result<Route, Problem> {
    let Value::Table(fields) = value else {
        return Err(Problem::new(format!("{value} is not a route"), ALLOWED));
    };
    if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&&***key)) {
        return Err(Problem::new(format!("{unknown} is not a key of a route"), FIELDS.join(", ")));
    }
    let field = |name| fields.get(name).ok_or_else(|| Problem::new(format!("{name} is missing"), ALLOWED));
    let in_field = |name| move |problem| Problem { field: Some(name), ..problem };
    let protocol = match field(PROTOCOL)? {
        Value::Text(protocol) => protocol.clone(),
        value => {
            return Err(in_field(PROTOCOL)(Problem::new(format!("{value} is not a protocol"), "its name")));
        }
    };
    let route = Route {
        path: path(field(PATH)?).map_err(in_field(PATH))?,
        protocol,
        subprotocols: fields
            .get(SUBPROTOCOLS)
            .map_or_else(|| Ok(Subprotocols::default()), subprotocols)
            .map_err(in_field(SUBPROTOCOLS))?,
        subprotocol_required: fields.get(REQUIRED).map_or(Ok(false), boolean).map_err(in_field(REQUIRED))?,
    };
    Ok(route)
}

/// A list of names, or `"any"`.
fn subprotocols(value: &Value) -> Result<Subprotocols, Problem> {
    let problem = |what| {
        Problem::new(
            what,
            "\"any\", or a list of names as they stand in Sec-WebSocket-Protocol, such as [\"mqtt\"]",
        )
    };
    match value {
        Value::Text(text) if text == "any" => Ok(Subprotocols::Any),
        Value::List(names) => names
            .iter()
            .map(|name| match name {
                Value::Text(text) if is_token(text) => Ok(text.clone()),
                name => Err(problem(format!("{name} is not a subprotocol"))),
            })
            .collect::<Result<_, _>>()
            .map(Subprotocols::Listed),
        value => Err(problem(format!("{value} is not a list of subprotocols"))),
    }
}

/// A token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

pub(in crate::config) fn show_routes(routes: &[Route]) -> Value {
    Value::List(routes.iter().map(show_route).collect())
}

/// What a route has by default is left out.
fn show_route(route: &Route) -> Value {
    let mut fields = BTreeMap::new();
    let mut show = |name: &str, value| drop(fields.insert(name.to_owned(), value));
    show(PATH, Value::text(&*route.path));
    show(PROTOCOL, Value::text(&*route.protocol));
    match &route.subprotocols {
        Subprotocols::Listed(names) if names.is_empty() => {}
        Subprotocols::Listed(names) => show(SUBPROTOCOLS, show_list(names)),
        Subprotocols::Any => show(SUBPROTOCOLS, Value::text("any")),
    }
    if route.subprotocol_required {
        show(REQUIRED, Value::Boolean(true));
    }
    Value::Table(fields)
}

/// What is wrong with routes to protocols that the program does not have.
pub(in crate::config) fn unknown_protocols(routes: &[Route], known: &[&str]) -> Vec<Problem> {
    let unknown = routes.iter().enumerate().filter(|(_, route)| !known.contains(&&*route.protocol));
    let allowed = known.iter().map(|name| Value::text(*name).to_string()).collect::<Vec<_>>().join(", ");
    unknown
        .map(|(index, route)| Problem {
            item: Some(index),
            field: Some(PROTOCOL),
            what: format!("{} is not a protocol of this program", Value::text(&*route.protocol)),
            allowed: allowed.clone(),
        })
        .collect()
}
