//! What was found: tables, the ratios with their goals, JSON.

use std::fmt::Write as _;
use std::fs;
use std::thread;

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Onced};
use crate::latency::Latency;
use crate::measure::Run;
use crate::options::Options;

/// Everything.
pub struct Report {
    about: Value,
    pub layouts: Vec<Layout>,
    pub latencies: Vec<(Contestant, Result<Latency, String>)>,
    /// Of `onced bench log`.
    pub log: Option<Value>,
}

/// All rounds over a topic of so many partitions.
pub struct Layout {
    partitions: i32,
    results: Vec<(Contestant, Vec<Result<Run, String>>)>,
}

/// The middle of several figures, with the smallest and the largest.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    smallest: f64,
    largest: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<_> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (smallest, largest) = (*figures.first()?, *figures.last()?);
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), smallest, largest })
    }

    fn json(self) -> Value {
        let Self { median, smallest, largest } = self;
        json!({ "median": median, "smallest": smallest, "largest": largest })
    }
}

impl Layout {
    pub fn new(partitions: i32) -> Self {
        Self { partitions, results: Vec::new() }
    }

    pub fn add(&mut self, contestant: Contestant, run: Result<Run, String>) {
        match self.results.iter_mut().find(|(known, _)| *known == contestant) {
            Some((_, runs)) => runs.push(run),
            None => self.results.push((contestant, vec![run])),
        }
    }

    fn runs(&self, contestant: Contestant) -> &[Result<Run, String>] {
        let found = self.results.iter().find(|(known, _)| *known == contestant);
        found.map_or(&[], |(_, runs)| runs)
    }

    fn spread(&self, contestant: Contestant, figure: fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.runs(contestant).iter().flatten().map(figure))
    }

    /// One contestant's figure over another's, round by round.
    fn ratio(&self, of: Contestant, to: Contestant, figure: fn(&Run) -> f64) -> Option<Spread> {
        let pairs = self.runs(of).iter().zip(self.runs(to));
        let both = pairs.filter_map(|(of, to)| Some((of.as_ref().ok()?, to.as_ref().ok()?)));
        Spread::of(both.map(|(of, to)| figure(of) / figure(to)))
    }
}

const RATE: fn(&Run) -> f64 = |run| run.rate;
const CPU: fn(&Run) -> f64 = |run| run.cpu;
const MEMORY: fn(&Run) -> f64 = |run| run.memory as f64;

const EXACTLY: Contestant = Contestant::Onced(Onced::ExactlyOnce);

/// A ratio that is to be reached.
struct Goal {
    what: &'static str,
    of: Contestant,
    to: Contestant,
    figure: fn(&Run) -> f64,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

fn goals() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost};
    use Contestant::{Bento, Copy, Drain, Onced as Of};
    let tkati = |batch| Contestant::Tkati { batch };
    let streams = |store| Contestant::Streams { store, guarantee: "exactly_once_v2" };
    let goal = |what, of, to, figure, bound| Goal { what, of, to, figure, bound };
    vec![
        goal("speed", EXACTLY, Copy, RATE, AtLeast(0.6)),
        goal("CPU a record", EXACTLY, Copy, CPU, AtMost(2.0)),
        goal("speed", Of(Onced::AtLeastOnce), Drain, RATE, AtLeast(0.3)),
        goal("speed", Of(Onced::Absorb), Drain, RATE, AtLeast(0.3)),
        goal("speed", EXACTLY, streams("window"), RATE, AtLeast(5.0)),
        goal("speed", EXACTLY, streams("key-value"), RATE, AtLeast(5.0)),
        goal("memory", EXACTLY, streams("window"), MEMORY, AtMost(0.5)),
        goal("memory", EXACTLY, streams("key-value"), MEMORY, AtMost(0.5)),
        goal("speed", EXACTLY, tkati(1_000), RATE, AtLeast(4.0)),
        goal("CPU a record", EXACTLY, tkati(1_000), CPU, AtMost(0.7)),
        goal("speed", EXACTLY, tkati(10_000), RATE, AtLeast(4.0)),
        goal("CPU a record", EXACTLY, tkati(10_000), CPU, AtMost(0.7)),
        goal("speed", EXACTLY, Bento, RATE, AtLeast(2.0)),
    ]
}

impl Goal {
    fn bound(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!("{bound} or more"),
            Bound::AtMost(bound) => format!("{bound} or less"),
        }
    }

    fn met(&self, ratio: f64) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => ratio >= bound,
            Bound::AtMost(bound) => ratio <= bound,
        }
    }
}

impl Report {
    pub fn new(options: &Options) -> Self {
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let about = json!({
            "date": now,
            "processor": processor(),
            "cores": thread::available_parallelism().map_or(1, usize::from),
            "records": options.records,
            "duplicates_percent": options.duplicates,
            "rounds": options.rounds,
            "latency_records_per_second": options.rate,
            "latency_seconds": options.seconds,
        });
        Self { about, layouts: Vec::new(), latencies: Vec::new(), log: None }
    }

    pub fn json(&self) -> Value {
        let layouts = self.layouts.iter().map(|layout| {
            let contestants = layout.results.iter().map(|(contestant, runs)| {
                let figures = |figure| layout.spread(*contestant, figure).map(Spread::json);
                let runs = runs.iter().map(|run| match run {
                    Ok(run) => run.json(),
                    Err(error) => json!({ "failed": error }),
                });
                json!({
                    "name": contestant.to_string(),
                    "records_per_second": figures(RATE),
                    "cpu_us_per_record": figures(CPU),
                    "rounds": runs.collect::<Vec<_>>(),
                })
            });
            let ratios = goals().into_iter().filter_map(|goal| {
                let ratio = layout.ratio(goal.of, goal.to, goal.figure)?;
                Some(json!({
                    "of": goal.of.to_string(),
                    "to": goal.to.to_string(),
                    "what": goal.what,
                    "ratio": ratio.json(),
                    "goal": goal.bound(),
                    "met": goal.met(ratio.median),
                }))
            });
            json!({
                "partitions": layout.partitions,
                "contestants": contestants.collect::<Vec<_>>(),
                "ratios": ratios.collect::<Vec<_>>(),
            })
        });
        let latencies = self.latencies.iter().map(|(contestant, latency)| {
            let figures = match latency {
                Ok(latency) => latency.json(),
                Err(error) => json!({ "failed": error }),
            };
            json!({ "name": contestant.to_string(), "latency": figures })
        });
        json!({
            "about": self.about,
            "layouts": layouts.collect::<Vec<_>>(),
            "latencies": latencies.collect::<Vec<_>>(),
            "log": self.log,
        })
    }

    pub fn text(&self) -> String {
        self.tables(NOTHING)
    }

    pub fn markdown(&self) -> String {
        let about = |name| self.about[name].to_string().replace('"', "");
        format!(
            "# How fast onced is, next to others\n\n{}, {} cores shared with the broker, {}: {} records of about 200 bytes, {} % duplicates, {} rounds in turns.\n{}",
            about("processor"),
            about("cores"),
            about("date"),
            about("records"),
            about("duplicates_percent"),
            about("rounds"),
            self.tables(ASCII_MARKDOWN),
        )
    }

    fn tables(&self, preset: &str) -> String {
        let mut text = String::new();
        for layout in &self.layouts {
            let partitions = layout.partitions;
            let _ = writeln!(text, "\n## Partitions: {partitions}; median (smallest to largest)\n");
            let _ = writeln!(text, "{}", figures(layout, preset));
            let _ = writeln!(text, "\n{}", ratios(layout, preset));
        }
        if !self.latencies.is_empty() {
            let rate = &self.about["latency_records_per_second"];
            let _ = writeln!(text, "\n## From append to output, at {rate} records a second\n");
            let mut table = new_table(preset, &["contestant", "median ms", "p99 ms", "p99.9 ms"]);
            for (contestant, latency) in &self.latencies {
                let name = contestant.to_string();
                table.add_row(match latency {
                    Ok(Latency { median, p99, p999 }) => {
                        vec![
                            name,
                            format!("{median:.0}"),
                            format!("{p99:.0}"),
                            format!("{p999:.0}"),
                        ]
                    }
                    Err(error) => vec![name, first_line(error)],
                });
            }
            let _ = writeln!(text, "{table}");
        }
        if let Some(log) = &self.log {
            let _ = writeln!(text, "\n## The log alone\n\n{}", log_table(log, preset));
            let _ = writeln!(
                text,
                "\nReopened in {:.2} s; peak memory {} MiB with log.memory = {} MiB.",
                log["reopen_seconds"].as_f64().unwrap_or(0.0),
                log["peak_memory_mib"],
                log["memory_mib"],
            );
        }
        text
    }
}

fn figures(layout: &Layout, preset: &str) -> Table {
    let columns =
        ["contestant", "records a second", "CPU us a record", "peak MiB", "bytes a key on disk"];
    let mut table = new_table(preset, &columns);
    for (contestant, runs) in &layout.results {
        let name = contestant.to_string();
        let failed = runs.iter().find_map(|run| run.as_ref().err());
        let spread = |figure| layout.spread(*contestant, figure);
        let (Some(rate), Some(cpu), Some(memory)) = (spread(RATE), spread(CPU), spread(MEMORY))
        else {
            table.add_row([name, first_line(failed.map_or("", String::as_str))]);
            continue;
        };
        let disk = Spread::of(runs.iter().flatten().filter_map(|run| run.disk));
        let name = if failed.is_some() { format!("{name} (a round failed)") } else { name };
        table.add_row([
            name,
            format!("{:.0} ({:.0} to {:.0})", rate.median, rate.smallest, rate.largest),
            format!("{:.2} ({:.2} to {:.2})", cpu.median, cpu.smallest, cpu.largest),
            format!("{:.0}", memory.largest / 1_048_576.0),
            disk.map_or("-".to_owned(), |disk| format!("{:.0}", disk.median)),
        ]);
    }
    table
}

fn ratios(layout: &Layout, preset: &str) -> Table {
    let mut table = new_table(preset, &["ratio", "of", "median", "goal", ""]);
    for goal in goals() {
        let Some(ratio) = layout.ratio(goal.of, goal.to, goal.figure) else { continue };
        table.add_row([
            format!("{} / {}", goal.of, goal.to),
            goal.what.to_owned(),
            format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.smallest, ratio.largest),
            goal.bound(),
            (if goal.met(ratio.median) { "met" } else { "missed" }).to_owned(),
        ]);
    }
    table
}

fn log_table(log: &Value, preset: &str) -> Table {
    let columns =
        ["keys", "keys a second", "CPU us a key", "bytes a key on disk", "written / entry"];
    let mut table = new_table(preset, &columns);
    for row in log["rows"].as_array().into_iter().flatten() {
        let figure = |name: &str, digits: usize| match row[name].as_f64() {
            Some(figure) if figure > 0.0 => format!("{figure:.digits$}"),
            _ => String::new(),
        };
        table.add_row([
            row["what"].as_str().unwrap_or_default().to_owned(),
            figure("per_second", 0),
            figure("cpu_us", 2),
            figure("disk_bytes_per_key", 1),
            figure("write_amplification", 1),
        ]);
    }
    table
}

fn new_table(preset: &str, columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(preset).set_header(columns);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned()
}
