//! The Prometheus text exposition format, version 0.0.4: families of samples, escaping, histograms.
//! Knows no metric by name.

use std::fmt::{self, Display, Write};

use holdfast_shared::metric::Metric;

use crate::api::histogram::Histogram;

/// Text under construction.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins `metric`. Its head is written with the first sample, so that a family without samples is no
    /// family.
    pub fn family(&mut self, metric: &'static Metric) -> Family<'_> {
        Family { out: &mut self.0, metric, headed: false }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// One metric family under construction.
#[derive(Debug)]
pub struct Family<'a> {
    out: &'a mut String,
    metric: &'static Metric,
    headed: bool,
}

impl Family<'_> {
    /// Writes one sample; `labels` are the values of the metric's labels in their order.
    pub fn sample(&mut self, labels: &[&str], value: impl Into<Value>) {
        debug_assert_eq!(labels.len(), self.metric.labels.len(), "{}", self.metric.name);
        let labels = self.metric.labels.iter().copied().zip(labels.iter().copied());
        self.line("", labels, value.into());
    }

    /// Writes a histogram without labels: cumulative buckets up to +Inf, sum and count.
    pub fn histogram(&mut self, histogram: &Histogram) {
        for (bound, count) in histogram.cumulative() {
            self.line("_bucket", [("le", bound.to_string().as_str())].into_iter(), count.into());
        }
        self.line("_bucket", [("le", "+Inf")].into_iter(), histogram.count().into());
        self.line("_sum", std::iter::empty(), histogram.sum().into());
        self.line("_count", std::iter::empty(), histogram.count().into());
    }

    fn line<'l>(&mut self, suffix: &str, labels: impl Iterator<Item = (&'l str, &'l str)>, value: Value) {
        self.head();
        self.out.push_str(self.metric.name);
        self.out.push_str(suffix);
        let mut separator = '{';
        for (label, value) in labels {
            put(self.out, format_args!("{separator}{label}=\"{}\"", LabelValue(value)));
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        put(self.out, format_args!(" {value}\n"));
    }

    fn head(&mut self) {
        if !self.headed {
            let Metric { name, kind, help, .. } = self.metric;
            put(self.out, format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", Help(help)));
            self.headed = true;
        }
    }
}

/// A sample's value.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// Exact.
    Count(u64),
    /// Measured.
    Measure(f64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Value {
    fn from(measure: f64) -> Self {
        Self::Measure(measure)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            // The format reads numbers as Go does, which spells the infinities this way.
            Self::Measure(f64::INFINITY) => f.write_str("+Inf"),
            Self::Measure(f64::NEG_INFINITY) => f.write_str("-Inf"),
            Self::Measure(measure) => measure.fmt(f),
        }
    }
}

/// Help text, in which only backslash and line feed are escaped.
struct Help<'a>(&'a str);

impl Display for Help<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, false)
    }
}

/// A label value, in which the double quote is escaped too.
struct LabelValue<'a>(&'a str);

impl Display for LabelValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, true)
    }
}

fn escape(f: &mut fmt::Formatter<'_>, text: &str, quotes: bool) -> fmt::Result {
    for character in text.chars() {
        match character {
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '"' if quotes => f.write_str("\\\"")?,
            other => f.write_char(other)?,
        }
    }
    Ok(())
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use holdfast_shared::metric::Kind;

    use super::*;

    const ODD: Metric =
        Metric { name: "odd", kind: Kind::Gauge, labels: &["a", "b"], help: "Back\\slash,\n\"line\"." };
    const TIMES: Metric =
        Metric { name: "times_seconds", kind: Kind::Histogram, labels: &[], help: "Times." };

    #[test]
    fn labels_and_help_are_escaped() {
        let mut out = Exposition::default();
        out.family(&ODD).sample(&["say \"hi\"\n", "c:\\ é"], 1);
        assert_eq!(
            out.finish(),
            "# HELP odd Back\\\\slash,\\n\"line\".\n# TYPE odd gauge\nodd{a=\"say \\\"hi\\\"\\n\",b=\"c:\\\\ é\"} 1\n"
        );
    }

    #[test]
    fn values_are_written_as_go_reads_them() {
        let mut out = Exposition::default();
        let mut family = out.family(&ODD);
        for value in [0.25, 3.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            family.sample(&["", ""], value);
        }
        family.sample(&["", ""], u64::MAX);
        let values: Vec<String> = out
            .finish()
            .lines()
            .skip(2)
            .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()))
            .collect();
        assert_eq!(values, ["0.25", "3", "+Inf", "-Inf", "NaN", "18446744073709551615"]);
    }

    #[test]
    fn histograms_are_cumulative() {
        let mut out = Exposition::default();
        let mut times = Histogram::new(&[0.5, 2.0]);
        [0.25, 0.5, 0.5, 8.25].into_iter().for_each(|time| times.observe(time));
        out.family(&TIMES).histogram(&times);
        assert_eq!(
            out.finish(),
            "# HELP times_seconds Times.\n# TYPE times_seconds histogram\n\
             times_seconds_bucket{le=\"0.5\"} 3\ntimes_seconds_bucket{le=\"2\"} 3\n\
             times_seconds_bucket{le=\"+Inf\"} 4\ntimes_seconds_sum 9.5\ntimes_seconds_count 4\n"
        );
    }

    #[test]
    fn a_family_without_samples_is_not_written() {
        let mut out = Exposition::default();
        out.family(&ODD);
        assert_eq!(out.finish(), "");
    }
}
