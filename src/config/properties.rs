//! `[kafka.properties]`: what goes to librdkafka as it is, and what onced keeps to itself.
//!
//! Owns: [`Properties`], the properties that are refused and the reason for each.
//! Never: knows all of librdkafka's names; it refuses unknown ones itself when a client is made.

use std::collections::BTreeMap;
use std::fmt;

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
    check_protocol(kafka, &properties);
    properties
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
             [kafka.properties]\n'a.b' = 'text'\n'c.d' = 6000\n'e.f' = true\n",
        );
        let properties = file.load(&[], &[]).unwrap().kafka.properties;
        let expected = [("a.b", "text"), ("c.d", "6000"), ("e.f", "true")];
        assert!(properties.iter().eq(expected), "{properties:?}");
        assert_eq!(format!("{properties:?}"), r#"{"a.b", "c.d", "e.f"}"#);
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
        for name in [
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "max.poll.interval.ms",
            "transaction.timeout.ms",
            "topic.metadata.refresh.interval.ms",
            "security.protocol",
            "partition.assignment.strategy",
        ] {
            let config = load_set(&[&format!("kafka.properties.{name}=90000")]).unwrap();
            assert_eq!(config.kafka.properties.get(name), Some("90000"));
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
