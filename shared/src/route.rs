//! Which protocol serves which path. Knows no protocol: their names are the program's.

use serde::{Deserialize, Serialize};

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Requests at this path and below it, by whole segments, belong to it. No slash at the end, except for `/`
    /// itself.
    pub path: String,
    /// The protocol that serves them.
    pub protocol: String,
}

impl Route {
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
        let route = |path: &&str| Route { path: (*path).to_owned(), protocol: format!("of {path}") };
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
