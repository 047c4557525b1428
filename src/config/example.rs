//! `config/onced.toml` holds every key with its default: what it says is what the code does.

use super::known::KEYS;
use super::tests::{File, load_only};
use super::*;

const TEXT: &str = include_str!("../../config/onced.toml");

/// A line that shows a key after this many `#`.
fn key_of(line: &str, marks: usize) -> Option<&str> {
    let key = line.strip_prefix(&"#".repeat(marks))?;
    key.starts_with(|first: char| first.is_ascii_lowercase() || first == '"').then_some(key)
}

/// The file with the shown defaults switched on; `also` chooses among the refused keys.
fn switched_on(also: impl Fn(&str) -> bool) -> String {
    let line = |line: &'static str| match (key_of(line, 1), key_of(line, 2)) {
        (Some(key), _) => key,
        (_, Some(key)) if also(key) => key,
        _ => line,
    };
    TEXT.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn load_text(text: &str) -> Config {
    File::new(text).load(&[], &[]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn it_loads() {
    let config = load_text(TEXT);
    assert_eq!(config.kafka.group, "payments-once");
    assert_eq!(&*config.routes[0].name, "payments");
}

#[test]
fn it_sets_nothing_but_a_group_and_two_routes() {
    let least = load_only(&[
        "kafka.group=payments-once",
        "routes.payments.topics=payments",
        "routes.payments.handler.kind=http",
        "routes.payments.handler.url=http://127.0.0.1:8080/payments",
        "routes.payments.dead_letter.topic=payments-dead",
        "routes.webhooks.topics=webhooks",
        "routes.webhooks.handler.kind=kafka",
        "routes.webhooks.handler.topic=webhooks-once",
    ]);
    assert_eq!(format!("{:?}", load_text(TEXT)), format!("{:?}", least.unwrap()));
}

#[test]
fn every_default_that_it_shows_is_the_default() {
    let usual = load_text(TEXT);
    let mut shown = load_text(&switched_on(|_| false));
    // librdkafka's default, not one of onced.
    assert_eq!(
        shown.kafka.properties.iter().collect::<Vec<_>>(),
        [("max.poll.interval.ms", "300000")]
    );
    shown.kafka.properties = Properties::default();
    // It depends on the machine, and the file says so.
    assert_eq!(shown.runtime.workers, 1);
    shown.runtime.workers = usual.runtime.workers;
    assert_eq!(format!("{shown:#?}"), format!("{usual:#?}"));
}

#[test]
fn every_known_key_is_in_it() {
    let text = switched_on(|_| true);
    let root = toml::Value::Table(text.parse().unwrap());
    for (pattern, _) in KEYS {
        let parts: Vec<_> = pattern.split('.').collect();
        assert!(has(&root, &parts), "{pattern} is not in config/onced.toml");
    }
}

/// One route may show what another cannot have.
fn has(value: &toml::Value, parts: &[&str]) -> bool {
    match (parts, value.as_table()) {
        ([], _) => true,
        (["*", rest @ ..], Some(table)) => table.values().any(|value| has(value, rest)),
        ([name, rest @ ..], Some(table)) => table.get(*name).is_some_and(|value| has(value, rest)),
        (_, None) => false,
    }
}

#[test]
fn every_key_that_it_calls_refused_is_refused() {
    let refused: Vec<_> = TEXT.lines().filter_map(|line| key_of(line, 2)).collect();
    assert!(!refused.is_empty());
    for key in refused {
        let lines = File::new(switched_on(|other| other == key)).lines(&[], &[]);
        let name = key.split(' ').next().unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("routes.payments.handler.{name} = ")), "{lines:?}");
        assert!(lines[0].contains("not available in this version"), "{lines:?}");
    }
}

#[test]
fn every_line_is_a_key_a_section_or_a_sentence() {
    for line in TEXT.lines().filter(|line| line.starts_with('#')) {
        let sentence = line == "#" || line.starts_with("# ");
        let key = key_of(line, 1).or_else(|| key_of(line, 2)).is_some();
        assert!(sentence || key, "{line}");
        assert!(line.chars().count() <= 100, "{line}");
    }
}
