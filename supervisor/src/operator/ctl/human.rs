//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1536` as `1.5 KiB`.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    // Tenths in integers: exact where a float would round 1023.99 KiB up to a unit it has not reached.
    let (mut unit, mut tenths) = (0, u128::from(value) * 10 / 1024);
    while tenths >= 10 * 1024 {
        unit += 1;
        tenths /= 1024;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Seconds in their two largest units: `90061.5` as `1d 1h`, `0.0023` as `2.3ms`.
pub fn seconds(value: f64) -> String {
    let Ok(duration) = std::time::Duration::try_from_secs_f64(value) else {
        return value.to_string();
    };
    let whole = duration.as_secs();
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes, rest) {
        (0, 0, 0, 0) => {
            let micros = duration.subsec_micros();
            format!("{}.{}ms", micros / 1000, micros % 1000 / 100)
        }
        (0, 0, 0, _) => format!("{rest}s"),
        (0, 0, _, _) => format!("{minutes}m {rest}s"),
        (0, _, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `0.123` as `12.3 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(count(value), text);
        }
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn bytes_never_round_up_to_the_next_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (0.0, "0.0ms"),
            (0.0023, "2.3ms"),
            (59.9, "59s"),
            (61.0, "1m 1s"),
            (7_260.0, "2h 1m"),
            (90_061.5, "1d 1h"),
        ];
        for (value, text) in cases {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(seconds(-1.0), "-1");
        assert_eq!(seconds(f64::NAN), "NaN");
    }
}
