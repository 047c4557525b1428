//! Faults between daemons and brokers. They go through proxies; traffic and verifiers do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Control, Delay, Fault, Planned};
use crate::journal::Journal;
use crate::proxy::{Proxy, Which};

pub struct NetworkLane {
    pub proxy: Arc<Proxy>,
    pub journal: Arc<Journal>,
}

impl NetworkLane {
    pub fn run(&self, plan: &[Planned], control: &Control) {
        let begun = Instant::now();
        for planned in plan {
            if !control.wait_until(begun + planned.at) {
                break;
            }
            match planned.fault {
                Fault::Cut => {
                    self.proxy.cut_all();
                    self.journal.note("cut", "proxies", "all connections closed");
                }
                Fault::Delay(delay) => self.delay(delay, planned.draw, control),
                _ => {}
            }
        }
        self.proxy.heal();
        // A hold that nobody came to must not wait for the calm.
        self.proxy.cut_all();
    }

    fn delay(&self, delay: Delay, draw: u64, control: &Control) {
        const ANSWERS: [Which; 5] = [
            Which::EndTxn,
            Which::TxnOffsetCommit,
            Which::OffsetCommit,
            Which::Produce,
            Which::InitProducerId,
        ];
        const REQUESTS: [Which; 4] =
            [Which::EndTxn, Which::Produce, Which::AddOffsetsToTxn, Which::Fetch];
        let pick = |most: usize| usize::try_from(draw).unwrap_or(0) % most;
        let time = Duration::from_millis(500 + draw / 7 % 3_000);
        let wait = |time: Duration| control.wait_until(Instant::now() + time);
        match delay {
            Delay::Requests => {
                let which = REQUESTS[pick(REQUESTS.len())];
                self.proxy.delay(which, time, 3);
                let detail = format!("three {which:?} are {} ms late", time.as_millis());
                self.journal.note("delay", "proxies", detail);
            }
            Delay::AnswersLost => {
                let which = ANSWERS[pick(ANSWERS.len())];
                self.proxy.drop_responses(which, 2);
                self.journal.note("answers lost", "proxies", format!("of two {which:?}"));
            }
            Delay::CommitHeld | Delay::AbortHeld => {
                let which = if delay == Delay::CommitHeld { Which::Commit } else { Which::Abort };
                let hold = self.proxy.hold(which, 1);
                let caught = hold.wait(Duration::from_secs(10));
                let detail = format!("one {which:?}, caught: {caught}");
                self.journal.note("hold", "proxies", detail);
                if caught {
                    wait(time);
                }
                let late = hold.release();
                self.journal.note("release", "proxies", format!("{late:?}"));
            }
            Delay::Silence => {
                self.proxy.blackhole(time);
                let detail = format!("no byte for {} ms", time.as_millis());
                self.journal.note("silence", "proxies", detail);
            }
        }
    }
}
