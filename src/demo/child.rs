//! The daemon of the demo: this very program as a child process, `onced run --config FILE`.
//!
//! Owns: its configuration, its life and its death. Never: lets it outlive the demo.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::runtime::Handle;

use super::cluster::{DEAD_LETTERS, TOPIC};
use super::failure::{Failure, Look, wait_for};
use super::home::Home;
use super::pages::{Pages, ROUTE};
use crate::shutdown::Shutdown;

/// Calls in flight at once, and so the most that a kill can repeat.
pub(super) const CONCURRENCY: usize = 16;

pub(super) const READY_PATIENCE: Duration = Duration::from_secs(25);
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// What to call, and where Kafka is.
pub(super) struct Surroundings<'a> {
    pub brokers: &'a str,
    pub payments_url: &'a str,
}

/// Killed when dropped.
pub(super) struct Daemon<'a> {
    home: &'a Home,
    shutdown: &'a Shutdown,
    admin: SocketAddr,
    pages: Pages,
    child: Option<Child>,
}

impl<'a> Daemon<'a> {
    /// Writes the configuration. Starts nothing yet.
    pub(super) fn prepare(
        home: &'a Home,
        surroundings: &Surroundings<'_>,
        runtime: Handle,
        shutdown: &'a Shutdown,
    ) -> Result<Self, Failure> {
        let port = free_port().map_err(Failure::io("find a free port"))?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        fs::write(home.config(), config(home, surroundings, admin))
            .map_err(Failure::io("write the daemon's configuration"))?;
        let pages = Pages::new(admin, runtime).map_err(Failure::Client)?;
        Ok(Self { home, shutdown, admin, pages, child: None })
    }

    /// Starts it and waits until it has its partitions.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let child = self.command()?.spawn().map_err(Failure::io("start the daemon"))?;
        self.child = Some(child);
        self.wait("the daemon is ready", READY_PATIENCE, |daemon| daemon.pages.ready())
    }

    fn command(&self) -> Result<Command, Failure> {
        let log = || append_to(self.home).map_err(Failure::io("open the daemon's log file"));
        let program = std::env::current_exe().map_err(Failure::io("find the own program"))?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(self.home.config());
        command.current_dir(self.home.path());
        command.stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        // Settings for another daemon must not reach this one.
        let names = std::env::vars_os().map(|(name, _)| name);
        for name in names.filter(|name| name.as_encoded_bytes().starts_with(b"ONCED_")) {
            command.env_remove(name);
        }
        detach(&mut command);
        Ok(command)
    }

    /// SIGKILL: it can write nothing down any more.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map_err(Failure::io("kill the daemon")).map(drop)
    }

    /// SIGTERM: it finishes its calls, commits and leaves.
    pub(super) fn stop(&mut self) -> Result<(), Failure> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let failed = Failure::io("stop the daemon");
        terminate(child).map_err(&failed)?;
        // Not the demo's own shutdown: that may be why the daemon is stopped.
        let patiently = Shutdown::new();
        let status = wait_for("the daemon ends after SIGTERM", EXIT_PATIENCE, &patiently, || {
            Ok(match child.try_wait().map_err(&failed)? {
                Some(status) => Look::Holds(status),
                None => Look::NotYet("it runs".to_owned()),
            })
        })?;
        self.child = None;
        if status.success() { Ok(()) } else { Err(Failure::EndedBadly { status }) }
    }

    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(super) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits for what the daemon does; fails at once where it has ended.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&Self) -> Look<T>,
    ) -> Result<T, Failure> {
        let shutdown = self.shutdown;
        wait_for(what, patience, shutdown, || {
            let ended = match &mut self.child {
                Some(child) => child.try_wait().map_err(Failure::io("look after the daemon"))?,
                None => None,
            };
            match ended {
                Some(status) => Err(Failure::DaemonEnded { status, what: what.to_owned() }),
                None => Ok(look(self)),
            }
        })
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(error = error.text(), "The demo's daemon may still run.");
        }
    }
}

/// Nothing but what differs from the defaults.
fn config(home: &Home, surroundings: &Surroundings<'_>, admin: SocketAddr) -> String {
    let Surroundings { brokers, payments_url } = surroundings;
    let data = toml::Value::from(home.data().display().to_string());
    format!(
        r#"# Written by `onced demo`.
[kafka]
brokers = "{brokers}"
group = "{ROUTE}-once"
commit_interval = "200ms"

[kafka.properties]
# The group gives a dead member's partitions away after this. 45 s are for real life.
"session.timeout.ms" = 1500
"heartbeat.interval.ms" = 300

[log]
dir = {data}
memory = "32MiB"
disk_reserve = "16MiB"

[admin]
listen = "{admin}"

[routes.{ROUTE}]
topics = ["{TOPIC}"]

[routes.{ROUTE}.identity]
key = ["header:Idempotency-Key"]

[routes.{ROUTE}.window]
ttl = "1h"

[routes.{ROUTE}.handler]
kind = "http"
url = "{payments_url}"
timeout = "30s"
concurrency = {CONCURRENCY}
order = "record-key"

[routes.{ROUTE}.dead_letter]
topic = "{DEAD_LETTERS}"

[routes.{ROUTE}.policy]
conflict = "dead-letter"
"#
    )
}

fn append_to(home: &Home) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(home.log())
}

/// A port below the range from which the system takes ports for outgoing connections, so that
/// it is still free when the daemon starts again.
fn free_port() -> io::Result<u16> {
    let try_one = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(|_| port);
    let tries = std::iter::repeat_with(|| fastrand::u16(10_000..30_000)).take(100);
    tries.map(try_one).find(Result::is_ok).unwrap_or_else(|| try_one(0))
}

/// Ctrl-C is for the demo, which then ends the daemon; and the daemon ends with the demo, however
/// that ends.
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        let die_with_parent = move || {
            // SAFETY: both calls only take and return numbers.
            let (set, now) =
                unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
            if set != 0 {
                return Err(io::Error::last_os_error());
            }
            // It may have ended before the kernel was asked.
            if u32::try_from(now) == Ok(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        };
        // SAFETY: both system calls may be made between fork and exec; nothing is allocated.
        unsafe { command.pre_exec(die_with_parent) };
    }
}

fn terminate(child: &Child) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: kill only takes numbers. The child was not waited for, so the id is still its own.
    match unsafe { libc::kill(pid, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn the_configuration_is_one_that_onced_takes() {
        let home = Home::create(false).unwrap();
        let surroundings =
            Surroundings { brokers: "127.0.0.1:1", payments_url: "http://127.0.0.1:2/" };
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        fs::write(home.config(), config(&home, &surroundings, admin)).unwrap();
        let file = home.config();
        let sources = Sources { file: Some(&file), env: Vec::new(), set: &[], handlers: &[] };
        let config = load(&sources).unwrap();
        assert_eq!((&*config.routes[0].name, config.routes[0].concurrency), (ROUTE, CONCURRENCY));
    }
}
