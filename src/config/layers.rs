//! The layers of a configuration, put on top of one another: file, environment, `--set`.
//!
//! Owns: which layer a value comes from, and the check that its key is known.
//! Never: knows what a value means, or reads the environment (`config::environment` does).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::{Problem, key_text, value_text};
use super::known::{self, Form, Found};
use super::names;

/// What all layers together say.
#[derive(Default)]
pub(super) struct Layers {
    given: BTreeMap<String, Given>,
    /// Every route that a layer names, also one without a key, and where it is first named.
    pub(super) routes: BTreeMap<String, Origin>,
    pub(super) problems: Vec<Problem>,
}

/// One value; the highest layer that has the key wins.
pub(super) struct Given {
    path: Vec<String>,
    form: Form,
    value: Value,
    pub(super) origin: Origin,
    /// False where the value does not have the form of the key; the key then counts as absent.
    pub(super) usable: bool,
}

impl Given {
    /// The value as an error may show it.
    pub(super) fn shown(&self) -> Option<String> {
        match (self.form, &self.value) {
            (Form::Url, Value::String(url)) => Some(value_text(&without_userinfo(url).into())),
            (Form::Url | Form::Property, _) => None,
            (_, value) => Some(value_text(value)),
        }
    }
}

/// Also where the text is not a URL: a misspelled one is no less secret.
fn without_userinfo(url: &str) -> String {
    let Some((before, rest)) = url.rsplit_once('@') else { return url.into() };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://...@{rest}"),
        None => format!("...@{rest}"),
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File { path: PathBuf, line: usize },
    Variable(String),
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Set(key) => write!(f, "--set {key}"),
        }
    }
}

/// What a layer is read from; tells the origin of each of its keys.
enum Place<'a> {
    File { path: &'a Path, text: &'a str },
    Other(Origin),
}

impl Place<'_> {
    fn origin(&self, span: &Range<usize>) -> Origin {
        match self {
            Self::File { path, text } => {
                Origin::File { path: path.to_path_buf(), line: line_of(text, span.start) }
            }
            Self::Other(origin) => origin.clone(),
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

impl Layers {
    /// Adds a file. False where it cannot be read, or is no TOML: what is missing in the other
    /// layers is then no use to know.
    pub(super) fn add_file(&mut self, path: &Path) -> bool {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.refuse(path.display().to_string(), format!("cannot be read: {error}"));
                return false;
            }
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            // The message alone: the snippet of the full error may hold a password.
            let line = line_of(&text, error.span().map_or(0, |span| span.start));
            let message = format!("not valid TOML: {}", error.message());
            self.refuse(format!("{}:{line}", path.display()), message);
        }
        if errors.is_empty() {
            self.add_table(&[], table.into_inner(), &Place::File { path, text: &text });
        }
        errors.is_empty()
    }

    /// Adds the variables that are keys. A variable for a section comes before those for its
    /// keys, so that the latter count.
    pub(super) fn add_environment(&mut self, variables: &[(String, String)]) {
        let mut variables: Vec<_> =
            variables.iter().filter(|(name, text)| names::is_key(name, text)).collect();
        variables.sort();
        for (name, text) in variables {
            let path = names::of_variable(name, self.routes.keys());
            self.add_text(path, text, Origin::Variable(name.clone()));
        }
    }

    /// Adds one `section.key=value`.
    pub(super) fn add_set(&mut self, argument: &str) {
        let Some((key, text)) = argument.split_once('=') else {
            // No more than looks like a key: the rest may be a secret.
            let part = |letter: char| letter.is_alphanumeric() || "._-".contains(letter);
            let key: String = argument.chars().take_while(|letter| part(*letter)).collect();
            return self.refuse(format!("--set {key}"), "must be section.key=value".to_owned());
        };
        let key = key.trim();
        self.add_text(names::of_set(key), text.trim(), Origin::Set(key.to_owned()));
    }

    /// Checks the form of what is given and returns it as one table. What does not have its form
    /// is left out.
    pub(super) fn table(&mut self) -> Table {
        let mut root = Table::new();
        for name in self.routes.keys() {
            insert(&mut root, &["routes".to_owned(), name.clone()], Value::Table(Table::new()));
        }
        for (key, given) in &mut self.given {
            match given.form.check(&given.value) {
                Ok(value) => insert(&mut root, &given.path, value),
                Err(rule) => {
                    given.usable = false;
                    let rule = format!("{rule} ({})", given.origin);
                    self.problems.push(Problem::new(key.clone(), given.shown(), &rule));
                }
            }
        }
        root
    }

    /// What is given for a key; `None` where its default counts.
    pub(super) fn given(&self, key: &str) -> Option<&Given> {
        self.given.get(key)
    }

    fn add_table(&mut self, path: &[String], table: DeTable<'_>, place: &Place<'_>) {
        for (name, value) in table {
            let origin = place.origin(&name.span());
            let path = [path, &[name.into_inner().into_owned()]].concat();
            self.add(path, value, origin, place);
        }
    }

    fn add(
        &mut self,
        path: Vec<String>,
        value: Spanned<DeValue<'_>>,
        origin: Origin,
        place: &Place<'_>,
    ) {
        self.note_route(&path, &origin);
        match (known::find(&path), value.get_ref().is_table()) {
            (Found::Section, false) => {
                self.refuse(key_text(&path), format!("must be a section, not a value ({origin})"));
            }
            (Found::Section, true) => {
                if let DeValue::Table(table) = value.into_inner() {
                    self.add_table(&path, table, place);
                }
            }
            (Found::Key(Form::Property), true) => {
                if let DeValue::Table(table) = value.into_inner() {
                    self.add_nested_properties(&path, table, place);
                }
            }
            (Found::Key(form), _) => match Value::deserialize(value.into_deserializer()) {
                Ok(value) => self.put(path, form, value, origin),
                Err(error) => {
                    self.refuse(key_text(&path), format!("{} ({origin})", error.message()));
                }
            },
            (Found::Unknown, _) => self.refuse_unknown(&path, &origin),
        }
    }

    /// Unquoted dots nest in TOML; a property's name keeps them.
    fn add_nested_properties(&mut self, path: &[String], table: DeTable<'_>, place: &Place<'_>) {
        let Some((name, section)) = path.split_last() else { return };
        for (part, value) in table {
            let origin = place.origin(&part.span());
            let name = format!("{name}.{}", part.into_inner());
            self.add([section, &[name]].concat(), value, origin, place);
        }
    }

    fn add_text(&mut self, path: Vec<String>, text: &str, origin: Origin) {
        self.note_route(&path, &origin);
        match known::find(&path) {
            Found::Key(form) => self.put(path, form, form.read(text), origin),
            Found::Unknown => self.refuse_unknown(&path, &origin),
            Found::Section => match DeValue::parse(text.trim()) {
                Ok(value) if value.get_ref().is_table() => {
                    self.add(path, value, origin.clone(), &Place::Other(origin));
                }
                _ => {
                    let message = format!(
                        "is a section: name a key in it, or give a table as in {{ key = \"value\" }} \
                         ({origin})"
                    );
                    self.refuse(key_text(&path), message);
                }
            },
        }
    }

    fn put(&mut self, path: Vec<String>, form: Form, value: Value, origin: Origin) {
        let key = key_text(&path);
        self.given.insert(key, Given { path, form, value, origin, usable: true });
    }

    fn note_route(&mut self, path: &[String], origin: &Origin) {
        if let [section, name, ..] = path
            && section == "routes"
        {
            self.routes.entry(name.clone()).or_insert_with(|| origin.clone());
        }
    }

    /// Without the value, which may be a secret: nothing is known about this key.
    fn refuse_unknown(&mut self, path: &[String], origin: &Origin) {
        let mut nearest = known::nearest(path);
        if let Origin::Variable(_) = origin {
            nearest = format!("{nearest}, as a variable {}", names::variable(&nearest));
        }
        let message = format!("unknown key ({origin}); the nearest known key is {nearest}");
        self.refuse(key_text(path), message);
    }

    fn refuse(&mut self, key: String, message: String) {
        self.problems.push(Problem::new(key, None, &message));
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{File, check_refused, load_only, load_set};

    const FILE: &str = r#"
        [kafka]
        group = "from-file"
        brokers = "file:9092"

        [routes.payments-eu]
        topics = ["payments"]
        handler = { kind = "stdout", concurrency = 7 }
    "#;

    #[test]
    fn a_higher_layer_wins_key_by_key() {
        let file = File::new(FILE);
        let config = file.load(&[], &[]).unwrap();
        assert_eq!(config.kafka.group, "from-file");

        let env = [("ONCED_KAFKA__GROUP", "from-env"), ("ONCED_KAFKA__BROKERS", "env:9092")];
        let config = file.load(&env, &["kafka.group=from-set"]).unwrap();
        assert_eq!(config.kafka.group, "from-set");
        assert_eq!(config.kafka.brokers, "env:9092");
        assert_eq!(config.routes[0].concurrency, 7);
    }

    #[test]
    fn the_last_of_two_set_arguments_wins() {
        let config = load_set(&["kafka.group=a", "kafka.group=b"]).unwrap();
        assert_eq!(config.kafka.group, "b");
    }

    #[test]
    fn an_unknown_key_names_its_layer_and_the_nearest_key() {
        let file =
            File::new("[kafka]\ngroup = 'g'\ngrup = 'h'\n\n[routs.payments]\ntopics = ['a']\n");
        let env = [("ONCED_KAFKA_BROKERS", "x"), ("ONCED_ROUTES__P__WINDOW__TLL", "1h")];
        assert_eq!(
            file.lines(&env, &["log.memry=1GiB"])[..5],
            [
                "kafka.grup: unknown key (onced.toml:3); the nearest known key is kafka.group",
                "routs: unknown key (onced.toml:5); the nearest known key is routes",
                "kafka_brokers: unknown key (ONCED_KAFKA_BROKERS); the nearest known key is \
                 kafka.brokers, as a variable ONCED_KAFKA__BROKERS",
                "routes.p.window.tll: unknown key (ONCED_ROUTES__P__WINDOW__TLL); the nearest known \
                 key is routes.p.window.ttl, as a variable ONCED_ROUTES__P__WINDOW__TTL",
                "log.memry: unknown key (--set log.memry); the nearest known key is log.memory",
            ]
        );
    }

    #[test]
    fn a_bad_value_names_its_layer() {
        let file = File::new(FILE);
        assert_eq!(
            file.lines(&[("ONCED_LOG__MEMORY", "5")], &["log.disk_reserve=big"]),
            [
                "log.memory = \"5\": must be at least 16MiB (ONCED_LOG__MEMORY)",
                "log.disk_reserve = \"big\": must be a size with its unit, as in \"64KiB\" or \
                 \"256MiB\" (--set log.disk_reserve)",
            ]
        );
    }

    #[test]
    fn a_route_that_comes_from_a_misspelled_variable_says_so() {
        let file = File::new(FILE);
        let lines = file.lines(&[("ONCED_ROUTES__PAYMNTS__WINDOW__TTL", "1h")], &[]);
        assert!(lines[1].contains("routes.paymnts.topics: is needed"), "{lines:?}");
        assert!(lines[1].contains("(ONCED_ROUTES__PAYMNTS__WINDOW__TTL)"), "{lines:?}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let mut file = File::new("");
        file.path.set_file_name("absent.toml");
        let lines = file.lines(&[], &["kafka.grup=1"]);
        assert_eq!(lines, ["absent.toml: cannot be read: No such file or directory (os error 2)"]);
    }

    #[test]
    fn every_syntax_error_is_reported_with_its_line() {
        let lines =
            File::new("[kafka]\ngroup = \nbrokers = \"a\n[log]\ndir = 'x'\n").lines(&[], &[]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("onced.toml:2: not valid TOML: "), "{lines:?}");
        assert!(lines[1].starts_with("onced.toml:3: not valid TOML: "), "{lines:?}");
    }

    #[test]
    fn a_key_that_is_given_twice_in_a_file_is_an_error() {
        let lines = File::new("[kafka]\ngroup = 'a'\ngroup = 'b'\n").lines(&[], &[]);
        assert_eq!(lines, ["onced.toml:3: not valid TOML: duplicate key"]);
    }

    #[test]
    fn a_value_where_a_section_belongs_is_an_error() {
        let lines = File::new("kafka = 5\nroutes.payments.window = '1h'").lines(&[], &["log=x"]);
        assert_eq!(
            lines[..3],
            [
                "kafka: must be a section, not a value (onced.toml:1)",
                "routes.payments.window: must be a section, not a value (onced.toml:2)",
                "log: is a section: name a key in it, or give a table as in { key = \"value\" } \
                 (--set log)",
            ]
        );
    }

    #[test]
    fn a_set_argument_without_a_value_is_an_error() {
        check_refused(&["log.dir x"], &["--set log.dir: must be section.key=value"]);
    }

    #[test]
    fn an_unquoted_property_keeps_its_dots() {
        let file = File::new(format!(
            "{FILE}\n[kafka.properties]\nsession.timeout.ms = 6000\n'client.id' = 'x'\n"
        ));
        let config = file.load(&[], &["kafka.properties.client.id=y"]).unwrap();
        let properties: Vec<_> = config.kafka.properties.iter().collect();
        assert_eq!(properties, [("client.id", "y"), ("session.timeout.ms", "6000")]);
    }

    #[test]
    fn a_number_beyond_all_bounds_is_an_error() {
        let lines = File::new("runtime.workers = 99999999999999999999").lines(&[], &[]);
        assert!(lines[0].starts_with("runtime.workers: "), "{lines:?}");
    }

    #[test]
    fn an_empty_set_argument_turns_a_key_off() {
        let config = load_set(&["admin.listen=", "routes.payments.dead_letter.topic="]).unwrap();
        assert_eq!(config.admin.listen, None);
        assert_eq!(config.routes[0].dead_letter, None);
    }

    #[test]
    fn a_route_without_a_key_is_a_route() {
        let lines = File::new("kafka.group = 'g'\n[routes.payments]\n").lines(&[], &[]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with("routes.payments.")), "{lines:?}");
        assert!(load_only(&["kafka.group=g", "routes.payments={}"]).is_err());
    }
}
