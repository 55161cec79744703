//! The mistakes that are common in servers of this kind: each has a test that names it, where the matter is tested.
//! This looks for those names, and tests nothing itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::path::Path;

/// Where each is tested.
const MISTAKES: &[(&str, &str)] = &[
    ("tests/tests/per_address.rs", "Mistake 1: per-address caps kept per worker"),
    ("tests/tests/cap_storm.rs", "Mistake 1: caps kept per worker"),
    ("tests/tests/cap_storm.rs", "Mistake 2: counts decremented twice"),
    ("tests/tests/cap_storm.rs", "Mistake 3: checked before the handshake, counted after it"),
    ("tests/tests/per_address.rs", "Mistake 4: whoever connects writes the left-most entry himself"),
    ("tests/tests/control.rs", "Mistake 5: totals reset before the replies arrive"),
    ("tests/tests/cap_storm.rs", "Mistake 6: cap / workers as a static quota"),
    ("tests/tests/timers.rs", "Mistake 7: pong counted as activity"),
    ("tests/tests/timers.rs", "Mistake 8: all pings in one tick"),
    ("tests/tests/bad_http.rs", "Mistake 9: a bare status line followed by a reset"),
    ("tests/tests/refusals.rs", "Mistake 9: a bare status line followed by a reset"),
    ("tests/tests/start_failures.rs", "Mistake 10: descriptor tables sized from the limit"),
    ("tests/tests/crash_loop.rs", "Mistake 11: fork at once, for ever"),
];

#[test]
fn every_mistake_has_a_test_that_names_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (file, name) in MISTAKES {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let tests = text.split("\n#[test]\n").skip(1).map(first_comment);
        assert!(tests.flatten().any(|line| line.contains(name)), "{file}: no test begins with {name:?}");
    }
}

/// The comment that a test begins with.
fn first_comment(test: &str) -> impl Iterator<Item = &str> {
    let body = test.lines().skip_while(|line| !line.starts_with("fn ")).skip(1);
    body.map(str::trim).take_while(|line| line.starts_with("//"))
}
