//! Routes: tables with a path and a protocol.

use std::collections::{BTreeMap, BTreeSet};

use super::{Problem, Problems, list, path};
use crate::config::Value;
use crate::route::Route;

const PATH: &str = "path";
const PROTOCOL: &str = "protocol";

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
    if let Some(unknown) = fields.keys().find(|key| ![PATH, PROTOCOL].contains(&&***key)) {
        return Err(Problem::new(format!("{unknown} is not a key of a route"), "path and protocol"));
    }
    let field = |name| fields.get(name).ok_or_else(|| Problem::new(format!("{name} is missing"), ALLOWED));
    let in_field = |name| move |problem| Problem { field: Some(name), ..problem };
    let path = path(field(PATH)?).map_err(in_field(PATH))?;
    match field(PROTOCOL)? {
        Value::Text(protocol) => Ok(Route { path, protocol: protocol.clone() }),
        value => Err(in_field(PROTOCOL)(Problem::new(format!("{value} is not a protocol"), "its name"))),
    }
}

pub(in crate::config) fn show_routes(routes: &[Route]) -> Value {
    let fields = |route: &Route| {
        let fields = [(PATH, &route.path), (PROTOCOL, &route.protocol)];
        BTreeMap::from(fields.map(|(name, text)| (name.to_owned(), Value::text(&**text))))
    };
    Value::List(routes.iter().map(|route| Value::Table(fields(route))).collect())
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
