//! Partitions whose transaction did not commit: their start is found anew, and they are read again
//! from there, in a new epoch.
//!
//! They stay assigned meanwhile; what is delivered of them belongs to nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Poller, resume};
use crate::fault::{self, Bug, Point};
use crate::pipeline::enter::{Cancelled, Entered, enter};
use crate::pipeline::{Command, Failure};
use crate::readiness::Latch;
use crate::record::{Epoch, Partition};
use crate::source::membership::Snapshot;

pub(super) struct Reentering {
    ticket: u64,
    cancelled: Cancelled,
    _latch: Latch,
}

/// How long moving the consumer may take; then it is tried again.
const SEEK_PATIENCE: Duration = Duration::from_secs(2);

impl Poller {
    pub(super) fn reenter(&mut self, partitions: Vec<(Partition, Epoch)>) {
        let mut anew = Vec::new();
        for (partition, epoch) in partitions {
            let assigned = self.assigned.get_mut(&partition);
            let Some(assigned) = assigned.filter(|assigned| assigned.epoch == epoch) else {
                continue;
            };
            if assigned.draining {
                // Its worker has forgotten it: there is nothing left to drain.
                if let Some(drain) = &mut self.drain {
                    drain.remaining.retain(|remaining| *remaining != partition);
                }
                continue;
            }
            assigned.pending.clear();
            assigned.pending_bytes = 0;
            if std::mem::take(&mut assigned.paused) {
                resume(&self.source, &partition);
            }
            anew.push(partition);
        }
        if !anew.is_empty() && !fault::bug(Bug::NoReentry) {
            self.find_start_anew(anew);
        }
    }

    fn find_start_anew(&mut self, partitions: Vec<Partition>) {
        let names: Vec<_> = partitions.iter().map(ToString::to_string).collect();
        let text = format!("finding the start of {} anew", names.join(", "));
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        for partition in &partitions {
            if let Some(assigned) = self.assigned.get_mut(partition) {
                assigned.reentering = Some(ticket);
            }
        }
        self.reentering.push(Reentering {
            ticket,
            cancelled: Arc::clone(&cancelled),
            _latch: self.shared.readiness.latch(text),
        });
        let (shared, questions) = (Arc::clone(&self.shared), Arc::clone(&self.questions));
        let commands = self.commands.clone();
        let ask = move || {
            let result = enter(&shared, &*questions, &partitions, &cancelled);
            // The poll loop is gone only when the daemon is going.
            let _ = commands.send(Command::Reentered { ticket, result });
        };
        let thread = std::thread::Builder::new().name("enter".to_owned()).spawn(ask);
        drop(thread.expect("the system can start a thread"));
    }

    pub(super) fn reentered(&mut self, ticket: u64, result: Result<Vec<Entered>, Failure>) {
        let Some(at) = self.reentering.iter().position(|one| one.ticket == ticket) else { return };
        let reentering = self.reentering.swap_remove(at);
        let mut entered = match result {
            Ok(entered) => entered,
            Err(failure) => return self.fail(failure),
        };
        // Some may have been given back meanwhile, and some of those have come back: what was found
        // for them before is old.
        entered.retain(|entered| {
            let assigned = self.assigned.get(&entered.partition);
            assigned.is_some_and(|at| at.reentering == Some(ticket) && !at.draining)
        });
        if entered.is_empty() {
            return;
        }
        fault::point(Point::Reentering);
        self.commit_first(&mut entered);
        let starts: Vec<_> =
            entered.iter().map(|entered| (entered.partition.clone(), entered.plan.start)).collect();
        if let Err(error) = self.source.seek(&starts, SEEK_PATIENCE) {
            tracing::warn!(%error, "The consumer could not be moved; the partitions are entered anew.");
            let partitions = starts.into_iter().map(|(partition, _)| partition).collect();
            return self.find_start_anew(partitions);
        }
        for entered in entered {
            self.open(entered);
        }
        self.publish_membership();
        drop(reentering);
    }

    /// Nobody waits for the answers any more.
    pub(super) fn cancel_reentering(&mut self) {
        for reentering in self.reentering.drain(..) {
            reentering.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Hands out how the group sees this member, with what it owns at this moment.
    pub(super) fn publish_membership(&self) {
        let Some(transacting) = &self.shared.transacting else { return };
        let owned =
            self.assigned.iter().map(|(partition, at)| (partition.clone(), at.epoch)).collect();
        let snapshot = self.source.group_metadata().map(|metadata| {
            let metadata = Arc::new(metadata);
            let metadata = match transacting.membership.newest() {
                Some(first) if fault::bug(Bug::StaleMetadata) => Arc::clone(&first.metadata),
                _ => metadata,
            };
            Snapshot { metadata, owned }
        });
        transacting.membership.publish(snapshot);
    }
}
