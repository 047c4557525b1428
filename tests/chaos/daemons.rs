//! The daemons: processes, folders, and how each one ended.
//!
//! Owns: configuration, start, signals, reaping, and the judgement of exit codes.
//! Never: decides when one dies.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::own_group;
use crate::disk::{Attached, Inject, LoopDisk};
use crate::process;

/// Three that always run, and one that comes and goes.
pub const DAEMONS: usize = 3;

/// Of the file system under a daemon's log. The image is sparse.
const DISK_BYTES: u64 = 1024 * 1024 * 1024;
/// What a full disk has left: less than any write of the log.
const LEFT_BYTES: u64 = 256 * 1024;
/// The log is synced at least so often; a call that is to fail is met by then.
const FAULTY_FOR: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub name: String,
    home: PathBuf,
    /// Where its log is: the root of its disk, where it has one.
    data: PathBuf,
    /// A file system of its own, or why it has none.
    disk: Result<LoopDisk, String>,
    /// Its disk is full, and has room again at this time.
    pub full_until: Option<Instant>,
    onced: PathBuf,
    bug: Option<String>,
    pub admin: u16,
    pub state: State,
    pub starts: usize,
    /// It was asked to end, so an exit with 0 is right.
    asked_to_end: bool,
}

pub enum State {
    /// Not started before this time; `None`: not until told so.
    Down(Option<Instant>),
    Running(Running),
}

pub struct Running {
    child: Child,
    pub since: Instant,
    /// The crash point that its environment names.
    pub armed: Option<String>,
    pub frozen_until: Option<Instant>,
    /// Killed at this time if it has not ended by itself.
    pub end_by: Option<Instant>,
    /// Its next sync fails.
    faulty: Option<Attached>,
}

/// How a process ended.
pub enum Ended {
    AtPoint(String),
    AsAsked,
    /// It was asked to end and was killed when it did not in time.
    TooSlow,
    /// A call of its log failed, and it did not go on.
    Poisoned,
    Wrong(String),
}

impl Daemon {
    pub fn new(
        index: usize,
        home: &Path,
        onced: &Path,
        bug: Option<String>,
        config: impl FnOnce(u16, &Path) -> String,
    ) -> io::Result<Self> {
        let name = format!("daemon-{}", index + 1);
        let home = home.join(&name);
        fs::create_dir_all(&home)?;
        let data = home.join("data");
        let disk = LoopDisk::create(&data, DISK_BYTES);
        let admin = process::free_port();
        fs::write(home.join("onced.toml"), config(admin, &data))?;
        Ok(Self {
            name,
            home,
            data,
            disk,
            full_until: None,
            onced: onced.to_owned(),
            bug,
            admin,
            state: State::Down(None),
            starts: 0,
            asked_to_end: false,
        })
    }

    pub fn config_path(&self) -> PathBuf {
        self.home.join("onced.toml")
    }

    pub fn stderr_path(&self) -> PathBuf {
        self.home.join("stderr")
    }

    pub fn start(&mut self, armed: Option<String>) -> io::Result<()> {
        let mut command = clean_command(&self.onced);
        command
            .args(["run", "--config"])
            .arg(self.config_path())
            .current_dir(&self.home)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(append_to(&self.stderr_path())?);
        if let Some(point) = &armed {
            command.env("ONCED_CRASH", point);
        }
        if let Some(bug) = &self.bug {
            command.env("ONCED_BUG", bug);
        }
        own_group(&mut command);
        let child = process::spawn(command)?;
        self.starts += 1;
        self.asked_to_end = false;
        self.state = State::Running(Running {
            child,
            since: Instant::now(),
            armed,
            frozen_until: None,
            end_by: None,
            faulty: None,
        });
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self, next_start: Option<Instant>) {
        if let State::Running(running) = &mut self.state {
            // Killing fails only where it has ended.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        self.state = State::Down(next_start);
    }

    /// Asks it to end. It may take until `by`. Asked twice, it would end at once.
    pub fn terminate(&mut self, by: Instant) {
        if let State::Running(running) = &mut self.state
            && running.end_by.is_none()
        {
            self.asked_to_end = true;
            running.end_by = Some(by);
            process::signal(running.child.id(), libc::SIGTERM);
        }
    }

    pub fn freeze(&mut self, until: Instant) {
        if let State::Running(running) = &mut self.state {
            process::signal(running.child.id(), libc::SIGSTOP);
            running.frozen_until = Some(until);
        }
    }

    pub fn thaw(&mut self) {
        if let State::Running(running) = &mut self.state {
            process::signal(running.child.id(), libc::SIGCONT);
            running.frozen_until = None;
        }
    }

    /// Deletes its log. It must not run.
    pub fn wipe(&self) {
        assert!(matches!(self.state, State::Down(_)), "the log of a process that runs");
        // There is nothing where it never ran. Its disk stays mounted.
        for entry in fs::read_dir(&self.data).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name() != "lost+found" {
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
    }

    /// Its power goes: what was not synced is gone with it.
    ///
    /// # Errors
    ///
    /// Says why it cannot be done here.
    pub fn cut_power(&mut self, next_start: Option<Instant>) -> Result<(), String> {
        self.disk()?.shut_down()?;
        self.kill(None);
        // Without its disk it would begin with an empty log: it stays down.
        self.disk()?.restore().expect("the disk of a daemon that has ended can be mounted again");
        self.state = State::Down(next_start);
        Ok(())
    }

    /// Its disk has no room for so long.
    ///
    /// # Errors
    ///
    /// As [`Daemon::cut_power`].
    pub fn fill_disk(&mut self, lasts: Duration) -> Result<(), String> {
        self.disk()?.fill(LEFT_BYTES).map_err(|error| format!("fill: {error}"))?;
        self.full_until = Some(Instant::now() + lasts);
        Ok(())
    }

    /// Nothing is wrong with its disk now.
    pub fn disk_is_well(&self) -> bool {
        self.full_until.is_none() && self.running().is_none_or(|one| one.faulty.is_none())
    }

    /// Its disk has room again.
    pub fn free_disk(&mut self) {
        self.full_until = None;
        if let Ok(disk) = &self.disk {
            // The ballast is gone where the directory was wiped.
            let _ = disk.free();
        }
    }

    /// Its next sync fails with an I/O error.
    ///
    /// # Errors
    ///
    /// As [`Daemon::cut_power`].
    pub fn fail_a_sync(&mut self) -> Result<(), String> {
        Inject::available()?;
        let log = self.home.join("strace");
        let State::Running(running) = &mut self.state else { return Ok(()) };
        let fault = Inject { calls: "fsync,fdatasync", fault: "error=EIO", when: "1" };
        running.faulty = Some(fault.attach(running.child.id(), &[], &log)?);
        Ok(())
    }

    /// Lets go where no call of the log failed in time.
    pub fn give_up_on_failing(&mut self) {
        if let State::Running(running) = &mut self.state
            && running.faulty.as_ref().is_some_and(|one| one.since().elapsed() > FAULTY_FOR)
        {
            running.faulty = None;
        }
    }

    fn disk(&self) -> Result<&LoopDisk, String> {
        self.disk.as_ref().map_err(Clone::clone)
    }

    /// How it ended, if it has since the last look.
    pub fn reap(&mut self, next_start: Option<Instant>) -> Option<Ended> {
        let State::Running(running) = &mut self.state else { return None };
        let status = match running.child.try_wait() {
            Ok(Some(status)) => status,
            _ if running.end_by.is_some_and(|by| Instant::now() > by) => {
                self.kill(next_start);
                return Some(Ended::TooSlow);
            }
            _ => return None,
        };
        let armed = running.armed.take();
        let failed = running.faulty.take().is_some_and(|faulty| faulty.injected() > 0);
        self.state = State::Down(next_start);
        Some(self.judge(status, armed, failed))
    }

    fn judge(&self, status: ExitStatus, armed: Option<String>, failed: bool) -> Ended {
        match (status.code(), status.signal(), armed) {
            (Some(0), _, _) if self.asked_to_end => Ended::AsAsked,
            // Just started, it did not listen yet.
            (_, Some(libc::SIGTERM), _) if self.asked_to_end => Ended::AsAsked,
            // The log cannot be trusted.
            (Some(4), _, _) if failed => Ended::Poisoned,
            (_, Some(libc::SIGKILL), Some(point)) => Ended::AtPoint(point),
            _ => Ended::Wrong(format!("{status}: {}", self.last_words())),
        }
    }

    fn last_words(&self) -> String {
        let text = fs::read(self.stderr_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2_000)..]).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(4)..].join(" | ")
    }

    pub fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Down(_) => None,
        }
    }

    /// Runs and is not frozen, nor asked to end.
    pub fn at_work(&self) -> bool {
        self.running()
            .is_some_and(|running| running.frozen_until.is_none() && running.end_by.is_none())
    }

    /// Empty: it is ready.
    pub fn not_ready_because(&self) -> String {
        if !self.at_work() {
            return format!("{} is not at work", self.name);
        }
        match get(self.admin, "/readyz", QUICK) {
            Some((200, _)) => String::new(),
            Some((_, reasons)) => format!("{}: {}", self.name, reasons.trim().replace('\n', "; ")),
            None => format!("{} does not answer", self.name),
        }
    }

    /// What it is doing, for the histogram of where kills landed.
    pub fn phase(&self) -> String {
        let Some(running) = self.running() else { return "down".to_owned() };
        if running.frozen_until.is_some() {
            return "frozen".to_owned();
        }
        match get(self.admin, "/status", QUICK) {
            None => "starting, no answer".to_owned(),
            Some((_, body)) => phase_in(&body),
        }
    }

    /// A line of its standard error that tells of a panic.
    pub fn panics(&self) -> Option<String> {
        let text = fs::read(self.stderr_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let panic = text.lines().find(|line| line.contains("panicked at"));
        panic.map(str::to_owned)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill(None);
    }
}

/// A kill must not wait for a daemon that is too busy to answer.
const QUICK: Duration = Duration::from_millis(200);

/// The phases of the workers, or whether the daemon is ready where it does not tell them.
fn phase_in(status: &str) -> String {
    let Ok(status) = serde_json::from_str::<serde_json::Value>(status) else {
        return "no status".to_owned();
    };
    let mut phases = Vec::new();
    collect_phases(&status, &mut phases);
    phases.sort();
    phases.dedup();
    if !phases.is_empty() {
        return phases.join(" + ");
    }
    if status["ready"] == true { "ready".to_owned() } else { "not ready".to_owned() }
}

fn collect_phases(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(phase) if name == "phase" => found.push(phase.to_owned()),
                    _ => collect_phases(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => {
            for value in values {
                collect_phases(value, found);
            }
        }
        _ => {}
    }
}

/// Status and body of a page of an admin server.
fn get(port: u16, path: &str, timeout: Duration) -> Option<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The binary, without what the driver's environment would tell it.
pub fn clean_command(onced: &Path) -> Command {
    let mut command = Command::new(onced);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"ONCED_") {
            command.env_remove(name);
        }
    }
    command
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
