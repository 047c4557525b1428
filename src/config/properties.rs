//! `[kafka.properties]`: what goes to librdkafka as it is, and what onced keeps to itself.
//!
//! Owns: [`Properties`], the properties that are refused and the reason for each.
//! Never: knows librdkafka's names and values; the library is asked for each. Tells a value.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::section::Section;

/// Properties of librdkafka, by name. Values may be passwords: `Debug` shows the names alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Name and value, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(properties: I) -> Self {
        Self(properties.into_iter().collect())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

const BROKERS: &str = "set kafka.brokers instead";
const GROUP: &str = "set kafka.group instead";
const COMMITS: &str = "onced commits an offset when every record below it is settled; see \
                       kafka.commit_interval";
const STORES: &str = "onced decides itself which offset may be committed";
const RESET: &str = "set kafka.start instead; a position that is gone is never replaced in silence";
const ISOLATION: &str = "always read_committed: what an aborted transaction wrote was never sent";
const EOF: &str = "onced needs the end of a partition to tell that it has caught up";
const TRANSACTIONS: &str =
    "onced derives one for each worker from the group and its data directory";
const IDEMPOTENCE: &str = "always on: a letter must not be written twice by a retry of the client";
const ACKS: &str = "always all: a letter settles its record only when every replica has it";

/// Sorted by subject, each with its alias in librdkafka.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", BROKERS),
    ("metadata.broker.list", BROKERS),
    ("group.id", GROUP),
    ("enable.auto.commit", COMMITS),
    ("auto.commit.enable", COMMITS),
    ("enable.auto.offset.store", STORES),
    ("auto.offset.reset", RESET),
    ("isolation.level", ISOLATION),
    ("enable.partition.eof", EOF),
    ("transactional.id", TRANSACTIONS),
    ("enable.idempotence", IDEMPOTENCE),
    ("acks", ACKS),
    ("request.required.acks", ACKS),
];

/// What the broker decides under `group.protocol = "consumer"`, and librdkafka then refuses.
const CLASSIC_ONLY: &[(&str, &str)] = &[
    ("session.timeout.ms", "the broker's group.consumer.session.timeout.ms counts"),
    ("heartbeat.interval.ms", "the broker's group.consumer.heartbeat.interval.ms counts"),
    ("partition.assignment.strategy", "set group.remote.assignor"),
    ("group.protocol.type", "it has none"),
];

/// Checks the properties; keys of `kafka` are those of the section.
pub(super) fn resolve(kafka: &mut Section<'_>, given: BTreeMap<String, String>) -> Properties {
    let properties = Properties(given);
    for (name, reason) in OWNED {
        if properties.get(name).is_some() {
            kafka.problem(&key(name), format!("is owned by onced: {reason}"));
        }
    }
    for (name, value) in properties.iter() {
        let owned = OWNED.iter().any(|(owned, _)| *owned == name);
        if let Some(reason) = refusal(name, value).filter(|_| !owned) {
            kafka.problem(&key(name), format!("is refused by librdkafka: {reason}"));
        }
    }
    check_protocol(kafka, &properties);
    properties
}

/// Why librdkafka does not take a property. Its words may hold the value, which may be a password.
fn refusal(name: &str, value: &str) -> Option<String> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(_, reason, _, _)) if !value.is_empty() => {
            Some(reason.replace(value, "..."))
        }
        Err(KafkaError::ClientConfig(_, reason, _, _)) => Some(reason),
        // A NUL in the name or in the value.
        Err(_) => Some("it holds a NUL".to_owned()),
    }
}

fn check_protocol(kafka: &mut Section<'_>, properties: &Properties) {
    match properties.get("group.protocol") {
        None | Some("classic") => {}
        Some("consumer") => {
            for (name, instead) in CLASSIC_ONLY {
                if properties.get(name).is_some() {
                    let rule = "cannot be set together with group.protocol = \"consumer\"";
                    kafka.problem(&key(name), format!("{rule}: {instead}"));
                }
            }
        }
        Some(_) => kafka.problem(&key("group.protocol"), "must be \"classic\" or \"consumer\""),
    }
}

/// A property as a key of the section `kafka`.
pub(super) fn key(name: &str) -> String {
    super::error::key_text(&["properties", name])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{File, check_refused, load_set};
    use super::*;

    #[test]
    fn strings_integers_and_booleans_become_text() {
        let file = File::new(
            "kafka.group = 'g'\nroutes.p = { topics = ['t'], handler.kind = 'stdout' }\n\
             [kafka.properties]\n'client.id' = 'text'\n\
             'session.timeout.ms' = 6000\n'check.crcs' = true\n",
        );
        let properties = file.load(&[], &[]).unwrap().kafka.properties;
        let expected =
            [("check.crcs", "true"), ("client.id", "text"), ("session.timeout.ms", "6000")];
        assert!(properties.iter().eq(expected), "{properties:?}");
        assert_eq!(
            format!("{properties:?}"),
            r#"{"check.crcs", "client.id", "session.timeout.ms"}"#
        );
    }

    #[test]
    fn a_property_that_onced_owns_is_refused_with_the_reason() {
        for (name, reason) in OWNED {
            check_refused(
                &[&format!("kafka.properties.{name}=x")],
                &[&format!(
                    "kafka.{}: is owned by onced: {reason} (--set kafka.properties.{name})",
                    key(name)
                )],
            );
        }
    }

    #[test]
    fn timings_and_security_pass() {
        for (name, value) in [
            ("session.timeout.ms", "90000"),
            ("heartbeat.interval.ms", "90000"),
            ("max.poll.interval.ms", "90000"),
            ("transaction.timeout.ms", "90000"),
            ("topic.metadata.refresh.interval.ms", "90000"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.password", "any"),
            ("partition.assignment.strategy", "range"),
        ] {
            let config = load_set(&[&format!("kafka.properties.{name}={value}")]).unwrap();
            assert_eq!(config.kafka.properties.get(name), Some(value));
        }
    }

    #[test]
    fn what_librdkafka_refuses_is_refused_without_its_value() {
        for (name, value) in [
            ("sasl.passwordd", "hush"),
            ("security.protocol", "hush"),
            ("socket.timeout.ms", "hush"),
        ] {
            let error = load_set(&[&format!("kafka.properties.{name}={value}")]).unwrap_err();
            let text = error.to_string();
            let begin = format!("kafka.{}: is refused by librdkafka: ", key(name));
            assert!(text.starts_with(&begin) && text.contains("--set"), "{text}");
            assert!(!text.contains("hush") && text.lines().count() == 1, "{text}");
        }
    }

    #[test]
    fn the_consumer_protocol_leaves_to_the_broker_what_is_the_brokers() {
        assert!(load_set(&["kafka.properties.group.protocol=consumer"]).is_ok());
        check_refused(
            &[
                "kafka.properties.group.protocol=consumer",
                "kafka.properties.session.timeout.ms=6000",
                "kafka.properties.partition.assignment.strategy=range",
            ],
            &[
                "kafka.properties.\"session.timeout.ms\": cannot be set together with \
                 group.protocol = \"consumer\": the broker's group.consumer.session.timeout.ms \
                 counts (--set kafka.properties.session.timeout.ms)",
                "kafka.properties.\"partition.assignment.strategy\": cannot be set together with \
                 group.protocol = \"consumer\": set group.remote.assignor (--set \
                 kafka.properties.partition.assignment.strategy)",
            ],
        );
        check_refused(
            &["kafka.properties.group.protocol=Classic"],
            &["kafka.properties.\"group.protocol\": must be \"classic\" or \"consumer\" \
               (--set kafka.properties.group.protocol)"],
        );
    }
}
