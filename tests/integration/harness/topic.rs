//! Topics: made for a test, changed under a daemon, deleted.

use rdkafka::admin::{
    AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::MetadataTopic;

use super::kafka::{CALL_TIMEOUT, Called as _, Kafka, block_on, unique};
use super::wait::wait_until;

/// A topic that is about to be made. One partition and the broker's settings, unless said.
#[must_use]
pub struct TopicBuilder<'a> {
    kafka: &'a Kafka,
    name: String,
    partitions: i32,
    config: Vec<(String, String)>,
}

impl<'a> TopicBuilder<'a> {
    pub(super) fn new(kafka: &'a Kafka, prefix: &str) -> Self {
        Self { kafka, name: unique(prefix), partitions: 1, config: Vec::new() }
    }

    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = partitions;
        self
    }

    /// A setting of the topic, by Kafka's name.
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Makes it, waits until it can be used, and returns its name.
    pub fn create(self) -> String {
        self.kafka.create_topic(&self.name, self.partitions, &self.config);
        self.name
    }
}

impl Kafka {
    /// Makes a topic of exactly this name: for one that comes back after it was deleted.
    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(String, String)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let made = block_on(self.admin().create_topics([&topic], &options()));
        expect_done(made, format_args!("create topic {name}"));
        self.wait_for_partitions(name, partitions);
    }

    /// Deletes a topic and waits until it is gone.
    pub fn delete_topic(&self, name: &str) {
        let deleted = block_on(self.admin().delete_topics(&[name], &options()));
        expect_done(deleted, format_args!("delete topic {name}"));
        wait_until(&format!("topic {name} is gone"), CALL_TIMEOUT, || self.partitions(name) == 0);
    }

    /// Adds partitions, up to this number.
    pub fn add_partitions(&self, name: &str, partitions: i32) {
        let count = usize::try_from(partitions).called("a number of partitions");
        let added = block_on(
            self.admin().create_partitions([&NewPartitions::new(name, count)], &options()),
        );
        expect_done(added, format_args!("add partitions to {name}"));
        self.wait_for_partitions(name, partitions);
    }

    /// Replaces all settings of a topic.
    pub fn configure_topic(&self, name: &str, config: &[(&str, &str)]) {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in config {
            change = change.set(key, value);
        }
        let what = format_args!("configure topic {name}").to_string();
        let changed = block_on(self.admin().alter_configs([&change], &options())).called(&what);
        for result in changed {
            result.map_err(|(_, code)| code).called(&what);
        }
    }

    /// How many partitions a topic has; 0 where there is no such topic.
    pub fn partitions(&self, name: &str) -> i32 {
        let consumer: BaseConsumer = self.client(&[]);
        let metadata = consumer.fetch_metadata(Some(name), CALL_TIMEOUT).called("fetch metadata");
        let led = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        let led = led.filter(|partition| partition.leader() >= 0);
        i32::try_from(led.count()).called("a number of partitions")
    }

    fn wait_for_partitions(&self, name: &str, partitions: i32) {
        wait_until(&format!("{name} has {partitions} partitions"), CALL_TIMEOUT, || {
            self.partitions(name) == partitions
        });
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT)).request_timeout(Some(CALL_TIMEOUT))
}

#[track_caller]
fn expect_done(
    results: rdkafka::error::KafkaResult<Vec<rdkafka::admin::TopicResult>>,
    what: std::fmt::Arguments<'_>,
) {
    for result in results.called(what) {
        result.map_err(|(_, code)| code).called(what);
    }
}
