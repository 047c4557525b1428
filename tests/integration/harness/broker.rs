//! The broker's process. It is a child of `scripts/kafka run`, which ends it when its standard
//! input ends: the kernel closes that pipe when the test process ends, however it ends.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process;

/// Stopping takes the broker less than a second, and the script kills it after 20.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

pub struct Broker {
    script: Child,
    pid: u32,
    pub bootstrap: String,
    pub extra: String,
}

impl Broker {
    /// Starts a broker in `dir`, or the one that was there before, and waits until it answers. The
    /// arguments are those of `scripts/kafka run`.
    ///
    /// # Panics
    ///
    /// Panics with the script's words when it does not start.
    pub fn start(dir: &Path, arguments: &[String]) -> Self {
        let log = dir.join("run.log");
        let stderr = File::create(&log).expect("the temporary folder can be written");
        let mut command = Command::new(script());
        command.args(["run", "--purge", "--dir"]).arg(dir).args(arguments);
        let mut script = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("scripts/kafka can be run");

        let mut line = String::new();
        let stdout = script.stdout.take().expect("standard output is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a pipe can be read");
        let words = fs::read_to_string(&log).unwrap_or_default();
        let Ok(started) = serde_json::from_str::<serde_json::Value>(&line) else {
            panic!("the broker did not start:\n{words}");
        };
        let text = |field: &str| started[field].as_str().expect("a string").to_owned();
        let pid = started["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Self {
            script,
            pid: pid.expect("the script prints the process id"),
            bootstrap: text("bootstrap"),
            extra: text("extra"),
        }
    }

    /// Ends it the gentle way. Its data stays.
    pub fn stop(mut self) {
        let stdin = self.script.stdin.as_mut().expect("standard input is a pipe");
        stdin.write_all(b"stop\n").expect("the script reads until its end");
        self.wait_for_the_script();
    }

    /// Ends it with SIGKILL. Its data stays.
    pub fn kill(mut self) {
        process::signal(self.pid, libc::SIGKILL);
        self.wait_for_the_script();
    }

    /// Stops it from running, without its connections being closed, until it is thawed.
    pub fn freeze(&self) {
        process::signal(self.pid, libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        process::signal(self.pid, libc::SIGCONT);
    }

    fn wait_for_the_script(&mut self) {
        process::wait_exit(&mut self.script, STOP_TIMEOUT).expect("the broker ends in time");
    }
}

/// Ends it and removes its data: that is what the end of the script's input means.
impl Drop for Broker {
    fn drop(&mut self) {
        self.thaw();
        drop(self.script.stdin.take());
        if process::wait_exit(&mut self.script, STOP_TIMEOUT).is_none() {
            let _ = self.script.kill();
        }
    }
}

/// Whether a broker can be started here.
///
/// # Errors
///
/// Says what is missing.
pub fn available() -> Result<(), String> {
    let answer = |command: &mut Command| {
        command.output().map_err(|error| error.to_string()).and_then(|output| {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(()) } else { Err(words) }
        })
    };
    answer(Command::new("java").arg("-version")).map_err(|error| format!("no Java: {error}"))?;
    answer(Command::new(script()).arg("jars"))
}

/// Kafka and its tools.
pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka")
}
