//! Three brokers, each its own process, data and ports.
//!
//! Owns: the brokers' settings, their start, death and return.
//! Never: decides when one dies; knows topics of the campaign.
//!
//! ```text
//! listener    who uses it                                    advertised port
//! PLAINTEXT   brokers among themselves, traffic, verifiers   its own
//! PROXIED     daemons                                        the proxy's
//! CONTROLLER  the quorum                                     -
//! ```

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::process;

pub const BROKERS: usize = 3;
/// Three Java processes at once on busy cores.
const START_TIMEOUT: Duration = Duration::from_secs(180);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Cluster {
    jars: PathBuf,
    brokers: Vec<Broker>,
}

struct Broker {
    dir: PathBuf,
    ports: Ports,
    child: Mutex<Option<Child>>,
}

#[derive(Clone, Copy)]
struct Ports {
    plain: u16,
    proxied: u16,
    proxy: u16,
    controller: u16,
}

impl Cluster {
    /// Formats and starts all brokers, and waits until each says that it has started.
    pub fn start(home: &Path, jars: &Path, through_proxies: bool) -> io::Result<Self> {
        let mut brokers = Vec::new();
        for index in 0..BROKERS {
            let dir = home.join(format!("broker-{}", index + 1));
            fs::create_dir_all(&dir)?;
            let proxied = process::free_port();
            let proxy = if through_proxies { process::free_port() } else { proxied };
            let (plain, controller) = (process::free_port(), process::free_port());
            let ports = Ports { plain, proxied, proxy, controller };
            brokers.push(Broker { dir, ports, child: Mutex::new(None) });
        }
        let cluster = Self { jars: jars.to_owned(), brokers };
        fs::write(home.join("log4j2.properties"), LOG_SETTINGS)?;
        for index in 0..BROKERS {
            let settings = cluster.settings(index);
            fs::write(cluster.brokers[index].dir.join("server.properties"), settings)?;
        }
        cluster.format()?;
        for index in 0..BROKERS {
            cluster.launch(index)?;
        }
        for index in 0..BROKERS {
            cluster.wait_started(index)?;
        }
        Ok(cluster)
    }

    /// `host:port` of all brokers, without a proxy.
    pub fn direct(&self) -> String {
        self.bootstrap(|ports| ports.plain)
    }

    /// The same for daemons.
    pub fn for_daemons(&self) -> String {
        self.bootstrap(|ports| ports.proxy)
    }

    /// Where each proxy listens, and what it passes on to.
    pub fn proxy_ports(&self) -> Vec<(u16, u16)> {
        self.brokers.iter().map(|broker| (broker.ports.proxy, broker.ports.proxied)).collect()
    }

    /// Ends a broker with SIGKILL. Its data stays.
    pub fn kill(&self, index: usize) {
        if let Some(mut child) = self.child(index).take() {
            // Killing fails only where it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks a broker to end, and waits until it has.
    pub fn stop(&self, index: usize) {
        let Some(mut child) = self.child(index).take() else { return };
        process::signal(child.id(), libc::SIGTERM);
        if process::wait_exit(&mut child, STOP_TIMEOUT).is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a broker again with its data, on the same ports.
    pub fn restart(&self, index: usize) -> io::Result<()> {
        self.launch(index)?;
        self.wait_started(index)
    }

    /// Brokers that have ended without being told to.
    pub fn dead(&self) -> Vec<usize> {
        let ended = |index: &usize| {
            let mut child = self.child(*index);
            child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
        };
        (0..BROKERS).filter(ended).collect()
    }

    fn child(&self, index: usize) -> MutexGuard<'_, Option<Child>> {
        self.brokers[index].child.lock().expect("nobody panics while holding a broker")
    }

    fn bootstrap(&self, port: impl Fn(&Ports) -> u16) -> String {
        let hosts: Vec<_> = self
            .brokers
            .iter()
            .map(|broker| format!("127.0.0.1:{}", port(&broker.ports)))
            .collect();
        hosts.join(",")
    }

    fn settings(&self, index: usize) -> String {
        let broker = &self.brokers[index];
        let Ports { plain, proxied, proxy, controller } = broker.ports;
        let voters: Vec<_> = (1..)
            .zip(&self.brokers)
            .map(|(id, broker)| format!("{id}@127.0.0.1:{}", broker.ports.controller))
            .collect();
        let mut text = SETTINGS.to_owned();
        let mut set = |key: &str, value: String| {
            writeln!(text, "{key}={value}").expect("text can be written");
        };
        set("node.id", (index + 1).to_string());
        set("controller.quorum.voters", voters.join(","));
        set(
            "listeners",
            format!(
                "PLAINTEXT://127.0.0.1:{plain},PROXIED://127.0.0.1:{proxied},\
                 CONTROLLER://127.0.0.1:{controller}"
            ),
        );
        set(
            "advertised.listeners",
            format!("PLAINTEXT://127.0.0.1:{plain},PROXIED://127.0.0.1:{proxy}"),
        );
        set("log.dirs", broker.dir.join("data").display().to_string());
        text
    }

    fn format(&self) -> io::Result<()> {
        let mut running = Vec::new();
        for broker in &self.brokers {
            let log = File::create(broker.dir.join("format.log"))?;
            let mut command = self.java("kafka.tools.StorageTool", &["-Xmx256m"]);
            command
                .args(["format", "-t", "Y2hhb3MtY2x1c3Rlci0wMQ", "-c"])
                .arg(broker.dir.join("server.properties"))
                .stdout(log.try_clone()?)
                .stderr(log);
            running.push(process::spawn(command)?);
        }
        for (broker, mut child) in self.brokers.iter().zip(running) {
            let formatted = process::wait_exit(&mut child, START_TIMEOUT);
            if !formatted.is_some_and(|status| status.success()) {
                return Err(ended("a data folder cannot be formatted", &broker.dir, "format.log"));
            }
        }
        Ok(())
    }

    fn launch(&self, index: usize) -> io::Result<()> {
        let broker = &self.brokers[index];
        let path = broker.dir.join("broker.log");
        let mut log = OpenOptions::new().create(true).append(true).open(&path)?;
        writeln!(log, "{STARTING}")?;
        let mut command = self.java("kafka.Kafka", &["-Xmx384m", "-Xms128m"]);
        command
            .arg(broker.dir.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        *self.child(index) = Some(process::spawn(command)?);
        Ok(())
    }

    fn wait_started(&self, index: usize) -> io::Result<()> {
        let dir = &self.brokers[index].dir;
        let begun = Instant::now();
        while begun.elapsed() < START_TIMEOUT {
            let log = fs::read_to_string(dir.join("broker.log")).unwrap_or_default();
            let latest = log.rfind(STARTING).unwrap_or_default();
            if log[latest..].contains("Kafka Server started") {
                return Ok(());
            }
            if self.dead().contains(&index) {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(ended("a broker did not start", dir, "broker.log"))
    }

    fn java(&self, class: &str, options: &[&str]) -> Command {
        let home = self.brokers[0].dir.parent().expect("it stands in a folder");
        let mut command = Command::new("java");
        command
            .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .args(options)
            .arg(format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display()))
            .arg("-cp")
            .arg(format!("{}/*", self.jars.display()))
            .arg(class);
        own_group(&mut command);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..BROKERS {
            self.kill(index);
        }
    }
}

/// Ctrl-C on the terminal is for the driver alone, which then ends the others in order.
pub fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

fn ended(what: &str, dir: &Path, log: &str) -> io::Error {
    let text = fs::read_to_string(dir.join(log)).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(15)..].join("\n");
    io::Error::other(format!("{what}; the end of {}:\n{end}", dir.join(log).display()))
}

const STARTING: &str = "==== start";

const LOG_SETTINGS: &str = "\
status=warn
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c{1})%n
logger.config.name=org.apache.kafka.common.config
logger.config.level=warn
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
";

/// What Kafka does now and then it does quickly, and nothing is acknowledged by one broker alone.
const SETTINGS: &str = "\
process.roles=broker,controller
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
num.replica.fetchers=2
replica.fetch.wait.max.ms=100
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
leader.imbalance.check.interval.seconds=20
default.replication.factor=3
min.insync.replicas=2
unclean.leader.election.enable=false
offsets.topic.replication.factor=3
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
log.segment.bytes=67108864
log.initial.task.delay.ms=1000
log.retention.ms=-1
log.cleaner.backoff.ms=1000
log.cleaner.dedupe.buffer.size=16777216
";
