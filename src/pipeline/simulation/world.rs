//! One run: a seed decides the setting, every step, every fault.

mod acts;
mod faults;
mod steps;

use std::cell::OnceCell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::cluster::{Cluster, Outside, Process, Rules, Shared as Sea, partition};
use super::disk::{Disk, Fuse, ModelLog};
use super::oracle::Tally;
use super::process::Daemon;
use super::topic::{EPOCH, Kind};
use crate::clock;
use crate::config::{
    self, Config, Conflict, Exhausted, HandlerKind, Missing, Mode, Order, Sources,
};
use crate::dedup::expiry::{Anchor, Window};
use crate::handler::{Claim, Handler, Outcome, kafka};
use crate::metrics::{Label as _, Metrics, RouteMetrics, VerdictLabel};
use crate::pipeline::{Board, Heartbeats, Route, Shared};
use crate::readiness::Readiness;
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
    /// People move the offsets of the group.
    acted: bool,
    /// Few messages, and time that runs fast: entries expire all along.
    fast: bool,
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
        let fast = rng.u8(..4) == 0;
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
            acted: !clean && rng.u8(..3) == 0,
            fast,
            steps: rng.usize(100..800),
            produced: EPOCH.0 - 3_600_000,
            keys: if fast { rng.u64(2..6) } else { rng.u64(3..30) },
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
                // A shard of before a rewind is dropped when it is opened.
                let of_now = disk.generation(&partition) >= sea.moved[at].acts.generation;
                if let Some(position) = disk.position(&partition).filter(|_| of_now) {
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
            976..980 if self.acted => self.act(),
            _ => self.fault(at),
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

    /// The daemon of an instance that takes steps.
    fn running(&mut self, at: usize) -> Option<&mut Daemon> {
        let instance = &mut self.instances[at];
        instance.daemon.as_mut().filter(|_| !instance.frozen)
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
