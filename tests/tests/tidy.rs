//! House rules, held against the source tree. Each failure names the file, the line and the rule.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// No file is longer: at this size look for the second idea in it.
const LONGEST_FILE: usize = 500;

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

impl Source {
    /// Lines of code with their numbers, comments cut off.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.starts_with("tests/") || self.path.ends_with("/tests.rs")
    }
}

/// Every Rust source of the workspace.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = Vec::new();
    for member in ["shared", "worker", "supervisor", "tests"] {
        gather(root, &root.join(member), &mut sources);
    }
    assert!(sources.len() > 20, "only {} sources found", sources.len());
    sources
}

fn gather(root: &Path, directory: &Path, sources: &mut Vec<Source>) {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "node_modules"].contains(&name.as_str()) && !name.starts_with('.') {
            gather(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources
                .push(Source { path: path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), text });
        }
    }
}

/// Fails with every line of code that `breaks` the rule.
fn forbid(rule: &str, breaks: impl Fn(&Source, &str) -> bool) {
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            if breaks(&source, line) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn unsafe_is_in_shared_sys_only() {
    // Put together here so that this file does not break its own rule.
    let word = concat!("un", "safe");
    forbid("what the compiler cannot check belongs in shared/src/sys", |source, line| {
        !source.path.starts_with("shared/src/sys")
            && line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|token| token == word)
            && !line.contains("lint")
    });
}

#[test]
fn bincode_is_named_in_one_file() {
    let name = concat!("bin", "code");
    forbid("bincode is known to shared/src/ipc/codec.rs alone", |source, line| {
        source.path != "shared/src/ipc/codec.rs" && line.contains(&format!("{name}::"))
    });
}

#[test]
fn libc_is_used_in_shared_sys_only() {
    let name = concat!("lib", "c::");
    forbid("what nix does not wrap belongs in shared/src/sys", |source, line| {
        !source.path.starts_with("shared/src/sys") && line.contains(name)
    });
}

#[test]
fn no_test_sleeps() {
    let call = concat!("sl", "eep(");
    forbid("tests wait for facts, not for time to pass", |source, line| {
        source.is_test() && line.contains(call) && !line.contains("fn ")
    });
}

#[test]
fn no_file_is_too_long_and_each_begins_by_saying_what_it_is() {
    let mut found = Vec::new();
    for source in sources() {
        let length = source.text.lines().count();
        if length > LONGEST_FILE {
            found.push(format!("{}: {length} lines, {LONGEST_FILE} at most", source.path));
        }
        // A module's tests own nothing that their module does not.
        if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
            found.push(format!("{}: does not begin with what it owns (//!)", source.path));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
