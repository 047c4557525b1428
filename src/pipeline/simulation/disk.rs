//! The log of one data directory, with what a crash and a power cut leave of it.
//!
//! ```text
//! durable (flushed)  +  journal: synced | unsynced  +  unlogged   = live
//! process crash      keeps both parts of the journal
//! power cut          keeps some of the unsynced part
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::dedup::expiry::{Anchor, Window};
use crate::dedup::shard::{Owner, Shard, State};
use crate::dedup::store::LookupScratch;
use crate::dedup::{Batch, Entry, Log, LogError};
use crate::fault::{Bug, bug};
use crate::identity::Identity;
use crate::record::{Offset, Partition};

/// Lets a process do so many things more before it is dead in the middle of a step.
#[derive(Clone, Debug)]
pub(super) struct Fuse(Arc<AtomicI64>);

impl Fuse {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }

    pub(super) fn light(&self, left: i64) {
        self.0.store(left, Ordering::Relaxed);
    }

    /// False: the process died before it could do this.
    pub(super) fn lives(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) > 0
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    next: u32,
    shards: BTreeMap<Shard, Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    owner: Owner,
    state: State,
    entries: BTreeMap<Identity, Entry>,
}

#[derive(Clone, Debug)]
enum Change {
    Create(Shard, Box<Owner>, State),
    Owner(Shard, Box<Owner>),
    Drop(Shard),
    Write { entries: Vec<(Shard, Identity, Entry)>, states: Vec<(Shard, State)> },
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(shard, owner, state) => {
                self.next = shard.0;
                let owner = (**owner).clone();
                let kept = Kept { owner, state: state.clone(), entries: BTreeMap::new() };
                self.shards.insert(*shard, kept);
            }
            Change::Owner(shard, owner) => {
                if let Some(kept) = self.shards.get_mut(shard) {
                    kept.owner = (**owner).clone();
                }
            }
            Change::Drop(shard) => drop(self.shards.remove(shard)),
            Change::Write { entries, states } => {
                for (shard, identity, entry) in entries {
                    if let Some(kept) = self.shards.get_mut(shard) {
                        kept.entries.insert(*identity, *entry);
                    }
                }
                for (shard, state) in states {
                    if let Some(kept) = self.shards.get_mut(shard) {
                        kept.state = state.clone();
                    }
                }
            }
        }
    }
}

/// What survives the process.
#[derive(Debug, Default)]
pub(super) struct Disk {
    live: Content,
    durable: Content,
    journal: Vec<Change>,
    synced: usize,
    /// The next write fails, and so does everything after it.
    pub breaks: bool,
    broken: bool,
}

impl Disk {
    /// `lost`: how many of the changes that were not synced a power cut takes.
    pub(super) fn crash(&mut self, lost: usize) {
        let kept = self.synced.max(self.journal.len().saturating_sub(lost));
        self.journal.truncate(kept);
        self.synced = kept;
        self.live = self.durable.clone();
        for change in &self.journal {
            self.live.apply(change);
        }
        self.breaks = false;
        self.broken = false;
    }

    pub(super) fn unsynced(&self) -> usize {
        self.journal.len() - self.synced
    }

    pub(super) fn flush(&mut self) {
        self.durable = self.live.clone();
        self.journal.clear();
        self.synced = 0;
    }

    /// Drops from the flushed part what no record to come can meet.
    pub(super) fn compact(&mut self) {
        for (shard, kept) in &mut self.durable.shards {
            let live = self.live.shards.get_mut(shard);
            let ahead = live.as_ref().and_then(|live| live.state.stream_time);
            let flushed = kept.state.stream_time;
            let time = if bug(Bug::FilterAheadOfFlush) { ahead } else { flushed };
            let Some(time) = time else { continue };
            let owner = &kept.owner;
            let window = Window {
                ttl: owner.ttl,
                lateness: owner.lateness,
                skew: std::time::Duration::ZERO,
                anchor: Anchor::First,
            };
            let dropped: Vec<_> = kept
                .entries
                .iter()
                .filter(|(_, entry)| window.droppable(entry.time, time))
                .map(|(identity, entry)| (*identity, *entry))
                .collect();
            let mut live = live;
            for (identity, entry) in dropped {
                kept.entries.remove(&identity);
                if let Some(live) = &mut live
                    && live.entries.get(&identity) == Some(&entry)
                {
                    live.entries.remove(&identity);
                }
            }
        }
    }

    pub(super) fn position(&self, partition: &Partition) -> Option<Offset> {
        self.find(partition).map(|(_, kept)| kept.state.position)
    }

    pub(super) fn generation(&self, partition: &Partition) -> i64 {
        self.find(partition).map_or(0, |(_, kept)| kept.owner.acts.generation)
    }

    /// The log says that this record is settled.
    pub(super) fn settled(&self, partition: &Partition, offset: Offset) -> bool {
        self.find(partition).is_some_and(|(_, kept)| {
            offset < kept.state.position || kept.state.settled_beyond.contains(&offset)
        })
    }

    fn find(&self, partition: &Partition) -> Option<(&Shard, &Kept)> {
        let of_it = |kept: &Kept| {
            kept.owner.partition == partition.index && *kept.owner.topic == *partition.topic
        };
        self.live.shards.iter().find(|(_, kept)| of_it(kept))
    }

    fn log(&mut self, change: Change, sync: bool) {
        self.live.apply(&change);
        self.journal.push(change);
        if sync {
            self.synced = self.journal.len();
        }
    }

    fn check(&self) -> Result<(), LogError> {
        if self.broken { Err(LogError::Poisoned) } else { Ok(()) }
    }

    fn begin_write(&mut self) -> Result<(), LogError> {
        self.check()?;
        self.broken = std::mem::take(&mut self.breaks);
        self.check()
    }
}

/// The log as one process has it open.
#[derive(Clone)]
pub(super) struct ModelLog {
    pub disk: Arc<Mutex<Disk>>,
    pub fuse: Fuse,
}

impl ModelLog {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }
}

impl Log for ModelLog {
    fn lookup(
        &self,
        shard: Shard,
        identities: &[Identity],
        _: &mut LookupScratch,
        found: &mut Vec<Option<Entry>>,
    ) -> Result<(), LogError> {
        found.clear();
        let disk = self.disk();
        let kept = disk.live.shards.get(&shard);
        let get = |identity| kept.and_then(|kept| kept.entries.get(identity)).copied();
        found.extend(identities.iter().map(get));
        Ok(())
    }

    fn write(&self, batch: &mut Batch) -> Result<(), LogError> {
        let change = Change::Write {
            entries: std::mem::take(&mut batch.entries),
            states: std::mem::take(&mut batch.states),
        };
        if !self.fuse.lives() {
            return Ok(());
        }
        let mut disk = self.disk();
        disk.begin_write()?;
        if batch.logged() {
            disk.log(change, false);
        } else {
            disk.live.apply(&change);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), LogError> {
        self.disk().check()
    }

    fn shard(&self, partition: &Partition) -> Result<Option<(Shard, Owner, State)>, LogError> {
        let disk = self.disk();
        let found = disk.find(partition);
        Ok(found.map(|(shard, kept)| (*shard, kept.owner.clone(), kept.state.clone())))
    }

    fn create_shard(&self, owner: Owner, state: &State) -> Result<Shard, LogError> {
        let mut disk = self.disk();
        let shard = Shard(disk.live.next + 1);
        if self.fuse.lives() {
            disk.begin_write()?;
            disk.log(Change::Create(shard, Box::new(owner), state.clone()), true);
        }
        Ok(shard)
    }

    fn change_owner(
        &self,
        shard: Shard,
        change: &mut dyn FnMut(&mut Owner),
    ) -> Result<Option<Owner>, LogError> {
        let mut disk = self.disk();
        let Some(mut owner) = disk.live.shards.get(&shard).map(|kept| kept.owner.clone()) else {
            return Ok(None);
        };
        change(&mut owner);
        if self.fuse.lives() {
            disk.begin_write()?;
            disk.log(Change::Owner(shard, Box::new(owner.clone())), false);
        }
        Ok(Some(owner))
    }

    fn drop_shard(&self, shard: Shard) -> Result<(), LogError> {
        if self.fuse.lives() {
            let mut disk = self.disk();
            disk.begin_write()?;
            disk.log(Change::Drop(shard), true);
        }
        Ok(())
    }
}
