//! The Kafka of the demo: librdkafka's mock cluster in this process, and the clients that use it.
//!
//! Owns: topics, producers and the reading of the dead letters: what the world around the daemon
//! does. Never: is used by anything but the demo.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings as native;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{
    BorrowedMessage, DeliveryResult, Header, Headers as _, Message, OwnedHeaders,
};
use rdkafka::producer::{
    BaseProducer, BaseRecord, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::report::DeadLetter;
use super::scenario::{Record, Scenario};

pub(super) const TOPIC: &str = "payments";
pub(super) const DEAD_LETTERS: &str = "payments-dead";
pub(super) const PARTITIONS: i32 = 4;

/// The mock's default is 3 s, as that of a broker.
const REBALANCE_DELAY_MS: i32 = 200;

/// How long a producer may take to get rid of its records.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// One broker, as long as this lives.
pub(super) struct Cluster {
    /// The handle to which the mock belongs. It sends nothing.
    _owner: BaseProducer,
    brokers: String,
}

impl Cluster {
    pub(super) fn start() -> Result<Self, KafkaError> {
        let owner: BaseProducer = ClientConfig::new().set("test.mock.num.brokers", "1").create()?;
        let none = KafkaError::MockCluster(RDKafkaErrorCode::Fail);
        let mock = owner.client().mock_cluster().ok_or(none)?;
        mock.create_topic(TOPIC, PARTITIONS, 1)?;
        mock.create_topic(DEAD_LETTERS, 1, 1)?;
        let brokers = mock.bootstrap_servers();
        drop(mock);
        // SAFETY: the handle is alive and has a mock cluster, which belongs to it.
        unsafe {
            let mock = native::rd_kafka_handle_mock_cluster(owner.client().native_ptr());
            native::rd_kafka_mock_group_initial_rebalance_delay_ms(mock, REBALANCE_DELAY_MS);
        }
        Ok(Self { _owner: owner, brokers })
    }

    pub(super) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// A service that publishes payments.
    pub(super) fn producer(&self) -> Result<PaymentProducer, KafkaError> {
        PaymentProducer::start(&self.brokers)
    }

    /// All dead letters, up to the end of the topic.
    pub(super) fn dead_letters(&self, patience: Duration) -> Result<Vec<DeadLetter>, KafkaError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "onced-demo")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()?;
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(DEAD_LETTERS, 0, Offset::Beginning)?;
        consumer.assign(&from)?;
        let deadline = Instant::now() + patience;
        let mut letters = Vec::new();
        while Instant::now() < deadline {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => letters.push(dead_letter(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(letters),
                // The client goes on trying by itself.
                Some(Err(_)) | None => {}
            }
        }
        Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
    }
}

fn dead_letter(message: &BorrowedMessage<'_>) -> DeadLetter {
    let header = |name: &str| {
        let headers = message.headers()?;
        let found = headers.iter().find(|header| header.key.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(found.value?).into_owned())
    };
    let header = |name| header(name).unwrap_or_default();
    DeadLetter {
        key: header("Idempotency-Key"),
        reason: header("onced-dead-letter-reason"),
        source: header("onced-dead-letter-source"),
        payload: String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned(),
    }
}

/// Counts of what the broker has acknowledged.
pub(super) type Counts = BTreeMap<i32, u64>;

#[derive(Default)]
struct Delivered {
    by_partition: Counts,
    failure: Option<KafkaError>,
}

#[derive(Clone, Default)]
struct Deliveries {
    delivered: Arc<Mutex<Delivered>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(message) => *delivered.by_partition.entry(message.partition()).or_default() += 1,
            Err((error, _)) => delivered.failure = Some(error.clone()),
        }
    }
}

/// Sends payments: the account is the record's key, so that an account's payments stay in order.
pub(super) struct PaymentProducer {
    producer: ThreadedProducer<Deliveries>,
    deliveries: Deliveries,
}

impl PaymentProducer {
    fn start(brokers: &str) -> Result<Self, KafkaError> {
        let deliveries = Deliveries::default();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            // The repeats are those of the scenario; the client adds none.
            .set("enable.idempotence", "true")
            .create_with_context(deliveries.clone())?;
        Ok(Self { producer, deliveries })
    }

    /// Sends records, and waits until the broker has them.
    pub(super) fn send(&self, scenario: &Scenario, records: &[Record]) -> Result<(), KafkaError> {
        for record in records {
            let payment = scenario.payment(*record);
            let key = Header { key: "Idempotency-Key", value: Some(&payment.key) };
            let payload = scenario.payload(*record);
            let message = BaseRecord::to(TOPIC)
                .key(&payment.account)
                .payload(&payload)
                .headers(OwnedHeaders::new().insert(key));
            self.producer.send(message).map_err(|(error, _)| error)?;
        }
        self.producer.flush(FLUSH_PATIENCE)
    }

    /// Ends the producer. How many of its records each partition has.
    pub(super) fn stop(self) -> Result<Counts, KafkaError> {
        drop(self.producer);
        let mut delivered =
            self.deliveries.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        match delivered.failure.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut delivered.by_partition)),
        }
    }
}
