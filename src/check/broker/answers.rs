//! Reads librdkafka's answers into values of our own.

use std::ffi::{CStr, c_char};

use rdkafka::bindings as native;
use rdkafka::error::RDKafkaErrorCode;

use super::super::topics::Allowed;
use super::super::{group, topics};

/// # Safety
/// `text` is null or ends with a NUL.
pub unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `first` is null or points to `count` elements that live as long as the result is used.
pub unsafe fn slice<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// # Safety
/// `topic` belongs to an answer that is alive.
pub unsafe fn described_topic(
    topic: *const native::rd_kafka_TopicDescription_t,
) -> Result<topics::Described, RDKafkaErrorCode> {
    let (mut partition_count, mut allowed_count) = (0, 0);
    // SAFETY: by contract; what is read lives as long as the answer.
    unsafe {
        no_error(native::rd_kafka_TopicDescription_error(topic))?;
        let partitions =
            native::rd_kafka_TopicDescription_partitions(topic, &raw mut partition_count);
        let partitions = slice(partitions, partition_count);
        let led = |partition: &*const native::rd_kafka_TopicPartitionInfo_t| {
            let leader = native::rd_kafka_TopicPartitionInfo_leader(*partition);
            !leader.is_null() && native::rd_kafka_Node_id(leader) >= 0
        };
        let replicas = |partition: &*const native::rd_kafka_TopicPartitionInfo_t| {
            let mut count = 0;
            native::rd_kafka_TopicPartitionInfo_replicas(*partition, &raw mut count);
            count
        };
        let leaderless = partitions.iter().filter(|partition| !led(partition));
        let allowed =
            native::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut allowed_count);
        Ok(topics::Described {
            partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
            leaderless: leaderless
                .map(|partition| native::rd_kafka_TopicPartitionInfo_partition(*partition))
                .collect(),
            fewest_replicas: partitions.iter().map(replicas).min().unwrap_or_default(),
            allowed: operations(slice(allowed, allowed_count)),
        })
    }
}

/// # Safety
/// `group` belongs to an answer that is alive.
pub unsafe fn described_group(
    group: *const native::rd_kafka_ConsumerGroupDescription_t,
) -> Result<group::Described, RDKafkaErrorCode> {
    let mut allowed_count = 0;
    // SAFETY: by contract; what is read lives as long as the answer.
    unsafe {
        no_error(native::rd_kafka_ConsumerGroupDescription_error(group))?;
        let members = 0..native::rd_kafka_ConsumerGroupDescription_member_count(group);
        let client = |index| {
            let member = native::rd_kafka_ConsumerGroupDescription_member(group, index);
            text(native::rd_kafka_MemberDescription_client_id(member))
        };
        let allowed = native::rd_kafka_ConsumerGroupDescription_authorized_operations(
            group,
            &raw mut allowed_count,
        );
        Ok(group::Described {
            clients: members.map(client).collect(),
            allowed: operations(slice(allowed, allowed_count)),
        })
    }
}

/// # Safety
/// `error` is null or belongs to an answer that is alive.
unsafe fn no_error(error: *const native::rd_kafka_error_t) -> Result<(), RDKafkaErrorCode> {
    // SAFETY: by contract; no error is null.
    match unsafe { native::rd_kafka_error_code(error) }.into() {
        RDKafkaErrorCode::NoError => Ok(()),
        code => Err(code),
    }
}

/// Who may describe something has at least that operation: none at all means that a broker does not
/// tell.
fn operations(operations: &[native::rd_kafka_AclOperation_t]) -> Option<Allowed> {
    use native::rd_kafka_AclOperation_t as acl;
    let has = |wanted| {
        operations.contains(&wanted) || operations.contains(&acl::RD_KAFKA_ACL_OPERATION_ALL)
    };
    (!operations.is_empty()).then(|| Allowed {
        read: has(acl::RD_KAFKA_ACL_OPERATION_READ),
        write: has(acl::RD_KAFKA_ACL_OPERATION_WRITE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operation_at_all_means_that_the_broker_does_not_say() {
        use native::rd_kafka_AclOperation_t as acl;
        assert_eq!(operations(&[]), None);
        let describe = acl::RD_KAFKA_ACL_OPERATION_DESCRIBE;
        assert_eq!(operations(&[describe]), Some(Allowed::default()));
        let read = acl::RD_KAFKA_ACL_OPERATION_READ;
        assert_eq!(operations(&[describe, read]), Some(Allowed { read: true, write: false }));
    }
}
