//! Numbers, parts of the cap, durations and sizes.

use std::fmt::Display;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Problem;
use crate::config::{MaxBuffered, MaxConnections, Portion, Value, Workers};

/// A whole number within `range`.
pub(in crate::config) fn count<T>(value: &Value, range: RangeInclusive<T>) -> Result<T, Problem>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
    let Value::Integer(integer) = *value else {
        return Err(Problem::new(format!("{value} is not a whole number"), allowed()));
    };
    T::try_from(integer)
        .ok()
        .filter(|count| range.contains(count))
        .ok_or_else(|| Problem::new(format!("{integer} is out of range"), allowed()))
}

/// A limit of at most `most`, 0 standing for none.
pub(in crate::config) fn limit(value: &Value, most: u32) -> Result<Option<NonZeroU32>, Problem> {
    match count(value, 0..=most) {
        Ok(limit) => Ok(NonZeroU32::new(limit)),
        Err(problem) => {
            Err(Problem { allowed: format!("{}, where 0 is no limit", problem.allowed), ..problem })
        }
    }
}

/// `"auto"` or a number within `range`.
fn auto_or_count<T>(value: &Value, range: RangeInclusive<T>) -> Result<Option<T>, Problem>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    if *value == Value::text("auto") {
        return Ok(None);
    }
    count(value, range)
        .map(Some)
        .map_err(|problem| Problem { allowed: format!("\"auto\" or {}", problem.allowed), ..problem })
}

pub(in crate::config) fn workers(value: &Value) -> Result<Workers, Problem> {
    Ok(auto_or_count(value, 1..=1024)?.map_or(Workers::Auto, Workers::Count))
}

pub(in crate::config) fn show_workers(workers: Workers) -> Value {
    match workers {
        Workers::Auto => Value::text("auto"),
        Workers::Count(count) => Value::Integer(count.into()),
    }
}

pub(in crate::config) fn max_connections(
    value: &Value,
    range: RangeInclusive<u32>,
) -> Result<MaxConnections, Problem> {
    Ok(auto_or_count(value, range)?.map_or(MaxConnections::Auto, MaxConnections::Count))
}

pub(in crate::config) fn show_max_connections(max: MaxConnections) -> Value {
    match max {
        MaxConnections::Auto => Value::text("auto"),
        MaxConnections::Count(count) => Value::Integer(count.into()),
    }
}

/// A number of connections within `range`, or a percentage.
pub(in crate::config) fn portion(value: &Value, range: RangeInclusive<u32>) -> Result<Portion, Problem> {
    let least = (*range.start()).min(1);
    let more = |problem: Problem| Problem {
        allowed: format!(
            "{}, or a percentage of max_connections from \"{least}%\" to \"100%\"",
            problem.allowed
        ),
        ..problem
    };
    if let Value::Text(text) = value
        && let Some(number) = text.strip_suffix('%')
    {
        return match number.trim_end().parse() {
            Ok(percent) if percent <= 100 && u32::from(percent) >= least => Ok(Portion::Percent(percent)),
            _ => Err(Problem::new(
                format!("{value} is not a whole percentage in range"),
                format!("\"{least}%\" to \"100%\" of max_connections, or a number of connections"),
            )),
        };
    }
    count(value, range).map(Portion::Count).map_err(more)
}

/// A percentage, 0 included.
pub(in crate::config) fn percent(value: &Value) -> Result<u8, Problem> {
    let number = match value {
        Value::Text(text) => text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok()),
        _ => None,
    };
    number.filter(|percent| *percent <= 100).ok_or_else(|| {
        Problem::new(format!("{value} is not a whole percentage"), "\"1%\" to \"100%\", or \"0%\" for never")
    })
}

pub(in crate::config) fn show_percent(percent: u8) -> Value {
    Value::text(format!("{percent}%"))
}

pub(in crate::config) fn show_portion(portion: Portion) -> Value {
    match portion {
        Portion::Count(count) => Value::Integer(count.into()),
        Portion::Percent(percent) => Value::text(format!("{percent}%")),
    }
}

/// A duration with its unit, within `range`.
pub(in crate::config) fn duration(
    value: &Value,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Problem> {
    let allowed = || {
        format!(
            "a duration with its unit, such as \"30s\" or \"500ms\", from {} to {}",
            humantime::format_duration(*range.start()),
            humantime::format_duration(*range.end()),
        )
    };
    let duration = match value {
        Value::Integer(_) => return Err(Problem::new(format!("{value} has no unit"), allowed())),
        Value::Text(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(Problem::new(format!("{value} has no unit"), allowed()));
        }
        Value::Text(text) => humantime::parse_duration(text).ok(),
        Value::Boolean(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => None,
    };
    let Some(duration) = duration else {
        return Err(Problem::new(format!("{value} is not a duration"), allowed()));
    };
    if range.contains(&duration) {
        Ok(duration)
    } else {
        Err(Problem::new(format!("{value} is out of range"), allowed()))
    }
}

/// A duration within `range`, or zero for never.
pub(in crate::config) fn duration_or_never(
    value: &Value,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, Problem> {
    if duration(value, Duration::ZERO..=Duration::ZERO).is_ok() {
        return Ok(None);
    }
    duration(value, range).map(Some).map_err(|problem| Problem {
        allowed: format!("{}, or \"0s\" for never", problem.allowed),
        ..problem
    })
}

pub(in crate::config) fn show_duration(duration: Duration) -> Value {
    Value::text(humantime::format_duration(duration).to_string())
}

/// Largest first, so that showing finds the largest that divides a size.
const SIZE_UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes within `range`, plain or with a binary unit.
pub(in crate::config) fn size(value: &Value, range: RangeInclusive<usize>) -> Result<usize, Problem> {
    let allowed = || {
        let [start, end] = [range.start(), range.end()].map(|size| spell_size(*size));
        format!(
            "bytes, or a size such as \"64KiB\" or \"1MiB\" (units B, KiB, MiB, GiB), from {start} to {end}"
        )
    };
    let size = match value {
        Value::Integer(bytes) => usize::try_from(*bytes).ok(),
        Value::Text(text) => {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let (number, unit) = text.split_at(digits);
            let unit = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim());
            let (Ok(number), Some((_, bytes))) = (number.parse::<usize>(), unit) else {
                return Err(Problem::new(format!("{value} is not a size"), allowed()));
            };
            number.checked_mul(*bytes)
        }
        Value::Boolean(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => {
            return Err(Problem::new(format!("{value} is not a size"), allowed()));
        }
    };
    size.filter(|size| range.contains(size))
        .ok_or_else(|| Problem::new(format!("{value} is out of range"), allowed()))
}

fn spell_size(size: usize) -> String {
    SIZE_UNITS
        .iter()
        .find(|(_, bytes)| size >= *bytes && size.is_multiple_of(*bytes))
        .map_or_else(|| format!("{size}B"), |(name, bytes)| format!("{}{name}", size / bytes))
}

/// `"auto"` or a size.
pub(in crate::config) fn max_buffered(
    value: &Value,
    range: RangeInclusive<usize>,
) -> Result<MaxBuffered, Problem> {
    if *value == Value::text("auto") {
        return Ok(MaxBuffered::Auto);
    }
    size(value, range)
        .map(MaxBuffered::Bytes)
        .map_err(|problem| Problem { allowed: format!("\"auto\" or {}", problem.allowed), ..problem })
}

pub(in crate::config) fn show_max_buffered(max: MaxBuffered) -> Value {
    match max {
        MaxBuffered::Auto => Value::text("auto"),
        MaxBuffered::Bytes(bytes) => show_size(bytes),
    }
}

pub(in crate::config) fn show_size(size: usize) -> Value {
    Value::text(spell_size(size))
}
