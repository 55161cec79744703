//! The configuration of channels as its users meet it: what is refused and in which words, and what a reload says of files.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::PathBuf;

use holdfast_shared::config::{Effect, Inputs, Value, load_text, reload};

fn inputs() -> Inputs {
    Inputs { file: Some(PathBuf::from("h.toml")), ..Inputs::default() }
}

/// Bad files and every line of the complaint.
const BAD_FILES: &[(&str, &[&str])] = &[
    (
        "[channels]\nmax_lag = \"60MiB\"",
        &[
            "h.toml:2: channels.max_lag: 62914560 bytes are more than three quarters of channels.journal_size; \
             allowed: at most 50331648 bytes, or raise channels.journal_size",
        ],
    ),
    (
        "[channels]\njournal_size = \"4MiB\"",
        &[
            "h.toml:2: channels.max_lag: 8388608 bytes are more than three quarters of channels.journal_size; \
             allowed: at most 3145728 bytes, or raise channels.journal_size",
        ],
    ),
    (
        "[[channels.rules]]\nmatch = \"a\"\n\n[[channels.rules]]\nhistory = 1\n[[channels.rules]]\nmatch = \"a b\"\n\
         [[channels.rules]]\nmatch = \"@a*\"\n[[channels.rules]]\nmatch = \"b\"\nlag = \"never\"\n\
         [[channels.rules]]\nmatch = \"c\"\npresense = true",
        &[
            "h.toml:4: channels.rules: match is missing; allowed: [[channels.rules]], each with a match, such as \"public:*\"",
            "h.toml:7: channels.rules.match: \"a b\": the name of a channel has printable ASCII characters, without space, \
             \", \\, *, ? and #; allowed: the name of a channel (up to 128 printable characters), or its beginning and a *",
            "h.toml:9: channels.rules.match: \"@a*\": names that begin with @ are the server's own; allowed: the name of a \
             channel (up to 128 printable characters), or its beginning and a *",
            "h.toml:12: channels.rules.lag: \"never\" is nothing that becomes of slow subscribers; allowed: \"close\" or \
             \"latest\"",
            "h.toml:13: channels.rules: presense is not a key of a rule; allowed: match, history, history_ttl, presence, \
             client_subscribe, client_publish, max_subscribers, publish_rate, lag",
        ],
    ),
    (
        "[api]\nlisten = \"127.0.0.1:8405\"",
        &[
            "h.toml:2: api.listen: there is no key, so that nobody could use it; allowed: with a file of keys in \
             api.keys_file, or a key in HOLDFAST_API_KEY; or \"\" for off",
        ],
    ),
    (
        "[api]\nlisten = \"0.0.0.0:8080\"\nkeys_file = \"/nowhere/keys\"",
        &[
            "h.toml:2: api.listen: 0.0.0.0:8080 is given twice; allowed: each address and port once, where 0.0.0.0 and [::] \
             stand for every address of their family",
            "h.toml:3: api.keys_file: /nowhere/keys: cannot be read: No such file or directory (os error 2); allowed: a file \
             that this user can read, or \"\" for none",
        ],
    ),
    (
        "[events]\nurl = \"https://shop:hush@example.org/\"\n[tokens]\naudience = 3",
        &[
            "h.toml:2: events.url: a URL with a user and a password is shown to everybody who sees the configuration; allowed: \
             a URL such as \"https://example.org/events\" of at most 2048 characters, or \"\" for none",
            "h.toml:4: tokens.audience: 3 is no audience; allowed: what the claim aud of tokens says, at most 255 bytes, or \
             \"\" for any",
        ],
    ),
];

#[test]
fn bad_files_are_refused_with_every_error_at_its_line() {
    for (text, expected) in BAD_FILES {
        let errors = load_text(text, &inputs()).unwrap_err().to_string();
        assert_eq!(errors.lines().collect::<Vec<_>>(), *expected, "{text}");
    }
}

#[test]
fn a_reload_says_which_files_hold_something_else_and_not_what() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("keys");
    let text = format!("[api]\nlisten = \"unix:/a\"\nkeys_file = \"{}\"", file.display());
    let read = |key: &str| {
        std::fs::write(&file, key).unwrap();
        load_text(&text, &inputs()).unwrap()
    };
    let (old, new) = (read("the-key-before-it"), read("the-key-after-that"));
    assert!(!format!("{old:?}{:?}", old.entries()).contains("the-key"));
    let (next, changes) = reload(&old, new.clone());
    assert_eq!(next.config.secrets, new.config.secrets);
    let [change] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((change.key, change.effect), ("api.keys_file", Effect::Live));
    assert_eq!(change.new, Value::text("new contents"));
    assert_eq!(reload(&new, new.clone()).1, []);
}
