//! What people do to the group's offsets while nobody is a member.

use std::sync::Arc;

use super::super::cluster::{Cluster, Stored, partition};
use super::super::disk::Disk;
use super::super::start::{TOPIC_ID, read};
use super::World;
use crate::clock;
use crate::commit::letters::Settles;
use crate::dedup::expiry::millis;
use crate::pipeline::assign::Terms;
use crate::pipeline::standing::Standing;
use crate::record::{Offset, Partition, Timestamp};
use crate::rewind::plan::{Order, Sight, Step, Target, plan};

impl World {
    /// All stop, some lose their directories, and some offsets are moved. They start again by and
    /// by.
    pub(super) fn act(&mut self) {
        for at in 0..self.instances.len() {
            let mode = [0, 2, 3][self.rng.usize(..3)];
            self.crash(at, mode);
        }
        self.expire_dead();
        let sea = Arc::clone(&self.sea);
        let mut sea = sea.lock().unwrap();
        sea.requests.clear();
        sea.high_requests.clear();
        for at in 0..sea.inputs.len() {
            // What a tool did and nobody has seen cannot be told from what it does next.
            let seen = |stored: &Stored| read(stored).metadata.is_some();
            if !sea.group.offsets.get(&(at as i32)).is_some_and(seen) {
                continue;
            }
            match self.rng.u8(..5) {
                0 => self.reset_back(&mut sea, at),
                1 | 2 => self.skip(&mut sea, at),
                3 => self.rewind(&mut sea, at),
                _ => {}
            }
        }
    }

    /// A tool moves the offset back: nothing runs again.
    fn reset_back(&mut self, sea: &mut Cluster, at: usize) {
        let high = sea.group.high_water(at);
        // A skip that has not come so far would be forgotten with it.
        let Some(high) = high.filter(|high| *high >= sea.moved[at].floor) else { return };
        let to = Offset(self.rng.i64(0..=high.0));
        sea.note(|| format!("a tool takes {} back to {to}", partition(at)));
        let moved = &mut sea.moved[at];
        moved.floor = moved.floor.max(high);
        sea.group.offsets.insert(at as i32, Stored { offset: to, metadata: String::new() });
    }

    /// A tool moves the offset forward: what lies between is handled by nobody any more.
    fn skip(&mut self, sea: &mut Cluster, at: usize) {
        let (high, end) = (sea.group.high_water(at), sea.inputs[at].stable_end());
        let (Some(high), Some(committed)) = (high, sea.group.committed(at)) else { return };
        let of = partition(at);
        let logs = self.instances.iter();
        let logs = logs.filter_map(|instance| instance.disk.lock().unwrap().position(&of)).max();
        let known = index(high.max(committed).max(logs.unwrap_or_default()));
        if known >= end {
            return;
        }
        let to = self.rng.usize(known + 1..=end);
        sea.note(|| format!("a tool takes {of} forward to {to}"));
        // Handled or not, and known to one log and not to the other.
        let from = index(high.min(committed));
        // A duplicate settled beyond the position has prolonged its window in that log.
        let in_a_log = |offset: usize| {
            let settled = |disk: &Disk| disk.settled(&of, Offset(offset as i64));
            self.instances.iter().any(|instance| settled(&instance.disk.lock().unwrap()))
        };
        let loose = |offset: &usize| *offset < known || sea.ended(at, *offset) || in_a_log(*offset);
        let vague: Vec<_> = (from..to)
            .filter(loose)
            .filter_map(|offset| sea.key(&sea.inputs[at].slots[offset]))
            .collect();
        let open: Vec<_> =
            (sea.ledger.checked[at]..to).filter(|offset| !sea.ended(at, *offset)).collect();
        let moved = &mut sea.moved[at];
        moved.vague.extend(vague);
        moved.skipped.extend(open);
        moved.floor = moved.floor.max(Offset(to as i64));
        sea.ledger.checked[at] = sea.ledger.checked[at].max(to);
        sea.transactions.passed_on.insert(at as i32, Offset(to as i64 - 1));
        let stored = Stored { offset: Offset(to as i64), metadata: String::new() };
        sea.group.offsets.insert(at as i32, stored);
    }

    /// `onced rewind`: a new generation begins.
    fn rewind(&mut self, sea: &mut Cluster, at: usize) {
        let committed = sea.group.offsets.get(&(at as i32)).map(read);
        let high_water = sea.group.high.get(&(at as i32)).map(read);
        let of = partition(at);
        let standing = Standing::of(&of, "g.onced", committed.as_ref(), high_water.as_ref(), None);
        let standing = standing.expect("the high-water group is ours");
        let Some(settled) = standing.settled().filter(|settled| settled.0 > 0) else { return };
        let route = &self.config.routes[0];
        let terms = Terms {
            topic_id: TOPIC_ID,
            partition_count: sea.inputs.len() as i32,
            definition: route.identity.definition(),
            window: &route.window,
        };
        let first = Offset(sea.inputs[at].first as i64);
        let target = Some(Target::Offset(Offset(self.rng.i64(first.0..settled.0))));
        let order = Order { target, accept_partitions: false, now: clock::now() };
        let sight = Sight { partition: of.clone(), standing, first, at_time: None };
        let step = plan(&sight, &terms, &order).expect("nothing speaks against it");
        let Step::Rewind { position, .. } = step else { return };
        let start = position.offset;
        sea.note(|| format!("{of} is rewound to {start}"));
        let stored = Stored { offset: start, metadata: position.metadata };
        let said = read(&stored).metadata.expect("it is ours").acts;
        sea.group.offsets.insert(at as i32, stored.clone());
        sea.group.high.insert(at as i32, stored);
        sea.ledger.rewound(at, start);
        let moved = &mut sea.moved[at];
        moved.acts = said;
        moved.floor = start;
        drop(moved.skipped.split_off(&index(start)));
        sea.transactions.passed_on.insert(at as i32, Offset(start.0 - 1));
    }
}

impl Cluster {
    /// No later rewind had the record handled anew.
    pub(in crate::pipeline::simulation) fn counts(&self, settles: &Settles) -> bool {
        let place = super::super::cluster::index(&settles.partition);
        self.moved[place].acts.letter_counts(settles.origin.generation, settles.offset)
    }

    /// The records of a partition whose letters were among the first `seen`, and are young enough
    /// to be read.
    pub(in crate::pipeline::simulation) fn letters_that_tell(
        &self,
        partition: &Partition,
        seen: usize,
    ) -> std::collections::BTreeSet<Offset> {
        let window = &self.rules.window;
        let dated = self.input(partition).slots.iter().filter_map(|slot| slot.record.timestamp);
        let newest = dated.filter(|at| at.0 <= clock::now().0 + millis(window.skew)).max();
        let since = newest.map_or(i64::MIN, |at| window.horizon(at).0 - millis(window.skew));
        let letters = self.letters[..seen].iter();
        letters
            .filter(|letter| letter.settles.partition == *partition)
            .filter(|letter| letter.written >= Timestamp(since) && self.counts(&letter.settles))
            .map(|letter| letter.settles.offset)
            .collect()
    }

    /// The ends of transactions have reached the dead-letter topic.
    pub(in crate::pipeline::simulation) fn settle_letters(&mut self) {
        self.letters.iter_mut().for_each(|letter| letter.stable = true);
    }
}

fn index(offset: Offset) -> usize {
    usize::try_from(offset.0).expect("an offset is not negative")
}
