//! The group's coordinator: members, generations, who holds what, committed offsets.
//!
//! Partitions move cooperatively: the old holder is asked, drains and gives back, and only then is
//! the partition offered to the new one. A member that was declared dead is not asked.

use std::collections::{BTreeMap, VecDeque};

use super::cluster::{Offsets, Process};
use crate::record::Offset;

#[derive(Default)]
pub(super) struct Group {
    pub generation: i64,
    pub members: BTreeMap<u64, Member>,
    next_member: u64,
    /// By partition: who holds it, and who is to have it.
    pub holders: Vec<Option<u64>>,
    wanted: Vec<Option<u64>>,
    pub offsets: Offsets,
    /// Of the high-water group.
    pub high: Offsets,
}

pub(super) struct Member {
    pub process: Process,
    /// What the coordinator has to say, in order.
    pub news: VecDeque<News>,
    /// It was asked for these and has not given them back.
    asked: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum News {
    /// The generation that the member commits under from now on.
    Joined(i64),
    Offered(Vec<usize>),
    Revoked(Vec<usize>),
}

impl Group {
    pub(super) fn new(partitions: usize) -> Self {
        Self { holders: vec![None; partitions], wanted: vec![None; partitions], ..Self::default() }
    }

    pub(super) fn join(&mut self, process: Process, rng: &mut fastrand::Rng) -> u64 {
        self.next_member += 1;
        self.members
            .insert(self.next_member, Member { process, news: VecDeque::new(), asked: Vec::new() });
        self.rebalance(rng);
        self.next_member
    }

    /// The member has left, or was silent for too long.
    pub(super) fn remove(&mut self, member: u64, rng: &mut fastrand::Rng) {
        if self.members.remove(&member).is_some() {
            for holder in self.holders.iter_mut().filter(|holder| **holder == Some(member)) {
                *holder = None;
            }
            self.rebalance(rng);
        }
    }

    /// Decides anew who is to have what.
    pub(super) fn rebalance(&mut self, rng: &mut fastrand::Rng) {
        let members: Vec<u64> = self.members.keys().copied().collect();
        if members.is_empty() {
            return;
        }
        let shift = rng.usize(..members.len());
        let sticky = rng.bool();
        for (at, wanted) in self.wanted.iter_mut().enumerate() {
            let stays = sticky && rng.u8(..4) > 0;
            let holder =
                self.holders[at].filter(|holder| stays && self.members.contains_key(holder));
            *wanted = holder.or(Some(members[(at + shift) % members.len()]));
        }
        self.next_generation();
        self.move_on();
    }

    /// The member gave these back.
    pub(super) fn returned(&mut self, member: u64, partitions: &[usize]) {
        for at in partitions {
            if self.holders[*at] == Some(member) {
                self.holders[*at] = None;
            }
        }
        if let Some(member) = self.members.get_mut(&member) {
            member.asked.retain(|at| !partitions.contains(at));
            self.next_generation();
        }
        self.move_on();
    }

    fn next_generation(&mut self) {
        self.generation += 1;
        for member in self.members.values_mut() {
            member.news.push_back(News::Joined(self.generation));
        }
    }

    fn move_on(&mut self) {
        for (id, member) in &mut self.members {
            let of = |test: &dyn Fn(Option<u64>, Option<u64>) -> bool| -> Vec<usize> {
                (0..self.holders.len())
                    .filter(|at| test(self.holders[*at], self.wanted[*at]))
                    .filter(|at| !member.asked.contains(at))
                    .collect()
            };
            let back = of(&|holder, wanted| holder == Some(*id) && wanted != Some(*id));
            let new = of(&|holder, wanted| holder.is_none() && wanted == Some(*id));
            if !back.is_empty() {
                member.asked.extend(&back);
                member.news.push_back(News::Revoked(back));
            }
            for at in &new {
                self.holders[*at] = Some(*id);
            }
            if !new.is_empty() {
                member.news.push_back(News::Offered(new));
            }
        }
    }

    /// A commit of this member under this generation counts.
    pub(super) fn accepts(&self, member: Option<u64>, generation: i64) -> bool {
        generation == self.generation
            && member.is_some_and(|member| self.members.contains_key(&member))
    }

    pub(super) fn high_water(&self, partition: usize) -> Option<Offset> {
        self.high.get(&(partition as i32)).map(|stored| stored.offset)
    }

    pub(super) fn committed(&self, partition: usize) -> Option<Offset> {
        self.offsets.get(&(partition as i32)).map(|stored| stored.offset)
    }
}
