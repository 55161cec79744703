//! The Prometheus text format, as much of it as our metrics use: name, labels, value. Anything else is a
//! failure.

use std::collections::BTreeMap;

/// All samples of one scrape, by name and labels as written.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposition {
    samples: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Exposition {
    /// Reads a scrape.
    ///
    /// # Panics
    /// At a line that is no sample and no comment, and at a sample said twice.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut samples = BTreeMap::new();
        let mut kinds = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                if let Some((name, kind)) =
                    comment.strip_prefix("TYPE ").and_then(|rest| rest.split_once(' '))
                {
                    kinds.insert(name.to_owned(), kind.to_owned());
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "said twice: {series}");
        }
        Self { samples, kinds }
    }

    /// The type of a metric family.
    #[must_use]
    pub fn kind(&self, name: &str) -> Option<&str> {
        self.kinds.get(name).map(String::as_str)
    }

    /// The sum of all series called `name` that have every one of `labels`, such as `reason="origin"`; 0 when
    /// there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.series(name)
            .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
            .map(|(_, v)| v)
            .sum()
    }

    /// How many series are called `name`.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.series(name).count()
    }

    /// Every counter series with its value: what must never go backwards.
    pub fn counters(&self) -> impl Iterator<Item = (&str, f64)> {
        self.samples.iter().filter_map(|(series, value)| {
            let name = series.split('{').next().unwrap_or(series);
            (self.kind(name) == Some("counter")).then_some((series.as_str(), *value))
        })
    }

    fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let named = move |series: &str| series.split('{').next() == Some(name);
        self.samples
            .iter()
            .filter(move |(series, _)| named(series))
            .map(|(series, value)| (series.as_str(), *value))
    }
}
