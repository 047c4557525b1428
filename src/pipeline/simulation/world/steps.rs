//! What goes on by itself: records come, are read and handled; answers and commits arrive.

use std::sync::Arc;
use std::time::Duration;

use super::super::cluster::{not_sent, partition};
use super::super::ledger::{Answer, Owner};
use super::super::process::Report;
use super::super::topic::{EPOCH, Kind, New, TOPIC, Temper};
use super::World;
use crate::clock;
use crate::commit::producer::SendError;
use crate::handler::Outcome;
use crate::pipeline::worker::Event;
use crate::record::Timestamp;

impl World {
    pub(super) fn produce(&mut self) {
        let sea = Arc::clone(&self.sea);
        let mut sea = sea.lock().unwrap();
        let at = self.rng.usize(..sea.inputs.len());
        for _ in 0..self.rng.usize(1..6) {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            let new = self.new_record();
            sea.inputs[at].append(&partition(at), &new);
        }
        let end = sea.inputs[at].slots.len();
        sea.note(|| format!("{TOPIC}/{at} has {end} records"));
    }

    fn new_record(&mut self) -> New {
        let rng = &mut self.rng;
        self.produced += match rng.u8(..20) {
            _ if self.fast => rng.i64(0..12_000),
            0 => rng.i64(20_000..120_000),
            1..6 => 0,
            _ => rng.i64(0..5_000),
        };
        let late = if rng.u8(..4) == 0 { rng.i64(0..15_000) } else { 0 };
        let timestamp = match rng.u8(..60) {
            0 => None,
            1 => Some(Timestamp(EPOCH.0 * 2)),
            _ => Some(Timestamp(self.produced - late)),
        };
        // Small numbers are much more frequent.
        let key = (rng.f64().powi(2) * self.keys as f64) as u64;
        New {
            kind: match rng.u8(..30) {
                0..2 => Kind::Gap,
                2 => Kind::Pending,
                _ => Kind::Record,
            },
            key: (rng.u8(..20) > 0).then_some(key),
            variant: u64::from(rng.u8(..12) == 0),
            record_key: (rng.u8(..5) > 0).then(|| rng.u64(..4)),
            timestamp,
            temper: match rng.u8(..20) {
                0..2 => Temper::Flaky,
                2 => Temper::Poison,
                3 => Temper::Hopeless,
                _ => Temper::Good,
            },
        }
    }

    pub(super) fn close_transactions(&mut self) {
        let commit = self.rng.bool();
        let mut sea = self.sea.lock().unwrap();
        sea.settle_letters();
        sea.note(|| format!("open transactions of the input end, committed: {commit}"));
        for input in &mut sea.inputs {
            input.close_transactions(commit);
        }
    }

    pub(super) fn deliver(&mut self, at: usize) {
        let (count, which) = (self.rng.usize(1..12), self.rng.usize(..8));
        let sea = Arc::clone(&self.sea);
        let Some(daemon) = self.running(at) else { return };
        let assignments = daemon.assignments();
        if assignments > 0 {
            daemon.deliver(&mut sea.lock().unwrap(), which % assignments, count);
        }
    }

    pub(super) fn work(&mut self, at: usize) {
        let (worker, events) = (self.rng.usize(..4), self.rng.usize(1..6));
        if let Some(daemon) = self.running(at) {
            daemon.worker_step(worker % daemon.workers(), events);
        }
    }

    pub(super) fn poll(&mut self, at: usize) {
        let sea = Arc::clone(&self.sea);
        let mut rng = self.rng.fork();
        let Some(daemon) = self.running(at) else { return };
        let process = daemon.outside.process;
        let mut sea = sea.lock().unwrap();
        match daemon.member {
            // The client notices with its next heartbeat.
            Some(member) if !sea.group.members.contains_key(&member) => {
                if !daemon.lost && rng.bool() {
                    daemon.lost = true;
                    daemon.reports.push_back(Report::Lost);
                }
            }
            Some(_) => {}
            None => daemon.member = Some(sea.group.join(process, &mut rng)),
        }
        daemon.poll(&mut sea, &mut rng);
    }

    /// The called system answers some call.
    pub(super) fn answer(&mut self) {
        let sea = Arc::clone(&self.sea);
        let mut sea = sea.lock().unwrap();
        if sea.calls.is_empty() {
            return;
        }
        let at = self.rng.usize(..sea.calls.len());
        let call = sea.calls.swap_remove(at);
        let mut outcomes = Vec::new();
        let mut stopped = false;
        for claim in &call.claims {
            let temper = {
                let input = sea.input(&claim.record.partition);
                input.slots[claim.record.offset.0 as usize].temper
            };
            let answer = if stopped { Answer::Retry } else { self.temper(temper) };
            stopped |= self.handler.keeps_order() && answer != Answer::Done;
            sea.note(|| format!("{} is answered {answer:?}", claim.record.coordinates()));
            let owner = Owner { process: call.process, epoch: claim.epoch };
            sea.ledger.answered(owner, &claim.record, answer);
            outcomes.push(match answer {
                Answer::Done => Outcome::Done,
                Answer::Retry => Outcome::retry("later"),
                Answer::Reject => Outcome::reject("never"),
            });
        }
        let (route, claims) = (call.route, call.claims);
        let took = Duration::from_millis(5);
        let _ = call.answer.send(Event::Outcomes { route, claims, outcomes, took });
    }

    /// Some client of transactions comes a step further.
    pub(super) fn transact(&mut self) {
        let sea = Arc::clone(&self.sea);
        let mut sea = sea.lock().unwrap();
        if sea.transactions.clients.is_empty() {
            return;
        }
        let at = self.rng.usize(..sea.transactions.clients.len());
        if !self.instances[sea.transactions.clients[at].process.instance].frozen {
            sea.transact(at, &mut self.rng);
        }
    }

    fn temper(&mut self, temper: Temper) -> Answer {
        match temper {
            Temper::Good if self.rng.u8(..30) > 0 => Answer::Done,
            Temper::Flaky if self.rng.u8(..3) == 0 => Answer::Done,
            Temper::Poison => Answer::Reject,
            Temper::Good | Temper::Flaky | Temper::Hopeless => Answer::Retry,
        }
    }

    /// Some letter comes a step further.
    pub(super) fn letter(&mut self) {
        let mut sea = self.sea.lock().unwrap();
        if sea.sends.is_empty() {
            return;
        }
        let at = self.rng.usize(..sea.sends.len());
        let result = if sea.sends[at].arrived {
            if self.rng.u8(..6) == 0 { Err(not_sent()) } else { Ok(()) }
        } else {
            match self.rng.u8(..10) {
                0 => Err(SendError::TooLarge),
                1 => Err(not_sent()),
                _ => return sea.letter_arrives(at),
            }
        };
        let send = sea.sends.swap_remove(at);
        sea.note(|| {
            format!("letter {} of {} is answered {result:?}", send.token, send.process.instance)
        });
        let smallest = send.letter.form.smaller().is_none();
        let result = result.map_err(|error| match error {
            SendError::TooLarge if smallest => not_sent(),
            error => error,
        });
        (send.acknowledged)(send.token, result);
    }

    /// A commit reaches the coordinator, in the order of its process.
    pub(super) fn commit(&mut self) {
        let mut sea = self.sea.lock().unwrap();
        if !sea.high_requests.is_empty() && self.rng.bool() {
            let at = self.rng.usize(..sea.high_requests.len());
            let position = sea.high_requests.swap_remove(at);
            return sea.raise(&position, "a late commit");
        }
        if sea.requests.is_empty() {
            return;
        }
        let at = self.rng.usize(..sea.requests.len());
        let process = sea.requests[at].process;
        let first = sea.requests.iter().position(|request| request.process == process);
        let (request, mut report) = sea.commit_arrives(first.unwrap_or(at));
        drop(sea);
        if self.rng.u8(..12) == 0 {
            report = Report::Committed(Err(()));
        }
        let daemon = self.instances[request.process.instance].daemon.as_mut();
        if let Some(daemon) = daemon.filter(|daemon| daemon.outside.process == request.process) {
            daemon.reports.push_back(report);
        }
    }

    pub(super) fn tick(&mut self) {
        let ms = self.rng.u64(1..1_500);
        self.sea.lock().unwrap().note(|| format!("{ms} ms pass"));
        clock::simulated::advance(Duration::from_millis(ms));
    }

    pub(super) fn flush(&mut self, at: usize) {
        let mut disk = self.instances[at].disk.lock().unwrap();
        if self.rng.bool() {
            disk.flush();
        } else {
            disk.compact();
        }
    }
}
