//! Faults of the brokers, one at a time: the next one waits until all replicas are in sync, so that
//! no acknowledged record is ever on one broker alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Control, Fault, Planned, Victim};
use crate::cluster::{BROKERS, Cluster};
use crate::journal::Journal;
use crate::kafka::{Kafka, coordinator_partition};
use crate::traffic::{OUTPUT, PARTITIONS, Route};

/// How long replicas may take to be in sync again.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(180);
/// `offsets.topic.num.partitions` and the same for transactions.
const COORDINATOR_PARTITIONS: i32 = 4;

pub struct BrokerLane {
    pub cluster: Arc<Cluster>,
    pub kafka: Arc<Kafka>,
    pub journal: Arc<Journal>,
    pub group: String,
    pub wrong: Vec<String>,
    pub kills_done: usize,
}

impl BrokerLane {
    pub fn run(&mut self, plan: &[Planned], control: &Control) {
        let begun = Instant::now();
        for planned in plan {
            if !control.wait_until(begun + planned.at) {
                return;
            }
            let done = match planned.fault {
                Fault::BrokerKill(victim) => self.kill(victim, planned.draw, control),
                Fault::Roll => self.roll(),
                _ => Ok(()),
            };
            if let Err(error) = done {
                self.wrong.push(error);
                return;
            }
        }
    }

    fn kill(&mut self, victim: Victim, draw: u64, control: &Control) -> Result<(), String> {
        let Some(index) = self.find(victim, draw) else {
            return Err(format!("no broker found for {victim:?}"));
        };
        let name = format!("broker-{}", index + 1);
        self.cluster.kill(index);
        self.kills_done += 1;
        self.journal.note("broker-kill", &name, format!("SIGKILL, {victim:?}"));
        control.wait_until(Instant::now() + Duration::from_millis(500 + draw % 4_000));
        self.bring_back(index)
    }

    fn roll(&self) -> Result<(), String> {
        for index in 0..BROKERS {
            self.journal.note("broker-stop", format!("broker-{}", index + 1), "SIGTERM, rolling");
            self.cluster.stop(index);
            self.bring_back(index)?;
        }
        self.journal.note("roll", "brokers", "all restarted");
        Ok(())
    }

    fn bring_back(&self, index: usize) -> Result<(), String> {
        let name = format!("broker-{}", index + 1);
        self.cluster.restart(index).map_err(|error| error.to_string())?;
        self.journal.note("broker-start", &name, "");
        let whole = self.kafka.wait_whole(WHOLE_TIMEOUT);
        whole.map_err(|missing| format!("replicas are not in sync after {name}: {missing}"))?;
        self.journal.note("broker-in-sync", &name, "");
        Ok(())
    }

    fn find(&self, victim: Victim, draw: u64) -> Option<usize> {
        let any = usize::try_from(draw % 3).ok();
        let one_of = |count: i32| i32::try_from(draw % u64::from(count.unsigned_abs())).ok();
        let leader = |topic: &str, partition: Option<i32>| self.kafka.leader(topic, partition?);
        let found = match victim {
            Victim::Any => any,
            Victim::GroupCoordinator => {
                let partition = coordinator_partition(&self.group, COORDINATOR_PARTITIONS);
                leader("__consumer_offsets", Some(partition))
            }
            Victim::TransactionCoordinator => {
                leader("__transaction_state", one_of(COORDINATOR_PARTITIONS))
            }
            Victim::InputLeader => leader(Route::Once.input(), one_of(PARTITIONS)),
            Victim::OutputLeader => leader(OUTPUT, one_of(PARTITIONS)),
        };
        // Not every topic is there where only one route runs.
        found.or(any)
    }
}
