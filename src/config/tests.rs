//! The room as a whole, and the helpers of the tests beside each part.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;

use super::known::{Form, KEYS};
use super::*;

/// The least that loads, on top of which a test puts what it is about.
pub(super) const BASE: [&str; 3] =
    ["kafka.group=g", "routes.payments.topics=payments", "routes.payments.handler.kind=stdout"];

/// Loads [`BASE`] with further `--set` arguments.
pub(super) fn load_set(set: &[&str]) -> Result<Config, ConfigError> {
    load_only(&[&BASE, set].concat())
}

pub(super) fn load_only(set: &[&str]) -> Result<Config, ConfigError> {
    let set: Vec<_> = set.iter().map(|text| (*text).to_owned()).collect();
    load(&Sources { set: &set, ..Sources::default() })
}

/// The one route of [`BASE`] with further `--set` arguments, keys relative to it.
#[track_caller]
pub(super) fn route(set: &[&str]) -> Route {
    let set: Vec<_> = set.iter().map(|text| format!("routes.payments.{text}")).collect();
    let set: Vec<_> = set.iter().map(String::as_str).collect();
    let mut config = load_set(&set).expect("the configuration is valid");
    config.routes.pop().expect("there is a route")
}

/// Expects exactly these lines for [`BASE`] with further `--set` arguments.
#[track_caller]
pub(super) fn check_refused(set: &[&str], lines: &[&str]) {
    let error = load_set(set).expect_err("the configuration is refused");
    assert_eq!(error.to_string().lines().collect::<Vec<_>>(), lines);
}

/// As [`check_refused`], keys relative to the route.
#[track_caller]
pub(super) fn check_route_refused(set: &[&str], lines: &[&str]) {
    let set: Vec<_> = set.iter().map(|text| format!("routes.payments.{text}")).collect();
    let set: Vec<_> = set.iter().map(String::as_str).collect();
    let lines: Vec<_> = lines.iter().map(|line| format!("routes.payments.{line}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    check_refused(&set, &lines);
}

/// A file `onced.toml` in a directory of its own.
pub(super) struct File {
    pub(super) path: PathBuf,
    _dir: tempfile::TempDir,
}

impl File {
    pub(super) fn new(text: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onced.toml");
        std::fs::File::create(&path).unwrap().write_all(text.as_ref()).unwrap();
        Self { path, _dir: dir }
    }

    pub(super) fn load(&self, env: &[(&str, &str)], set: &[&str]) -> Result<Config, ConfigError> {
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let set: Vec<_> = set.iter().map(|text| (*text).to_owned()).collect();
        load(&Sources { file: Some(&self.path), env, set: &set, handlers: &[] })
    }

    /// The problems, with the directory taken out of them.
    #[track_caller]
    pub(super) fn lines(&self, env: &[(&str, &str)], set: &[&str]) -> Vec<String> {
        let error = self.load(env, set).expect_err("the configuration is refused");
        let dir = format!("{}/", self.path.parent().unwrap().display());
        error.to_string().lines().map(|line| line.replace(&dir, "")).collect()
    }
}

#[test]
fn a_group_and_a_route_are_enough() {
    let config = load_set(&[]).unwrap();
    assert_eq!(config.kafka.brokers, "127.0.0.1:9092");
    assert_eq!(config.kafka.group, "g");
    assert_eq!(config.kafka.start, Start::Earliest);
    assert_eq!(config.log.dir, PathBuf::from("./onced-data"));
    assert_eq!(config.log.memory, 256 << 20);
    assert_eq!(config.log.disk_reserve, 512 << 20);
    assert_eq!(config.admin.listen, Some(([127, 0, 0, 1], 9464).into()));
    assert!((1..=64).contains(&config.runtime.workers));
    let [route] = config.routes.as_slice() else { panic!("one route: {config:?}") };
    assert_eq!(&*route.name, "payments");
    assert_eq!(route.topics, ["payments".into()]);
    assert_eq!(route.identity, crate::identity::Config::default());
    assert_eq!(route.dead_letter, None);
}

#[test]
fn without_anything_the_mandatory_keys_are_named() {
    let error = load(&Sources::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kafka.group: is needed: the name of the consumer group\n\
         routes: at least one route is needed, as in [routes.payments]"
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    check_refused(
        &[
            "kafka.brokrs=x",
            "log.memory=1MiB",
            "runtime.workers=many",
            "routes.payments.window.ttl=0s",
            "routes.payments.retry.attempts=0",
        ],
        &[
            "kafka.brokrs: unknown key (--set kafka.brokrs); the nearest known key is kafka.brokers",
            "runtime.workers = \"many\": must be a whole number (--set runtime.workers)",
            "log.memory = \"1MiB\": must be at least 16MiB (--set log.memory)",
            "routes.payments.window.ttl = \"0s\": must be at least 1ms \
             (--set routes.payments.window.ttl)",
            "routes.payments.retry.attempts = 0: must be at least 1 \
             (--set routes.payments.retry.attempts)",
        ],
    );
}

#[test]
fn a_mandatory_key_of_a_wrong_form_is_one_problem() {
    let file = File::new("kafka.group = 5\nroutes.payments.handler.kind = true");
    assert_eq!(
        file.lines(&[], &[]),
        [
            "kafka.group = 5: must be text in quotes (onced.toml:1)",
            "routes.payments.handler.kind = true: must be text in quotes (onced.toml:2)",
            "routes.payments.topics: is needed: what this route reads, as in [\"payments\"] \
             (onced.toml:2)",
        ]
    );
}

#[test]
fn a_password_appears_in_no_error_and_no_debug_text() {
    let secret = "hunter2";
    for argument in [
        format!("kafka.properties.sasl.password={secret}"),
        format!("kafka.propertis.sasl.password={secret}"),
        format!("kafka.properties={{ 'sasl.password' = ['{secret}'] }}"),
        format!("kafka.properties.acks={secret}"),
        format!("routes.payments.handler.url=http://onced:{secret}@host/"),
        format!("routes.payments.handler.url=onced:{secret}@host"),
        format!("routes.payments.handler={{ url = ['http://onced:{secret}@host'] }}"),
        format!("kafka.properties.sasl.password {secret}"),
    ] {
        let text = match load_set(&[&argument]) {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!text.contains(secret), "{text}");
    }
    for line in [
        format!("'sasl.password' = '{secret}"),
        format!("'sasl.password' = {secret}"),
        format!("'sasl.password' = \"\\q{secret}\""),
        format!("sasl.password {secret}"),
    ] {
        let lines = File::new(format!("[kafka.properties]\n{line}")).lines(&[], &[]);
        assert!(!lines.concat().contains(secret), "{lines:?}");
    }
}

/// Any key, known or nearly so, with any text.
fn any_argument() -> impl Strategy<Value = String> {
    let key = prop::sample::select(KEYS).prop_map(|(pattern, _)| pattern.replace('*', "payments"));
    let value = prop_oneof![
        any::<String>(),
        "[\\x00-\\x7f]{0,12}",
        "[0-9]{1,30}(ms|s|h|y|MiB|EiB)?",
        "-?[0-9.e]{1,30}",
        "\\[(\"[a-z:/~]*\",?){0,3}\\]",
        "(http|https)://[a-z@:\\[\\]/?#0-9]{0,20}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})",
    ];
    prop_oneof![
        8 => (key, value).prop_map(|(key, value)| format!("{key}={value}")),
        1 => any::<String>(),
        1 => "[\\x00-\\x7f]{0,12}=[\\x00-\\x7f]{0,12}",
    ]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(arguments in prop::collection::vec(any_argument(), 0..6)) {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        if let Err(error) = load_set(&arguments) {
            prop_assert!(!error.problems.is_empty());
            let lines = error.to_string().lines().count();
            prop_assert_eq!(lines, error.problems.len());
        }
    }

    #[test]
    fn no_file_makes_it_panic(
        text in prop_oneof![
            any::<Vec<u8>>(),
            "([a-z]{1,4}|[\\[\\].=\"'#{}, \n0-9])*".prop_map(String::into_bytes),
        ],
    ) {
        let _ = File::new(text).load(&[], &[]);
    }
}

fn may_be_secret(form: Form) -> bool {
    matches!(form, Form::Url | Form::Property)
}

#[test]
fn a_value_of_a_wrong_form_is_a_problem_of_its_key() {
    for (pattern, form) in KEYS.iter().filter(|(_, form)| !may_be_secret(*form)) {
        let key = pattern.replace('*', "payments");
        let value = if *form == Form::List { "5" } else { "['list']" };
        let file = File::new(format!("{key} = {value}"));
        let error = file.load(&[], &[]).unwrap_err();
        let problem = error.problems.iter().find(|problem| problem.key == key);
        let value = problem.and_then(|problem| problem.value.as_deref()).unwrap_or_default();
        assert!(["5", "[\"list\"]"].contains(&value), "{key}: {error}");
    }
}
