//! Questions to the cluster that only look: who is there, what is a topic, what is a group, and
//! what may this user do.
//!
//! librdkafka's admin calls are used directly: they take no part in a group, ask for no topic to be
//! made, and one queue carries their answers together with the reasons why there are none.
//!
//! Owns: [`Broker`], and a bound in time for each question.
//! Never: judges an answer, or sends anything that changes the cluster.

mod answers;
mod reasons;

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use rdkafka::bindings as native;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use self::answers::{described_group, described_topic, slice, text};
use self::reasons::Reasons;
use super::group;
use super::topics::Described;
use crate::config::Kafka;
use crate::source::client;

/// How long one question may take.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// When no broker can be reached, further tries are for names with several addresses, and for a
/// broker that is just starting.
const UNREACHABLE_PATIENCE: Duration = Duration::from_secs(3);

/// Asks, and waits for the answer.
pub struct Broker {
    queue: NonNull<native::rd_kafka_queue_t>,
    client: Client<DefaultClientContext>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The broker does not accept this user, or not this way of logging in.
    Authentication {
        reason: String,
    },
    /// No answer; with what the client said of the brokers in the meantime.
    Silence {
        waited: Duration,
        reasons: Vec<String>,
    },
    Answer(RDKafkaErrorCode),
}

/// The cluster that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Empty where the brokers have none.
    pub id: String,
    pub brokers: usize,
}

/// Topics by name.
pub type Topics = BTreeMap<String, Result<Described, RDKafkaErrorCode>>;

/// An event of librdkafka, destroyed once.
struct Event(NonNull<native::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: polled by us and destroyed once.
        unsafe { native::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // SAFETY: our reference to the queue, given back once, before the client goes.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

impl Broker {
    /// Connects in the background.
    ///
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn new(kafka: &Kafka) -> Result<Self, KafkaError> {
        let mut config = client::base(kafka);
        // Some reasons why a broker is not reached are only logged.
        config.set_log_level(RDKafkaLogLevel::Info);
        let native_config = config.create_native_config()?;
        // SAFETY: the configuration is alive. Without this, errors are only logged.
        unsafe {
            native::rd_kafka_conf_set_events(native_config.ptr(), native::RD_KAFKA_EVENT_ERROR)
        };
        let client = Client::new(
            &config,
            native_config,
            native::rd_kafka_type_t::RD_KAFKA_PRODUCER,
            DefaultClientContext,
        )?;
        // SAFETY: the client is alive; every client has a main queue.
        let queue = unsafe { native::rd_kafka_queue_get_main(client.native_ptr()) };
        Ok(Self { queue: NonNull::new(queue).expect("a client has a main queue"), client })
    }

    /// Who answers at the brokers' addresses.
    ///
    /// # Errors
    /// Nobody, or not to this user.
    pub fn cluster(&self) -> Result<Cluster, Trouble> {
        let event = self.ask(
            native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER,
            native::RD_KAFKA_EVENT_DESCRIBECLUSTER_RESULT,
            // SAFETY: all pointers are alive.
            |client, options, queue| unsafe {
                native::rd_kafka_DescribeCluster(client, options, queue)
            },
        )?;
        let mut brokers = 0;
        // SAFETY: the event answers this question, and what is read lives as long as it.
        unsafe {
            let result = native::rd_kafka_event_DescribeCluster_result(event.0.as_ptr());
            native::rd_kafka_DescribeCluster_result_nodes(result, &raw mut brokers);
            Ok(Cluster {
                id: text(native::rd_kafka_DescribeCluster_result_cluster_id(result)),
                brokers,
            })
        }
    }

    /// Describes topics. No name may come twice.
    ///
    /// # Errors
    /// The question was not answered at all.
    pub fn topics(&self, names: &[&str]) -> Result<Topics, Trouble> {
        let names = c_strings(names)?;
        let mut pointers = pointers(&names);
        let event = self.ask(
            native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            native::RD_KAFKA_EVENT_DESCRIBETOPICS_RESULT,
            // SAFETY: all pointers are alive; names and collection are copied by the call.
            |client, options, queue| unsafe {
                let topics = native::rd_kafka_TopicCollection_of_topic_names(
                    pointers.as_mut_ptr(),
                    pointers.len(),
                );
                native::rd_kafka_DescribeTopics(client, topics, options, queue);
                native::rd_kafka_TopicCollection_destroy(topics);
            },
        )?;
        let mut count = 0;
        // SAFETY: the event answers this question, and what is read lives as long as it.
        unsafe {
            let result = native::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
            let found = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            let named = |topic| {
                (text(native::rd_kafka_TopicDescription_name(topic)), described_topic(topic))
            };
            Ok(slice(found, count).iter().map(|topic| named(*topic)).collect())
        }
    }

    /// Describes the group, without joining it.
    ///
    /// # Errors
    /// The question was not answered at all.
    pub fn group(&self, name: &str) -> Result<Result<group::Described, RDKafkaErrorCode>, Trouble> {
        let started = Instant::now();
        loop {
            match self.group_once(name) {
                // A group's coordinator is found, or loads its groups, only when it is asked.
                Ok(Err(code)) if passes(code) && started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                answer => return answer,
            }
        }
    }

    fn group_once(
        &self,
        name: &str,
    ) -> Result<Result<group::Described, RDKafkaErrorCode>, Trouble> {
        let names = c_strings(&[name])?;
        let mut pointers = pointers(&names);
        let event = self.ask(
            native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS,
            native::RD_KAFKA_EVENT_DESCRIBECONSUMERGROUPS_RESULT,
            // SAFETY: all pointers are alive; the name is copied by the call.
            |client, options, queue| unsafe {
                native::rd_kafka_DescribeConsumerGroups(
                    client,
                    pointers.as_mut_ptr(),
                    pointers.len(),
                    options,
                    queue,
                );
            },
        )?;
        let mut count = 0;
        // SAFETY: the event answers this question, and what is read lives as long as it.
        unsafe {
            let result = native::rd_kafka_event_DescribeConsumerGroups_result(event.0.as_ptr());
            let found =
                native::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            match slice(found, count) {
                [group] => Ok(described_group(*group)),
                _ => Err(Trouble::Answer(RDKafkaErrorCode::GroupIdNotFound)),
            }
        }
    }

    /// Sends a question and waits for its answer. The permissions are asked for with everything.
    fn ask(
        &self,
        operation: native::rd_kafka_admin_op_t,
        answer: i32,
        send: impl FnOnce(
            *mut native::rd_kafka_t,
            *const native::rd_kafka_AdminOptions_t,
            *mut native::rd_kafka_queue_t,
        ),
    ) -> Result<Event, Trouble> {
        let client = self.client.native_ptr();
        // SAFETY: the client is alive; the options are destroyed once, after the call copied them.
        unsafe {
            let options = native::rd_kafka_AdminOptions_new(client, operation);
            native::rd_kafka_AdminOptions_set_request_timeout(
                options,
                i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX),
                ptr::null_mut(),
                0,
            );
            let error = native::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !error.is_null() {
                native::rd_kafka_error_destroy(error);
            }
            send(client, options, self.queue.as_ptr());
            native::rd_kafka_AdminOptions_destroy(options);
        }
        self.wait_for(answer)
    }

    fn wait_for(&self, answer: i32) -> Result<Event, Trouble> {
        let started = Instant::now();
        let mut reasons = Reasons::default();
        loop {
            let waited = started.elapsed();
            if waited >= PATIENCE || (reasons.unreachable && waited >= UNREACHABLE_PATIENCE) {
                return Err(Trouble::Silence { waited, reasons: reasons.texts });
            }
            let Some(event) = self.poll(Duration::from_millis(100)) else { continue };
            // SAFETY: alive until it is dropped.
            let (kind, code) = unsafe {
                (
                    native::rd_kafka_event_type(event.0.as_ptr()),
                    native::rd_kafka_event_error(event.0.as_ptr()).into(),
                )
            };
            if kind == native::RD_KAFKA_EVENT_ERROR {
                reasons.add_error(code, &event)?;
            } else if kind == native::RD_KAFKA_EVENT_LOG {
                reasons.add_log(&event);
            } else if kind == answer {
                return match code {
                    RDKafkaErrorCode::NoError => Ok(event),
                    // The client gave up on the question: it was not the broker that answered.
                    RDKafkaErrorCode::OperationTimedOut => {
                        Err(Trouble::Silence { waited, reasons: reasons.texts })
                    }
                    code => Err(Trouble::Answer(code)),
                };
            }
        }
    }

    fn poll(&self, patience: Duration) -> Option<Event> {
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is ours and alive.
        NonNull::new(unsafe { native::rd_kafka_queue_poll(self.queue.as_ptr(), patience) })
            .map(Event)
    }
}

fn passes(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress
    )
}

fn c_strings(names: &[&str]) -> Result<Vec<CString>, Trouble> {
    let names = names.iter().map(|name| CString::new(*name)).collect::<Result<_, _>>();
    names.map_err(|_| Trouble::Answer(RDKafkaErrorCode::InvalidTopic))
}

fn pointers(names: &[CString]) -> Vec<*const c_char> {
    names.iter().map(|name| name.as_ptr()).collect()
}
