//! What a check found: one row for each question, as a table or as JSON.
//!
//! Owns: [`Row`], [`Report`] and how both are written.
//! Never: asks anything, or decides a level.

use std::fmt::{self, Write as _};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

/// How bad it is. Only [`Level::Failed`] makes the check fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Good to know, or not checked.
    Note,
    /// `run` works, with less than what was asked for.
    Warning,
    /// `run` would end, or do nothing.
    Failed,
}

impl Level {
    const ALL: [Self; 4] = [Self::Ok, Self::Note, Self::Warning, Self::Failed];

    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }

    fn color(self) -> Color {
        match self {
            Self::Ok => Color::Green,
            Self::Note => Color::Cyan,
            Self::Warning => Color::Yellow,
            Self::Failed => Color::Red,
        }
    }
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub level: Level,
    pub subject: String,
    pub found: String,
    /// Empty where there is nothing to do.
    pub advice: String,
}

impl Row {
    pub fn new(
        level: Level,
        subject: impl AsRef<str>,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Self {
        let subject = one_line(subject.as_ref());
        Self { level, subject, found: one_line(found.as_ref()), advice: one_line(advice.as_ref()) }
    }

    pub fn ok(subject: impl AsRef<str>, found: impl AsRef<str>) -> Self {
        Self::new(Level::Ok, subject, found, "")
    }

    pub fn note(subject: impl AsRef<str>, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(Level::Note, subject, found, advice)
    }

    pub fn warning(
        subject: impl AsRef<str>,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Self {
        Self::new(Level::Warning, subject, found, advice)
    }

    pub fn failed(
        subject: impl AsRef<str>,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Self {
        Self::new(Level::Failed, subject, found, advice)
    }
}

/// Names of clients and words of brokers are foreign text; a row is one line.
fn one_line(text: &str) -> String {
    text.trim().replace('\n', ", ").replace(char::is_control, "?")
}

/// All rows, in the order in which they were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl Report {
    /// Nothing failed; warnings may be there.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(|row| row.level != Level::Failed)
    }

    /// One object, in lines for people who look at it.
    pub fn json(&self) -> String {
        let object = serde_json::json!({ "ok": self.ok(), "checks": self.rows });
        format!("{object:#}")
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            // To the width of the terminal; without one, a row is one line.
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(["", "subject", "found", "what to do"]);
        for row in &self.rows {
            table.add_row([
                Cell::new(row.level.text()).fg(row.level.color()),
                Cell::new(&row.subject),
                Cell::new(&row.found),
                Cell::new(&row.advice),
            ]);
        }
        table
    }

    /// The closing line: how many rows there are of each level.
    fn counts(&self) -> String {
        let mut text = match self.rows.len() {
            1 => "1 check".to_owned(),
            many => format!("{many} checks"),
        };
        for (at, level) in Level::ALL.into_iter().enumerate() {
            let count = self.rows.iter().filter(|row| row.level == level).count();
            let sign = if at == 0 { ':' } else { ',' };
            let plural =
                if count != 1 && matches!(level, Level::Note | Level::Warning) { "s" } else { "" };
            // Writing to a string does not fail.
            let _ = write!(text, "{sign} {count} {}{plural}", level.text());
        }
        text
    }
}

/// The table and the closing line. In colour where standard output is a terminal.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.table().lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        write!(f, "{}", self.counts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            rows: vec![
                Row::ok("kafka.brokers", "3 brokers"),
                Row::warning("topic payments", "keeps 1h", "raise retention.ms"),
                Row::warning("topic dead", "keeps 1h", ""),
            ],
        }
    }

    #[test]
    fn a_warning_does_not_fail_the_check() {
        let mut report = report();
        assert!(report.ok());
        report.rows.push(Row::failed("log.dir", "is a file", "choose another"));
        assert!(!report.ok());
    }

    #[test]
    fn every_row_is_a_line_and_the_last_line_counts() {
        let text = report().to_string();
        let line = text.lines().find(|line| line.contains("topic payments")).unwrap();
        let words: Vec<_> =
            line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words, ["warning", "topic payments", "keeps 1h", "raise retention.ms"]);
        assert_eq!(text.lines().last(), Some("3 checks: 1 ok, 0 notes, 2 warnings, 0 failed"));
        assert!(!text.contains('\u{1b}'), "no colour where nobody looks");
    }

    #[test]
    fn the_json_form_has_the_verdict_and_all_rows() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(json["ok"], true);
        let expected = serde_json::json!({
            "level": "warning",
            "subject": "topic payments",
            "found": "keeps 1h",
            "advice": "raise retention.ms",
        });
        assert_eq!(json["checks"][1], expected);
        assert_eq!(json["checks"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn foreign_text_stays_in_its_line() {
        let row = Row::note("a\tb", "two\nlines\u{1b}[31m", "");
        assert_eq!((row.subject.as_str(), row.found.as_str()), ("a?b", "two, lines?[31m"));
    }
}
