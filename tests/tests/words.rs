//! Words that were replaced by the field's own and do not come back, in code, names, comments and prose.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is not said, and what is said instead. Names count word by word: `HeirPid` and `heir_pid` say "heir".
const REPLACED: &[(&str, &str)] = &[
    ("stepchild stepchildren", "adopted processes"),
    ("heritage", "upgrade handoff"),
    ("seat seats seating seated", "slot"),
    ("heir heirs", "successor"),
    ("orphan orphans orphaned", "keeper takeover, a worker without a keeper"),
    ("mourn bury", "on_worker_death, slot_lost"),
    ("rendezvous door doors", "reconnect socket, listener"),
    ("nursery newborn", "temporary directory"),
    ("introduce introduces introduced", "register"),
    ("forsaken bereft deadly babbles farewell", "abandoned, worker lost, crash suspect, bad answer, grace"),
    ("disown", "drop in transit"),
    ("trial trials", "upgrade probation"),
    ("roll rolls", "rolling restart"),
    ("gate gates", "admission hold"),
    ("herd herds crew temper tempers", "clients, client processes, behaviour"),
];

/// Where a word is somebody else's: a command of the shell, a field of the kernel, a name
/// that earlier programs write.
const ALLOWED: &[(&str, &str)] = &[
    ("tests/silent.sh", "disown"),
    ("tests/processes.sh", "orphans"),
    ("tests/src/load/kernel.rs", "orphan"),
    ("supervisor/src/operations/upgrade/handoff.rs", "door"),
];

/// Still said.
const NOT_YET: &[&str] = &["nursery", "newborn"];

const KINDS: [&str; 6] = ["rs", "md", "sh", "toml", "py", "service"];

/// Tells what was; may use the words of then.
const HISTORY: &str = "CHANGELOG.md";

#[test]
fn replaced_words_do_not_come_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut files, mut found, mut still) = (Vec::new(), Vec::new(), BTreeSet::new());
    collect(root, &mut files);
    assert!(files.len() > 100, "only {} files found", files.len());
    for path in files {
        let file = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if file == HISTORY || path.ends_with(file!()) {
            continue;
        }
        for (n, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            for word in words(line) {
                let rule =
                    REPLACED.iter().find(|(words, _)| words.split(' ').any(|replaced| replaced == word));
                let Some((_, instead)) = rule else { continue };
                if NOT_YET.contains(&word.as_str()) {
                    still.insert(word);
                } else if !ALLOWED.contains(&(&file, &word)) {
                    found.push(format!("{file}:{}: \"{word}\": say {instead}", n + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "replaced words:\n{}", found.join("\n"));
    let gone: Vec<_> = NOT_YET.iter().filter(|word| !still.contains(**word)).collect();
    assert!(gone.is_empty(), "said no more, take them out of NOT_YET: {gone:?}");
}

#[test]
fn names_are_read_word_by_word() {
    let all: Vec<String> = words("let HeirPid = old_heir(HTTPHead, \"it's\");").collect();
    assert_eq!(all, ["let", "heir", "pid", "old", "heir", "httphead", "it", "s"]);
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && name != ".git" {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| KINDS.iter().any(|kind| extension == *kind)) {
            files.push(path);
        }
    }
}

/// The words of a line in lower case; a new one begins at a capital that follows a small letter.
fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split(|c: char| !c.is_ascii_alphabetic()).filter(|token| !token.is_empty()).flat_map(|token| {
        let mut words = vec![String::new()];
        let mut was_small = false;
        for c in token.chars() {
            if was_small && c.is_ascii_uppercase() {
                words.push(String::new());
            }
            was_small = c.is_ascii_lowercase();
            words.last_mut().unwrap().push(c.to_ascii_lowercase());
        }
        words
    })
}
