//! What the driver asks of the cluster: topics, replicas, leaders, offsets.
//!
//! Owns: clients on the listeners without a proxy, and waiting for the cluster to be whole.
//! Never: reads or writes records.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::cluster::BROKERS;

pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// A partition by topic and number.
pub type Partition = (String, i32);

pub struct Kafka {
    bootstrap: String,
}

impl Kafka {
    pub fn new(bootstrap: String) -> Self {
        Self { bootstrap }
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub fn client<C: FromClientConfig>(&self, properties: &[(&str, &str)]) -> C {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("reconnect.backoff.max.ms", "500")
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("socket.timeout.ms", "10000")
            .set("enable.metrics.push", "false")
            // A broker that was killed is no news here.
            .set("log_level", "0");
        for (key, value) in properties {
            config.set(*key, *value);
        }
        config.create().expect("a client can be made of these properties")
    }

    pub fn consumer(&self, group: &str) -> BaseConsumer {
        self.client(&[("group.id", group), ("enable.auto.commit", "false")])
    }

    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]);
        let topic = config
            .iter()
            .fold(NewTopic::new(name, partitions, TopicReplication::Fixed(3)), |t, c| {
                t.set(c.0, c.1)
            });
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime without I/O needs nothing");
        patiently("create a topic", Duration::from_secs(60), || {
            let options = AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT));
            let created = runtime.block_on(admin.create_topics([&topic], &options))?;
            match created.into_iter().next() {
                Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                    Err(KafkaError::AdminOp(code))
                }
                _ => Ok(()),
            }
        });
    }

    /// Waits until all brokers are there and each replica of each partition is in sync.
    ///
    /// # Errors
    ///
    /// Says what was missing when the time was over.
    pub fn wait_whole(&self, timeout: Duration) -> Result<(), String> {
        let client: BaseConsumer = self.client(&[]);
        let begun = Instant::now();
        loop {
            let missing = match client.fetch_metadata(None, CALL_TIMEOUT) {
                Ok(metadata) => {
                    let behind = metadata
                        .topics()
                        .iter()
                        .flat_map(|topic| topic.partitions())
                        .filter(|partition| {
                            partition.leader() < 0
                                || partition.isr().len() < partition.replicas().len()
                        })
                        .count();
                    let brokers = metadata.brokers().len();
                    if brokers == BROKERS && behind == 0 {
                        return Ok(());
                    }
                    format!("{brokers} brokers, {behind} partitions that are not in sync")
                }
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > timeout {
                return Err(missing);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// The broker, from 0, that leads a partition.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<usize> {
        let client: BaseConsumer = self.client(&[]);
        let metadata = client.fetch_metadata(Some(topic), CALL_TIMEOUT).ok()?;
        let found = metadata.topics().first()?;
        let found = found.partitions().iter().find(|one| one.id() == partition)?;
        usize::try_from(found.leader()).ok()?.checked_sub(1).filter(|index| *index < BROKERS)
    }

    pub fn members(&self, group: &str) -> Option<usize> {
        let client: BaseConsumer = self.client(&[]);
        let groups = client.fetch_group_list(Some(group), CALL_TIMEOUT).ok()?;
        Some(groups.groups().iter().map(|group| group.members().len()).sum())
    }

    /// What a tool does that resets a group: an offset for each partition, without metadata.
    ///
    /// # Errors
    ///
    /// Fails while the group has members, and where the coordinator is away for long.
    pub fn reset(&self, group: &str, partitions: &[Partition]) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            // A new client each time: one that failed may go on to ask the old coordinator.
            let consumer = self.consumer(group);
            let mut offsets = TopicPartitionList::new();
            for (topic, partition) in partitions {
                offsets
                    .add_partition_offset(topic, *partition, Offset::Offset(0))
                    .expect("zero is an offset");
            }
            match consumer.commit(&offsets, CommitMode::Sync) {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > Duration::from_secs(60) => {
                    return Err(error.to_string());
                }
                Err(_) => thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// The offset after the last record; of committed transactions alone, or of all.
    pub fn ends(&self, partitions: &[Partition], committed: bool) -> BTreeMap<Partition, i64> {
        let isolation = if committed { "read_committed" } else { "read_uncommitted" };
        let client: BaseConsumer = self.client(&[("isolation.level", isolation)]);
        partitions
            .iter()
            .map(|(topic, partition)| {
                let (_, end) =
                    patiently("read the end of a partition", Duration::from_secs(120), || {
                        client.fetch_watermarks(topic, *partition, CALL_TIMEOUT)
                    });
                ((topic.clone(), *partition), end)
            })
            .collect()
    }

    /// What a group has committed, without an open transaction that might change it. `None` where
    /// it cannot be told now.
    pub fn committed(
        &self,
        group: &str,
        partitions: &[Partition],
    ) -> Option<BTreeMap<Partition, i64>> {
        let consumer = self.consumer(group);
        let mut wanted = TopicPartitionList::new();
        for (topic, partition) in partitions {
            wanted.add_partition(topic, *partition);
        }
        let found = consumer.committed_offsets(wanted, CALL_TIMEOUT).ok()?;
        let offsets = found.elements().into_iter().map(|entry| {
            let offset = entry.offset().to_raw().filter(|offset| *offset >= 0);
            ((entry.topic().to_owned(), entry.partition()), offset.unwrap_or_default())
        });
        Some(offsets.collect())
    }
}

/// Which partition of `__consumer_offsets` keeps a group: Java's hash of its name.
pub fn coordinator_partition(group: &str, partitions: i32) -> i32 {
    let hash = group
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    (hash & i32::MAX) % partitions
}

/// Tries until it works.
///
/// # Panics
///
/// Panics with the last error when the time is over.
pub fn patiently<T>(
    what: &str,
    timeout: Duration,
    mut call: impl FnMut() -> Result<T, KafkaError>,
) -> T {
    let begun = Instant::now();
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert!(begun.elapsed() < timeout, "{what}: {error}"),
        }
        thread::sleep(Duration::from_millis(300));
    }
}
