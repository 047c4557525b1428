//! Partitions on their way in: what is asked, what is committed first, and the start of an epoch.

use std::collections::BTreeMap;

use super::super::cluster::{Cluster, index};
use super::super::ledger::Owner;
use super::super::start::{self, Answers};
use super::{Assigned, Daemon, Entering, index_of};
use crate::fault::{Bug, bug};
use crate::pipeline::enter::{Cancelled, Entered, try_enter};
use crate::pipeline::lane::{Lane, RECORDS_MAX};
use crate::pipeline::poller::{first_commit, owned};
use crate::pipeline::worker::Event;
use crate::record::{Epoch, Offset, Partition};
use crate::source::Position;

impl Daemon {
    pub(super) fn enter(&mut self, cluster: &mut Cluster, rng: &mut fastrand::Rng) {
        if rng.bool() {
            return;
        }
        if let Some(entering) = self.entering.take() {
            match self.further(cluster, entering) {
                Some(Entering::Entered(mut entered)) if rng.bool() => {
                    self.commit_first(cluster, &mut entered, rng);
                    for (stood, entered) in entered {
                        self.open(cluster, stood, entered);
                    }
                    self.publish(cluster);
                }
                entering => self.entering = entering,
            }
        }
        for entering in std::mem::take(&mut self.reentering) {
            match self.further(cluster, entering) {
                Some(Entering::Entered(mut entered)) if rng.bool() => {
                    // Some may have been given back meanwhile.
                    entered.retain(|(_, entered)| {
                        let assigned = self.assigned.get(&entered.partition);
                        assigned.is_some_and(|assigned| assigned.reentering && !assigned.draining)
                    });
                    self.commit_first(cluster, &mut entered, rng);
                    for (stood, entered) in entered {
                        self.open(cluster, stood, entered);
                    }
                    self.publish(cluster);
                }
                entering => self.reentering.extend(entering),
            }
        }
    }

    /// The next question. `None`: the start was refused.
    fn further(&mut self, cluster: &mut Cluster, entering: Entering) -> Option<Entering> {
        match entering {
            Entering::Offered(partitions) => {
                // The coordinator answers when the transactions that wrote an offset have ended.
                if partitions.iter().any(|at| cluster.transactions.unstable(at)) {
                    return Some(Entering::Offered(partitions));
                }
                Some(Entering::Asked(start::ask(cluster, partitions)))
            }
            Entering::Asked(asked) => {
                // Also where the log stood before.
                let stood = |partition: &Partition| {
                    (partition.clone(), self.outside.disk.lock().unwrap().position(partition))
                };
                let stood: BTreeMap<_, _> = asked.partitions.iter().map(stood).collect();
                for partition in &asked.partitions {
                    self.letters_seen.insert(partition.clone(), cluster.letters.len());
                }
                let answers = Answers { cluster: &*cluster, asked: &asked };
                let cancelled = Cancelled::default();
                match try_enter(&self.shared, &answers, &asked.partitions, &cancelled) {
                    Ok(entered) => {
                        // From here on the shard is there, whatever becomes of the process.
                        for entered in &entered {
                            mark_rebuilt(cluster, stood[&entered.partition], entered);
                        }
                        let with = |entered: Entered| {
                            (stood.get(&entered.partition).copied().flatten(), entered)
                        };
                        Some(Entering::Entered(entered.into_iter().map(with).collect()))
                    }
                    Err(failure) => {
                        self.failure.get_or_insert(failure);
                        None
                    }
                }
            }
            entered @ Entering::Entered(_) => Some(entered),
        }
    }

    pub(super) fn reenter(&mut self, partitions: Vec<(Partition, Epoch)>) {
        let mut anew = Vec::new();
        for (partition, epoch) in partitions {
            let assigned = self.assigned.get_mut(&partition);
            let Some(assigned) = assigned.filter(|assigned| assigned.epoch == epoch) else {
                continue;
            };
            if assigned.draining {
                if let Some(drain) = &mut self.drain {
                    drain.remaining.retain(|remaining| *remaining != partition);
                }
                continue;
            }
            assigned.reentering = true;
            anew.push(partition);
        }
        if !anew.is_empty() && !bug(Bug::NoReentry) {
            self.reentering.push(Entering::Offered(anew));
        }
    }

    fn commit_first(
        &mut self,
        cluster: &mut Cluster,
        entered: &mut [(Option<Offset>, Entered)],
        rng: &mut fastrand::Rng,
    ) {
        let first: Vec<Position> =
            entered.iter().filter_map(|(_, entered)| first_commit(entered)).collect();
        let accepted = cluster.group.accepts(self.member, self.generation);
        if accepted && rng.u8(..8) > 0 {
            for position in &first {
                cluster.store(position, &self.name());
            }
            // The answer may be lost on its way.
            if rng.u8(..8) > 0 {
                for (_, entered) in entered {
                    let position = first_commit(entered).map(|position| position.offset);
                    entered.committed = position.or(entered.committed);
                }
            }
        }
    }

    fn open(&mut self, cluster: &mut Cluster, stood: Option<Offset>, entered: Entered) {
        mark_rebuilt(cluster, stood, &entered);
        let partition = entered.partition.clone();
        let worker = index(&partition) % self.workers.len();
        let epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        let owner = Owner { process: self.outside.process, epoch };
        let settled = entered.plan.absorb_until.max(entered.plan.start);
        cluster.note(|| {
            format!(
                "{owner} takes {partition} at {}, absorbs to {}",
                entered.plan.start, entered.plan.absorb_until
            )
        });
        let seen = self.letters_seen.get(&partition).copied().unwrap_or(0);
        let settled = settled.max(cluster.moved[index(&partition)].floor);
        let letters = cluster.letters_that_tell(&partition, seen);
        cluster.ledger.took(owner, &partition, settled, letters);
        let lane = Lane::new(&self.pace, RECORDS_MAX);
        let metrics = self.shared.metrics.partition(&partition.topic, partition.index);
        let next = index_of(entered.plan.start);
        let reached = entered.high_water;
        let owned = owned(&self.shared, entered, epoch, &lane, metrics);
        let _ = self.workers[worker].1.send(Event::Open(Box::new(owned)));
        let assigned = Assigned {
            epoch,
            worker,
            lane,
            next,
            reached,
            ended: None,
            draining: false,
            reentering: false,
        };
        self.assigned.insert(partition, assigned);
    }
}

/// Notes a log that begins in the middle of a window.
fn mark_rebuilt(cluster: &mut Cluster, stood: Option<Offset>, entered: &Entered) {
    let plan = &entered.plan;
    let first = cluster.input(&entered.partition).first;
    let in_the_middle = stood < Some(plan.start) && index_of(plan.start) > first;
    if plan.absorb_until > plan.start && in_the_middle {
        cluster.rebuilt[index(&entered.partition)] = true;
    }
}
