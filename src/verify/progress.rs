//! Progress on a terminal; nothing elsewhere.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One bar, for one partition after the other.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shown on standard error where that is a terminal, unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template(
            "{msg}  {bar:30} {human_pos}/{human_len}  {per_sec}  {eta}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar }
    }

    /// Another partition, offsets `from..until`.
    pub fn start(&self, what: &str, from: i64, until: i64) {
        self.bar.reset();
        self.bar.set_position(0);
        self.bar.set_length(until.saturating_sub(from).max(0).unsigned_abs());
        self.bar.set_message(what.to_owned());
    }

    /// Once for each record.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
