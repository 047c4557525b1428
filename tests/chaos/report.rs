//! What the campaign says in the end, for people and for programs.
//!
//! Owns: the verdicts' wording, the Markdown and the JSON.
//! Never: decides a verdict.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::journal::Journal;
use crate::ledger::{Findings, least, once};
use crate::options::Options;

/// Yes, no, or not enough was seen to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Yes,
    No,
    Unknown,
}

pub struct Verdict {
    pub name: &'static str,
    pub holds: Holds,
    pub detail: String,
}

/// How often a fault was asked for, and injected.
pub struct Injected {
    pub name: &'static str,
    pub done: usize,
    pub asked: usize,
    /// Why it cannot be injected here.
    pub impossible: Option<String>,
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, done, asked, impossible } = self;
        match impossible {
            None => write!(f, "{done} of {asked} {name}"),
            Some(why) => write!(f, "{done} of {asked} {name}, not possible here ({why})"),
        }
    }
}

/// What was sent to one route.
pub struct Records {
    pub route: &'static str,
    pub sent: u64,
    pub acknowledged: u64,
    /// Of those, by the broker that had them already.
    pub placeless: u64,
}

/// All that is known when the campaign is over.
pub struct Outcome {
    pub versions: Vec<(&'static str, String)>,
    pub route_records: Vec<Records>,
    pub once: Option<once::Count>,
    pub least: Option<least::Count>,
    pub verify: Option<Value>,
    pub proxies: Value,
    pub injected: Vec<Injected>,
    pub wrong: Vec<String>,
    pub durations: Vec<(&'static str, Duration)>,
    pub verdicts: Vec<Verdict>,
}

impl Outcome {
    /// Every verdict holds.
    pub fn good(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.holds == Holds::Yes)
    }

    pub fn violated(&self) -> bool {
        self.verdicts.iter().any(|verdict| verdict.holds == Holds::No)
    }

    pub fn write(&self, path: &Path, options: &Options, journal: &Journal) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, self.markdown(options, journal))?;
        let json = serde_json::to_string_pretty(&self.json(options, journal))?;
        fs::write(path.with_extension("json"), json + "\n")
    }

    pub fn verdict_lines(&self) -> String {
        let mut text = String::new();
        for Verdict { name, holds, detail } in &self.verdicts {
            let mark = match holds {
                Holds::Yes => "ok     ",
                Holds::No => "FAILED ",
                Holds::Unknown => "UNKNOWN",
            };
            line(&mut text, &format!("{mark} {name}: {detail}"));
        }
        text
    }

    fn markdown(&self, options: &Options, journal: &Journal) -> String {
        let mut text = String::new();
        let good = if self.good() { "nothing lost, nothing doubled" } else { "NOT PASSED" };
        line(&mut text, &format!("# Chaos campaign, seed {}: {good}\n", options.seed));
        line(&mut text, &format!("    {}\n", options.command));
        section(&mut text, "Verdicts", ["verdict", "holds", "what was seen"]);
        for Verdict { name, holds, detail } in &self.verdicts {
            let detail = detail.replace('|', "\\|").replace('\n', " ");
            line(&mut text, &format!("| {name} | {holds:?} | {detail} |"));
        }
        self.write_faults(&mut text, journal);
        self.write_counts(&mut text);
        section(&mut text, "With what", ["", "", ""]);
        for (name, version) in &self.versions {
            line(&mut text, &format!("| {name} | {version} | |"));
        }
        for (name, duration) in &self.durations {
            line(&mut text, &format!("| {name} | {:.0} s | |", duration.as_secs_f64()));
        }
        self.write_findings(&mut text);
        text
    }

    fn write_faults(&self, text: &mut String, journal: &Journal) {
        section(text, "Faults", ["fault", "number", ""]);
        for Injected { name, done, impossible, .. } in &self.injected {
            let why = impossible.as_deref().unwrap_or_default();
            line(text, &format!("| {name} | {done} | {why} |"));
        }
        for (what, count) in counts(journal) {
            line(text, &format!("| {what} | {count} | event |"));
        }
        if let Value::Object(fields) = &self.proxies {
            for (name, count) in fields {
                line(text, &format!("| proxies: {name} | {count} | |"));
            }
        }
        section(text, "Where kills landed", ["daemon was", "times", ""]);
        for (phase, count) in journal.landings() {
            line(text, &format!("| {phase} | {count} | |"));
        }
    }

    fn write_counts(&self, text: &mut String) {
        section(text, "Counts", ["route", "what", "number"]);
        for Records { route, sent, acknowledged, placeless } in &self.route_records {
            line(text, &format!("| {route} | records sent | {sent} |"));
            line(text, &format!("| {route} | records acknowledged | {acknowledged} |"));
            line(text, &format!("| {route} | of those without an offset | {placeless} |"));
        }
        let counts = [
            ("once", self.once.as_ref().map(once::Count::json)),
            ("least", self.least.as_ref().map(least::Count::json)),
        ];
        for (route, count) in counts {
            let Some(Value::Object(fields)) = count else { continue };
            for (name, number) in fields.iter().filter(|(_, number)| number.is_number()) {
                line(text, &format!("| {route} | {} | {number} |", name.replace('_', " ")));
            }
            let findings = fields["findings"].as_object();
            for (kind, found) in findings.into_iter().flatten() {
                line(text, &format!("| {route} | **{kind}** | {} |", found["count"]));
            }
        }
        if let Some(verify) = &self.verify {
            line(text, "\n## What `onced verify` says\n");
            let shown = serde_json::to_string_pretty(verify).unwrap_or_default();
            line(text, &format!("```json\n{shown}\n```"));
        }
    }

    fn write_findings(&self, text: &mut String) {
        let all = [
            self.once.as_ref().map(|count| &count.findings),
            self.least.as_ref().map(|count| &count.findings),
        ];
        let examples: Vec<_> = all.into_iter().flatten().flat_map(Findings::examples).collect();
        if examples.is_empty() && self.wrong.is_empty() {
            return;
        }
        line(text, "\n## Examples\n");
        for (kind, example) in examples {
            line(text, &format!("- {kind}: {example}"));
        }
        for run in self.once.iter().flat_map(|count| &count.lost_runs) {
            line(text, &format!("- lost in a run: {run}"));
        }
        for wrong in &self.wrong {
            line(text, &format!("- {wrong}"));
        }
    }

    fn json(&self, options: &Options, journal: &Journal) -> Value {
        let verdicts = self.verdicts.iter().map(|verdict| {
            let holds = format!("{:?}", verdict.holds).to_lowercase();
            json!({ "name": verdict.name, "holds": holds, "detail": verdict.detail })
        });
        let records = self.route_records.iter().map(|records| {
            let Records { route, sent, acknowledged, placeless } = records;
            json!({ "route": route, "sent": sent, "acknowledged": acknowledged, "placeless": placeless })
        });
        let map =
            |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect::<Map<_, _>>());
        json!({
            "seed": options.seed,
            "command": options.command,
            "good": self.good(),
            "verdicts": verdicts.collect::<Vec<_>>(),
            "records": records.collect::<Vec<_>>(),
            "once": self.once.as_ref().map(once::Count::json),
            "least": self.least.as_ref().map(least::Count::json),
            "verify": self.verify,
            "injected": map(self.injected.iter().map(|fault| (fault.name.replace(' ', "_").to_lowercase(), fault.done.into())).collect()),
            "proxies": self.proxies,
            "wrong": self.wrong,
            "events": map(counts(journal).into_iter().map(|(what, n)| (what.to_owned(), n.into())).collect()),
            "landed": map(journal.landings().into_iter().map(|(at, n)| (at, n.into())).collect()),
            "versions": map(self.versions.iter().map(|(name, is)| ((*name).to_owned(), is.clone().into())).collect()),
            "seconds": map(self.durations.iter().map(|(name, is)| ((*name).to_owned(), is.as_secs().into())).collect()),
        })
    }
}

fn counts(journal: &Journal) -> Vec<(&'static str, usize)> {
    let mut kinds: Vec<_> = journal.events().iter().map(|event| event.what).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.into_iter().map(|kind| (kind, journal.count(kind))).collect()
}

fn section(text: &mut String, title: &str, heads: [&str; 3]) {
    let [a, b, c] = heads;
    line(text, &format!("\n## {title}\n\n| {a} | {b} | {c} |\n| --- | --- | --- |"));
}

fn line(text: &mut String, words: &str) {
    writeln!(text, "{words}").expect("text can be written");
}
