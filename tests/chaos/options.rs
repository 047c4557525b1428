//! What a campaign was asked for.
//!
//! Owns: the command line, its defaults and its bounds.
//! Never: starts anything.

use std::env;
use std::path::PathBuf;
use std::process::exit;
use std::str::FromStr;
use std::time::Duration;

use crate::traffic::Route;

#[derive(Clone, Debug)]
pub struct Options {
    /// The command line, for the report.
    pub command: String,
    pub seed: u64,
    pub records: u32,
    /// How long faults are injected, without the start and the end.
    pub faults_last: Duration,
    pub duplicates_percent: u32,
    pub routes: Vec<Route>,
    pub kills: usize,
    pub zombies: usize,
    pub broker_kills: usize,
    pub rolls: usize,
    pub stops: usize,
    pub joins: usize,
    pub resets: usize,
    pub wipes: usize,
    pub power_cuts: usize,
    pub full_disks: usize,
    pub io_errors: usize,
    pub cuts: usize,
    pub delays: usize,
    pub points_percent: u8,
    pub bug: Option<String>,
    pub onced: PathBuf,
    pub jars: PathBuf,
    pub report: Option<PathBuf>,
    pub keep: Option<PathBuf>,
    pub skip_verify: bool,
    pub plan_only: bool,
    pub list_points: bool,
}

impl Options {
    /// Ends the process with exit code 2 where the command line makes no sense.
    pub fn from_environment() -> Self {
        let variable = |name: &str| env::var(name).unwrap_or_default();
        let caller = PathBuf::from(variable("ONCED_CHAOS_CALLER"));
        let arguments: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
        let mut options = Self {
            command: format!("scripts/chaos run {}", arguments.join(" ")),
            seed: 1,
            records: 1_000_000,
            faults_last: Duration::from_secs(600),
            duplicates_percent: 30,
            routes: vec![Route::Once, Route::Least],
            kills: 100,
            zombies: 20,
            broker_kills: 10,
            rolls: 1,
            stops: 5,
            joins: 3,
            resets: 1,
            wipes: 2,
            power_cuts: 5,
            full_disks: 2,
            io_errors: 2,
            cuts: 10,
            delays: 10,
            points_percent: 40,
            bug: None,
            onced: PathBuf::from(variable("ONCED_CHAOS_DAEMON")),
            jars: PathBuf::from(variable("ONCED_CHAOS_JARS")),
            report: None,
            keep: None,
            skip_verify: false,
            plan_only: false,
            list_points: false,
        };
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            options.take(&word, &caller, || words.next());
        }
        options.check();
        options
    }

    fn take(
        &mut self,
        word: &str,
        caller: &std::path::Path,
        mut next: impl FnMut() -> Option<String>,
    ) {
        let mut path = || caller.join(text(word, next()));
        match word {
            "--onced" => return self.onced = path(),
            "--report" => return self.report = Some(path()),
            "--keep" => return self.keep = Some(path()),
            _ => {}
        }
        match word {
            "--seed" => self.seed = value(word, next()),
            "--records" => self.records = value(word, next()),
            "--minutes" => {
                let minutes: f64 = value(word, next());
                if !(0.0..=10_000.0).contains(&minutes) {
                    fail_usage("--minutes is a number from 0 to 10000");
                }
                self.faults_last = Duration::from_secs_f64(minutes * 60.0);
            }
            "--duplicates" => self.duplicates_percent = value(word, next()),
            "--route" => {
                self.routes = match text(word, next()).as_str() {
                    "once" => vec![Route::Once],
                    "least" => vec![Route::Least],
                    "both" => vec![Route::Once, Route::Least],
                    other => fail_usage(&format!("--route is once, least or both, not '{other}'")),
                }
            }
            "--kills" => self.kills = value(word, next()),
            "--zombies" => self.zombies = value(word, next()),
            "--broker-kills" => self.broker_kills = value(word, next()),
            "--rolls" => self.rolls = value(word, next()),
            "--stops" => self.stops = value(word, next()),
            "--joins" => self.joins = value(word, next()),
            "--resets" => self.resets = value(word, next()),
            "--wipes" => self.wipes = value(word, next()),
            "--power-cuts" => self.power_cuts = value(word, next()),
            "--full-disks" => self.full_disks = value(word, next()),
            "--io-errors" => self.io_errors = value(word, next()),
            "--cuts" => self.cuts = value(word, next()),
            "--delays" => self.delays = value(word, next()),
            "--points" => self.points_percent = value(word, next()),
            "--bug" => self.bug = Some(text(word, next())),
            "--skip-verify" => self.skip_verify = true,
            "--plan" => self.plan_only = true,
            "--list-points" => self.list_points = true,
            _ => fail_usage(&format!("unknown option '{word}'")),
        }
    }

    fn check(&self) {
        if self.records < 1_000 {
            fail_usage("--records begins at 1000");
        }
        if self.duplicates_percent > 90 || self.points_percent > 100 {
            fail_usage("--duplicates ends at 90 and --points at 100");
        }
    }

    /// The share of the records that a route gets.
    pub fn records_of(&self, route: Route) -> u32 {
        if route == Route::Least && self.routes.len() > 1 {
            self.records / 10
        } else {
            self.records
        }
    }
}

fn text(option: &str, value: Option<String>) -> String {
    value.unwrap_or_else(|| fail_usage(&format!("{option} needs a value")))
}

fn value<T: FromStr>(option: &str, value: Option<String>) -> T {
    let parsed = text(option, value).parse();
    parsed.unwrap_or_else(|_| fail_usage(&format!("{option} needs a number")))
}

fn fail_usage(reason: &str) -> ! {
    eprintln!("chaos: {reason}; see scripts/chaos --help");
    exit(2)
}
