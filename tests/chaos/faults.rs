//! The faults: which, when, and to whom.
//!
//! Owns: the schedule that a seed gives, and the three lanes that carry it out.
//! Never: judges what came of it.
//!
//! ```text
//! daemon lane    SIGKILL, crash points, SIGSTOP, SIGTERM, joins, wiped directories, offsets reset,
//!                power cuts, full disks, failing syncs
//! broker lane    SIGKILL of leaders and coordinators, rolling restarts; one at a time
//! network lane   what the proxies before the brokers do
//! ```
//!
//! Times and preferred targets come from the seed alone. What happens also depends on who runs
//! when the time has come, so a second run has the same schedule, not the same microseconds.

pub mod broker_lane;
pub mod daemon_lane;
pub mod network_lane;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::options::Options;
use crate::traffic::{Phase, Traffic};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; the next life may be armed with a crash point.
    Kill,
    /// SIGSTOP for longer than the session timeout, then SIGCONT.
    Zombie,
    /// SIGTERM, then a start.
    Stop,
    /// A fourth daemon comes, and later goes.
    Join,
    /// SIGKILL, the directory is deleted, then a start.
    Wipe,
    /// SIGKILL, and what its disk had not synced is gone.
    PowerCut,
    /// No room on its disk for a while.
    FullDisk,
    /// A sync of its log fails.
    IoError,
    /// Everybody stops, the group's offsets are set to the start, everybody starts.
    Reset,
    BrokerKill(Victim),
    /// Each broker is asked to end and started again, one after another.
    Roll,
    /// All connections of the daemons.
    Cut,
    Delay(Delay),
}

impl Fault {
    pub fn is_of_the_disk(self) -> bool {
        matches!(self, Self::PowerCut | Self::FullDisk | Self::IoError)
    }
}

/// Which broker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Any,
    GroupCoordinator,
    TransactionCoordinator,
    InputLeader,
    OutputLeader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Requests are late, and what follows them.
    Requests,
    /// The broker does it, and nobody is told.
    AnswersLost,
    /// A commit arrives when its client has given it up and tried again.
    CommitHeld,
    AbortHeld,
    /// No byte goes either way for a moment.
    Silence,
}

/// A fault of the schedule.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Since the first fault could have been.
    pub at: Duration,
    pub fault: Fault,
    /// A number from the seed: the preferred target, and whatever else is left open.
    pub draw: u64,
}

pub struct Plan {
    pub daemon: Vec<Planned>,
    pub broker: Vec<Planned>,
    pub network: Vec<Planned>,
}

impl Plan {
    pub fn of(options: &Options) -> Self {
        let mut random = fastrand::Rng::with_seed(options.seed ^ 0xfa01_7500);
        let lasts = options.faults_last;
        let mut daemon = Vec::new();
        spread(&mut daemon, &mut random, lasts, options.kills, |_| Fault::Kill);
        spread(&mut daemon, &mut random, lasts, options.zombies, |_| Fault::Zombie);
        spread(&mut daemon, &mut random, lasts, options.stops, |_| Fault::Stop);
        spread(&mut daemon, &mut random, lasts, options.joins, |_| Fault::Join);
        spread(&mut daemon, &mut random, lasts, options.wipes, |_| Fault::Wipe);
        spread(&mut daemon, &mut random, lasts, options.resets, |_| Fault::Reset);
        spread(&mut daemon, &mut random, lasts, options.power_cuts, |_| Fault::PowerCut);
        spread(&mut daemon, &mut random, lasts, options.full_disks, |_| Fault::FullDisk);
        spread(&mut daemon, &mut random, lasts, options.io_errors, |_| Fault::IoError);
        let mut broker = Vec::new();
        spread(&mut broker, &mut random, lasts, options.broker_kills, |number| {
            Fault::BrokerKill(match number % 5 {
                0 => Victim::GroupCoordinator,
                1 => Victim::TransactionCoordinator,
                2 => Victim::Any,
                3 => Victim::InputLeader,
                _ => Victim::OutputLeader,
            })
        });
        spread(&mut broker, &mut random, lasts, options.rolls, |_| Fault::Roll);
        let mut network = Vec::new();
        spread(&mut network, &mut random, lasts, options.cuts, |_| Fault::Cut);
        spread(&mut network, &mut random, lasts, options.delays, |number| {
            Fault::Delay(match number % 5 {
                0 => Delay::CommitHeld,
                1 => Delay::AnswersLost,
                2 => Delay::Requests,
                3 => Delay::AbortHeld,
                _ => Delay::Silence,
            })
        });
        for lane in [&mut daemon, &mut broker, &mut network] {
            lane.sort_by_key(|planned| planned.at);
        }
        Self { daemon, broker, network }
    }

    pub fn lines(&self) -> Vec<String> {
        let mut all: Vec<_> = self.daemon.iter().chain(&self.broker).chain(&self.network).collect();
        all.sort_by_key(|planned| planned.at);
        let line = |planned: &&Planned| {
            format!(
                "{:8.1} s  {:?} ({})",
                planned.at.as_secs_f64(),
                planned.fault,
                planned.draw % 100
            )
        };
        all.iter().map(line).collect()
    }
}

/// So many faults over the time, about evenly: each somewhere in its own slice.
fn spread(
    into: &mut Vec<Planned>,
    random: &mut fastrand::Rng,
    lasts: Duration,
    count: usize,
    fault: impl Fn(usize) -> Fault,
) {
    let slices = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    let slice = lasts / slices;
    for number in 0..count {
        let start = slice * u32::try_from(number).unwrap_or(u32::MAX);
        let at = start + slice.mul_f64(random.f64() * 0.9);
        into.push(Planned { at, fault: fault(number), draw: random.u64(..) });
    }
}

/// What the lanes share: when it began, how far the traffic is, and whether to stop.
pub struct Control {
    pub stopping: AtomicBool,
    pub traffic: Arc<Traffic>,
    /// The faults before this time; then they stop, done or not.
    pub give_up: Instant,
}

impl Control {
    pub fn stopped(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || Instant::now() > self.give_up
    }

    /// Waits for a time; `false` when everything is to stop.
    pub fn wait_until(&self, at: Instant) -> bool {
        while Instant::now() < at {
            if self.stopped() {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        !self.stopped()
    }

    pub fn start_faults(&self) {
        self.traffic.enter(Phase::Faults);
    }
}
