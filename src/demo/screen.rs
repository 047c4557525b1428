//! What people see: numbered steps and progress while it runs, a table and the verdict at the end.
//!
//! Steps and progress go to standard error, and only where that is a terminal; the result goes to
//! standard output.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{Check, DeadLetter, Numbers, money, number};

/// How wide the steps are at most.
const WIDTH: usize = 78;

pub(super) struct Screen {
    people: bool,
    step: Cell<u32>,
}

impl Screen {
    /// `quiet`: no steps, also on a terminal.
    pub(super) fn new(quiet: bool) -> Self {
        Self { people: !quiet && io::stderr().is_terminal(), step: Cell::new(0) }
    }

    /// One step of the story: what happens, and why.
    pub(super) fn step(&self, title: &str, why: &str) {
        self.step.set(self.step.get() + 1);
        if self.people {
            eprint!("{}", step(self.step.get(), title, why));
        }
    }

    /// Progress towards a number.
    pub(super) fn bar(&self, what: &str, len: u64) -> ProgressBar {
        let bar = self.hidden_for_pipes(Some(len));
        let style = ProgressStyle::with_template("     {bar:30} {human_pos}/{human_len} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar
    }

    /// The bar stays as it stands, and the next line goes below it.
    pub(super) fn leave(&self, bar: &ProgressBar) {
        bar.abandon();
        if self.people {
            eprintln!();
        }
    }

    /// Something that takes a while.
    pub(super) fn spinner(&self, what: &str) -> ProgressBar {
        let spinner = self.hidden_for_pipes(None);
        let style = ProgressStyle::with_template("     {spinner} {msg} ({elapsed})");
        spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    fn hidden_for_pipes(&self, len: Option<u64>) -> ProgressBar {
        let target =
            if self.people { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        ProgressBar::with_draw_target(len, target)
    }
}

fn step(at: u32, title: &str, why: &str) -> String {
    let mut text = format!("\n  {at}  {title}\n");
    let mut line = String::new();
    for word in why.split_whitespace() {
        if !line.is_empty() && line.len() + word.len() + 6 > WIDTH {
            text.push_str(&format!("     {line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.push_str(&format!("     {line}\n"));
    text
}

/// The result as a table and sentences.
pub(super) fn text(numbers: &Numbers, checks: &[Check]) -> String {
    let mut text = format!("\n{}\n\n", table(numbers));
    for check in checks {
        let mark = if check.holds { "ok    " } else { "WRONG " };
        text.push_str(&format!("  {mark} {}\n         {}\n", check.what, check.seen));
    }
    let wrong = checks.iter().filter(|check| !check.holds).count();
    text.push_str(&match wrong {
        0 => "\nVerdict: every payment was handled once.\n".to_owned(),
        1 => "\nVerdict: FAILED. What is marked WRONG does not hold.\n".to_owned(),
        more => format!("\nVerdict: FAILED. {more} of {} checks do not hold.\n", checks.len()),
    });
    text
}

fn table(numbers: &Numbers) -> Table {
    let Numbers { sent, kill, handled, settled, dead_letters, .. } = numbers;
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    let mut row = |about: &str, what: &str, value: String| {
        table.add_row([about, what, &value]);
    };
    row("sent", "records", number(sent.records));
    row("", "different payments", number(sent.payments));
    row("", "retries of clients, soon after", number(sent.client_retries));
    row("", "duplicates, much later", number(sent.late_duplicates));
    row("", "repeats of the restarted producer", number(sent.producer_repeats));
    row("", "key used again, with another amount", number(sent.conflicts));
    row("handled", "calls of the payment service", number(handled.calls));
    row("", "different idempotency keys", number(handled.keys));
    row("", "in flight at the kill", number(kill.in_flight));
    row("", "called again after it, same key", number(handled.repeated_after_kill));
    row("held back", "repeats suppressed", number(settled.duplicate));
    row("", &format!("dead letters{}", reasons(dead_letters)), number(dead_letters.len() as u64));
    row("charged", "expected", money(sent.cents));
    row("", "charged", money(handled.cents));
    row("", "if every record were charged", money(sent.cents_of_all_records));
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn reasons(letters: &[DeadLetter]) -> String {
    let reasons: BTreeSet<&str> = letters.iter().map(|letter| &*letter.reason).collect();
    let reasons: Vec<&str> = reasons.into_iter().collect();
    if reasons.is_empty() { String::new() } else { format!(", reason: {}", reasons.join(", ")) }
}
