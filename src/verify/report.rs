//! What a verification found, as tables for people or as JSON for programs.
//!
//! Owns: how it looks. Never: decides anything.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use super::finding::{Counts, Example, Kind};
use super::gather::{OutputReport, PartitionReport, RouteReport};

/// The JSON object; see `verify` for its fields.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// No violation.
    pub ok: bool,
    pub partitions: Vec<PartitionReport>,
    pub outputs: Vec<OutputReport>,
    /// Every kind, also those that were not found.
    pub violations: BTreeMap<&'static str, u64>,
    pub examples: Vec<Example>,
    pub notes: Vec<String>,
}

impl Report {
    pub fn of(routes: Vec<RouteReport>) -> Self {
        let mut report = Self {
            violations: Kind::ALL.iter().map(|kind| (kind.name(), 0)).collect(),
            ..Self::default()
        };
        for route in routes {
            report.partitions.extend(route.partitions);
            report.outputs.extend(route.output);
            report.examples.extend(route.examples);
            report.notes.extend(route.notes);
            for (kind, count) in route.violations {
                *report.violations.entry(kind.name()).or_default() += count;
            }
        }
        report.ok = report.violations.values().all(|count| *count == 0);
        report
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| {
            serde_json::json!({ "ok": false, "error": error.to_string() }).to_string()
        })
    }
}

type Column = (&'static str, fn(&Counts) -> u64);

const COLUMNS: [Column; 8] = [
    ("records", |counts| counts.records),
    ("handled", |counts| counts.handled),
    ("duplicates", |counts| counts.duplicates),
    ("conflicts", |counts| counts.conflicts),
    ("letters", |counts| counts.dead_lettered),
    ("skipped", |counts| counts.skipped),
    ("undecided", |counts| counts.undecided + counts.off_phase),
    ("violations", |counts| counts.lost + counts.suppressed_too_late),
];

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn number(number: u64) -> Cell {
    Cell::new(number).set_alignment(CellAlignment::Right)
}

impl Report {
    fn partitions_table(&self) -> Table {
        let mut table = table();
        let names = COLUMNS.iter().filter(|(name, _)| *name != "violations").map(|(name, _)| *name);
        table.set_header(["partition", "committed", "end"].into_iter().chain(names));
        for partition in &self.partitions {
            let mut row = vec![
                Cell::new(format!("{}/{}", partition.topic, partition.partition)),
                Cell::new(partition.committed.map_or("-".to_owned(), |offset| offset.to_string()))
                    .set_alignment(CellAlignment::Right),
                Cell::new(partition.end).set_alignment(CellAlignment::Right),
            ];
            let columns = COLUMNS.iter().filter(|(name, _)| *name != "violations");
            row.extend(columns.map(|(_, of)| number(of(&partition.counts))));
            table.add_row(row);
        }
        table
    }

    fn violations_table(&self) -> Table {
        let mut table = table();
        table.set_header(["", "violation", "count"]);
        for kind in Kind::ALL {
            let count = self.violations.get(kind.name()).copied().unwrap_or(0);
            let (text, color) =
                if count == 0 { ("ok", Color::Green) } else { ("FOUND", Color::Red) };
            table.add_row([
                Cell::new(text).fg(color),
                Cell::new(kind.name().replace('_', " ")),
                number(count),
            ]);
        }
        table
    }

    fn sum(&self, of: fn(&Counts) -> u64) -> u64 {
        self.partitions.iter().map(|partition| of(&partition.counts)).sum()
    }
}

fn lines(f: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    table.lines().try_for_each(|line| writeln!(f, "{}", line.trim_end()))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.partitions_table())?;
        writeln!(f)?;
        for output in &self.outputs {
            writeln!(
                f,
                "output {}: {} committed, {} aborted, {} foreign",
                output.topic, output.committed, output.aborted, output.foreign
            )?;
        }
        lines(f, &self.violations_table())?;
        for example in &self.examples {
            writeln!(
                f,
                "\n{} at {}/{}/{}: {}",
                example.kind.name().replace('_', " "),
                example.topic,
                example.partition,
                example.offset,
                example.detail
            )?;
            for neighbour in &example.neighbours {
                writeln!(f, "  {}", neighbour.line(example.offset))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let sum: Vec<String> = COLUMNS
            .iter()
            .skip(1)
            .map(|(name, of)| (name, self.sum(*of)))
            .filter(|(name, count)| *count > 0 || **name == "handled")
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        writeln!(f, "{} records = {}", self.sum(|counts| counts.records), sum.join(" + "))?;
        let total: u64 = self.violations.values().sum();
        match total {
            0 => write!(f, "no violation"),
            1 => write!(f, "1 violation"),
            many => write!(f, "{many} violations"),
        }
    }
}

impl super::finding::Neighbour {
    fn line(&self, example: i64) -> String {
        let mark = match (self.offset == example, self.same_key) {
            (true, _) => '>',
            (_, true) => '=',
            _ => ' ',
        };
        let short = |key: &String| key.chars().take(16).collect::<String>();
        let key = self.client_key.clone().or_else(|| self.key.as_ref().map(short));
        let output = self.output.as_ref().map_or(String::new(), |at| format!("  output {at}"));
        format!(
            "{mark} {:>10}  {:<24}  {}{output}",
            self.offset,
            key.unwrap_or_else(|| "(no key)".to_owned()),
            self.fate.text()
        )
    }
}
