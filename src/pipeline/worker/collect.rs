//! What an exactly-once route has decided and nobody can see yet: it becomes visible with one
//! transaction, or is forgotten.
//!
//! Owns: the outputs, entries and counts of one transaction, and what a later record of it can
//! already see. Never: decides, or talks to a broker.

use std::time::Instant;

use rustc_hash::FxHashMap;

use super::settle::Tally;
use crate::commit::letters::Reason;
use crate::commit::transaction::Output;
use crate::dedup::{Batch, Entry, Shard};
use crate::identity::Identity;
use crate::pipeline::Shared;
use crate::record::{Epoch, Offset, Partition};

/// A transaction is sealed when it has so many outputs, or bytes of them: the next is collected
/// while it is under way, so more would only make readers wait.
const RECORDS_MAX: usize = 20_000;
const BYTES_MAX: usize = 8 << 20;

/// One transaction, before and after it is sealed.
pub(super) struct Collected {
    pub(super) outputs: Vec<Output>,
    /// Where each output came from; the outputs themselves go to the transactor.
    pub(super) sources: Vec<(Partition, Offset)>,
    pub(super) batch: Batch,
    /// What the batch will make of the log.
    overlay: FxHashMap<(Shard, Identity), Entry>,
    /// The partitions that it settles records of.
    pub(super) touched: FxHashMap<Partition, Touched>,
    pub(super) tallies: Vec<Tally>,
    /// Outputs of input records, by route.
    pub(super) passed: Vec<u64>,
    pub(super) letters: Vec<(usize, Reason)>,
    records: usize,
    bytes: usize,
    /// When the first of it was decided.
    pub(super) since: Option<Instant>,
    /// Nothing more goes in.
    pub(super) closed: bool,
}

/// A partition in a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    pub(super) epoch: Epoch,
    pub(super) shard: Shard,
    /// The position that is written and committed, once sealed.
    pub(super) position: Offset,
    /// Records and bytes to give back to the lane.
    pub(super) released: (usize, usize),
}

impl Collected {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            outputs: Vec::new(),
            sources: Vec::new(),
            batch: Batch::unlogged(),
            overlay: FxHashMap::default(),
            touched: FxHashMap::default(),
            tallies: shared.routes.iter().map(|route| Tally::new(&route.metrics)).collect(),
            passed: vec![0; shared.routes.len()],
            letters: Vec::new(),
            records: 0,
            bytes: 0,
            since: None,
            closed: false,
        }
    }

    /// Nothing was decided since it was made.
    pub(super) fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// `caution`: how often the room is halved, for a broker that does not take as much in time.
    pub(super) fn is_full(&self, caution: u32) -> bool {
        self.closed || self.records >= RECORDS_MAX >> caution || self.bytes >= BYTES_MAX >> caution
    }

    /// The entry as it will be.
    pub(super) fn entry(&self, shard: Shard, identity: &Identity) -> Option<Entry> {
        if self.overlay.is_empty() {
            return None;
        }
        self.overlay.get(&(shard, *identity)).copied()
    }

    pub(super) fn put_entry(&mut self, shard: Shard, identity: Identity, entry: Entry) {
        self.batch.put_entry(shard, &identity, &entry);
        self.overlay.insert((shard, identity), entry);
    }

    pub(super) fn put_output(&mut self, output: Output) {
        let source = output.source();
        self.bytes += source.size();
        self.sources.push((source.partition.clone(), source.offset));
        self.outputs.push(output);
    }

    /// Takes note that something of this partition was settled.
    pub(super) fn touch(
        &mut self,
        partition: &Partition,
        epoch: Epoch,
        shard: Shard,
    ) -> &mut Touched {
        if !self.touched.contains_key(partition) {
            let touched = Touched { epoch, shard, position: Offset(0), released: (0, 0) };
            self.touched.insert(partition.clone(), touched);
        }
        self.records += 1;
        self.touched.get_mut(partition).expect("it was put there")
    }

    /// Takes out what belongs to a partition that is no longer ours.
    pub(super) fn forget(&mut self, partition: &Partition) {
        let Some(touched) = self.touched.remove(partition) else { return };
        self.outputs.retain(|output| output.source().partition != *partition);
        self.sources.retain(|(of, _)| of != partition);
        self.batch.forget(touched.shard);
        self.overlay.retain(|(shard, _), _| *shard != touched.shard);
        if self.is_empty() {
            // Nothing will seal it, so it must take what comes.
            (self.records, self.bytes, self.since, self.closed) = (0, 0, None, false);
        }
    }
}
