//! What the pipeline asks of the dedup log, and what it writes at once.
//!
//! The daemon's log is [`Store`](super::Store), on disk; the simulation has a model that forgets
//! in a crash what was not durable.
//!
//! Owns: the seam between deciding and keeping. Never: names the database.

use super::shard::{Owner, Shard, State};
use super::store::{LogError, LookupScratch};
use super::{Entry, store};
use crate::identity::Identity;
use crate::record::Partition;

/// The log, as the pipeline sees it. Shared by the workers; each writes only the shards of its own
/// partitions.
pub trait Log: Send + Sync {
    /// See [`store::Store::lookup`].
    ///
    /// # Errors
    /// As there.
    fn lookup(
        &self,
        shard: Shard,
        identities: &[Identity],
        scratch: &mut LookupScratch,
        found: &mut Vec<Option<Entry>>,
    ) -> Result<(), LogError>;

    /// Writes a batch, all or nothing, and leaves it empty. A batch that is not
    /// [`Batch::logged`] survives a crash only once it was flushed.
    ///
    /// # Errors
    /// See [`store::Store::write`].
    fn write(&self, batch: &mut Batch) -> Result<(), LogError>;

    /// # Errors
    /// An earlier call failed, on whatever thread: the log takes nothing more.
    fn check(&self) -> Result<(), LogError>;

    /// The shard of a partition with its owner row and state, where there is one.
    ///
    /// # Errors
    /// See [`store::Store::shard`].
    fn shard(&self, partition: &Partition) -> Result<Option<(Shard, Owner, State)>, LogError>;

    /// Makes a new shard; its row and state are durable before this returns.
    ///
    /// # Errors
    /// As [`Log::write`].
    fn create_shard(&self, owner: Owner, state: &State) -> Result<Shard, LogError>;

    /// Changes a row; nobody else changes it in between. `None`: the shard was dropped meanwhile.
    ///
    /// # Errors
    /// As [`Log::write`]; then the row stays as it was.
    fn change_owner(
        &self,
        shard: Shard,
        change: &mut dyn FnMut(&mut Owner),
    ) -> Result<Option<Owner>, LogError>;

    /// Forgets a shard, durably, before this returns.
    ///
    /// # Errors
    /// As [`Log::write`].
    fn drop_shard(&self, shard: Shard) -> Result<(), LogError>;
}

impl Log for store::Store {
    fn lookup(
        &self,
        shard: Shard,
        identities: &[Identity],
        scratch: &mut LookupScratch,
        found: &mut Vec<Option<Entry>>,
    ) -> Result<(), LogError> {
        Self::lookup(self, shard, identities, scratch, found)
    }

    fn write(&self, batch: &mut Batch) -> Result<(), LogError> {
        Self::write(self, batch)
    }

    fn check(&self) -> Result<(), LogError> {
        Self::check(self)
    }

    fn shard(&self, partition: &Partition) -> Result<Option<(Shard, Owner, State)>, LogError> {
        Self::shard(self, partition)
    }

    fn create_shard(&self, owner: Owner, state: &State) -> Result<Shard, LogError> {
        Self::create_shard(self, owner, state)
    }

    fn change_owner(
        &self,
        shard: Shard,
        change: &mut dyn FnMut(&mut Owner),
    ) -> Result<Option<Owner>, LogError> {
        Self::change_owner(self, shard, change)
    }

    fn drop_shard(&self, shard: Shard) -> Result<(), LogError> {
        Self::drop_shard(self, shard)
    }
}

/// Changes that reach the log together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    /// Of two changes to one entry the later counts.
    pub(crate) entries: Vec<(Shard, Identity, Entry)>,
    pub(crate) states: Vec<(Shard, State)>,
    unlogged: bool,
}

impl Batch {
    /// Changes that go past the database's write-ahead log: only a flush makes them durable. For
    /// shards that follow a transaction: the topic is their write-ahead log.
    #[must_use]
    pub fn unlogged() -> Self {
        Self { unlogged: true, ..Self::default() }
    }

    /// False: see [`Batch::unlogged`].
    #[must_use]
    pub fn logged(&self) -> bool {
        !self.unlogged
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.states.is_empty()
    }

    pub fn put_entry(&mut self, shard: Shard, identity: &Identity, entry: &Entry) {
        self.entries.push((shard, *identity, *entry));
    }

    pub fn put_state(&mut self, shard: Shard, state: State) {
        self.states.push((shard, state));
    }

    /// Takes out all that belongs to a shard.
    pub fn forget(&mut self, shard: Shard) {
        self.entries.retain(|(of, _, _)| *of != shard);
        self.states.retain(|(of, _)| *of != shard);
    }
}
