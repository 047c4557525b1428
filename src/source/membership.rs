//! What a transaction needs of the group: metadata that the broker accepts, and which partitions
//! were owned at the moment when they were read.
//!
//! The poll thread reads them at every rebalance event and every 100 ms besides: under the newer
//! group protocol the member's epoch moves without an event. Workers take the newest.
//!
//! Owns: the metadata of the group's member and of its companion. Never: decides whether to
//! commit.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::bindings as native;
use rustc_hash::FxHashMap;

use crate::record::{Epoch, Partition};

/// Who commits for a group, as the broker wants to be told. Read-only once made.
#[derive(Debug)]
pub struct GroupMetadata(NonNull<native::rd_kafka_consumer_group_metadata_t>);

// SAFETY: librdkafka never changes metadata after it has made them.
unsafe impl Send for GroupMetadata {}
// SAFETY: as above.
unsafe impl Sync for GroupMetadata {}

impl GroupMetadata {
    /// Of a handle with a group. `None`: it has none.
    ///
    /// # Safety
    /// `handle` is a consumer that is alive.
    pub(super) unsafe fn of(handle: *mut native::rd_kafka_t) -> Option<Self> {
        // SAFETY: by contract; what it returns is ours.
        NonNull::new(unsafe { native::rd_kafka_consumer_group_metadata(handle) }).map(Self)
    }

    #[must_use]
    pub fn as_ptr(&self) -> *const native::rd_kafka_consumer_group_metadata_t {
        self.0.as_ptr()
    }

    /// The generation, or the member's epoch. Below zero: not a member.
    #[must_use]
    pub fn generation(&self) -> i32 {
        // SAFETY: alive as long as `self`.
        unsafe { native::rd_kafka_consumer_group_metadata_generation_id(self.as_ptr()) }
    }
}

impl Drop for GroupMetadata {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { native::rd_kafka_consumer_group_metadata_destroy(self.0.as_ptr()) }
    }
}

/// One look at the group.
#[derive(Debug)]
pub struct Snapshot {
    pub metadata: Arc<GroupMetadata>,
    /// The partitions that were owned then, those that are being given back included.
    pub owned: FxHashMap<Partition, Epoch>,
}

impl Snapshot {
    /// Whether all of these are owned, each still in its epoch, by a member of the group.
    pub fn covers<'a>(&self, mut these: impl Iterator<Item = (&'a Partition, Epoch)>) -> bool {
        self.metadata.generation() >= 0
            && these.all(|(partition, epoch)| self.owned.get(partition) == Some(&epoch))
    }
}

/// The newest look at the group, shared by the poll thread and the workers.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    newest: Arc<Mutex<Option<Arc<Snapshot>>>>,
}

impl Membership {
    /// Called by the poll thread alone.
    pub fn publish(&self, snapshot: Option<Snapshot>) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.map(Arc::new);
    }

    /// `None`: not a member yet.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Snapshot>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
