//! The order of a campaign: start, flow, faults, calm, count, verdicts.
//!
//! Owns: what follows what, the bounds of each wait, and the verdicts.
//! Never: injects or counts itself.

mod config;
mod verdicts;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use onced::fault::POINTS;
use serde_json::{Value, json};

use crate::INTERRUPTED;
use crate::cluster::Cluster;
use crate::daemons::{DAEMONS, Daemon, clean_command};
use crate::effects::Effects;
use crate::faults::broker_lane::BrokerLane;
use crate::faults::daemon_lane::DaemonLane;
use crate::faults::network_lane::NetworkLane;
use crate::faults::{Control, Plan};
use crate::journal::{Journal, SETTLES_MS};
use crate::kafka::{Kafka, Partition};
use crate::ledger::{least, once};
use crate::options::Options;
use crate::process;
use crate::proxy::Proxy;
use crate::report::{Injected, Outcome, Records};
use crate::traffic::{OUTPUT, OUTPUT_BYTES_MAX, PARTITIONS, Phase, Route, Traffic};

const GROUP: &str = "chaos";
/// A repetition is never further from its first record than half of the window.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// What is left when the last record was sent is worked off in this time, or never.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);
const VERIFY_TIMEOUT: Duration = Duration::from_secs(1_800);

/// Where everything lies; deleted in the end unless it is to be kept.
struct Home {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Home {
    fn new(keep: Option<&Path>) -> Result<Self, String> {
        if let Some(path) = keep {
            fs::create_dir_all(path).map_err(|error| error.to_string())?;
            return Ok(Self { path: path.to_owned(), _temporary: None });
        }
        let made = tempfile::Builder::new().prefix("onced-chaos-").tempdir();
        let made = made.map_err(|error| format!("no temporary folder: {error}"))?;
        Ok(Self { path: made.path().to_owned(), _temporary: Some(made) })
    }
}

pub fn run(options: &Options) -> Result<Outcome, String> {
    let home = Home::new(options.keep.as_deref())?;
    let file = File::create(home.path.join("journal.txt")).map_err(|error| error.to_string())?;
    let journal = Arc::new(Journal::new(Some(file)));
    let plan = Plan::of(options);
    let lines = plan.lines();
    fs::write(home.path.join("plan.txt"), lines.join("\n")).map_err(|error| error.to_string())?;
    journal.say(&format!(
        "seed {}, {} faults planned, {}",
        options.seed,
        lines.len(),
        home.path.display()
    ));

    let cluster = Cluster::start(&home.path, &options.jars, true);
    let cluster = Arc::new(cluster.map_err(|error| error.to_string())?);
    let kafka = Arc::new(Kafka::new(cluster.direct()));
    let proxy =
        Proxy::start(&cluster.proxy_ports()).map_err(|error| format!("proxies: {error}"))?;
    kafka.wait_whole(READY_TIMEOUT).map_err(|missing| format!("the cluster: {missing}"))?;
    journal.say("three brokers run");

    let routes = options.routes.iter().map(|route| (*route, options.records_of(*route)));
    let traffic = Arc::new(Traffic::new(options.seed, routes));
    let mut stage = Stage {
        options,
        home: &home.path,
        effects: Effects::start(options.seed, &journal).map_err(|error| error.to_string())?,
        journal,
        cluster,
        kafka,
        proxy: Arc::new(proxy),
        traffic,
        durations: Vec::new(),
    };
    stage.create_topics();
    stage.play(&plan)
}

struct Stage<'a> {
    options: &'a Options,
    home: &'a Path,
    effects: Effects,
    journal: Arc<Journal>,
    cluster: Arc<Cluster>,
    kafka: Arc<Kafka>,
    proxy: Arc<Proxy>,
    traffic: Arc<Traffic>,
    durations: Vec<(&'static str, Duration)>,
}

impl Stage<'_> {
    fn create_topics(&self) {
        let safe = ("min.insync.replicas", "2");
        for route in &self.options.routes {
            self.kafka.create_topic(route.input(), PARTITIONS, &[safe]);
            self.kafka.create_topic(route.letters(), 1, &[safe]);
        }
        if self.options.routes.contains(&Route::Once) {
            let limit = ("max.message.bytes", OUTPUT_BYTES_MAX);
            self.kafka.create_topic(OUTPUT, PARTITIONS, &[safe, limit]);
        }
    }

    fn play(&mut self, plan: &Plan) -> Result<Outcome, String> {
        let mut lane = self.daemon_lane()?;
        lane.start_all().map_err(|error| format!("a daemon cannot be started: {error}"))?;
        let sender = self.send();
        self.wait_for("daemons are ready", READY_TIMEOUT, || {
            lane.look_after();
            if let Some(wrong) = lane.wrong.first() {
                return Err(Stop::Now(wrong.clone()));
            }
            all_ready(&lane.daemons[..DAEMONS])
        })?;
        self.wait_for("the first records are handled", READY_TIMEOUT, || {
            lane.look_after();
            hold(self.handled() > 0, || "none is".to_owned())
        })?;
        self.took("start");

        let (mut lane, broker) = self.inject(lane, plan)?;
        self.took("faults");
        lane.calm_down();
        let mut stuck = self.unless_interrupted(self.calm(&mut lane))?;
        self.traffic.enter(Phase::After);
        let sent = loop {
            if sender.is_finished() {
                break sender.join().map_err(|_| "the sender panicked".to_owned())?;
            }
            self.look(&mut lane)?;
        };
        sent?;
        if stuck.is_none() {
            stuck = self.unless_interrupted(self.drain(&mut lane))?;
        }
        self.took("calm");
        let injected = self.injected(&lane, &broker);
        lane.end_all();
        let mut outcome = self.count(&lane, &broker, injected)?;
        outcome.verdicts.push(verdicts::lively(stuck));
        if let Some(path) = &self.options.report {
            outcome
                .write(path, self.options, &self.journal)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            self.journal.say(&format!("report in {}", path.display()));
        }
        Ok(outcome)
    }

    fn daemon_lane(&self) -> Result<DaemonLane, String> {
        let brokers = self.cluster.for_daemons();
        let url = self.effects.url();
        let daemons = (0..=DAEMONS).map(|index| {
            let config = |admin: u16, data: &Path| {
                config::of(&self.options.routes, &brokers, &url, admin, data)
            };
            let bug = self.options.bug.clone();
            Daemon::new(index, self.home, &self.options.onced, bug, config)
        });
        let daemons = daemons.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let with_points = self.options.onced.to_string_lossy().contains("faults");
        let points = POINTS.iter().map(|point| point.name()).filter(|_| with_points);
        Ok(DaemonLane {
            daemons,
            journal: Arc::clone(&self.journal),
            kafka: Arc::clone(&self.kafka),
            group: GROUP.to_owned(),
            partitions: self.inputs(),
            random: fastrand::Rng::with_seed(self.options.seed ^ 0xdae0),
            points: points.collect(),
            points_percent: self.options.points_percent,
            guest_leaves: None,
            kills_done: 0,
            zombies_done: 0,
            wrong: Vec::new(),
            impossible: BTreeMap::new(),
        })
    }

    fn send(&self) -> thread::JoinHandle<Result<(), String>> {
        let (traffic, kafka) = (Arc::clone(&self.traffic), Arc::clone(&self.kafka));
        let duplicates = self.options.duplicates_percent;
        let lasts = self.options.faults_last;
        thread::spawn(move || traffic.send_all(&kafka, duplicates, lasts, WINDOW / 2))
    }

    /// All three lanes, each in its thread, until all of them are done.
    fn inject(&self, lane: DaemonLane, plan: &Plan) -> Result<(DaemonLane, BrokerLane), String> {
        // What is late gets as much time again.
        let give_up = Instant::now() + self.options.faults_last * 2 + Duration::from_secs(120);
        let control = Control {
            stopping: AtomicBool::new(false),
            traffic: Arc::clone(&self.traffic),
            give_up,
        };
        control.start_faults();
        let mut lane = lane;
        let mut broker = BrokerLane {
            cluster: Arc::clone(&self.cluster),
            kafka: Arc::clone(&self.kafka),
            journal: Arc::clone(&self.journal),
            group: GROUP.to_owned(),
            wrong: Vec::new(),
            kills_done: 0,
        };
        let network =
            NetworkLane { proxy: Arc::clone(&self.proxy), journal: Arc::clone(&self.journal) };
        let mut result = Ok(());
        thread::scope(|scope| {
            let lanes = [
                scope.spawn(|| lane.run(&plan.daemon, &control)),
                scope.spawn(|| broker.run(&plan.broker, &control)),
                scope.spawn(|| network.run(&plan.network, &control)),
            ];
            while !lanes.iter().all(thread::ScopedJoinHandle::is_finished) {
                if let Err(reason) = self.pause() {
                    control.stopping.store(true, Ordering::SeqCst);
                    result = Err(reason);
                    break;
                }
            }
        });
        result.map(|()| (lane, broker))
    }

    /// Nothing is broken any more, and the consequences of what was are over.
    fn calm(&self, lane: &mut DaemonLane) -> Result<(), String> {
        self.kafka
            .wait_whole(READY_TIMEOUT)
            .map_err(|missing| format!("the cluster is not whole in the end: {missing}"))?;
        self.wait_for("daemons are ready again", READY_TIMEOUT, || {
            lane.look_after();
            all_ready(&lane.daemons[..DAEMONS])
        })?;
        let settles = Duration::from_millis(u64::from(SETTLES_MS));
        self.wait_for("what happened is over", settles * 3, || {
            lane.look_after();
            let last = self.journal.events().last().map_or(0, |event| event.at_ms);
            hold(self.journal.now_ms() > last + SETTLES_MS, || "an event".to_owned())
        })
    }

    /// Lag is zero and no transaction is open.
    fn drain(&self, lane: &mut DaemonLane) -> Result<(), String> {
        let inputs = self.inputs();
        self.wait_for("lag is zero and no transaction is open", DRAIN_TIMEOUT, || {
            lane.look_after();
            let lag = self.lag(&inputs);
            if lag != Some(0) {
                return Err(Stop::NotYet(format!("lag {lag:?}")));
            }
            let written = self.written();
            let (stable, all) = (self.kafka.ends(&written, true), self.kafka.ends(&written, false));
            hold(stable == all, || format!("ends {all:?}, stable {stable:?}"))
        })
    }

    fn lag(&self, inputs: &[Partition]) -> Option<i64> {
        let committed = self.kafka.committed(GROUP, inputs)?;
        let ends = self.kafka.ends(inputs, true);
        let lag = |(partition, end): (&Partition, &i64)| {
            end - committed.get(partition).copied().unwrap_or_default()
        };
        Some(ends.iter().map(lag).sum())
    }

    fn inputs(&self) -> Vec<Partition> {
        let of = |route: &Route| {
            let topic = route.input().to_owned();
            (0..PARTITIONS).map(move |partition| (topic.clone(), partition))
        };
        self.options.routes.iter().flat_map(of).collect()
    }

    /// Partitions that daemons write to.
    fn written(&self) -> Vec<Partition> {
        let letters = self.options.routes.iter().map(|route| (route.letters().to_owned(), 0));
        let outputs = (0..PARTITIONS).map(|partition| (OUTPUT.to_owned(), partition));
        let once = self.options.routes.contains(&Route::Once);
        letters.chain(outputs.filter(|_| once)).collect()
    }

    /// Whether anything was handled at all: committed offsets and calls together.
    fn handled(&self) -> i64 {
        let committed = self.kafka.committed(GROUP, &self.inputs()).unwrap_or_default();
        committed.values().sum::<i64>() + i64::try_from(self.effects.count()).unwrap_or(0)
    }

    fn count(
        &mut self,
        lane: &DaemonLane,
        broker: &BrokerLane,
        injected: Vec<Injected>,
    ) -> Result<Outcome, String> {
        self.journal.say("counting");
        let committed = self.kafka.committed(GROUP, &self.inputs()).unwrap_or_default();
        let seed = self.options.seed;
        let mut records = Vec::new();
        let (mut once, mut least) = (None, None);
        for traffic in &self.traffic.routes {
            let acks = traffic.acks();
            let sent = u64::from(traffic.sent.load(Ordering::SeqCst));
            records.push(Records {
                route: traffic.route.name(),
                sent,
                acknowledged: acks.records,
                placeless: acks.placeless,
            });
            match traffic.route {
                Route::Once => once = Some(once::count(&self.kafka, seed, &acks, &committed)?),
                Route::Least => {
                    let (calls, events) = (self.effects.take(), self.journal.events());
                    least =
                        Some(least::count(&self.kafka, seed, &acks, calls, &events, &committed)?);
                }
            }
        }
        self.took("the driver's count");
        let verify = if self.options.skip_verify { None } else { Some(self.verify(lane)) };
        self.took("onced verify");
        let mut wrong = lane.wrong.clone();
        wrong.extend(broker.wrong.iter().cloned());
        for daemon in &lane.daemons {
            wrong.extend(daemon.panics().map(|panic| format!("{}: {panic}", daemon.name)));
        }
        let mut outcome = Outcome {
            versions: self.versions(),
            route_records: records,
            once,
            least,
            verify: verify.as_ref().map(|(_, said)| said.clone()),
            proxies: json!(self.proxy.injected()),
            injected,
            wrong,
            durations: self.durations.clone(),
            verdicts: Vec::new(),
        };
        outcome.verdicts = verdicts::of(&outcome, verify.map(|(code, _)| code));
        Ok(outcome)
    }

    /// How many of the faults there were.
    fn injected(&self, lane: &DaemonLane, broker: &BrokerLane) -> Vec<Injected> {
        let asked = self.options;
        let of = |name, what, done, asked| Injected {
            name,
            done,
            asked,
            impossible: lane.impossible.get(what).cloned(),
        };
        let seen = |what| self.journal.count(what);
        vec![
            of("kills", "kill", lane.kills_done, asked.kills),
            of("zombies", "zombie", lane.zombies_done, asked.zombies),
            of("broker kills", "broker-kill", broker.kills_done, asked.broker_kills),
            of("power cuts", "power-cut", seen("power-cut"), asked.power_cuts),
            of("full disks", "full-disk", seen("full-disk"), asked.full_disks),
            of("I/O errors", "io-error", seen("poisoned"), asked.io_errors),
        ]
    }

    /// Exit code and answer of `onced verify`. It asks the brokers directly.
    fn verify(&self, lane: &DaemonLane) -> (Option<i32>, Value) {
        let config = lane.daemons[0].config_path();
        let direct = fs::read_to_string(&config)
            .unwrap_or_default()
            .replace(&self.cluster.for_daemons(), &self.cluster.direct());
        let config = self.home.join("verify.toml");
        let (out, err) = (self.home.join("verify.json"), self.home.join("verify.stderr"));
        let started = fs::write(&config, direct).and_then(|()| {
            let mut command = clean_command(&self.options.onced);
            command
                .args(["verify", "--json", "--config"])
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(File::create(&out)?)
                .stderr(File::create(&err)?);
            process::spawn(command)
        });
        let mut child = match started {
            Ok(child) => child,
            Err(error) => return (None, json!(error.to_string())),
        };
        let status = process::wait_exit(&mut child, VERIFY_TIMEOUT);
        if status.is_none() {
            // Killing fails only where it has ended.
            let _ = child.kill();
        }
        let said = fs::read_to_string(&out).unwrap_or_default();
        let said = serde_json::from_str(&said)
            .unwrap_or_else(|_| json!(fs::read_to_string(&err).unwrap_or_default()));
        (status.and_then(|status| status.code()), said)
    }

    fn versions(&self) -> Vec<(&'static str, String)> {
        let output = clean_command(&self.options.onced).arg("--version").output();
        let onced = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let jars = self.options.jars.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cores = thread::available_parallelism().map_or(0, std::num::NonZero::get);
        vec![
            ("onced", onced.unwrap_or_default()),
            ("brokers", format!("three of {jars}, KRaft, RF 3, min.insync.replicas 2")),
            ("machine", format!("{cores} cores, {}", std::env::consts::ARCH)),
        ]
    }

    /// What did not come about in time is a finding; the count goes on with what there is.
    fn unless_interrupted(&self, waited: Result<(), String>) -> Result<Option<String>, String> {
        match waited {
            Err(reason) if INTERRUPTED.load(Ordering::SeqCst) => Err(reason),
            Err(reason) => {
                self.journal.say(&reason);
                Ok(Some(reason))
            }
            Ok(()) => Ok(None),
        }
    }

    fn took(&mut self, what: &'static str) {
        let before: Duration = self.durations.iter().map(|(_, took)| *took).sum();
        self.durations.push((what, self.journal.elapsed().saturating_sub(before)));
    }

    fn look(&self, lane: &mut DaemonLane) -> Result<(), String> {
        lane.look_after();
        self.pause()
    }

    /// A moment; an error when somebody wants to end, or a broker has ended by itself.
    fn pause(&self) -> Result<(), String> {
        thread::sleep(Duration::from_millis(100));
        self.show_progress();
        if INTERRUPTED.load(Ordering::SeqCst) {
            self.traffic.stop();
            return Err("interrupted".to_owned());
        }
        match self.cluster.dead().first() {
            Some(index) => Err(format!("broker-{} ended by itself", index + 1)),
            None => Ok(()),
        }
    }

    fn show_progress(&self) {
        let every = if self.journal.on_terminal() { 1 } else { 10 };
        if !self.journal.due(every) {
            return;
        }
        let count = |what| self.journal.count(what);
        let records: u64 = self.traffic.routes.iter().map(|lane| u64::from(lane.records)).sum();
        self.journal.progress(&format!(
            "{} of {records} records, {} kills, {} zombies, {} broker kills, {} calls",
            self.traffic.sent(),
            count("kill") + count("crash-point"),
            count("zombie"),
            count("broker-kill"),
            self.effects.count(),
        ));
    }

    fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut() -> Result<(), Stop>,
    ) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            match condition() {
                Ok(()) => return Ok(()),
                Err(Stop::Now(reason)) => return Err(format!("waiting until {what}: {reason}")),
                Err(Stop::NotYet(seen)) if begun.elapsed() > timeout => {
                    return Err(format!("waited {timeout:?} until {what}; last seen: {seen}"));
                }
                Err(Stop::NotYet(_)) => self.pause()?,
            }
        }
    }
}

/// Why a wait goes on, or ends.
enum Stop {
    NotYet(String),
    Now(String),
}

fn all_ready(daemons: &[Daemon]) -> Result<(), Stop> {
    let reasons: Vec<_> = daemons.iter().map(Daemon::not_ready_because).collect();
    let reasons: Vec<_> = reasons.into_iter().filter(|reason| !reason.is_empty()).collect();
    hold(reasons.is_empty(), || reasons.join(" | "))
}

fn hold(holds: bool, seen: impl FnOnce() -> String) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::NotYet(seen())) }
}
