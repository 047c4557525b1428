//! What really happened to each record, and the invariants that are checked while it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::cluster::{Process, index};
use crate::record::{Epoch, Offset, Partition, Record};

/// One ownership of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub process: Process,
    pub epoch: Epoch,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { instance, incarnation } = self.process;
        write!(f, "{instance}.{incarnation} epoch {}", self.epoch.0)
    }
}

/// What happened to one record.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// Calls that had their effect and said so.
    pub done: u32,
    pub letters: u32,
    calls: Vec<Called>,
    /// The idempotency key of the first call.
    key: Option<String>,
}

#[derive(Debug)]
struct Called {
    owner: Owner,
    attempt: u32,
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Retry,
    Reject,
}

/// What an owner was told when it took a partition.
#[derive(Debug)]
struct Taken {
    settled: Offset,
    letters: BTreeSet<Offset>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    fates: Vec<BTreeMap<Offset, Fate>>,
    /// The committed offset that each owner of a partition was told when it took it.
    taken: BTreeMap<(i32, Owner), Taken>,
    /// By partition: what lies below is checked.
    pub checked: Vec<usize>,
    pub executions: u64,
}

impl Ledger {
    pub(super) fn new(partitions: usize) -> Self {
        Self {
            fates: (0..partitions).map(|_| BTreeMap::new()).collect(),
            checked: vec![0; partitions],
            ..Self::default()
        }
    }

    pub(super) fn fate(&mut self, partition: &Partition, offset: Offset) -> &mut Fate {
        self.fates[index(partition)].entry(offset).or_default()
    }

    pub(super) fn seen(&self, partition: usize, offset: Offset) -> Option<&Fate> {
        self.fates[partition].get(&offset)
    }

    pub(super) fn took(
        &mut self,
        owner: Owner,
        partition: &Partition,
        settled: Offset,
        letters: BTreeSet<Offset>,
    ) {
        self.taken.insert((partition.index, owner), Taken { settled, letters });
    }

    /// The records from here on are to be handled anew: nothing happened to them yet.
    pub(super) fn rewound(&mut self, partition: usize, start: Offset) {
        drop(self.fates[partition].split_off(&start));
        let start = usize::try_from(start.0).expect("an offset is not negative");
        self.checked[partition] = self.checked[partition].min(start);
    }

    /// A handler is called. `settled`: the log of this process says that the record is settled.
    ///
    /// # Errors
    /// Why this call must not be.
    pub(super) fn called(
        &mut self,
        owner: Owner,
        record: &Record,
        attempt: u32,
        key: &str,
        settled: bool,
    ) -> Result<(), String> {
        let at = record.coordinates();
        let taken = self.taken.get(&(record.partition.index, owner));
        let lettered = taken.is_some_and(|taken| taken.letters.contains(&record.offset));
        let taken = taken.map(|taken| taken.settled);
        let fate = self.fate(&record.partition, record.offset);
        let same = fate.calls.iter().rev().find(|call| call.owner == owner);
        let wrong = if settled {
            Some("it is settled in the log of this process".to_owned())
        } else if taken.is_none_or(|taken| record.offset < taken) {
            Some(format!("it lies below {taken:?}, which was committed when the epoch began"))
        } else if lettered {
            Some("its letter was in the topic before the epoch began".to_owned())
        } else if fate.key.as_ref().is_some_and(|first| first != key) {
            Some(format!("its key was {:?} and is now {key:?}", fate.key))
        } else {
            match same {
                None if attempt != 1 => Some("the first attempt of an epoch is not 1".to_owned()),
                Some(last) if attempt != last.attempt + 1 || last.answer != Some(Answer::Retry) => {
                    Some(format!("the last call of this epoch was {last:?}"))
                }
                _ => None,
            }
        };
        fate.key.get_or_insert_with(|| key.to_owned());
        fate.calls.push(Called { owner, attempt, answer: None });
        self.executions += 1;
        wrong.map_or(Ok(()), |why| Err(format!("{owner} calls {at}, attempt {attempt}, but {why}")))
    }

    pub(super) fn answered(&mut self, owner: Owner, record: &Record, answer: Answer) {
        let fate = self.fate(&record.partition, record.offset);
        fate.done += u32::from(answer == Answer::Done);
        let call = fate.calls.iter_mut().rev().find(|call| call.owner == owner);
        call.expect("only what was called is answered").answer = Some(answer);
    }
}
