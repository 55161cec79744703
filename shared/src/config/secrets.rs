//! What the files of keys and secrets hold. Read with the configuration, shown nowhere: what is wrong with a file is said
//! without its contents.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::parse::Problem;
use super::{Config, keys};
use crate::channels::token_keys::{PublicKey, read_key_set};
use crate::secret::Secret;

/// The environment variable that may hold a key of the API. Nobody but the supervisor is to inherit it.
pub const API_KEY_VARIABLE: &str = "HOLDFAST_API_KEY";

/// Longer files are something else.
const LARGEST_FILE: u64 = 256 * 1024;
/// Shorter keys can be guessed.
const SHORTEST_KEY: usize = 16;
/// RFC 7518, section 3.2: as long as the hash of HS256.
const SHORTEST_SECRET: usize = 32;

/// What the files hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// Of the API: those of the file, then that of the environment.
    pub api_keys: Vec<Secret>,
    /// Of tokens signed by HS256.
    pub token_secret: Option<Secret>,
    /// Of those signed by RS256 and ES256.
    pub token_keys: Vec<PublicKey>,
    /// What signs events.
    pub events_secret: Option<Secret>,
    /// What is no mistake, but a danger.
    pub warnings: Vec<String>,
}

impl Secrets {
    /// The keys of the configuration whose files hold something else than those of `before`.
    pub(super) fn changed(&self, before: &Self) -> Vec<&'static str> {
        let all = [
            (keys::API_KEYS, self.api_keys != before.api_keys),
            (keys::TOKEN_SECRET, self.token_secret != before.token_secret),
            (keys::TOKEN_JWKS, self.token_keys != before.token_keys),
            (keys::EVENTS_SECRET, self.events_secret != before.events_secret),
        ];
        all.into_iter().filter(|(_, has_changed)| *has_changed).map(|(key, _)| key).collect()
    }
}

/// Reads all files that `config` names; with it, what is wrong with them, by key.
pub(super) fn read(config: &Config, api_key: Option<&Secret>) -> (Secrets, Vec<(&'static str, Problem)>) {
    let mut reader = Reader::default();
    let secrets = Secrets {
        api_keys: reader.api_keys(config.api.keys_file.as_deref(), api_key),
        token_secret: reader.secret(keys::TOKEN_SECRET, config.tokens.secret_file.as_deref()),
        token_keys: reader.key_set(config.tokens.jwks_file.as_deref()),
        events_secret: reader.secret(keys::EVENTS_SECRET, config.events.secret_file.as_deref()),
        warnings: Vec::new(),
    };
    if config.events.url.is_some() && config.events.secret_file.is_none() {
        reader.warnings.push(format!(
            "events.url: events are not signed, so that anybody can pretend to send them; name a file in {}",
            keys::EVENTS_SECRET
        ));
    }
    (Secrets { warnings: reader.warnings, ..secrets }, reader.problems)
}

#[derive(Default)]
struct Reader {
    problems: Vec<(&'static str, Problem)>,
    warnings: Vec<String>,
}

impl Reader {
    fn api_keys(&mut self, file: Option<&Path>, variable: Option<&Secret>) -> Vec<Secret> {
        const ALLOWED: &str =
            "one key a line, of printable ASCII characters without spaces; # begins a comment";
        let mut found = Vec::new();
        if let Some(path) = file
            && let Some(bytes) = self.file(keys::API_KEYS, path)
        {
            let lines = (1..).zip(bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii));
            for (line, key) in lines.filter(|(_, key)| !key.is_empty() && !key.starts_with(b"#")) {
                if !is_key(key) {
                    self.reject(keys::API_KEYS, path, &format!("line {line} is no key"), ALLOWED);
                }
                if key.len() < SHORTEST_KEY {
                    self.warn_of_length(
                        &format!("{} {}, line {line}", keys::API_KEYS, path.display()),
                        SHORTEST_KEY,
                    );
                }
                found.push(Secret::new(key));
            }
            if found.is_empty() {
                self.reject(keys::API_KEYS, path, "there is no key in it", ALLOWED);
            }
        }
        if let Some(key) = variable {
            if !is_key(key.expose()) {
                let what = format!("the environment variable {API_KEY_VARIABLE} is no key");
                self.problems
                    .push((keys::API_KEYS, Problem::new(what, "printable ASCII characters without spaces")));
            }
            if key.expose().len() < SHORTEST_KEY {
                self.warn_of_length(&format!("environment {API_KEY_VARIABLE}"), SHORTEST_KEY);
            }
            found.push(key.clone());
        }
        found
    }

    /// All bytes but a line break at the end, which editors put there.
    fn secret(&mut self, key: &'static str, file: Option<&Path>) -> Option<Secret> {
        let path = file?;
        let mut bytes = self.file(key, path)?;
        if bytes.ends_with(b"\n") {
            bytes.pop();
        }
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
        if bytes.is_empty() {
            self.reject(key, path, "it is empty", "a secret, such as `openssl rand -base64 32` makes");
            return None;
        }
        if bytes.len() < SHORTEST_SECRET {
            self.warn_of_length(&format!("{key} {}", path.display()), SHORTEST_SECRET);
        }
        Some(Secret::new(bytes))
    }

    fn key_set(&mut self, file: Option<&Path>) -> Vec<PublicKey> {
        const ALLOWED: &str = "a JSON Web Key Set, {\"keys\":[...]}, of public keys that have a kid";
        let Some(path) = file else { return Vec::new() };
        let Some(bytes) = self.file(keys::TOKEN_JWKS, path) else { return Vec::new() };
        let read = str::from_utf8(&bytes)
            .map_err(|_| "it is not text".to_owned())
            .and_then(|text| read_key_set(text).map_err(|error| error.to_string()));
        read.unwrap_or_else(|what| {
            self.reject(keys::TOKEN_JWKS, path, &what, ALLOWED);
            Vec::new()
        })
    }

    fn file(&mut self, key: &'static str, path: &Path) -> Option<Vec<u8>> {
        match contents(path) {
            Ok((bytes, mode)) => {
                // Public keys may be seen.
                if mode & 0o004 != 0 && key != keys::TOKEN_JWKS {
                    let path = path.display();
                    self.warnings.push(format!(
                        "{key} {path}: everybody on this machine can read it: chmod o-r {path}"
                    ));
                }
                Some(bytes)
            }
            Err(error) => {
                self.reject(
                    key,
                    path,
                    &format!("cannot be read: {error}"),
                    "a file that this user can read, or \"\" for none",
                );
                None
            }
        }
    }

    fn reject(&mut self, key: &'static str, path: &Path, what: &str, allowed: &str) {
        self.problems.push((key, Problem::new(format!("{}: {what}", path.display()), allowed)));
    }

    fn warn_of_length(&mut self, place: &str, least: usize) {
        self.warnings.push(format!(
            "{place}: fewer than {least} bytes can be guessed; `openssl rand -base64 32` makes more"
        ));
    }
}

fn is_key(key: &[u8]) -> bool {
    key.iter().all(u8::is_ascii_graphic)
}

/// And who may read it.
fn contents(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    // Opening a pipe would wait for who writes to it.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file, which could be read again on reload"));
    }
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other(format!("more than {LARGEST_FILE} bytes")));
    }
    Ok((bytes, mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, contents: impl AsRef<[u8]>, mode: u32) -> Option<PathBuf> {
            let path = self.0.path().join(name);
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Some(path)
        }
    }

    fn problems(config: &Config) -> Vec<String> {
        let (secrets, problems) = read(config, None);
        assert!(!format!("{secrets:?}{problems:?}").contains("hush"), "a secret is shown");
        problems.into_iter().map(|(key, problem)| format!("{key}: {}", problem.what)).collect()
    }

    #[test]
    fn keys_and_secrets_are_read() {
        let (place, mut config) = (Place::new(), Config::default());
        config.api.keys_file =
            place.file("keys", "# of the shop\n0123456789abcdef\r\n\nfedcba9876543210", 0o600);
        config.tokens.secret_file =
            place.file("secret", b"\xff a secret that has bytes of all kinds \r\n", 0o640);
        let (secrets, problems) = read(&config, Some(&Secret::new("of the environment".replace(' ', "-"))));
        assert_eq!(problems, []);
        assert_eq!(secrets.warnings, Vec::<String>::new());
        let keys: Vec<_> = secrets.api_keys.iter().map(Secret::expose).collect();
        assert_eq!(keys, [&b"0123456789abcdef"[..], b"fedcba9876543210", b"of-the-environment"]);
        assert_eq!(secrets.token_secret.unwrap().expose(), b"\xff a secret that has bytes of all kinds ");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_its_contents() {
        let (place, mut config) = (Place::new(), Config::default());
        let path = |file: &Option<PathBuf>| file.as_ref().unwrap().display().to_string();
        config.api.keys_file = place.file("keys", "0123456789abcdef\nhush hush\n", 0o600);
        config.tokens.secret_file = place.file("secret", "\n", 0o600);
        config.tokens.jwks_file = place.file("jwks", "\"hush\"", 0o600);
        config.events.secret_file = Some(place.0.path().join("missing"));
        let expected = [
            format!("api.keys_file: {}: line 2 is no key", path(&config.api.keys_file)),
            format!("tokens.secret_file: {}: it is empty", path(&config.tokens.secret_file)),
            format!(
                "tokens.jwks_file: {}: line 1, column 6: not a JSON object with a list \"keys\"",
                path(&config.tokens.jwks_file)
            ),
            format!(
                "events.secret_file: {}: cannot be read: No such file or directory (os error 2)",
                path(&config.events.secret_file)
            ),
        ];
        assert_eq!(problems(&config), expected);

        let mut config = Config::default();
        config.api.keys_file = place.file("keys", "# none\n", 0o600);
        config.tokens.secret_file = Some(place.0.path().to_owned());
        config.events.secret_file = place.file("large", vec![b'x'; 300_000], 0o600);
        let found = problems(&config);
        assert!(found[0].ends_with("there is no key in it"), "{found:?}");
        assert!(found[1].contains("not a regular file"), "{found:?}");
        assert!(found[2].contains("more than 262144 bytes"), "{found:?}");
    }

    #[test]
    fn dangers_are_named() {
        let (place, mut config) = (Place::new(), Config::default());
        config.api.keys_file = place.file("keys", "hush", 0o604);
        config.tokens.secret_file = place.file("secret", "hush", 0o600);
        config.events.url = Some("https://example.org".to_owned());
        let (secrets, problems) = read(&config, None);
        assert_eq!(problems, []);
        let [readable, key, secret, unsigned] = &secrets.warnings[..] else {
            panic!("{:?}", secrets.warnings)
        };
        assert!(readable.contains("chmod o-r") && key.contains("line 1: fewer than 16"), "{readable} {key}");
        assert!(
            secret.starts_with("tokens.secret_file") && unsigned.starts_with("events.url"),
            "{secret} {unsigned}"
        );
        assert!(!secrets.warnings.concat().contains("hush"));
    }
}
