//! Which protocol serves which path. Knows no protocol: their names are the program's.

use serde::{Deserialize, Serialize};

/// One route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Requests at this path and below it, by whole segments, belong to it. No slash at the end, except for `/`
    /// itself.
    pub path: String,
    /// The protocol that serves them.
    pub protocol: String,
    /// The subprotocols that it speaks.
    pub subprotocols: Subprotocols,
    /// Whether a client must offer one of them.
    pub subprotocol_required: bool,
}

/// Subprotocols of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subprotocols {
    /// These.
    Listed(Vec<String>),
    /// Whatever a client offers.
    Any,
}

impl Default for Subprotocols {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl Route {
    /// The first of the offers that the route speaks.
    #[must_use]
    pub fn choose<'a>(&self, offered: &'a [String]) -> Option<&'a str> {
        let chosen = match &self.subprotocols {
            Subprotocols::Listed(listed) => offered.iter().find(|name| listed.contains(name)),
            Subprotocols::Any => offered.first(),
        };
        chosen.map(String::as_str)
    }

    fn covers(&self, path: &str) -> bool {
        self.path == "/"
            || path.strip_prefix(&*self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The route of a request for `path`: the longest that covers it.
#[must_use]
pub fn find<'a>(routes: &'a [Route], path: &str) -> Option<&'a Route> {
    routes.iter().filter(|route| route.covers(path)).max_by_key(|route| route.path.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(paths: &[&str]) -> Vec<Route> {
        let route = |path: &&str| Route {
            path: (*path).to_owned(),
            protocol: format!("of {path}"),
            ..Route::default()
        };
        paths.iter().map(route).collect()
    }

    #[test]
    fn the_longest_route_whose_segments_begin_the_path_wins() {
        let all = routes(&["/chat", "/", "/chat/private"]);
        let some = routes(&["/chat"]);
        for (path, of_all, of_some) in [
            ("/", Some("/"), None),
            ("/chat", Some("/chat"), Some("/chat")),
            ("/chat/", Some("/chat"), Some("/chat")),
            ("/chat/x", Some("/chat"), Some("/chat")),
            ("/chatter", Some("/"), None),
            ("/chat/private", Some("/chat/private"), Some("/chat")),
            ("/chat/privately", Some("/chat"), Some("/chat")),
            ("/Chat", Some("/"), None),
        ] {
            let found = |routes| find(routes, path).map(|route: &Route| route.path.as_str());
            assert_eq!((found(&all), found(&some)), (of_all, of_some), "{path}");
        }
    }

    #[test]
    fn the_first_offer_that_is_spoken_is_chosen() {
        let offered = ["b", "A", "a"].map(str::to_owned);
        let choose =
            |subprotocols| Route { subprotocols, ..Route::default() }.choose(&offered).map(str::to_owned);
        let listed =
            |names: &[&str]| Subprotocols::Listed(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(choose(Subprotocols::default()), None);
        assert_eq!(choose(listed(&["a", "b"])).as_deref(), Some("b"));
        assert_eq!(choose(listed(&["a", "c"])).as_deref(), Some("a"));
        assert_eq!(choose(listed(&["B"])), None);
        assert_eq!(choose(Subprotocols::Any).as_deref(), Some("b"));
        assert_eq!(Route { subprotocols: Subprotocols::Any, ..Route::default() }.choose(&[]), None);
    }

    #[test]
    fn a_route_of_an_earlier_program_speaks_no_subprotocol() {
        let route: Route = serde_json::from_str(r#"{"path":"/","protocol":"echo"}"#).unwrap();
        assert_eq!((route.choose(&["mqtt".to_owned()]), route.subprotocol_required), (None, false));
    }

    proptest! {
        #[test]
        fn the_order_of_routes_does_not_matter(
            paths in prop::collection::btree_set("(/[ab]{1,2}){1,3}", 1..6),
            path in "(/[ab]{1,2}){1,4}/?",
        ) {
            let forward = routes(&paths.iter().map(String::as_str).collect::<Vec<_>>());
            let backward: Vec<Route> = forward.iter().rev().cloned().collect();
            prop_assert_eq!(find(&forward, &path), find(&backward, &path));
        }
    }
}
