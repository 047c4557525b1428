//! onced as a process of its own: the binary, a configuration file, a data directory, signals.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::http_get::{Reply, http_get};
use super::kafka::Kafka;
use super::metrics::Metrics;
use super::process;
use super::wait::wait_until;

/// Long, for a machine whose cores are busy and a group that waits for a dead member.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// More than the longest drain in the tests' configurations.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of standard error a failed test shows.
const STDERR_SHOWN: usize = 16 * 1024;

/// A daemon about to start.
#[must_use]
pub struct DaemonBuilder {
    config: String,
    brokers: Option<String>,
    fills: Vec<(String, String)>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    discard_stdout: bool,
    program: PathBuf,
}

impl DaemonBuilder {
    /// Another broker than the shared one.
    pub fn on(mut self, kafka: &Kafka) -> Self {
        self.brokers = Some(kafka.bootstrap().to_owned());
        self
    }

    /// What stands for `{name}` in the configuration.
    pub fn fill(mut self, name: &str, value: &str) -> Self {
        self.fills.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more argument of `onced run`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another binary than the one that users run.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Its standard output goes to `/dev/null`.
    pub fn discard_stdout(mut self) -> Self {
        self.discard_stdout = true;
        self
    }

    /// Starts it. It is not ready yet.
    ///
    /// # Panics
    ///
    /// Panics where it cannot be started.
    pub fn start(self) -> Daemon {
        let mut daemon = self.prepare();
        daemon.start();
        daemon
    }

    /// Writes its configuration and starts nothing: for the other commands, and for a test that
    /// does something to the data directory first.
    ///
    /// # Panics
    ///
    /// Panics where the folder cannot be written.
    pub fn prepare(self) -> Daemon {
        let home = tempfile::Builder::new().prefix("onced-test-").tempdir();
        let home = home.expect("a temporary folder can be made");
        let admin = SocketAddr::from(([127, 0, 0, 1], process::free_port()));
        let brokers = self.brokers.unwrap_or_else(|| Kafka::shared().bootstrap().to_owned());
        let dir = home.path().join("data");

        let mut config = self
            .config
            .replace("{brokers}", &brokers)
            .replace("{admin}", &admin.to_string())
            .replace("{dir}", dir.to_str().expect("a temporary folder has a UTF-8 name"));
        for (name, value) in &self.fills {
            config = config.replace(&format!("{{{name}}}"), value);
        }
        fs::write(home.path().join("onced.toml"), config).expect("the folder can be written");
        Daemon {
            home: Some(home),
            admin,
            arguments: self.arguments,
            environment: self.environment,
            discard_stdout: self.discard_stdout,
            program: self.program,
            child: None,
        }
    }
}

/// A daemon and its folder, which holds its configuration, data, standard output and error. Ends
/// when dropped; then, if the test has failed, its standard error is shown. With
/// `ONCED_TEST_KEEP=1` the folder of a failed test stays.
pub struct Daemon {
    /// There until the end.
    home: Option<TempDir>,
    admin: SocketAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    discard_stdout: bool,
    program: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// A configuration, in which `{brokers}` stands for the shared broker, `{admin}` for a free
    /// `host:port` and `{dir}` for the data directory.
    pub fn with(config: &str) -> DaemonBuilder {
        DaemonBuilder {
            config: config.to_owned(),
            brokers: None,
            fills: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            discard_stdout: false,
            program: env!("CARGO_BIN_EXE_onced").into(),
        }
    }

    /// Starts it, where it is not running.
    ///
    /// # Panics
    ///
    /// Panics where it runs, or cannot be started.
    pub fn start(&mut self) {
        assert!(!self.running(), "the daemon runs");
        let stdout =
            if self.discard_stdout { Stdio::null() } else { append_to(&self.stdout_path()).into() };
        let mut command = self.command(["run"]);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(append_to(&self.stderr_path()));
        self.child = Some(process::spawn(command).expect("onced can be started"));
    }

    /// Waits until `/readyz` is green.
    ///
    /// # Panics
    ///
    /// Panics when it ends, or the time does.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_until("onced is ready", READY_TIMEOUT, || {
            if let Some(status) = self.exited() {
                panic!("onced ended instead of getting ready: {status}\n{}", self.stderr_end());
            }
            match self.get("/readyz") {
                Ok(reply) if reply.status == 200 => Ok(()),
                Ok(reply) => Err(format!("{} {}", reply.status, reply.body)),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    /// Takes over the data of one that has ended.
    ///
    /// # Panics
    ///
    /// Panics where that cannot be moved.
    pub fn adopt(self, mut other: Daemon) -> Self {
        other.kill();
        if other.data_dir().exists() {
            fs::rename(other.data_dir(), self.data_dir()).expect("both are temporary folders");
        }
        self
    }

    /// Whether `/readyz` is green now.
    pub fn ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|reply| reply.status == 200)
    }

    /// A page of the admin server.
    ///
    /// # Errors
    ///
    /// Fails where it does not answer.
    pub fn get(&self, path: &str) -> io::Result<Reply> {
        http_get(self.admin, path)
    }

    /// # Panics
    ///
    /// Panics where the admin server does not answer.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        self.try_metrics().expect("the admin server answers")
    }

    /// For a daemon that may be starting or gone.
    ///
    /// # Errors
    ///
    /// Fails where the admin server does not answer.
    pub fn try_metrics(&self) -> io::Result<Metrics> {
        self.get("/metrics").map(|reply| Metrics::parse(&reply.body))
    }

    /// # Panics
    ///
    /// Panics where the admin server does not answer in JSON.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let reply = self.get("/status").expect("the admin server answers");
        serde_json::from_str(&reply.body).expect("/status is JSON")
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Killing fails only where it has ended.
            let _ = child.kill();
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Asks it to end, and waits until it has.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        process::signal(self.pid(), libc::SIGTERM);
        self.wait_exit(EXIT_TIMEOUT)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    ///
    /// Panics when it still runs when the time is over.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon was started");
        match process::wait_exit(child, timeout) {
            Some(status) => {
                self.child = None;
                status
            }
            None => panic!("onced did not end in {timeout:?}\n{}", self.stderr_end()),
        }
    }

    /// Starts it again in the same directory; one that runs is asked to end first.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.running() {
            self.terminate();
        }
        self.child = None;
        self.start();
    }

    /// Stops it from running without its noticing, until it is thawed.
    pub fn freeze(&self) {
        process::signal(self.pid(), libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        process::signal(self.pid(), libc::SIGCONT);
    }

    pub fn running(&mut self) -> bool {
        self.child.is_some() && self.exited().is_none()
    }

    /// # Panics
    ///
    /// Panics where it was not started, or was seen to end.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon was started").id()
    }

    /// Runs another command of onced with this daemon's configuration, to its end.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Output {
        output(self.command(arguments))
    }

    /// What it has written to standard output, over all its starts. The last line may be half.
    pub fn stdout_lines(&self) -> Vec<String> {
        let bytes = fs::read(self.stdout_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }

    /// The same for the `stdout` handler, which writes an object a line.
    ///
    /// # Panics
    ///
    /// Panics on a line that is not JSON.
    #[track_caller]
    pub fn stdout_json(&self) -> Vec<serde_json::Value> {
        let parse = |line: &String| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in the line: {line}"))
        };
        self.stdout_lines().iter().map(parse).collect()
    }

    /// What it has logged, over all its starts.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stderr_path()).unwrap_or_default()).into_owned()
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn config_path(&self) -> PathBuf {
        self.home().join("onced.toml")
    }

    /// Where `{dir}` points.
    pub fn data_dir(&self) -> PathBuf {
        self.home().join("data")
    }

    /// The folder that holds all of it. Relative paths in the configuration start here.
    pub fn home(&self) -> &Path {
        self.home.as_ref().expect("the folder is there until the end").path()
    }

    fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = clean_command(&self.program);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config_path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.home());
        command
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().expect("a child of ours can be waited for")
    }

    fn stdout_path(&self) -> PathBuf {
        self.home().join("stdout")
    }

    fn stderr_path(&self) -> PathBuf {
        self.home().join("stderr")
    }

    fn stderr_end(&self) -> String {
        let bytes = fs::read(self.stderr_path()).unwrap_or_default();
        let begin = bytes.len().saturating_sub(STDERR_SHOWN);
        String::from_utf8_lossy(&bytes[begin..]).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the end of onced's standard error:\n{}", self.stderr_end());
            if env::var_os("ONCED_TEST_KEEP").is_some() {
                let kept = self.home.take().map(TempDir::keep);
                eprintln!("--- its folder is kept: {}", kept.unwrap_or_default().display());
            }
        }
    }
}

/// Runs a command of onced without a configuration, to its end.
pub fn onced<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = clean_command(Path::new(env!("CARGO_BIN_EXE_onced")));
    command.args(arguments);
    output(command)
}

/// A binary, without what the environment of the tests would tell it.
fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"ONCED_") {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
    command
}

/// Into files: a pipe that nobody reads yet would hold up a command that says much.
fn output(mut command: Command) -> Output {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let (stdout, stderr) = (files.path().join("stdout"), files.path().join("stderr"));
    command.stdin(Stdio::null()).stdout(append_to(&stdout)).stderr(append_to(&stderr));
    let shown = format!("{command:?}");
    let mut child = process::spawn(command).expect("onced can be started");
    let status = process::wait_exit(&mut child, COMMAND_TIMEOUT).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("still runs after {COMMAND_TIMEOUT:?}: {shown}");
    });
    let read = |path| fs::read(path).expect("the file was made");
    Output { status, stdout: read(&stdout), stderr: read(&stderr) }
}

fn append_to(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.expect("the temporary folder can be written")
}
