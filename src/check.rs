//! `onced check`: would `onced run` work as things are?
//!
//! ```text
//! gather     the questions --> broker, directory, client        thin: they ask
//!            the answers   --> cluster, topics, group, offsets  pure: they judge
//! policies   the configuration alone                            pure
//! report     rows, as a table or as JSON
//! ```
//!
//! A row that failed means that `run` would end, or do nothing.
//!
//! Owns: the order of the questions, and the exit code.
//! Never: changes anything. It makes no directory and no topic, joins no group, commits nothing and
//! writes nothing.

mod broker;
mod client;
mod cluster;
mod directory;
mod gather;
mod group;
mod offsets;
mod policies;

mod report;
mod topics;

use std::io::{self, Write as _};

use self::report::{Level, Report, Row};
use crate::cli::{self, ConfigArgs};
use crate::config::{Config, ConfigError, Problem};
use crate::daemon::exit;

/// Checks everything and prints what was found, as a table or as one JSON object. Returns the exit
/// code.
pub fn run(args: &ConfigArgs, json: bool) -> u8 {
    let config = match args.load() {
        Ok(config) => config,
        Err(error) if json => return print(&problems(&error), json, exit::CONFIG),
        Err(error) => return cli::config_error(&error),
    };
    let properties = client::row(&config.kafka);
    let wrong = properties.level == Level::Failed;
    let mut rows = vec![configuration_row(&config), properties];
    rows.extend(config.routes.iter().flat_map(policies::rows));
    rows.extend(if wrong { gather::rows_without_broker(&config) } else { gather::rows(&config) });
    let report = Report { rows };
    let code = match report.ok() {
        _ if wrong => exit::CONFIG,
        true => exit::OK,
        false => exit::FAILED,
    };
    print(&report, json, code)
}

fn print(report: &Report, json: bool, code: u8) -> u8 {
    let text = if json { report.json() } else { report.to_string() };
    match writeln!(io::stdout(), "{text}") {
        // Whoever asked has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to standard output: {error}");
            exit::FAILED
        }
        _ => code,
    }
}

/// A row for each problem of the configuration.
fn problems(error: &ConfigError) -> Report {
    let row = |problem: &Problem| {
        let found = match &problem.value {
            Some(value) => format!("{} = {value}", problem.key),
            None => problem.key.clone(),
        };
        Row::failed("configuration", found, &problem.message)
    };
    Report { rows: error.problems.iter().map(row).collect() }
}

fn configuration_row(config: &Config) -> Row {
    let topics: usize = config.routes.iter().map(|route| route.topics.len()).sum();
    let count = |count, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let found =
        format!("{} and {}", count(config.routes.len(), "route"), count(topics, "input topic"));
    Row::ok("configuration", found)
}

/// Numbers in ascending order, runs in short: `0-3, 7`.
fn numbers(numbers: &[i32]) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text =
        |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    runs.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Route, Sources};

    /// A configuration with one route named `r`, and these keys set.
    pub(super) fn config_with(set: &[&str]) -> Config {
        let least = ["kafka.group=g", "routes.r.topics=t", "routes.r.handler.kind=stdout"];
        let set: Vec<_> = least.iter().chain(set).map(|&set| set.to_owned()).collect();
        config::load(&Sources { set: &set, ..Sources::default() }).unwrap()
    }

    /// A route named `r`, with these keys of it set.
    pub(super) fn route(set: &[&str]) -> Route {
        let set: Vec<_> = set.iter().map(|set| format!("routes.r.{set}")).collect();
        let set: Vec<_> = set.iter().map(String::as_str).collect();
        config_with(&set).routes.remove(0)
    }

    #[test]
    fn runs_of_numbers_are_short() {
        assert_eq!(numbers(&[]), "");
        assert_eq!(numbers(&[4]), "4");
        assert_eq!(numbers(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }

    #[test]
    fn every_problem_of_a_configuration_is_a_row() {
        let problem = |key: &str, value: Option<&str>| Problem {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            message: "is wrong".to_owned(),
        };
        let report =
            problems(&ConfigError { problems: vec![problem("a", None), problem("b", Some("1"))] });
        assert!(!report.ok());
        let found: Vec<_> = report.rows.iter().map(|row| row.found.as_str()).collect();
        assert_eq!(found, ["a", "b = 1"]);
    }
}
