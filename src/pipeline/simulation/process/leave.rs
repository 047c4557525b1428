//! Partitions on their way out, and the offsets that are committed on the way and in between.

use std::time::Instant;

use super::super::cluster::{Cluster, Request, index, refused};
use super::super::group::News;
use super::{COMMIT_AGAIN, COMMIT_PATIENCE, DRAIN_TIMEOUT, Daemon, Drain, Report};
use crate::clock;
use crate::fault::{Bug, bug};
use crate::pipeline::worker::Event;
use crate::record::{Epoch, Offset, Partition};
use crate::source::Position;

impl Daemon {
    pub(super) fn commit(&mut self, cluster: &mut Cluster, positions: Vec<(Epoch, Position)>) {
        for (epoch, position) in positions {
            self.unanswered.insert(position.partition.clone(), (epoch, position));
        }
        self.commit_unanswered(cluster);
    }

    pub(super) fn commit_unanswered(&mut self, cluster: &mut Cluster) {
        let assigned = &self.assigned;
        self.unanswered.retain(|partition, (epoch, _)| {
            assigned.get(partition).is_some_and(|assigned| assigned.epoch == *epoch)
        });
        let positions: Vec<_> = self.unanswered.values().map(|(_, at)| at.clone()).collect();
        if positions.is_empty() {
            return;
        }
        if bug(Bug::HighWaterFirst) {
            cluster.high_requests.extend(positions.iter().cloned());
        }
        self.commits_out += 1;
        cluster.requests.push(Request {
            process: self.outside.process,
            member: self.member,
            generation: self.generation,
            positions,
        });
    }

    pub(super) fn commit_answered(
        &mut self,
        cluster: &mut Cluster,
        result: Result<Vec<(Partition, Offset)>, ()>,
    ) {
        self.commits_out = self.commits_out.saturating_sub(1);
        let Ok(offsets) = result else {
            self.commit_failed = true;
            return;
        };
        for (partition, offset) in offsets {
            if self.unanswered.get(&partition).is_some_and(|(_, at)| at.offset <= offset)
                && let Some((_, position)) = self.unanswered.remove(&partition)
            {
                // It follows, and may come late.
                let reached = self.assigned.get(&partition).and_then(|of| of.reached);
                if Some(offset) >= reached {
                    cluster.high_requests.push(position);
                }
            }
        }
    }

    pub(super) fn start_drain(&mut self, partitions: Vec<Partition>) {
        let mut remaining = Vec::new();
        for partition in &partitions {
            if let Some(assigned) = self.assigned.get_mut(partition) {
                assigned.draining = true;
                if assigned.reentering {
                    continue;
                }
                let epoch = assigned.epoch;
                let event = Event::Drain { partition: partition.clone(), epoch };
                let _ = self.workers[assigned.worker].1.send(event);
                remaining.push(partition.clone());
            }
        }
        let deadline = clock::instant() + DRAIN_TIMEOUT;
        self.drain = Some(Drain {
            partitions,
            remaining,
            positions: Vec::new(),
            deadline,
            committing: false,
        });
    }

    pub(super) fn end_drain_if_due(&mut self, cluster: &mut Cluster) {
        let Some(drain) = &mut self.drain else { return };
        let now = clock::instant();
        if !drain.committing {
            if !drain.remaining.is_empty() && now < drain.deadline {
                return;
            }
            drain.committing = true;
            drain.deadline = now + COMMIT_PATIENCE;
            let (late, positions) = (drain.remaining.clone(), drain.positions.clone());
            self.commit_last(cluster, &late, positions);
        }
        if self.drain.as_ref().is_some_and(|drain| now < drain.deadline)
            && self.is_committing(cluster, now)
        {
            return;
        }
        if let Some(drain) = self.drain.take() {
            // With a log that failed there is nothing to wait for.
            if self.failure.is_none() {
                self.check_drained(cluster, &drain.partitions);
            }
            self.unassign(cluster, &drain.partitions);
            if self.stopping && !self.assigned.is_empty() {
                self.start_drain(self.assigned.keys().cloned().collect());
            } else {
                self.gone = self.stopping;
            }
        }
    }

    /// What was not given up for being late has no call and no letter out.
    fn check_drained(&self, cluster: &mut Cluster, partitions: &[Partition]) {
        let process = self.outside.process;
        for partition in partitions {
            let Some(assigned) = self.assigned.get(partition) else { continue };
            let out = cluster.calls.iter().filter(|call| call.process == process).any(|call| {
                call.claims.iter().any(|claim| {
                    claim.record.partition == *partition && claim.epoch == assigned.epoch
                })
            });
            if out {
                let name = self.name();
                cluster.violated(format!("{name} gives {partition} back while a call is out"));
            }
        }
    }

    fn is_committing(&mut self, cluster: &mut Cluster, now: Instant) -> bool {
        if self.commits_out == 0 && self.commit_failed && !self.lost {
            if now >= self.next_attempt {
                self.next_attempt = now + COMMIT_AGAIN;
                self.commit_failed = false;
                self.take_generation(cluster);
                self.commit_unanswered(cluster);
            }
            return true;
        }
        self.commits_out > 0
    }

    /// The client learns the generation by itself, while the poll loop is busy.
    fn take_generation(&mut self, cluster: &mut Cluster) {
        let member = self.member.and_then(|member| cluster.group.members.get_mut(&member));
        let Some(member) = member else { return };
        while let Some(News::Joined(generation)) = member.news.front() {
            self.generation = *generation;
            member.news.pop_front();
        }
    }

    fn commit_last(&mut self, cluster: &mut Cluster, late: &[Partition], positions: Vec<Position>) {
        self.lose(late);
        if self.lost {
            return;
        }
        let epoch = |at: &Position| self.assigned.get(&at.partition).map(|assigned| assigned.epoch);
        let positions =
            positions.into_iter().filter_map(|at| epoch(&at).map(|epoch| (epoch, at))).collect();
        self.commit(cluster, positions);
    }

    pub(super) fn unassign(&mut self, cluster: &mut Cluster, partitions: &[Partition]) {
        for partition in partitions {
            self.assigned.remove(partition);
        }
        self.publish(cluster);
        if let Some(member) = self.member {
            let places: Vec<_> = partitions.iter().map(index).collect();
            cluster.note(|| format!("{} gives back {places:?}", self.name()));
            cluster.group.returned(member, &places);
        }
    }

    pub(super) fn lose(&mut self, partitions: &[Partition]) {
        if bug(Bug::LostCommits) {
            return;
        }
        for partition in partitions {
            if let Some(assigned) = self.assigned.remove(partition) {
                let event = Event::Lost { partition: partition.clone() };
                let _ = self.workers[assigned.worker].1.send(event);
            }
            if let Some(drain) = &mut self.drain {
                drain.remaining.retain(|remaining| remaining != partition);
                drain.positions.retain(|position| position.partition != *partition);
            }
        }
    }
}

impl Cluster {
    /// The coordinator decides about a commit.
    pub(in crate::pipeline::simulation) fn commit_arrives(
        &mut self,
        at: usize,
    ) -> (Request, Report) {
        let request = self.requests.remove(at);
        let name = format!("{}.{}", request.process.instance, request.process.incarnation);
        if !self.group.accepts(request.member, request.generation) {
            let now = self.group.generation;
            self.note(|| {
                format!(
                    "commit of {name} under {} is refused in {now}: {}",
                    request.generation,
                    refused()
                )
            });
            return (request, Report::Committed(Err(())));
        }
        for position in &request.positions {
            self.store(position, &name);
        }
        let offsets =
            request.positions.iter().map(|at| (at.partition.clone(), at.offset)).collect();
        (request, Report::Committed(Ok(offsets)))
    }
}
