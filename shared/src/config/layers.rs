//! Puts file, environment and flags over the defaults, in that order, and gathers every error on the way.
//! The only part of the configuration that reads anything from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::parse::{self, Problem, Problems};
use super::{Config, ConfigError, ConfigErrors, Effective, Inputs, Source, Value, check, keys, secrets};

/// The variables that are read and the keys they set.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("PORT", "listen"), // only the port of the first address
    ("WORKERS", "workers"),
    ("BACKLOG", "backlog"),
    ("MAX_CONNECTIONS", "limits.max_connections"),
    ("MAX_PER_IP", "limits.max_connections_per_address"),
];

/// Reads the file, if one is named, and layers everything into a valid configuration.
///
/// # Errors
/// Everything wrong with file, environment and flags, at once.
pub fn load(inputs: &Inputs) -> Result<Effective, ConfigErrors> {
    let mut layers = Layers::new(inputs);
    if let Some(path) = &inputs.file {
        match fs::read_to_string(path) {
            Ok(text) => layers.file(path, &text),
            Err(source) => layers.unreadable(path, source),
        }
    }
    layers.finish(inputs)
}

/// As [`load`], with `text` for what the file named in `inputs` holds.
///
/// # Errors
/// Everything wrong with file, environment and flags, at once.
pub fn load_text(text: &str, inputs: &Inputs) -> Result<Effective, ConfigErrors> {
    let mut layers = Layers::new(inputs);
    layers.file(inputs.file.as_deref().unwrap_or(Path::new("holdfast.toml")), text);
    layers.finish(inputs)
}

/// `running` with other values for some limits: keys of `[limits]` and `[degraded]`, those of `[limits]` with or without
/// their section.
///
/// # Errors
/// Everything wrong with the values, and every key that is no limit.
pub fn set_limits<'a>(
    running: &Effective,
    limits: impl IntoIterator<Item = &'a (String, Value)>,
) -> Result<Effective, ConfigErrors> {
    let mut layers =
        Layers { config: running.config.clone(), sources: running.sources.clone(), ..Layers::default() };
    for (name, value) in limits {
        let name = if name.contains('.') { name.clone() } else { format!("{LIMITS}{name}") };
        if name.starts_with(LIMITS) || name.starts_with(DEGRADED) {
            layers.set(&name, value, Source::Operator, &[]);
        } else {
            layers.errors.push(no_limit(name));
        }
    }
    layers.check()
}

const LIMITS: &str = "limits.";
const DEGRADED: &str = "degraded.";

fn no_limit(key: String) -> ConfigError {
    ConfigError::Value {
        place: Source::Operator,
        key,
        problem: "not a limit".to_owned(),
        allowed: "keys of [limits] and [degraded]; change others in the file, and reload".to_owned(),
    }
}

/// The configuration as far as it has been put together.
#[derive(Default)]
struct Layers {
    config: Config,
    sources: BTreeMap<&'static str, Source>,
    errors: Vec<ConfigError>,
    /// Keys of which some value was not taken: what they hold is not what anybody meant.
    failed: BTreeSet<&'static str>,
    /// There are values that nobody could read, so no comparison of values means anything.
    unread: bool,
    /// Those that the program has.
    protocols: Vec<&'static str>,
}

impl Layers {
    fn new(inputs: &Inputs) -> Self {
        let mut layers = Self { protocols: inputs.protocols.clone(), ..Self::default() };
        if let (Some(route), Some(first)) = (layers.config.routes.first_mut(), inputs.protocols.first()) {
            route.protocol = (*first).to_owned();
        }
        layers
    }

    fn finish(mut self, inputs: &Inputs) -> Result<Effective, ConfigErrors> {
        self.environment(&inputs.environment);
        for flag in &inputs.flags {
            self.set(&flag.key, &flag.value, Source::Flag(flag.flag.clone()), &[]);
        }
        if !self.unread {
            self.secrets(inputs);
        }
        self.check()
    }

    fn secrets(&mut self, inputs: &Inputs) {
        let (secrets, problems) = secrets::read(&self.config, inputs.api_key.as_ref());
        self.config.secrets = secrets;
        for (key, problem) in problems {
            let source = self.sources.get(key).cloned().unwrap_or(Source::Default);
            self.reject(key, problem.into(), &source, &[]);
        }
    }

    fn check(mut self) -> Result<Effective, ConfigErrors> {
        let effective = Effective { config: self.config, sources: self.sources };
        if !self.unread {
            self.errors.extend(check::whole(&effective, &self.failed));
        }
        if self.errors.is_empty() { Ok(effective) } else { Err(ConfigErrors::new(self.errors)) }
    }

    fn unreadable(&mut self, path: &Path, source: std::io::Error) {
        self.unread = true;
        self.errors.push(ConfigError::ReadFile { path: path.to_owned(), source });
    }

    fn file(&mut self, path: &Path, text: &str) {
        let file = File::new(path, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.section(&file, "", table.get_ref());
            return;
        }
        self.unread = true;
        let mut complaints: Vec<_> = errors
            .iter()
            .map(|error| (file.place(error.span().map_or(0, |span| span.start)), error.message()))
            .collect();
        // The parser goes on after a mistake; what it then says about the same line helps nobody.
        complaints.dedup_by(|(later, _), (earlier, _)| later == earlier);
        self.errors.extend(complaints.into_iter().map(|(place, message)| ConfigError::Syntax {
            place,
            message: message.trim().replace('\n', ", "),
        }));
    }

    fn section(&mut self, file: &File<'_>, section: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = name(section, key.get_ref());
            let place = file.place(key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if keys::is_section(&name) => self.section(file, &name, inner),
                DeValue::Table(_) => self.set(&name, &Value::Other("a section"), place, &[]),
                DeValue::Array(items) => self.set(&name, &value.get_ref().into(), place, &file.items(items)),
                value => self.set(&name, &value.into(), place, &[]),
            }
        }
    }

    fn environment(&mut self, variables: &[(String, String)]) {
        for (variable, key) in ENVIRONMENT {
            let Some((_, text)) = variables.iter().find(|(name, text)| name == variable && !text.is_empty())
            else {
                continue;
            };
            let (value, source) = (Value::parse(text), Source::Environment(variable));
            if *variable == "PORT" {
                self.port(&value, source);
            } else {
                self.set(key, &value, source, &[]);
            }
        }
    }

    fn port(&mut self, value: &Value, source: Source) {
        match parse::count(value, 0..=u16::MAX) {
            Ok(port) => {
                if let Some(first) = self.config.listen.first_mut() {
                    first.set_port(port);
                }
                self.sources.insert("listen", source);
            }
            Err(problem) => self.reject("listen", problem.into(), &source, &[]),
        }
    }

    /// Takes one value for one key. `items` are the places of a list's items, where they have
    /// their own.
    fn set(&mut self, name: &str, value: &Value, source: Source, items: &[Item]) {
        let Some(key) = keys::find(name) else {
            self.errors.push(unknown(name, value, source));
            return;
        };
        let read = (key.read)(&mut self.config, value).and_then(|()| self.check_protocols(key.name));
        match read {
            Ok(()) => {
                self.sources.insert(key.name, source);
            }
            Err(problems) => self.reject(key.name, problems, &source, items),
        }
    }

    /// Only here is it known which protocols there are.
    fn check_protocols(&self, key: &str) -> Result<(), Problems> {
        let problems = match key {
            keys::ROUTES => parse::unknown_protocols(&self.config.routes, &self.protocols),
            _ => Vec::new(),
        };
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    fn reject(&mut self, key: &'static str, problems: Problems, source: &Source, items: &[Item]) {
        self.failed.insert(key);
        self.errors.extend(problems.0.into_iter().map(|Problem { item, field, what, allowed }| {
            let place = item.and_then(|index| items.get(index)).map(|item| item.place(field));
            ConfigError::Value {
                place: place.unwrap_or(source).clone(),
                key: field.map_or_else(|| key.to_owned(), |field| format!("{key}.{field}")),
                problem: what,
                allowed,
            }
        }));
    }
}

fn unknown(name: &str, value: &Value, place: Source) -> ConfigError {
    let key = name.to_owned();
    if let Some((_, allowed)) = keys::REMOVED.iter().find(|(removed, _)| *removed == name) {
        let (problem, allowed) = ("this key is gone".to_owned(), (*allowed).to_owned());
        return ConfigError::Value { place, key, problem, allowed };
    }
    if keys::is_section(name) {
        let (problem, allowed) = (format!("{value} is not a section"), format!("[{name}] and its keys"));
        return ConfigError::Value { place, key, problem, allowed };
    }
    ConfigError::UnknownKey { place, suggestion: keys::nearest(name), key }
}

/// The dotted name of a key. A dot inside the key itself is quoted, as TOML does, so that it is not one of
/// ours.
fn name(section: &str, key: &str) -> String {
    let key = if key.contains('.') { format!("\"{key}\"") } else { key.to_owned() };
    if section.is_empty() { key } else { format!("{section}.{key}") }
}

/// The file being read, to turn offsets into lines.
struct File<'a> {
    path: &'a Path,
    line_ends: Vec<usize>,
}

impl<'a> File<'a> {
    fn new(path: &'a Path, text: &str) -> Self {
        Self { path, line_ends: text.match_indices('\n').map(|(offset, _)| offset).collect() }
    }

    fn place(&self, offset: usize) -> Source {
        Source::file(self.path, 1 + self.line_ends.partition_point(|&end| end < offset))
    }

    fn items(&self, items: &[Spanned<DeValue<'_>>]) -> Vec<Item> {
        let fields = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
            DeValue::Table(fields) => fields
                .keys()
                .map(|key| (key.get_ref().clone().into_owned(), self.place(key.span().start)))
                .collect(),
            _ => BTreeMap::new(),
        };
        items.iter().map(|item| Item { start: self.place(item.span().start), fields: fields(item) }).collect()
    }
}

/// Where an item of a list stands, and where its keys do.
struct Item {
    start: Source,
    fields: BTreeMap<String, Source>,
}

impl Item {
    fn place(&self, field: Option<&str>) -> &Source {
        field.and_then(|field| self.fields.get(field)).unwrap_or(&self.start)
    }
}
