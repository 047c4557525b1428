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

/// What all layers together say.
#[derive(Debug, Default)]
pub(super) struct Layers {
    given: BTreeMap<String, Given>,
    /// Every route that a layer names, also one without a key, and where it is first named.
    pub(super) routes: BTreeMap<String, Origin>,
    pub(super) problems: Vec<Problem>,
}

/// One value; the highest layer that has the key wins.
#[derive(Debug)]
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
        match &self.value {
            _ if self.form.is_secret() => None,
            Value::String(url) if self.form == Form::Url => {
                Some(value_text(&Value::from(without_userinfo(url))))
            }
            value => Some(value_text(value)),
        }
    }
}

/// Also where the text is not a URL: a misspelled one is no less secret.
fn without_userinfo(url: &str) -> String {
    let Some((before, rest)) = url.rsplit_once('@') else { return url.into() };
    let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
    format!("{scheme}...@{rest}")
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

/// What every variable of onced starts with.
const PREFIX: &str = "ONCED_";

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
            let message = format!("not valid TOML: {}", error.message().replace('\n', ", "));
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
            variables.iter().filter(|(name, text)| is_key(name, text)).collect();
        variables.sort();
        for (name, text) in variables {
            let path = self.path_of_variable(&name[PREFIX.len()..]);
            self.add_text(path, text, Origin::Variable(name.clone()));
        }
    }

    /// Adds one `section.key=value`.
    pub(super) fn add_set(&mut self, argument: &str) {
        let Some((key, text)) = argument.split_once('=') else {
            let message = "must be section.key=value (--set)".to_owned();
            return self.refuse(argument.to_owned(), message);
        };
        let key = key.trim();
        self.add_text(path_of_set(key), text.trim(), Origin::Set(key.to_owned()));
    }

    /// Checks the form of what is given and returns it as one table. What does not have its form
    /// is left out.
    pub(super) fn to_table(&mut self) -> Table {
        let mut root = Table::new();
        for name in self.routes.keys() {
            insert(&mut root, &["routes".to_owned(), name.clone()], Value::Table(Table::new()));
        }
        for (key, given) in &mut self.given {
            match given.form.check(&given.value) {
                Ok(value) => insert(&mut root, &given.path, value),
                Err(rule) => {
                    given.usable = false;
                    self.problems.push(Problem {
                        key: key.clone(),
                        value: given.shown(),
                        message: format!("{rule} ({})", given.origin),
                    });
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

    /// Variables have no case, and no hyphen: a route that is there already gives its spelling.
    fn path_of_variable(&self, rest: &str) -> Vec<String> {
        let mut path: Vec<_> = rest.split("__").map(str::to_lowercase).collect();
        if path.len() > 2 && path[0] == "kafka" && path[1] == "properties" {
            let name = path.split_off(2).join(".").replace('_', ".");
            path.push(name);
        }
        if path.len() > 1 && path[0] == "routes" {
            path[1] = self.route_like(&path[1]);
        }
        path
    }

    fn route_like(&self, name: &str) -> String {
        if self.routes.contains_key(name) {
            return name.to_owned();
        }
        let folded = |name: &str| name.to_lowercase().replace('-', "_");
        let mut routes = self.routes.keys();
        routes.find(|route| folded(route) == folded(name)).cloned().unwrap_or_else(|| name.into())
    }

    /// Without the value, which may be a secret: nothing is known about this key.
    fn refuse_unknown(&mut self, path: &[String], origin: &Origin) {
        let mut nearest = known::nearest(path);
        if let Origin::Variable(_) = origin {
            let variable = nearest.to_uppercase().replace('.', "__").replace('-', "_");
            nearest = format!("{nearest}, as a variable {PREFIX}{variable}");
        }
        let message = format!("unknown key ({origin}); the nearest known key is {nearest}");
        self.refuse(key_text(path), message);
    }

    fn refuse(&mut self, key: String, message: String) {
        self.problems.push(Problem { key, value: None, message });
    }
}

/// True where a variable is meant to be a key.
fn is_key(name: &str, text: &str) -> bool {
    name.starts_with(PREFIX)
        && name != "ONCED_LOG"
        && !name.starts_with("ONCED_TEST_")
        && !is_service_link(name, text)
}

/// Kubernetes gives every container the addresses of the services around it: for a service called
/// `onced`, `ONCED_SERVICE_HOST`, `ONCED_PORT` and `ONCED_PORT_9464_TCP_ADDR`. No key looks so.
fn is_service_link(name: &str, text: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| rest.starts_with(|digit: char| digit.is_ascii_digit());
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.split_once("_PORT_").is_some_and(numbered)
            || name.ends_with("_PORT") && text.contains("://"))
}

/// Quoted parts are allowed, as in TOML. A property's name may also keep its dots unquoted.
fn path_of_set(key: &str) -> Vec<String> {
    let unquoted = |part: &str| part.trim().trim_matches(['"', '\'']).to_owned();
    match key.strip_prefix("kafka.properties.") {
        Some(name) => vec!["kafka".into(), "properties".into(), unquoted(name)],
        None => key.split('.').map(unquoted).collect(),
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
    use super::super::{Sources, load};

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
    fn a_variable_finds_the_route_whatever_its_spelling() {
        let file = File::new(FILE);
        let config =
            file.load(&[("ONCED_ROUTES__PAYMENTS_EU__HANDLER__CONCURRENCY", "9")], &[]).unwrap();
        assert_eq!(config.routes.len(), 1);
        assert_eq!(config.routes[0].concurrency, 9);
    }

    #[test]
    fn a_variable_prefers_the_route_of_its_own_spelling() {
        let text = FILE.replace("payments-eu", "payments_eu").replace("\"payments\"", "\"other\"");
        let file = File::new(format!("{FILE}{}", &text[text.find("[routes").unwrap()..]));
        let config =
            file.load(&[("ONCED_ROUTES__PAYMENTS_EU__HANDLER__CONCURRENCY", "9")], &[]).unwrap();
        let of =
            |name| config.routes.iter().find(|route| &*route.name == name).unwrap().concurrency;
        assert_eq!((of("payments-eu"), of("payments_eu")), (7, 9));
    }

    #[test]
    fn variables_alone_make_a_configuration() {
        let env = [
            ("ONCED_KAFKA__GROUP", "5"),
            ("ONCED_KAFKA__PROPERTIES__SASL_USERNAME", "u"),
            ("ONCED_KAFKA__PROPERTIES__SASL__PASSWORD", "'p'"),
            ("ONCED_ADMIN__LISTEN", ""),
            ("ONCED_LOG__DIR", "/var/lib/onced"),
            ("ONCED_ROUTES__PAYMENTS_EU__TOPICS", "[\"a\", \"b\"]"),
            ("ONCED_ROUTES__PAYMENTS_EU__HANDLER__KIND", "stdout"),
            ("ONCED_ROUTES__PAYMENTS_EU__HANDLER__RATE", "100"),
            ("ONCED_ROUTES__PAYMENTS_EU__WINDOW__TTL", "2h"),
            ("ONCED_ROUTES__PAYMENTS_EU__RETRY__BACKOFF", "{ factor = 3, jitter = false }"),
            ("ONCED_ROUTES__PAYMENTS_EU__RETRY__BACKOFF__FACTOR", "4"),
            ("PATH", "/bin"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let config = load(&Sources { env, ..Sources::default() }).unwrap();
        assert_eq!(config.kafka.group, "5");
        let properties: Vec<_> = config.kafka.properties.iter().collect();
        assert_eq!(properties, [("sasl.password", "p"), ("sasl.username", "u")]);
        assert_eq!(config.admin.listen, None);
        let route = &config.routes[0];
        assert_eq!(&*route.name, "payments_eu");
        assert_eq!(route.topics.len(), 2);
        assert_eq!(route.rate, 100);
        assert_eq!(route.window.ttl.as_secs(), 7200);
        assert_eq!(route.retry.backoff.factor, 4.0);
        assert!(!route.retry.backoff.jitter);
    }

    #[test]
    fn variables_with_another_purpose_are_left_alone() {
        let file = File::new(FILE);
        let env = [
            ("ONCED_LOG", "debug"),
            ("ONCED_TEST_KAFKA__BROKER", "x"),
            ("ONCED_SERVICE_HOST", "10.0.0.1"),
            ("ONCED_SERVICE_PORT_ADMIN", "9464"),
            ("ONCED_PORT", "tcp://10.0.0.1:9464"),
            ("ONCED_PORT_9464_TCP_ADDR", "10.0.0.1"),
            ("ONCED_ADMIN_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ];
        assert!(file.load(&env, &[]).is_ok());
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
        check_refused(&["log.dir"], &["log.dir: must be section.key=value (--set)"]);
    }

    #[test]
    fn a_set_argument_may_be_spelled_as_in_a_file() {
        let config = load_set(&[
            "kafka.group = \"x=y\"",
            "kafka.properties.\"client.id\" = \"me\"",
            "kafka.properties.socket.keepalive.enable=true",
            "routes.\"payments\".topics = ['a', 'b']",
            "routes.payments.retry = { attempts = 9, backoff = { first = '1s' } }",
        ])
        .unwrap();
        assert_eq!(config.kafka.group, "x=y");
        let properties: Vec<_> = config.kafka.properties.iter().collect();
        assert_eq!(properties, [("client.id", "me"), ("socket.keepalive.enable", "true")]);
        assert_eq!(config.routes[0].topics.len(), 2);
        assert_eq!(config.routes[0].retry.attempts, 9);
        assert_eq!(config.routes[0].retry.backoff.first.as_secs(), 1);
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
