//! What goes wrong: processes that die, freeze or lose their disk; members that are declared dead.

use super::super::disk::Disk;
use super::super::ledger::{Answer, Owner};
use super::World;

impl World {
    pub(super) fn fault(&mut self, at: usize) {
        match self.rng.u32(..20) {
            0..5 if self.instances[at].daemon.is_some() => {
                let mode = self.rng.usize(..4);
                self.crash(at, mode);
            }
            0..8 => self.start(at),
            8..10 => self.freeze(at),
            10..12 => self.thaw(at),
            12..14 => self.expire(),
            14 => self.time_out(),
            15..17 => {
                let mut sea = self.sea.lock().unwrap();
                sea.note(|| "the group is balanced anew".to_owned());
                sea.group.rebalance(&mut self.rng);
            }
            17..19 => {
                if let Some(daemon) = &mut self.instances[at].daemon {
                    self.sea.lock().unwrap().note(|| format!("{} is to stop", daemon.name()));
                    daemon.stop();
                }
            }
            _ => {
                self.sea.lock().unwrap().note(|| format!("the next write of {at} fails"));
                self.instances[at].disk.lock().unwrap().breaks = true;
            }
        }
    }

    /// `mode`: 0 the process alone, 1 in the middle of a step, 2 the power is cut, 3 the directory
    /// is lost too.
    pub(super) fn crash(&mut self, at: usize, mode: usize) {
        if mode == 1
            && let Some(daemon) = &mut self.instances[at].daemon
        {
            daemon.outside.fuse.light(self.rng.i64(0..4));
            let worker = self.rng.usize(..daemon.workers());
            daemon.worker_step(worker, self.rng.usize(1..8));
        }
        let instance = &mut self.instances[at];
        instance.daemon = None;
        instance.frozen = false;
        self.report.crashes += 1;
        let mut disk = instance.disk.lock().unwrap();
        // What was dropped on the disk stays dropped.
        if self.rng.u8(..3) == 0 {
            disk.compact();
        }
        let unsynced = disk.unsynced();
        let lost = if mode == 2 { self.rng.usize(..=unsynced) } else { 0 };
        self.sea.lock().unwrap().note(|| format!("{at} dies ({mode}), {lost} changes are gone"));
        if mode == 3 {
            *disk = Disk::default();
            instance.directory += 1;
        } else {
            disk.crash(lost);
        }
        drop(disk);
        self.forget_answers(at);
    }

    /// What a dead process had asked for may happen all the same.
    fn forget_answers(&mut self, at: usize) {
        let mut sea = self.sea.lock().unwrap();
        let sea = &mut *sea;
        let mut kept = Vec::new();
        for call in std::mem::take(&mut sea.calls) {
            if call.process.instance != at {
                kept.push(call);
                continue;
            }
            for claim in &call.claims {
                if self.rng.bool() {
                    let owner = Owner { process: call.process, epoch: claim.epoch };
                    sea.ledger.answered(owner, &claim.record, Answer::Done);
                }
            }
        }
        sea.calls = kept;
        sea.transactions.remove(at);
        let rng = &mut self.rng;
        sea.sends.retain(|send| send.process.instance != at || (!send.arrived && rng.bool()));
        sea.requests.retain(|request| request.process.instance != at || rng.bool());
    }

    pub(super) fn leave(&mut self, at: usize) {
        let Some(daemon) = self.instances[at].daemon.take() else { return };
        let mut sea = self.sea.lock().unwrap();
        sea.note(|| format!("{} has stopped", daemon.name()));
        if let Some(member) = daemon.member {
            sea.group.remove(member, &mut self.rng);
        }
        drop(sea);
        self.instances[at].disk.lock().unwrap().crash(0);
        self.forget_answers(at);
    }

    fn freeze(&mut self, at: usize) {
        if self.instances[at].daemon.is_some() {
            self.sea.lock().unwrap().note(|| format!("{at} is stopped by a signal"));
            self.instances[at].frozen = true;
        }
    }

    pub(super) fn thaw(&mut self, at: usize) {
        if self.instances[at].frozen {
            self.sea.lock().unwrap().note(|| format!("{at} goes on"));
        }
        self.instances[at].frozen = false;
    }

    /// The coordinator gives up a member: one that is dead, stopped, or cut off for a while.
    fn expire(&mut self) {
        let mut sea = self.sea.lock().unwrap();
        let members: Vec<_> = sea.group.members.iter().map(|(id, of)| (*id, of.process)).collect();
        if members.is_empty() {
            return;
        }
        let (member, process) = members[self.rng.usize(..members.len())];
        sea.note(|| {
            format!("the member of {}.{} is declared dead", process.instance, process.incarnation)
        });
        sea.group.remove(member, &mut self.rng);
        self.report.moves += 1;
    }

    /// The coordinator aborts transactions that take too long.
    fn time_out(&mut self) {
        let mut sea = self.sea.lock().unwrap();
        sea.note(|| "open transactions time out".to_owned());
        sea.transactions.time_out(|_| false);
    }

    /// The coordinator notices which processes are gone.
    pub(super) fn expire_dead(&mut self) {
        let alive: Vec<_> = self
            .instances
            .iter()
            .filter_map(|instance| instance.daemon.as_ref().map(|daemon| daemon.outside.process))
            .collect();
        let mut sea = self.sea.lock().unwrap();
        let dead = sea.group.members.iter().filter(|(_, of)| !alive.contains(&of.process));
        let dead: Vec<u64> = dead.map(|(id, _)| *id).collect();
        for member in dead {
            sea.group.remove(member, &mut self.rng);
        }
        let sea = &mut *sea;
        let alive: Vec<_> = sea.transactions.clients.iter().map(|client| client.id()).collect();
        sea.transactions.time_out(|id| alive.contains(id));
    }
}
