//! The command line.
//!
//! Owns: the commands, their help and what is printed of an error.
//! Never: does what a command asks for; each command has a file of its own.

use std::error::Error as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::bench::{self, Bench};
use crate::check;
use crate::config::{self, Config, ConfigError};
use crate::daemon::{self, Consumer, exit};
use crate::demo::{self, DemoArgs};
use crate::logging::{self, LogFormat};
use crate::rewind::{self, RewindArgs};
use crate::shutdown;
use crate::verify::{self, VerifyArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0  fine
  1  failed: the last lines of the log say why
  2  the command line is wrong
  3  the configuration is wrong
  4  the log cannot be trusted
  5  the topic changed under us
  6  verify found a violation

Log output goes to standard error; ONCED_LOG sets its filter (ONCED_LOG=debug).";

/// Handles every Kafka message once, however often it is delivered.
///
/// onced consumes topics, looks each message's idempotency key or payload fingerprint up in an
/// embedded log, and calls a handler only for messages that were not handled within the window.
#[derive(Debug, Parser)]
#[command(name = "onced", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    /// How log events are written.
    #[arg(long, global = true, value_enum, default_value_t, env = "ONCED_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Consume, handle, suppress, until SIGTERM.
    ///
    /// The first SIGTERM or SIGINT drains: calls that are running may end within
    /// runtime.drain_timeout, and offsets are committed. The second exits at once.
    Run(ConfigArgs),
    /// Say whether `run` would work. Changes nothing.
    ///
    /// Looks at the configuration, the brokers, the topics and what they keep, the permissions, the
    /// group's offsets and the data directory. Makes no directory and no topic, joins no group,
    /// commits nothing. Ends with 3 for a wrong configuration, with 1 where something failed;
    /// warnings do not fail.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print one JSON object: {"ok", "checks": [{"level", "subject", "found", "advice"}]}.
        #[arg(long)]
        json: bool,
    },
    /// Say whether every record was handled once, from what is in Kafka. Changes nothing.
    ///
    /// Reads input, outputs, dead letters and committed offsets, and decides with rules of its own
    /// what should have become of every record below the committed offsets: lost, doubled,
    /// reordered, altered, torn transactions, conflicts, and the sum. May run beside the daemon. Ends with 6
    /// where it found a violation, with 1 where it could not look.
    Verify(VerifyArgs),
    /// Show that every message is handled once, on this machine alone.
    ///
    /// Needs no broker and no configuration: a mock of Kafka, a payment service and the daemon run
    /// in a temporary directory, and the daemon is killed in between. Takes about ten seconds; the
    /// exit code is 0 if every payment was handled once.
    Demo(DemoArgs),
    /// Handle records again, from an offset or a time on. A dry run unless --yes is given.
    ///
    /// The deliberate way: offsets that any other tool moves back run nothing again. All instances
    /// have to be stopped. Goes back or stays, never forward. Ends with 5 where the topic is not the
    /// one that was read, with 1 where the group has members.
    Rewind(RewindArgs),
    /// Measure parts of onced on this machine, without a broker.
    #[command(subcommand)]
    Bench(Bench),
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration, in TOML. See config/onced.toml for every key.
    #[arg(long, short, value_name = "FILE", env = "ONCED_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set one key, over the file and ONCED_SECTION__KEY variables. May be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// # Errors
    /// All that is wrong with the configuration.
    pub fn load(&self) -> Result<Config, ConfigError> {
        config::load(&config::Sources {
            file: self.config.as_deref(),
            env: config::environment(),
            set: &self.set,
            handlers: &[],
        })
    }
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match &cli.command {
        Command::Demo(_) => demo::LOG_FILTER,
        _ => logging::DEFAULT_FILTER,
    };
    if let Err(error) = logging::init(cli.log_format, filter) {
        eprintln!("error: {error}");
        return exit::CONFIG.into();
    }
    match cli.command {
        Command::Run(args) => run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(what) => bench::run(&what),
        Command::Rewind(args) => rewind::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Check { config, json } => check::run(&config, json),
    }
    .into()
}

fn run(args: &ConfigArgs) -> u8 {
    let config = match args.load() {
        Ok(config) => config,
        Err(error) => return config_error(&error),
    };
    let shutdown = match shutdown::listen() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            eprintln!("error: cannot listen for signals: {error}");
            return exit::FAILED;
        }
    };
    match Consumer::builder(config).shutdown(shutdown).run() {
        Ok(()) => exit::OK,
        Err(error) => daemon_error(&error),
    }
}

/// Prints what is wrong with the configuration.
pub fn config_error(error: &ConfigError) -> u8 {
    eprintln!("error: the configuration is wrong\n{error}");
    exit::CONFIG
}

fn daemon_error(error: &daemon::Error) -> u8 {
    eprintln!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  caused by: {cause}");
        source = cause.source();
    }
    error.exit_code()
}
