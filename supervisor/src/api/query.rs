//! The query of a request, field by field. What nobody takes is refused: a field that is not read would be believed to
//! have done something.

use std::fmt::Display;
use std::str::FromStr;

use super::Failure;

/// What is left of a query.
#[derive(Debug)]
pub struct Query {
    path: &'static str,
    fields: Vec<(String, String)>,
}

impl Query {
    /// The fields of `query`, asked of `path`.
    #[must_use]
    pub fn parse(path: &'static str, query: &str) -> Self {
        let fields = form_urlencoded::parse(query.as_bytes());
        Self { path, fields: fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect() }
    }

    /// Takes a field; `read` makes what it says of its text.
    ///
    /// # Errors
    /// 400 when it is there twice, or `read` cannot.
    pub fn take<T, E: Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Failure> {
        let Some(place) = self.fields.iter().position(|(field, _)| field == name) else { return Ok(None) };
        let (_, text) = self.fields.remove(place);
        if self.fields.iter().any(|(field, _)| field == name) {
            return Err(self.failure(name, &format!("{name} is there twice")));
        }
        read(&text).map(Some).map_err(|error| self.failure(name, &error.to_string()))
    }

    /// As [`take`](Self::take), for what has one spelling. `what` says which.
    ///
    /// # Errors
    /// 400 when it is there twice, or spelled in another way.
    pub fn take_as<T: FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, Failure> {
        self.take(name, |text| text.parse().map_err(|_| format!("{text} is not {what}")))
    }

    /// All fields have been taken.
    ///
    /// # Errors
    /// 400 when one has not.
    pub fn end(self) -> Result<(), Failure> {
        match self.fields.first() {
            Some((name, _)) => Err(self.failure(name, "it takes no such field")),
            None => Ok(()),
        }
    }

    fn failure(&self, name: &str, why: &str) -> Failure {
        Failure::new(400, format!("{}?{name}: {why}", self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_one_by_one() {
        let mut query = Query::parse("/x", "slot=7&reason=too%20many+of%26them");
        assert_eq!(query.take_as("slot", "a slot"), Ok(Some(7)));
        assert_eq!(
            query.take("reason", |text| Ok::<_, String>(text.to_owned())),
            Ok(Some("too many of&them".to_owned()))
        );
        assert_eq!(query.take_as::<u16>("other", "a number"), Ok(None));
        assert_eq!(query.end(), Ok(()));
        assert_eq!(Query::parse("/x", "").end(), Ok(()));
    }

    #[test]
    fn what_is_not_understood_is_400_and_says_why() {
        let slot = |query| {
            let mut query = Query::parse("/x", query);
            query.take_as::<u16>("slot", "the number of a slot").and_then(|_| query.end())
        };
        for (query, why) in [
            ("slot=", "/x?slot:  is not the number of a slot"),
            ("slot=70000", "/x?slot: 70000 is not the number of a slot"),
            ("slot=1&slot=2", "/x?slot: slot is there twice"),
            ("slots=1", "/x?slots: it takes no such field"),
            ("slot=1&x", "/x?x: it takes no such field"),
        ] {
            assert_eq!(slot(query), Err(Failure::new(400, why)), "{query}");
        }
    }
}
