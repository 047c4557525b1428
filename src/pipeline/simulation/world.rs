//! One run: a seed decides the setting, every step, every fault.

use std::cell::OnceCell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::cluster::{Cluster, Outside, Process, Rules, Shared as Sea, not_sent, partition};
use super::disk::{Disk, Fuse, ModelLog};
use super::ledger::{Answer, Owner};
use super::oracle::Tally;
use super::process::{Daemon, Report};
use super::topic::{EPOCH, Kind, New, TOPIC, Temper};
use crate::clock;
use crate::commit::producer::SendError;
use crate::config::{
    self, Config, Conflict, Exhausted, HandlerKind, Missing, Mode, Order, Sources,
};
use crate::dedup::expiry::{Anchor, Window};
use crate::handler::{Claim, Handler, Outcome, kafka};
use crate::metrics::{Label as _, Metrics, RouteMetrics, VerdictLabel};
use crate::pipeline::worker::Event;
use crate::pipeline::{Board, Heartbeats, Route, Shared};
use crate::readiness::Readiness;
use crate::record::Timestamp;
use crate::shutdown::Shutdown;

/// What one run came to.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub steps: Vec<String>,
    pub crashes: u64,
    pub moves: u64,
    pub records: u64,
    pub calls: u64,
}

/// Never called: the simulation answers for it.
struct NeverCalled {
    batch_max: usize,
    keeps_order: bool,
}

#[async_trait]
impl Handler for NeverCalled {
    async fn handle(&self, _: &Claim) -> Outcome {
        unreachable!("the simulation answers for the handler")
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }

    fn keeps_order(&self) -> bool {
        self.keeps_order
    }
}

struct Instance {
    disk: Arc<Mutex<Disk>>,
    incarnation: u64,
    /// Counts the data directories it has had.
    directory: u64,
    daemon: Option<Daemon>,
    frozen: bool,
}

pub(super) struct World {
    rng: fastrand::Rng,
    sea: Sea,
    config: Arc<Config>,
    handler: Arc<dyn Handler>,
    metrics: Arc<Metrics>,
    route_metrics: RouteMetrics,
    before: [u64; VerdictLabel::ALL.len()],
    instances: Vec<Instance>,
    /// No faults: nothing may happen twice.
    clean: bool,
    steps: usize,
    /// The time of the producers, in milliseconds.
    produced: i64,
    keys: u64,
    left: usize,
    report: Summary,
}

/// Most of a run is setting up; what does not change is kept.
fn template() -> Config {
    thread_local! {
        static CONFIG: OnceCell<Config> = const { OnceCell::new() };
    }
    CONFIG.with(|config| {
        let load = || {
            let set = [
                "kafka.group=g",
                "routes.payments.topics=payments",
                "routes.payments.handler.kind=model",
                "routes.payments.dead_letter.topic=dead",
            ];
            let set = set.map(str::to_owned);
            let handlers = ["model".to_owned()];
            let sources = Sources { set: &set, handlers: &handlers, ..Sources::default() };
            config::load(&sources).unwrap()
        };
        config.get_or_init(load).clone()
    })
}

fn metrics() -> Arc<Metrics> {
    thread_local! {
        static METRICS: OnceCell<Arc<Metrics>> = const { OnceCell::new() };
    }
    METRICS.with(|metrics| Arc::clone(metrics.get_or_init(Metrics::new)))
}

impl World {
    pub(super) fn new(seed: u64, keep_steps: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        fastrand::seed(seed);
        clock::simulated::start(EPOCH);
        let mut config = template();
        let route = &mut config.routes[0];
        let ms = Duration::from_millis;
        route.window = Window {
            ttl: ms([20_000, 60_000, 200_000][rng.usize(..3)]),
            lateness: ms([0, 2_000, 10_000][rng.usize(..3)]),
            skew: ms(10_000),
            anchor: if rng.bool() { Anchor::First } else { Anchor::Last },
        };
        route.concurrency = rng.usize(1..8);
        route.order = [Order::RecordKey, Order::Identity, Order::Partition][rng.usize(..3)];
        route.missing = if rng.bool() { Missing::Process } else { Missing::DeadLetter };
        route.conflict =
            [Conflict::DeadLetter, Conflict::Suppress, Conflict::Process][rng.usize(..3)];
        route.identity.payload_in_identity = route.conflict == Conflict::Process;
        route.retry.attempts = rng.u32(1..5);
        route.retry.backoff.max = ms(2_000);
        route.exhausted = Exhausted::DeadLetter;
        config.runtime.workers = rng.usize(1..3);
        let exactly_once = rng.bool();
        if exactly_once {
            route.mode = Mode::ExactlyOnce;
            let topic = "out".into();
            route.handler = HandlerKind::Kafka(kafka::Config {
                topic,
                partition: kafka::Place::default(),
                partitioner: kafka::Partitioner::default(),
            });
        }
        config.kafka.transaction_interval = ms([0, 100, 1_000][rng.usize(..3)]);
        let clean = rng.u8(..8) == 0;
        let rules = Rules {
            window: route.window,
            conflict: route.conflict,
            order: route.order,
            exactly_once,
            clean,
        };
        let handler =
            NeverCalled { batch_max: [1, 1, 3][rng.usize(..3)], keeps_order: rng.u8(..6) == 0 };
        let partitions = rng.usize(1..4);
        let metrics = metrics();
        let route_metrics = metrics.route("payments");
        route_metrics.in_flight.set(0);
        let instance = |_| Instance {
            disk: Arc::default(),
            incarnation: 0,
            directory: 0,
            daemon: None,
            frozen: false,
        };
        let instances = if clean { 1 } else { rng.usize(1..4) };
        let mut world = Self {
            sea: Arc::new(Mutex::new(Cluster::new(rules, partitions, keep_steps))),
            config: Arc::new(config),
            handler: Arc::new(handler),
            before: VerdictLabel::ALL.each(|label| route_metrics.records.get(label)),
            metrics,
            route_metrics,
            instances: (0..instances).map(instance).collect(),
            clean,
            steps: rng.usize(100..800),
            produced: EPOCH.0 - 3_600_000,
            keys: rng.u64(3..30),
            left: rng.usize(10..200),
            report: Summary::default(),
            rng,
        };
        for at in 0..instances {
            world.start(at);
        }
        world
    }

    /// # Errors
    /// The invariant that broke.
    pub(super) fn run(mut self) -> (Summary, Result<(), String>) {
        let result = self.run_steps();
        clock::simulated::stop();
        let mut sea = self.sea.lock().unwrap();
        self.report.steps = sea.steps.take().unwrap_or_default();
        self.report.calls = sea.ledger.executions;
        self.report.records = sea.inputs.iter().map(|input| input.slots.len() as u64).sum();
        drop(sea);
        (self.report, result)
    }

    fn run_steps(&mut self) -> Result<(), String> {
        for _ in 0..self.steps {
            self.step();
            self.check()?;
        }
        self.heal();
        // Each round lasts long enough for every retry and every time-out to come due.
        for _ in 0..400 {
            if self.quiet() {
                return self.check_end();
            }
            self.round();
            self.check()?;
        }
        Err(self.stuck())
    }

    fn check(&mut self) -> Result<(), String> {
        if self.config.routes[0].mode == Mode::ExactlyOnce {
            self.check_logs();
        }
        let found = self.sea.lock().unwrap().violation.take();
        if let Some(text) = found {
            return Err(text);
        }
        for at in 0..self.instances.len() {
            let failed =
                self.instances[at].daemon.as_mut().and_then(|daemon| daemon.failure.take());
            match failed {
                None => {}
                // The process ends; somebody starts it again.
                Some(crate::pipeline::Failure::Log(_)) => self.crash(at, 0),
                Some(failure) => return Err(format!("{at} stops: {failure}")),
            }
            if self.instances[at].daemon.as_ref().is_some_and(|daemon| daemon.gone) {
                self.leave(at);
            }
        }
        Ok(())
    }

    /// The log of an exactly-once route is never ahead.
    fn check_logs(&mut self) {
        let mut sea = self.sea.lock().unwrap();
        for (name, instance) in self.instances.iter().enumerate() {
            let disk = instance.disk.lock().unwrap();
            for at in 0..sea.inputs.len() {
                let partition = partition(at);
                if let Some(position) = disk.position(&partition) {
                    sea.check_log(name, &partition, position);
                }
            }
        }
    }

    fn check_end(&mut self) -> Result<(), String> {
        // What is visible outside may not be counted yet.
        for daemon in self.instances.iter_mut().filter_map(|instance| instance.daemon.as_mut()) {
            (0..daemon.workers()).for_each(|at| daemon.worker_step(at, 1_000));
        }
        self.check()?;
        let tally = self.sea.lock().unwrap().check_end(self.clean)?;
        if self.clean { self.check_counters(tally) } else { Ok(()) }
    }

    fn check_counters(&self, tally: Tally) -> Result<(), String> {
        let counted = |label: VerdictLabel| {
            self.route_metrics.records.get(label) - self.before[label.index()]
        };
        let records: usize = {
            let sea = self.sea.lock().unwrap();
            let kept = |input: &super::topic::Input| {
                input.slots.iter().filter(|slot| slot.kind == Kind::Record).count()
            };
            sea.inputs.iter().map(kept).sum()
        };
        let all: u64 = VerdictLabel::ALL.iter().map(|label| counted(*label)).sum();
        let unidentified = counted(VerdictLabel::Unidentified);
        if all != records as u64 || unidentified != tally.unidentified {
            return Err(format!(
                "{records} records were delivered and {all} counted; {unidentified} unidentified of {tally:?}"
            ));
        }
        Ok(())
    }

    fn step(&mut self) {
        let at = self.rng.usize(..self.instances.len());
        match self.rng.u32(..1_000) {
            0..90 => self.produce(),
            90..280 => self.deliver(at),
            280..500 => self.work(at),
            500..660 => self.poll(at),
            660..840 if self.config.routes[0].mode == Mode::ExactlyOnce => self.transact(),
            660..780 => self.answer(),
            780..840 => self.letter(),
            840..910 => self.commit(),
            910..940 => self.tick(),
            940..968 => self.flush(at),
            968..972 => self.close_transactions(),
            972..976 => self.sea.lock().unwrap().late_end(&mut self.rng),
            _ if self.clean => self.tick(),
            _ => self.fault(at),
        }
    }

    fn fault(&mut self, at: usize) {
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

    fn start(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        if instance.daemon.is_some() {
            return;
        }
        instance.incarnation += 1;
        instance.frozen = false;
        let process = Process { instance: at, incarnation: instance.incarnation };
        let fuse = Fuse::new();
        let outside = Outside {
            cluster: Arc::clone(&self.sea),
            process,
            disk: Arc::clone(&instance.disk),
            fuse: fuse.clone(),
        };
        let exactly_once = self.config.routes[0].mode == Mode::ExactlyOnce;
        let route = Route::new(
            self.config.routes[0].clone(),
            (!exactly_once).then(|| Arc::clone(&self.handler)),
            self.route_metrics.clone(),
        );
        let shared = Shared {
            config: Arc::clone(&self.config),
            routes: vec![route],
            kept: Arc::default(),
            log: Arc::new(ModelLog { disk: Arc::clone(&instance.disk), fuse }),
            letters: Some(Arc::new(outside.clone())),
            metrics: Arc::clone(&self.metrics),
            readiness: Readiness::new(),
            board: Arc::new(Board::default()),
            heartbeats: Arc::new(Heartbeats::new(self.config.runtime.workers)),
            calls: Arc::new(outside.clone()),
            shutdown: Shutdown::new(),
            hold: Arc::new(AtomicBool::new(false)),
            commit_interval: Duration::from_secs(1),
            transacting: None,
            workers: std::sync::OnceLock::new(),
        };
        let mut sea = self.sea.lock().unwrap();
        sea.note(|| format!("{at}.{} starts", process.incarnation));
        let member = sea.group.join(process, &mut self.rng);
        let ids: Vec<_> = match exactly_once {
            true => (0..self.config.runtime.workers)
                .map(|worker| (at, instance.directory, worker))
                .collect(),
            false => Vec::new(),
        };
        let daemon = Daemon::new(outside, Arc::new(shared), member, &mut sea, &ids);
        instance.daemon = Some(daemon);
    }

    /// `mode`: 0 the process alone, 1 in the middle of a step, 2 the power is cut, 3 the directory
    /// is lost too.
    fn crash(&mut self, at: usize, mode: usize) {
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

    fn leave(&mut self, at: usize) {
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

    fn thaw(&mut self, at: usize) {
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

    fn produce(&mut self) {
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

    fn close_transactions(&mut self) {
        let commit = self.rng.bool();
        let mut sea = self.sea.lock().unwrap();
        sea.note(|| format!("open transactions of the input end, committed: {commit}"));
        for input in &mut sea.inputs {
            input.close_transactions(commit);
        }
    }

    /// The daemon of an instance that takes steps.
    fn running(&mut self, at: usize) -> Option<&mut Daemon> {
        let instance = &mut self.instances[at];
        instance.daemon.as_mut().filter(|_| !instance.frozen)
    }

    fn deliver(&mut self, at: usize) {
        let (count, which) = (self.rng.usize(1..12), self.rng.usize(..8));
        let sea = Arc::clone(&self.sea);
        let Some(daemon) = self.running(at) else { return };
        let assignments = daemon.assignments();
        if assignments > 0 {
            daemon.deliver(&mut sea.lock().unwrap(), which % assignments, count);
        }
    }

    fn work(&mut self, at: usize) {
        let (worker, events) = (self.rng.usize(..4), self.rng.usize(1..6));
        if let Some(daemon) = self.running(at) {
            daemon.worker_step(worker % daemon.workers(), events);
        }
    }

    fn poll(&mut self, at: usize) {
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
    fn answer(&mut self) {
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
    fn transact(&mut self) {
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
    fn letter(&mut self) {
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
    fn commit(&mut self) {
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

    fn tick(&mut self) {
        let ms = self.rng.u64(1..1_500);
        self.sea.lock().unwrap().note(|| format!("{ms} ms pass"));
        clock::simulated::advance(Duration::from_millis(ms));
    }

    fn flush(&mut self, at: usize) {
        let mut disk = self.instances[at].disk.lock().unwrap();
        if self.rng.bool() {
            disk.flush();
        } else {
            disk.compact();
        }
    }

    /// No faults from here on.
    fn heal(&mut self) {
        {
            let mut sea = self.sea.lock().unwrap();
            sea.note(|| "all is well from here on".to_owned());
            sea.calm = true;
        }
        self.close_transactions();
        for at in 0..self.instances.len() {
            self.instances[at].disk.lock().unwrap().breaks = false;
            self.thaw(at);
            self.start(at);
        }
        self.expire_dead();
    }

    /// The coordinator notices which processes are gone.
    fn expire_dead(&mut self) {
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

    /// Everybody goes on a little.
    fn round(&mut self) {
        self.expire_dead();
        for at in 0..self.instances.len() {
            self.start(at);
            for _ in 0..3 {
                self.poll(at);
            }
            for _ in 0..4 {
                self.deliver(at);
            }
            for _ in 0..3 {
                self.work(at);
            }
        }
        for _ in 0..8 {
            self.answer();
            self.letter();
            self.commit();
            self.transact();
            self.transact();
        }
        clock::simulated::advance(Duration::from_millis(400));
    }

    fn quiet(&self) -> bool {
        let sea = self.sea.lock().unwrap();
        let done = |(at, input): (usize, &super::topic::Input)| {
            let committed = sea.group.committed(at).map_or(0, |offset| offset.0);
            committed == input.slots.len() as i64
        };
        sea.inputs.iter().enumerate().all(done)
            && sea.calls.is_empty()
            && sea.sends.is_empty()
            && sea.transactions.quiet()
    }

    fn stuck(&self) -> String {
        let sea = self.sea.lock().unwrap();
        let ends: Vec<_> = sea.inputs.iter().map(|input| input.slots.len()).collect();
        let committed: Vec<_> = (0..ends.len()).map(|at| sea.group.committed(at)).collect();
        let daemons: Vec<_> = self.instances.iter().filter_map(|of| of.daemon.as_ref()).collect();
        let daemons: Vec<_> = daemons.iter().map(|daemon| daemon.describe()).collect();
        format!(
            "it does not come to rest: committed {committed:?} of {ends:?}, {} calls, {} letters, {} commits out, held by {:?}; {daemons:?}",
            sea.calls.len(),
            sea.sends.len(),
            sea.requests.len(),
            sea.group.holders
        )
    }
}

/// One value for each label.
trait Each<T> {
    fn each<U: Default + Copy>(&self, of: impl Fn(T) -> U) -> [U; VerdictLabel::ALL.len()];
}

impl Each<VerdictLabel> for [VerdictLabel] {
    fn each<U: Default + Copy>(
        &self,
        of: impl Fn(VerdictLabel) -> U,
    ) -> [U; VerdictLabel::ALL.len()] {
        let mut values = [U::default(); VerdictLabel::ALL.len()];
        for label in self {
            values[label.index()] = of(*label);
        }
        values
    }
}
