//! What only the admin interface tells: ids and settings of topics.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::bindings as native;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{self, Logging};
use crate::config::Kafka;

/// The id of a topic; empty where the broker has none. `broker`: whom to ask; every broker knows.
/// By itself the client would ask the controller, which may be away, or wait for it.
pub(super) fn topic_id(
    client: *mut native::rd_kafka_t,
    topic: &str,
    broker: i32,
    patience: Duration,
) -> Result<String, KafkaError> {
    let name = CString::new(topic)?;
    let mut names = [name.as_ptr()];
    let timeout = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: every object is created here, used while alive and destroyed once; the name
    // outlives the calls, which copy it.
    unsafe {
        let topics =
            native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let queue = native::rd_kafka_queue_new(client);
        let options = native::rd_kafka_AdminOptions_new(
            client,
            native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let mut unused = [0; 256];
        native::rd_kafka_AdminOptions_set_broker(
            options,
            broker,
            unused.as_mut_ptr(),
            unused.len(),
        );
        native::rd_kafka_DescribeTopics(client, topics, options, queue);
        native::rd_kafka_AdminOptions_destroy(options);
        native::rd_kafka_TopicCollection_destroy(topics);
        let event = native::rd_kafka_queue_poll(queue, timeout);
        let id = NonNull::new(event).map(|event| described_id(event.as_ptr()));
        if !event.is_null() {
            native::rd_kafka_event_destroy(event);
        }
        native::rd_kafka_queue_destroy(queue);
        id.unwrap_or(Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut)))
    }
}

/// # Safety
/// `event` is alive and answers a description of one topic.
unsafe fn described_id(event: *mut native::rd_kafka_event_t) -> Result<String, KafkaError> {
    // SAFETY: by contract; what is read here lives as long as the event.
    unsafe {
        let error = native::rd_kafka_event_error(event);
        if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if topics.is_null() || count == 0 {
            return Ok(String::new());
        }
        let topic = *topics;
        let error = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(topic));
        if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        let text =
            native::rd_kafka_Uuid_base64str(native::rd_kafka_TopicDescription_topic_id(topic));
        if text.is_null() {
            return Ok(String::new());
        }
        Ok(as_kafka_writes(&CStr::from_ptr(text).to_string_lossy()))
    }
}

/// How many members a group has; one that nobody knows has none. Asks the group's coordinator. A
/// broker that does not answer such questions counts as one without members: committing finds out.
pub(super) fn group_members(
    client: *mut native::rd_kafka_t,
    group: &str,
    patience: Duration,
) -> Result<usize, KafkaError> {
    let name = CString::new(group)?;
    let mut names = [name.as_ptr()];
    let timeout = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: every object is created here, used while alive and destroyed once; the name
    // outlives the call, which copies it.
    let answer = unsafe {
        let queue = native::rd_kafka_queue_new(client);
        native::rd_kafka_DescribeConsumerGroups(
            client,
            names.as_mut_ptr(),
            names.len(),
            std::ptr::null(),
            queue,
        );
        let event = native::rd_kafka_queue_poll(queue, timeout);
        let members = NonNull::new(event).map(|event| described_members(event.as_ptr()));
        if !event.is_null() {
            native::rd_kafka_event_destroy(event);
        }
        native::rd_kafka_queue_destroy(queue);
        members.unwrap_or(Err(RDKafkaErrorCode::OperationTimedOut))
    };
    match answer {
        Err(RDKafkaErrorCode::GroupIdNotFound | RDKafkaErrorCode::UnsupportedFeature) => Ok(0),
        answer => answer.map_err(KafkaError::GroupListFetch),
    }
}

/// # Safety
/// `event` is alive and answers a description of one group.
unsafe fn described_members(
    event: *mut native::rd_kafka_event_t,
) -> Result<usize, RDKafkaErrorCode> {
    // SAFETY: by contract; what is read here lives as long as the event.
    unsafe {
        let code: RDKafkaErrorCode = native::rd_kafka_event_error(event).into();
        if code != RDKafkaErrorCode::NoError {
            return Err(code);
        }
        let result = native::rd_kafka_event_DescribeConsumerGroups_result(event);
        let mut count = 0;
        let groups = native::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
        if groups.is_null() || count == 0 {
            return Ok(0);
        }
        let error = native::rd_kafka_ConsumerGroupDescription_error(*groups);
        match native::rd_kafka_error_code(error).into() {
            RDKafkaErrorCode::NoError => {
                Ok(native::rd_kafka_ConsumerGroupDescription_member_count(*groups))
            }
            code => Err(code),
        }
    }
}

/// The client library writes ids in plain Base64; Kafka's own tools write no `+` and no `/`, which
/// separates the parts of a letter's group.
fn as_kafka_writes(id: &str) -> String {
    id.replace('+', "-").replace('/', "_")
}

/// What a topic keeps. Read from its settings, the broker's defaults included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicSettings {
    /// Milliseconds; `None`: for ever, or the topic deletes nothing by age.
    pub retention_ms: Option<i64>,
    /// Bytes for each partition; `None`: no limit.
    pub retention_bytes: Option<i64>,
    pub compacted: bool,
    /// For how long compaction leaves a record alone.
    pub min_compaction_lag_ms: i64,
    /// The largest batch that the topic takes, in bytes.
    pub max_message_bytes: Option<i64>,
}

impl TopicSettings {
    /// For how long every record is there to be read again. `None`: for ever.
    #[must_use]
    pub fn keeps_ms(&self) -> Option<i64> {
        let lag = self.compacted.then_some(self.min_compaction_lag_ms);
        [self.retention_ms, lag].into_iter().flatten().min()
    }
}

/// Asks for the settings of a topic.
///
/// # Errors
/// The broker's answer, or that this user may not ask.
pub async fn topic_settings(kafka: &Kafka, topic: &str) -> Result<TopicSettings, KafkaError> {
    let admin: AdminClient<Logging> = client::base(kafka).create_with_context(Logging)?;
    let options = AdminOptions::new().request_timeout(Some(super::lookup::PATIENCE));
    let answers = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
    let answer = answers.into_iter().next().ok_or(KafkaError::AdminOp(RDKafkaErrorCode::NoEnt))?;
    let settings = answer.map_err(KafkaError::AdminOp)?;
    let value = |name: &str| settings.get(name).and_then(|entry| entry.value.clone());
    let number = |name: &str| value(name).and_then(|value| value.parse::<i64>().ok());
    // A user who may not read the settings gets an answer without any.
    let denied = KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed);
    let policy = value("cleanup.policy").ok_or(denied)?;
    let deletes = policy.contains("delete");
    Ok(TopicSettings {
        retention_ms: number("retention.ms").filter(|ms| deletes && *ms >= 0),
        retention_bytes: number("retention.bytes").filter(|bytes| deletes && *bytes >= 0),
        compacted: policy.contains("compact"),
        min_compaction_lag_ms: number("min.compaction.lag.ms").unwrap_or(0),
        max_message_bytes: number("max.message.bytes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_kafka_writes_it() {
        assert_eq!(as_kafka_writes("G3SVALTI+cOsW4puI/TgeA"), "G3SVALTI-cOsW4puI_TgeA");
    }
}
