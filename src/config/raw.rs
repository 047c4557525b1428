//! The configuration as it is written: `raw` mirrors the TOML, key by key.
//!
//! Never: has a default, a limit or a meaning (see `resolve` and `route`), or shows its values. Durations, sizes and
//! choices are still text here, so that all that is wrong with them is reported at once.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    pub kafka: Kafka,
    pub log: Log,
    pub admin: Admin,
    pub runtime: Runtime,
    pub routes: BTreeMap<String, Route>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Kafka {
    pub brokers: Option<String>,
    pub group: Option<String>,
    pub start: Option<String>,
    pub commit_interval: Option<String>,
    pub transaction_interval: Option<String>,
    pub properties: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub dir: Option<String>,
    pub memory: Option<String>,
    pub flush_interval: Option<String>,
    pub disk_reserve: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub listen: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Runtime {
    pub workers: Option<i64>,
    pub drain_timeout: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Route {
    pub topics: Option<Vec<String>>,
    pub mode: Option<String>,
    pub shadow: Option<bool>,
    pub identity: Identity,
    pub window: Window,
    pub handler: Handler,
    pub retry: Retry,
    pub dead_letter: DeadLetter,
    pub policy: Policy,
    pub results: Results,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Identity {
    pub key: Option<Vec<String>>,
    pub scope: Option<Vec<String>>,
    pub missing: Option<String>,
    pub fingerprint: Fingerprint,
    pub digest: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fingerprint {
    pub canonical: Option<String>,
    pub include: Option<Vec<String>>,
    pub exclude: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Window {
    pub ttl: Option<String>,
    pub lateness: Option<String>,
    pub skew: Option<String>,
    pub anchor: Option<String>,
}

/// The keys of all kinds of handlers.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Handler {
    pub kind: Option<String>,
    pub concurrency: Option<i64>,
    pub order: Option<String>,
    pub rate: Option<i64>,
    pub idempotency_key: Option<String>,
    pub url: Option<String>,
    pub timeout: Option<String>,
    pub topic: Option<String>,
    pub partition: Option<String>,
    pub partitioner: Option<String>,
    pub command: Option<Vec<String>>,
    pub children: Option<i64>,
    pub statement: Option<String>,
    pub parameters: Option<Vec<String>>,
    pub batch: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    pub attempts: Option<i64>,
    pub backoff: Backoff,
    pub exhausted: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Backoff {
    pub first: Option<String>,
    pub factor: Option<f64>,
    pub max: Option<String>,
    pub jitter: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeadLetter {
    pub topic: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policy {
    pub duplicate: Option<String>,
    pub audit_topic: Option<String>,
    pub conflict: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Results {
    pub keep: Option<bool>,
    pub max: Option<String>,
    pub topic: Option<String>,
}

#[cfg(test)]
mod tests {
    use toml::{Table, Value};

    use super::super::known::{Form, KEYS};
    use super::*;

    #[test]
    fn every_known_key_has_its_place_here() {
        for (pattern, form) in KEYS {
            let value = match form {
                Form::Whole => Value::from(1),
                Form::Number => Value::from(1.5),
                Form::Flag => Value::from(true),
                Form::List => Value::from(vec!["a"]),
                _ => Value::from("a"),
            };
            let table = pattern.rsplit('.').fold(value, |inner, part| {
                Value::Table(Table::from_iter([(part.to_owned(), inner)]))
            });
            let error = table.try_into::<Config>().err();
            assert_eq!(error, None, "{pattern}");
        }
    }
}
