//! Faults of the daemons. One thread owns them all while faults go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Control, Fault, Planned};
use crate::daemons::{DAEMONS, Daemon, Ended, State};
use crate::journal::Journal;
use crate::kafka::{Kafka, Partition};

/// The zombies' session timeout; they are stopped for longer.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(3);
/// More than the drain timeout in the configuration.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// A crash point that nobody comes to is given up.
const ARMED_FOR: Duration = Duration::from_secs(45);

pub struct DaemonLane {
    pub daemons: Vec<Daemon>,
    pub journal: Arc<Journal>,
    pub kafka: Arc<Kafka>,
    pub group: String,
    pub partitions: Vec<Partition>,
    pub random: fastrand::Rng,
    /// Names of crash points, empty where the daemon has none.
    pub points: Vec<&'static str>,
    pub points_percent: u8,
    /// When the fourth one goes, and whether it is asked to.
    pub guest_leaves: Option<(Instant, bool)>,
    pub kills_done: usize,
    pub zombies_done: usize,
    /// What daemons did that they must not.
    pub wrong: Vec<String>,
    /// Faults that cannot be injected here, and why.
    pub impossible: BTreeMap<&'static str, String>,
}

impl DaemonLane {
    pub fn start_all(&mut self) -> std::io::Result<()> {
        for daemon in &mut self.daemons[..DAEMONS] {
            daemon.start(None)?;
            // Members that come one after another move partitions.
            self.journal.note("start", &daemon.name, "");
        }
        Ok(())
    }

    /// Carries out the schedule, and goes on until as many were killed and frozen as planned.
    pub fn run(&mut self, plan: &[Planned], control: &Control) {
        let begun = Instant::now();
        let planned_of = |fault| plan.iter().filter(|planned| planned.fault == fault).count();
        let (kills, zombies) = (planned_of(Fault::Kill), planned_of(Fault::Zombie));
        let mut waiting = plan.iter().peekable();
        let mut late: Vec<Planned> = Vec::new();
        let mut kills_due = 0;
        while !control.stopped() {
            self.look_after();
            while let Some(planned) = waiting.next_if(|planned| begun.elapsed() >= planned.at) {
                late.push(planned.clone());
            }
            if let Some(at) = late.iter().position(|planned| self.possible(planned)) {
                let planned = late.remove(at);
                if planned.fault == Fault::Kill {
                    kills_due += 1;
                    // Crash points have killed ahead of the schedule.
                    if self.kills_done >= kills_due {
                        continue;
                    }
                }
                self.carry_out(&planned);
            } else if late.is_empty() && waiting.peek().is_none() {
                let fault = if self.kills_done < kills {
                    Fault::Kill
                } else if self.zombies_done < zombies {
                    Fault::Zombie
                } else if self.syncs_failed() < planned_of(Fault::IoError) {
                    // A daemon may be killed before its next sync.
                    Fault::IoError
                } else {
                    break;
                };
                late.push(Planned { at: begun.elapsed(), fault, draw: self.random.u64(..) });
                kills_due = kills_due.min(self.kills_done);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that were asked for, where none can be made to fail.
    fn syncs_failed(&self) -> usize {
        let impossible = self.impossible.contains_key("io-error");
        if impossible { usize::MAX } else { self.journal.count("poisoned") }
    }

    /// Everybody runs, nobody is armed, the fourth one is gone.
    pub fn calm_down(&mut self) {
        for daemon in &mut self.daemons {
            daemon.thaw();
            daemon.free_disk();
        }
        let guest = &mut self.daemons[DAEMONS];
        if guest.at_work() {
            guest.terminate(Instant::now() + STOP_TIMEOUT);
        }
        for index in 0..DAEMONS {
            let armed = self.daemons[index].running().is_some_and(|one| one.armed.is_some());
            if armed {
                self.kill(index, "disarmed", false);
            }
        }
        self.points.clear();
        let ends = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < ends {
            self.look_after();
            let guest_gone = self.daemons[DAEMONS].running().is_none();
            if guest_gone && self.daemons[..DAEMONS].iter().all(Daemon::at_work) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks all of them to end, and waits until they have.
    pub fn end_all(&mut self) {
        for daemon in &mut self.daemons {
            daemon.thaw();
            daemon.free_disk();
            daemon.terminate(Instant::now() + STOP_TIMEOUT);
        }
        while self.daemons.iter().any(|daemon| daemon.running().is_some()) {
            self.reap(None);
            thread::sleep(Duration::from_millis(20));
        }
        // They are not started again.
        for daemon in &mut self.daemons {
            daemon.state = State::Down(None);
        }
    }

    /// Notes who has ended, starts who is due, thaws who is due.
    pub fn look_after(&mut self) {
        let now = Instant::now();
        let next_start = now + Duration::from_millis(self.random.u64(50..1_500));
        self.reap(Some(next_start));
        if let Some((_, gently)) = self.guest_leaves.filter(|(at, _)| *at <= now) {
            self.see_the_guest_off(gently);
        }
        for index in 0..self.daemons.len() {
            let daemon = &mut self.daemons[index];
            daemon.give_up_on_failing();
            if daemon.full_until.is_some_and(|until| until <= now) {
                daemon.free_disk();
                self.journal.note("room again", &daemon.name, "");
            }
            match &daemon.state {
                State::Down(Some(at)) if *at <= now => {
                    let armed = self.draw_point();
                    let daemon = &mut self.daemons[index];
                    let shown = armed.clone().unwrap_or_default();
                    match daemon.start(armed) {
                        Ok(()) => self.journal.note("start", &daemon.name, shown),
                        Err(error) => self.wrong.push(format!("{}: {error}", daemon.name)),
                    }
                }
                State::Running(one) if one.frozen_until.is_some_and(|until| until <= now) => {
                    daemon.thaw();
                    self.journal.note("continue", &daemon.name, "SIGCONT");
                }
                State::Running(one) if one.armed.is_some() && one.since.elapsed() > ARMED_FOR => {
                    self.kill(index, "crash point not reached", true);
                }
                _ => {}
            }
        }
    }

    fn reap(&mut self, next_start: Option<Instant>) {
        for (index, daemon) in self.daemons.iter_mut().enumerate() {
            // The fourth one stays away when it has gone.
            let next_start = next_start.filter(|_| index < DAEMONS);
            match daemon.reap(next_start) {
                None => {}
                Some(Ended::AtPoint(point)) => {
                    let name = point.split(':').next().unwrap_or(&point);
                    self.kills_done += 1;
                    self.journal.landed(format!("point {name}"));
                    self.journal.note("crash-point", &daemon.name, point);
                }
                Some(Ended::Poisoned) => {
                    self.journal.note("poisoned", &daemon.name, "a sync failed, exit code 4");
                }
                Some(Ended::AsAsked) => self.journal.note("ended", &daemon.name, "exit code 0"),
                Some(Ended::TooSlow) => {
                    self.wrong.push(format!("{}: did not end within its time", daemon.name));
                    self.journal.note("kill", &daemon.name, "did not end in time");
                }
                Some(Ended::Wrong(how)) => {
                    self.journal.note("wrong end", &daemon.name, how.clone());
                    let seconds = self.journal.now_ms() / 1000;
                    self.wrong.push(format!("{} at {seconds} s: {how}", daemon.name));
                }
            }
        }
    }

    fn draw_point(&mut self) -> Option<String> {
        if self.points.is_empty() || self.random.u8(..100) >= self.points_percent {
            return None;
        }
        let point = self.points[self.random.usize(..self.points.len())];
        // Some steps are taken once in a life, others ten times a second.
        let hits = if self.random.bool() { 1 } else { self.random.u32(2..20) };
        Some(format!("{point}:{hits}"))
    }

    fn possible(&self, planned: &Planned) -> bool {
        match planned.fault {
            Fault::Kill | Fault::Wipe | Fault::PowerCut => {
                self.target(planned, Duration::from_millis(700)).is_some()
            }
            // One that has no partition yet is no zombie.
            Fault::Zombie | Fault::Stop | Fault::FullDisk | Fault::IoError => {
                self.target(planned, Duration::from_secs(3)).is_some()
            }
            Fault::Join => self.daemons[DAEMONS].running().is_none(),
            _ => true,
        }
    }

    /// The daemon that the draw names, or the next one that has worked for long enough.
    fn target(&self, planned: &Planned, worked: Duration) -> Option<usize> {
        let first = usize::try_from(planned.draw % 97).unwrap_or(0);
        (0..DAEMONS).map(|step| (first + step) % DAEMONS).find(|index| {
            let daemon = &self.daemons[*index];
            daemon.at_work()
                && (!planned.fault.is_of_the_disk() || daemon.disk_is_well())
                && daemon.running().is_some_and(|one| one.since.elapsed() > worked)
        })
    }

    fn carry_out(&mut self, planned: &Planned) {
        let draw = planned.draw / 97;
        match planned.fault {
            Fault::Kill => {
                if let Some(index) = self.target(planned, Duration::ZERO) {
                    self.kill(index, "SIGKILL", true);
                }
            }
            Fault::Wipe => {
                if let Some(index) = self.target(planned, Duration::ZERO) {
                    self.kill(index, "SIGKILL", true);
                    self.daemons[index].wipe();
                    self.journal.note("wipe", &self.daemons[index].name, "data directory deleted");
                }
            }
            Fault::Zombie => {
                if let Some(index) = self.target(planned, Duration::ZERO) {
                    let stopped =
                        SESSION_TIMEOUT.mul_f64(1.3) + Duration::from_millis(draw % 3_000);
                    let phase = self.daemons[index].phase();
                    self.daemons[index].freeze(Instant::now() + stopped);
                    self.zombies_done += 1;
                    self.journal.landed(format!("frozen: {phase}"));
                    let detail = format!("SIGSTOP for {} ms, {phase}", stopped.as_millis());
                    self.journal.note("zombie", &self.daemons[index].name, detail);
                }
            }
            Fault::Stop => {
                if let Some(index) = self.target(planned, Duration::ZERO) {
                    self.journal.note("stop", &self.daemons[index].name, "SIGTERM");
                    self.daemons[index].terminate(Instant::now() + STOP_TIMEOUT);
                }
            }
            Fault::Join => {
                let guest = &mut self.daemons[DAEMONS];
                match guest.start(None) {
                    Ok(()) => self.journal.note("join", &guest.name, "a fourth member"),
                    Err(error) => self.wrong.push(format!("{}: {error}", guest.name)),
                }
                let stays = Duration::from_secs(4 + draw % 6);
                self.guest_leaves = Some((Instant::now() + stays, draw.is_multiple_of(2)));
            }
            Fault::PowerCut => self.on_disk(planned, "power-cut", |daemon, draw| {
                let phase = daemon.phase();
                let back = Instant::now() + Duration::from_millis(50 + draw % 1_500);
                daemon.cut_power(Some(back)).map(|()| phase)
            }),
            Fault::FullDisk => self.on_disk(planned, "full-disk", |daemon, draw| {
                let lasts = Duration::from_millis(3_000 + draw % 5_000);
                daemon.fill_disk(lasts).map(|()| format!("for {} ms", lasts.as_millis()))
            }),
            Fault::IoError => self.on_disk(planned, "io-error", |daemon, _| {
                daemon.fail_a_sync().map(|()| "the next sync fails".to_owned())
            }),
            Fault::Reset => self.reset(draw.is_multiple_of(2)),
            Fault::BrokerKill(_) | Fault::Roll | Fault::Cut | Fault::Delay(_) => {}
        }
    }

    /// What cannot be done here is told once.
    fn on_disk(
        &mut self,
        planned: &Planned,
        what: &'static str,
        fault: impl FnOnce(&mut Daemon, u64) -> Result<String, String>,
    ) {
        let Some(index) = self.target(planned, Duration::ZERO) else { return };
        let daemon = &mut self.daemons[index];
        match fault(daemon, planned.draw / 97) {
            Ok(detail) => self.journal.note(what, &daemon.name, detail),
            Err(why) => {
                self.journal.note("impossible", &daemon.name, format!("{what}: {why}"));
                self.impossible.insert(what, why);
            }
        }
    }

    fn kill(&mut self, index: usize, why: &'static str, counts: bool) {
        let delay = Duration::from_millis(self.random.u64(50..1_800));
        let daemon = &mut self.daemons[index];
        let phase = daemon.phase();
        daemon.kill(Some(Instant::now() + delay));
        if counts {
            self.kills_done += 1;
            self.journal.landed(format!("killed: {phase}"));
            self.journal.note("kill", &self.daemons[index].name, format!("{why}, {phase}"));
        } else {
            self.journal.note("extra kill", &self.daemons[index].name, format!("{why}, {phase}"));
        }
    }

    /// The fourth one goes, with or without a word.
    fn see_the_guest_off(&mut self, gently: bool) {
        self.guest_leaves = None;
        let guest = &mut self.daemons[DAEMONS];
        if !guest.at_work() {
            return;
        }
        self.journal.note("leave", &guest.name, if gently { "SIGTERM" } else { "SIGKILL" });
        if gently {
            guest.terminate(Instant::now() + STOP_TIMEOUT);
        } else {
            guest.kill(None);
        }
    }

    fn reset(&mut self, wipe_one: bool) {
        self.journal.note("stop all", "all", "before the offsets are reset");
        self.end_all();
        let begun = Instant::now();
        // Members that were killed are gone when their session is over.
        while self.kafka.members(&self.group) != Some(0)
            && begun.elapsed() < Duration::from_secs(60)
        {
            thread::sleep(Duration::from_millis(200));
        }
        match self.kafka.reset(&self.group, &self.partitions) {
            Ok(()) => self.journal.note("reset", &self.group, "offsets of all partitions set to 0"),
            Err(error) => self.journal.note("reset failed", &self.group, error),
        }
        if wipe_one {
            self.daemons[0].wipe();
            self.journal.note("wipe", &self.daemons[0].name, "data directory deleted");
        }
        let now = Instant::now();
        for daemon in &mut self.daemons[..DAEMONS] {
            daemon.state = State::Down(Some(now));
        }
        self.look_after();
    }
}
