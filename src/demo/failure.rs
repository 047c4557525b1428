//! Why the demo could not come to its end, and waiting, which is where that shows.
//!
//! Never: waits without a bound.

use std::error::Error as _;
use std::io;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;

use crate::shutdown::Shutdown;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
    #[error("cannot {what}")]
    Kafka { what: &'static str, source: KafkaError },
    #[error("cannot set up the HTTP client that looks at the daemon's pages")]
    Client(#[source] reqwest::Error),
    #[error("waited {} for this: {what}; last seen: {seen}", humantime::format_duration(*patience))]
    Waited { what: String, patience: Duration, seen: String },
    #[error("the daemon ended ({status}) while the demo waited for this: {what}")]
    DaemonEnded { status: ExitStatus, what: String },
    #[error("the daemon was asked to stop and ended with {status}")]
    EndedBadly { status: ExitStatus },
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    pub(super) fn io(what: &str) -> impl Fn(io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |source| Self::Io { what: what.clone(), source }
    }

    pub(super) fn kafka(what: &'static str) -> impl Fn(KafkaError) -> Self {
        move |source| Self::Kafka { what, source }
    }

    /// With its causes, in one line.
    pub(super) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}

/// What a look at a condition found.
pub(super) enum Look<T> {
    Holds(T),
    /// What was seen instead.
    NotYet(String),
}

/// Looks until the condition holds, at most this long. Ctrl-C ends it.
pub(super) fn wait_for<T>(
    what: &str,
    patience: Duration,
    shutdown: &Shutdown,
    mut look: impl FnMut() -> Result<Look<T>, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        let seen = match look()? {
            Look::Holds(value) => return Ok(value),
            Look::NotYet(seen) => seen,
        };
        if shutdown.requested() {
            return Err(Failure::Interrupted);
        }
        if begun.elapsed() > patience {
            return Err(Failure::Waited { what: what.to_owned(), patience, seen });
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(patience: Duration, shutdown: &Shutdown, holds_at: u32) -> Result<u32, Failure> {
        let mut looks = 0;
        wait_for("rain", patience, shutdown, || {
            looks += 1;
            Ok(if looks == holds_at { Look::Holds(looks) } else { Look::NotYet("sun".to_owned()) })
        })
    }

    #[test]
    fn a_wait_ends_when_the_condition_holds() {
        let found = wait(Duration::from_secs(60), &Shutdown::new(), 3);
        assert_eq!(found.ok(), Some(3));
    }

    #[test]
    fn a_wait_in_vain_says_what_for_and_what_was_seen() {
        let error = wait(Duration::ZERO, &Shutdown::new(), 0).unwrap_err();
        assert_eq!(error.text(), "waited 0s for this: rain; last seen: sun");
    }

    #[test]
    fn ctrl_c_ends_a_wait() {
        let shutdown = Shutdown::new();
        shutdown.request();
        let error = wait(Duration::from_secs(60), &shutdown, 0).unwrap_err();
        assert!(matches!(error, Failure::Interrupted));
    }
}
