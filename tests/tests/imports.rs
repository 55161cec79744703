//! Who may name whom: between crates, and between the folders of a crate. Each failure names the file, the line
//! and the rule.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, the lowest first: each may name those before it. The last entry of each is the order of its
/// folders (and files beside `lib.rs`), the lowest first; a folder may name those before it. What stands together
/// in one entry is one floor: none of it names another.
const CRATES: [(&str, &str, &[&[&str]]); 3] = [
    ("shared", "holdfast_shared", &[]),
    (
        "worker",
        "holdfast_worker",
        &[
            &["test_hooks"],
            &["websocket"],
            &["channels"],
            &["app"],
            &["connection"],
            &["serve"],
            &["life"],
            &["keeper"],
        ],
    ),
    (
        "supervisor",
        "holdfast_supervisor",
        &[
            &["logging"],
            &["host"],
            &["api"],
            &["hub"],
            &["operator", "cluster"],
            &["operations"],
            &["supervisor"],
            &["start"],
            &["role"],
        ],
    ),
];

/// Not yet so: crate, the folder that names, the folder that is named.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// One `use` or path in code.
struct Name {
    file: String,
    line: usize,
    /// The folder below `src`, or the name of a file beside `lib.rs`.
    from: String,
    /// From the crate on: `crate`, `holdfast_worker` and what follows.
    path: Vec<String>,
}

#[test]
fn a_crate_names_only_those_below_it() {
    let mut found = Vec::new();
    for (floor, (folder, ..)) in CRATES.iter().enumerate() {
        for name in names(folder) {
            if CRATES[floor + 1..].iter().any(|(_, above, _)| *above == name.path[0]) {
                found.push(format!("{}:{}: {folder} names {}", name.file, name.line, name.path[0]));
            }
        }
    }
    assert!(found.is_empty(), "the direction is shared <- worker <- supervisor:\n{}", found.join("\n"));
}

#[test]
fn a_folder_names_only_those_below_it() {
    let (mut found, mut excepted) = (Vec::new(), BTreeSet::new());
    for (folder, _, floors) in CRATES.into_iter().filter(|(.., floors)| !floors.is_empty()) {
        let floor_of: BTreeMap<&str, usize> = floors
            .iter()
            .enumerate()
            .flat_map(|(floor, names)| names.iter().map(move |name| (*name, floor)))
            .collect();
        for name in names(folder) {
            let (from, Some(to)) = (name.from.as_str(), name.path.get(1)) else { continue };
            if name.path[0] != "crate" || from == to || from == "lib" || from == "main" {
                continue;
            }
            let Some(&own) = floor_of.get(from) else {
                found.push(format!("{}: {from} has no place in the order of {folder}'s folders", name.file));
                continue;
            };
            // What is no module is an item of `lib.rs`, which anybody may name.
            if floor_of.get(to.as_str()).is_some_and(|&floor| floor >= own) {
                match EXCEPTIONS.iter().find(|exception| **exception == (folder, from, to.as_str())) {
                    Some(exception) => drop(excepted.insert(exception)),
                    None => found.push(format!("{}:{}: {from} names {to}", name.file, name.line)),
                }
            }
        }
    }
    found.sort();
    found.dedup();
    assert!(found.is_empty(), "a folder names only those below it (see CRATES):\n{}", found.join("\n"));
    let over: Vec<_> = EXCEPTIONS.iter().filter(|exception| !excepted.contains(exception)).collect();
    assert!(over.is_empty(), "no exceptions any more, take them out: {over:?}");
}

#[test]
fn what_is_named_is_found_in_any_form() {
    let source = "use crate::a::{B, c::D};\nuse super::e::F; // crate::comment\n\
         use crate::{\n    g::H,\n    i,\n};\npub(in crate::j) fn k() { holdfast_worker::l::m(); super::super::n() }\n\
         #[cfg(test)]\nmod tests {\n    use crate::o;\n}\n";
    let names = names_in("worker/src/x/y.rs", source, &["x".to_owned(), "y".to_owned()]);
    let found: Vec<(usize, String)> = names.iter().map(|name| (name.line, name.path.join("::"))).collect();
    let found: Vec<(usize, &str)> = found.iter().map(|(line, path)| (*line, path.as_str())).collect();
    assert_eq!(
        found,
        [
            (1, "crate::a"),
            (2, "crate::x"),
            (3, "crate::g"),
            (3, "crate::i"),
            (7, "holdfast_worker::l"),
            (7, "crate::n")
        ]
    );
}

/// What the crate in `folder` names, by paths that begin with a crate or with `super`.
fn names(folder: &str) -> Vec<Name> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = Vec::new();
    let mut folders = vec![root.join(folder).join("src")];
    while let Some(directory) = folders.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                let module = module_of(&PathBuf::from(&file));
                // A module's tests may name anything.
                if module.last().is_none_or(|last| last != "tests") {
                    names.extend(names_in(&file, &fs::read_to_string(&path).unwrap(), &module));
                }
            }
        }
    }
    assert!(names.len() > 10, "only {} names found in {folder}", names.len());
    names
}

/// `worker/src/a/mod.rs` is `a`, `worker/src/a/b.rs` is `a::b`, `worker/src/lib.rs` is `lib`.
fn module_of(file: &Path) -> Vec<String> {
    let below_src = file.iter().skip(2).map(|part| part.to_string_lossy());
    below_src.map(|part| part.trim_end_matches(".rs").to_owned()).filter(|part| part != "mod").collect()
}

/// The first two steps of each path in `text`, which is the module `module`.
fn names_in(file: &str, text: &str, module: &[String]) -> Vec<Name> {
    let mut names = Vec::new();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
    let starts = CRATES.map(|(_, name, _)| name).into_iter().chain(["crate", "super"]);
    for start in starts {
        let pattern = format!("{start}::");
        for (at, _) in code.match_indices(&pattern) {
            let before = &code[..at];
            let is_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if is_word || before.ends_with("super::") || before.ends_with("pub(in ") || before.ends_with('$')
            {
                continue;
            }
            let mut rest = &code[at + pattern.len()..];
            let mut base = vec![start.to_owned()];
            if start == "super" {
                let mut parent = &module[..module.len().saturating_sub(1)];
                while let Some(further) = rest.strip_prefix("super::") {
                    (parent, rest) = (&parent[..parent.len().saturating_sub(1)], further);
                }
                base = std::iter::once("crate".to_owned()).chain(parent.iter().take(1).cloned()).collect();
            }
            let line = before.matches('\n').count() + 1;
            let mut add = |path| {
                names.push(Name { file: file.to_owned(), line, from: module[0].clone(), path });
            };
            if base.len() == 2 {
                add(base);
                continue;
            }
            for first in first_steps(rest) {
                add(vec![base[0].clone(), first]);
            }
        }
    }
    names.sort_by_key(|name| name.line);
    names
}

/// The first steps of what follows `::`: one, or those of a list in braces.
fn first_steps(rest: &str) -> Vec<String> {
    let step = |text: &str| {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    let Some(list) = rest.strip_prefix('{') else { return vec![step(rest)] };
    let (mut depth, mut steps, mut begin) = (0, Vec::new(), 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                steps.push(step(&list[begin..at]));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    steps.retain(|step| !step.is_empty());
    steps
}
