//! `onced demo`: shows on this machine alone that payments which are sent several times are
//! handled once, also when the daemon is killed in between; then checks it.
//!
//! ```text
//! scenario --> cluster (mock Kafka) --> daemon (child) --> service --> ledger
//!                  |                       |                             |
//!                  +-- dead letters ---+   +-- pages (/metrics) --+      |
//!                                      v                          v      v
//!                                      report: numbers --> checks --> verdict
//! ```
//!
//! Owns: the order of the story. Never: touches anything outside of loopback ports and one
//! temporary directory; leaves neither behind.

mod child;
mod cluster;
mod failure;
mod home;
mod ledger;
mod pages;
mod report;
mod scenario;
mod screen;
mod service;
mod stage;

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use self::failure::Failure;
use self::home::Home;
use self::report::{Check, Numbers};
use self::scenario::Scenario;
use self::screen::Screen;
use self::stage::Stage;
use crate::daemon::exit;
use crate::shutdown::{self, Shutdown};

/// What is logged of the demo itself; the daemon's log is a file.
pub const LOG_FILTER: &str = "warn,librdkafka=off,rdkafka=off";

/// More would not fit into a partition of the mock cluster.
const PAYMENTS_MAX: u32 = 20_000;

/// How much of the daemon's log is shown when something fails.
const LOG_LINES: usize = 15;

/// What `onced demo` takes.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Different payments to send, 100 to 20000; repeats come on top.
    #[arg(long, value_name = "N", default_value_t = 2_000,
        value_parser = clap::value_parser!(u32).range(100..=i64::from(PAYMENTS_MAX)))]
    payments: u32,
    /// Chooses accounts, amounts and repeats. The same seed sends the same records.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Print one JSON object with all numbers and the verdict.
    #[arg(long)]
    json: bool,
    /// Leave the daemon running for a look at its pages, until Ctrl-C, and keep its directory.
    #[arg(long)]
    keep: bool,
}

/// Tells the story and prints the verdict; the exit code is 0 where it holds, else 1.
pub fn run(args: &DemoArgs) -> u8 {
    match prepare(args) {
        Ok((home, shutdown)) => told(args, &home, &shutdown),
        Err(failure) => failed(args, &failure, &[]),
    }
}

fn prepare(args: &DemoArgs) -> Result<(Home, Shutdown), Failure> {
    let shutdown = shutdown::listen().map_err(Failure::io("listen for Ctrl-C"))?;
    Ok((Home::create(args.keep)?, shutdown))
}

fn told(args: &DemoArgs, home: &Home, shutdown: &Shutdown) -> u8 {
    let told = Runtime::new().map_err(Failure::io("start the runtime")).and_then(|runtime| {
        let told = Story { args, home, shutdown, runtime: &runtime }.tell();
        // Calls that were never answered must not hold up the end.
        runtime.shutdown_background();
        told
    });
    told.unwrap_or_else(|failure| {
        let interrupted = matches!(failure, Failure::Interrupted);
        let log = if interrupted { Vec::new() } else { home.log_end(LOG_LINES) };
        let code = failed(args, &failure, &log);
        if args.keep {
            eprintln!("\nEverything is kept in {}", home.path().display());
        }
        code
    })
}

fn failed(args: &DemoArgs, failure: &Failure, log: &[String]) -> u8 {
    if args.json {
        print(&json!({ "verdict": "failed", "error": failure.text(), "log": log }).to_string());
    } else {
        eprintln!("\nerror: {}", failure.text());
        show_log(log);
    }
    exit::FAILED
}

fn show_log(log: &[String]) {
    if !log.is_empty() {
        eprintln!("\nThe last lines of the daemon's log:\n  {}", log.join("\n  "));
    }
}

/// Who reads the result may have gone; that changes nothing of the verdict.
fn print(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

struct Story<'a> {
    args: &'a DemoArgs,
    home: &'a Home,
    shutdown: &'a Shutdown,
    runtime: &'a Runtime,
}

impl Story<'_> {
    fn tell(&self) -> Result<u8, Failure> {
        let begun = Instant::now();
        let scenario = Scenario::generate(self.args.seed, self.args.payments as usize);
        let screen = Screen::new(self.args.json);
        let mut stage = Stage::set_up(scenario, screen, self.home, self.runtime, self.shutdown)?;
        let numbers = stage.play()?;
        if !self.args.keep {
            stage.stop_daemon()?;
        }
        let code = self.conclude(&stage, &numbers, begun.elapsed());
        if self.args.keep {
            self.linger(&mut stage)?;
        }
        Ok(code)
    }

    /// Prints the verdict, and returns the exit code that belongs to it.
    fn conclude(&self, stage: &Stage<'_>, numbers: &Numbers, took: Duration) -> u8 {
        let checks = numbers.checks();
        let holds = checks.iter().all(|check| check.holds);
        if self.args.json {
            print(&self.json(stage, numbers, &checks, took).to_string());
        } else {
            print(&screen::text(numbers, &checks));
            if !holds {
                show_log(&self.home.log_end(LOG_LINES));
            }
            self.say_where(stage);
        }
        if holds { exit::OK } else { exit::FAILED }
    }

    fn json(
        &self,
        stage: &Stage<'_>,
        numbers: &Numbers,
        checks: &[Check],
        took: Duration,
    ) -> Value {
        let holds = checks.iter().all(|check| check.holds);
        json!({
            "verdict": if holds { "passed" } else { "failed" },
            "checks": checks,
            "numbers": numbers,
            "seed": self.args.seed,
            "seconds": (took.as_secs_f64() * 10.0).round() / 10.0,
            "metrics": self.args.keep.then(|| stage.metrics_page()),
            "directory": self.args.keep.then(|| self.home.path().display().to_string()),
        })
    }

    fn say_where(&self, stage: &Stage<'_>) {
        if !self.args.keep {
            return print(
                "To look around, run it with --keep: then the daemon and its pages stay.",
            );
        }
        print(&format!(
            "The daemon runs on:\n  metrics    {}\n  directory  {}\nCtrl-C ends it.",
            stage.metrics_page(),
            self.home.path().display()
        ));
    }

    /// The mock Kafka and the service live here, so this process has to stay.
    fn linger(&self, stage: &mut Stage<'_>) -> Result<(), Failure> {
        self.runtime.block_on(self.shutdown.wait());
        stage.stop_daemon()
    }
}
