//! Configurations of the client's handles: what every handle shares, and what each adds.
//!
//! The user's properties apply to all; those that onced owns were refused when the configuration
//! was read.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::config::Kafka;
use crate::logging;

/// The context of handles that only log.
pub struct Logging;

impl ClientContext for Logging {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        logging::librdkafka(level, facility, text);
    }
}

impl ConsumerContext for Logging {}

/// What is common to consumers, producers and admin handles.
#[must_use]
pub fn base(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "onced")
        // A private daemon reports to its own scraper.
        .set("enable.metrics.push", "false");
    for (name, value) in kafka.properties.iter() {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &kafka.brokers);
    config
}

/// Properties that only consumers know; producers would warn about them.
const CONSUMER_DEFAULTS: [(&str, &str); 6] = [
    // Without this the fetcher sleeps for a second whenever its queue was full.
    ("fetch.queue.backoff.ms", "5"),
    ("fetch.wait.max.ms", "100"),
    ("queued.min.messages", "200000"),
    ("queued.max.messages.kbytes", "32768"),
    ("fetch.message.max.bytes", "4194304"),
    ("check.crcs", "true"),
];

/// A handle that consumes; joins no group.
#[must_use]
pub fn reader(kafka: &Kafka) -> ClientConfig {
    let mut config = base(kafka);
    for (name, value) in CONSUMER_DEFAULTS {
        set_unless_given(&mut config, kafka, name, value);
    }
    config
        .set("group.id", &kafka.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed");
    config
}

/// Until then a dead owner's open transaction hides its offsets from the next.
const TRANSACTION_TIMEOUT_MS: u64 = 15_000;

/// What is common to the producers of transactions, and `transaction.timeout.ms`.
#[must_use]
pub fn transactional(kafka: &Kafka) -> (ClientConfig, Duration) {
    let given = kafka.properties.get("transaction.timeout.ms");
    let timeout = given.and_then(|text| text.parse().ok()).unwrap_or(TRANSACTION_TIMEOUT_MS);
    let mut config = base(kafka);
    config
        .set("transaction.timeout.ms", timeout.to_string())
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("delivery.report.only.error", "true")
        // The client's own limit must not be what refuses a record: the topic knows better.
        .set("message.max.bytes", "1000000000");
    (config, Duration::from_millis(timeout))
}

/// Properties, by the beginning of their names, that say how brokers are reached. All others are
/// about a membership or about records.
const CONNECTION: [&str; 20] = [
    "allow.auto.create.topics",
    "api.version.",
    "broker.",
    "client.",
    "connections.",
    "debug",
    "enable.sasl.",
    "enable.ssl.",
    "https.",
    "max.in.flight",
    "message.max.bytes",
    "metadata.",
    "receive.message.max.bytes",
    "reconnect.",
    "retry.",
    "sasl.",
    "security.",
    "socket.",
    "ssl.",
    "topic.metadata.",
];

/// A handle that asks and commits for a group that it never joins: it takes only what says how
/// brokers are reached. A session, an instance or an assignor would be those of the real group.
pub(super) fn companion(kafka: &Kafka, group: &str) -> ClientConfig {
    let is_connection = |name: &str| CONNECTION.iter().any(|start| name.starts_with(start));
    let properties = kafka.properties.iter().filter(|(name, _)| is_connection(name));
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut config = base(&Kafka { properties, ..kafka.clone() });
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed");
    config
}

/// Members of a fixed name stay in the group on purpose, and under the newer protocol closing the
/// client is enough.
pub(super) fn leaves_by_unsubscribing(kafka: &Kafka) -> bool {
    kafka.properties.iter().all(|(name, value)| {
        name != "group.instance.id" && (name != "group.protocol" || value == "classic")
    })
}

/// The handle that joins the group.
pub(super) fn group_member(kafka: &Kafka) -> ClientConfig {
    let mut config = reader(kafka);
    // Under the newer protocol the broker assigns, and the client refuses this property.
    let classic = config.get("group.protocol").is_none_or(|protocol| protocol == "classic");
    if classic {
        set_unless_given(&mut config, kafka, "partition.assignment.strategy", "cooperative-sticky");
    }
    config
}

fn set_unless_given(config: &mut ClientConfig, kafka: &Kafka, name: &str, value: &str) {
    if kafka.properties.iter().all(|(given, _)| given != name) {
        config.set(name, value);
    }
}

/// The error without the value of the property, which may be a password.
pub fn without_value(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, name, value) => {
            let description = description.replace(&format!("\"{value}\""), "\"...\"");
            if description.contains(name) { description } else { format!("{name}: {description}") }
        }
        KafkaError::ClientCreation(description) => description.clone(),
        error => error.to_string(),
    }
}
