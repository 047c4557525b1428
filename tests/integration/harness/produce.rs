//! Producing: fast, acknowledged, or in a transaction that commits, aborts or hangs.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;

use super::kafka::{CALL_TIMEOUT, Called as _, Kafka, unique};
use super::message::{Message, native_headers};

impl Kafka {
    /// Produces the records in order and returns when the broker has all of them.
    ///
    /// # Panics
    ///
    /// Panics when one was not acknowledged.
    pub fn produce(&self, topic: &str, messages: impl IntoIterator<Item = Message>) {
        self.produce_with(&[], topic, messages);
    }

    /// The same with properties of the producer, such as `compression.type`.
    ///
    /// # Panics
    ///
    /// Panics when one was not acknowledged.
    pub fn produce_with(
        &self,
        properties: &[(&str, &str)],
        topic: &str,
        messages: impl IntoIterator<Item = Message>,
    ) {
        let producer = self.producer(properties);
        send_all(&producer, topic, messages);
    }

    /// Produces the records in a transaction that is left open; every record is at the broker.
    pub fn begin(
        &self,
        topic: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> OpenTransaction {
        let id = unique("transaction");
        let producer =
            self.producer(&[("transactional.id", &id), ("transaction.timeout.ms", "30000")]);
        producer.init_transactions(CALL_TIMEOUT).called("init transactions");
        producer.begin_transaction().called("begin a transaction");
        send_all(&producer, topic, messages);
        OpenTransaction { producer }
    }

    fn producer(&self, properties: &[(&str, &str)]) -> TestProducer {
        let mut config = self.client_config();
        // Keys go where a Java producer puts them.
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("partitioner", "murmur2_random");
        for (key, value) in properties {
            config.set(*key, *value);
        }
        let context = Deliveries { first_error: Mutex::new(None) };
        ThreadedProducer::from_config_and_context(&config, context).called("make a producer")
    }
}

/// A transaction whose records are at the broker. Dropped, it stays open until its timeout of
/// 30 seconds, as that of a producer that died.
pub struct OpenTransaction {
    producer: TestProducer,
}

impl OpenTransaction {
    pub fn commit(self) {
        self.producer.commit_transaction(Timeout::Never).called("commit a transaction");
    }

    pub fn abort(self) {
        self.producer.abort_transaction(Timeout::Never).called("abort a transaction");
    }
}

type TestProducer = ThreadedProducer<Deliveries>;

/// Remembers the first record that the broker refused.
struct Deliveries {
    first_error: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut first = self.first_error.lock().expect("nothing panics with this lock");
            first.get_or_insert_with(|| error.clone());
        }
    }
}

fn send_all(producer: &TestProducer, topic: &str, messages: impl IntoIterator<Item = Message>) {
    for message in messages {
        send(producer, topic, &message);
    }
    // Not `flush`, which looks only every 100 ms.
    let begun = Instant::now();
    while producer.in_flight_count() > 0 {
        assert!(begun.elapsed() < 2 * CALL_TIMEOUT, "records to {topic} are not acknowledged");
        thread::sleep(Duration::from_millis(1));
    }
    let first_error = producer.context().first_error.lock().expect("nothing panics with this lock");
    if let Some(error) = first_error.as_ref() {
        panic!("a record to {topic} was not delivered: {error}");
    }
}

fn send(producer: &TestProducer, topic: &str, message: &Message) {
    let mut record = BaseRecord {
        topic,
        partition: message.partition,
        payload: message.payload.as_deref(),
        key: message.key.as_deref(),
        timestamp: message.timestamp,
        headers: native_headers(&message.headers),
        delivery_opaque: (),
    };
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => panic!("a record to {topic} cannot be sent: {error}"),
        }
    }
}
