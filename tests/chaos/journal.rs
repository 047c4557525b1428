//! What was done to whom, and when.
//!
//! Owns: the time of the run, and the list of everything that disturbs it.
//! Never: disturbs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// For how long after an event its consequences may be felt: the session timeout, a rebalance and
/// the timeout of a transaction.
pub const SETTLES_MS: u32 = 10_000;

#[derive(Clone, Debug)]
pub struct Event {
    /// Milliseconds since the start of the run.
    pub at_ms: u32,
    pub what: &'static str,
    pub whom: String,
    pub detail: String,
}

pub struct Journal {
    begun: Instant,
    terminal: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    shown: Instant,
    events: Vec<Event>,
    /// What the daemon was doing when it was killed.
    landed: BTreeMap<String, usize>,
    file: Option<File>,
}

impl Journal {
    pub fn new(file: Option<File>) -> Self {
        let inner =
            Inner { shown: Instant::now(), events: Vec::new(), landed: BTreeMap::new(), file };
        Self {
            begun: Instant::now(),
            terminal: io::stderr().is_terminal(),
            inner: Mutex::new(inner),
        }
    }

    pub fn now_ms(&self) -> u32 {
        u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn note(&self, what: &'static str, whom: impl Into<String>, detail: impl Into<String>) {
        let event = Event { at_ms: self.now_ms(), what, whom: whom.into(), detail: detail.into() };
        let mut inner = self.inner();
        if let Some(file) = &mut inner.file {
            let seconds = f64::from(event.at_ms) / 1000.0;
            // The journal is told again in the report.
            let _ =
                writeln!(file, "{seconds:9.3} {:<16} {:<10} {}", what, event.whom, event.detail);
        }
        inner.events.push(event);
    }

    pub fn landed(&self, phase: impl Into<String>) {
        *self.inner().landed.entry(phase.into()).or_default() += 1;
    }

    pub fn count(&self, what: &str) -> usize {
        self.inner().events.iter().filter(|event| event.what == what).count()
    }

    pub fn events(&self) -> Vec<Event> {
        self.inner().events.clone()
    }

    pub fn landings(&self) -> BTreeMap<String, usize> {
        self.inner().landed.clone()
    }

    /// Whether so many seconds have passed since this was last true.
    pub fn due(&self, seconds: u64) -> bool {
        let mut inner = self.inner();
        let due = inner.shown.elapsed() >= Duration::from_secs(seconds);
        if due {
            inner.shown = Instant::now();
        }
        due
    }

    /// For people: on a terminal the last line is written over.
    pub fn progress(&self, line: &str) {
        let seconds = self.begun.elapsed().as_secs();
        let clock = format!("{:02}:{:02}", seconds / 60, seconds % 60);
        if self.terminal {
            eprint!("\r\x1b[Kchaos {clock} {line}");
        } else {
            eprintln!("chaos {clock} {line}");
        }
    }

    pub fn say(&self, line: &str) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let seconds = self.begun.elapsed().as_secs();
        eprintln!("{start}chaos {:02}:{:02} {line}", seconds / 60, seconds % 60);
    }

    pub fn on_terminal(&self) -> bool {
        self.terminal
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding the journal")
    }
}
