//! A configuration value before it has a type: what TOML, a variable or a flag said, and how to spell it
//! again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use toml::Spanned;
use toml::de::DeValue;

/// An untyped value. Spelled as TOML by `Display`, serialised as the plain string, number, list or table it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// Yes or no.
    Boolean(bool),
    /// A list.
    List(Vec<Self>),
    /// An item with keys of its own, which need no quotes.
    Table(BTreeMap<String, Self>),
    /// A kind that no key takes, by its name: only good for saying so.
    Other(&'static str),
}

impl Value {
    /// The string `text`, whatever it looks like.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// What a variable or a flag says: a TOML value if it is one, else a string.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        DeValue::parse(text).map_or_else(|_| Self::text(text), |value| Self::from(value.get_ref()))
    }
}

impl From<&DeValue<'_>> for Value {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::text(text.as_ref()),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or(Self::Other("a number of more than 64 bits"), Self::Integer),
            DeValue::Array(items) => {
                Self::List(items.iter().map(|item| Self::from(item.get_ref())).collect())
            }
            DeValue::Float(_) => Self::Other("a fraction"),
            DeValue::Boolean(boolean) => Self::Boolean(*boolean),
            DeValue::Datetime(_) => Self::Other("a date or time"),
            DeValue::Table(fields) => {
                let field = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
                    (key.get_ref().clone().into_owned(), Self::from(value.get_ref()))
                };
                Self::Table(fields.iter().map(field).collect())
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Self::Integer(integer) => integer.fmt(f),
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{item}")?;
                }
                f.write_str("]")
            }
            Self::Table(fields) => {
                f.write_str("{")?;
                for (index, (key, value)) in fields.iter().enumerate() {
                    let separator = if index == 0 { " " } else { ", " };
                    write!(f, "{separator}{key} = {value}")?;
                }
                f.write_str(" }")
            }
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flag_is_toml_where_it_can_be() {
        assert_eq!(Value::parse("12"), Value::Integer(12));
        assert_eq!(Value::parse("1_000"), Value::Integer(1000));
        assert_eq!(Value::parse("30s"), Value::text("30s"));
        assert_eq!(Value::parse("\"12\""), Value::text("12"));
        assert_eq!(Value::parse("[::1]:80"), Value::text("[::1]:80"));
        assert_eq!(Value::parse("[1, \"a\"]"), Value::List(vec![Value::Integer(1), Value::text("a")]));
        assert_eq!(Value::parse("true"), Value::Boolean(true));
        assert_eq!(Value::parse(""), Value::text(""));
    }

    proptest! {
        #[test]
        fn spelling_reads_back(texts in proptest::collection::vec(any::<String>(), 0..4), number in any::<i64>()) {
            let mut items: Vec<_> = texts.into_iter().map(Value::Text).collect();
            items.push(Value::Integer(number));
            let table = items.iter().enumerate().map(|(at, item)| (format!("key-{at}"), item.clone())).collect();
            items.push(Value::Table(table));
            let value = Value::List(items);
            prop_assert_eq!(Value::parse(&value.to_string()), value);
        }
    }
}
