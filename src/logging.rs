//! Log output, to standard error alone: standard output belongs to what a command prints.
//!
//! Owns: the one subscriber of the process, and the variable `ONCED_LOG`.
//! Never: writes to standard output or to a file.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::io::{self, IsTerminal};

use rdkafka::config::RDKafkaLogLevel;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged where `ONCED_LOG` is not set. What librdkafka says at info concerns those who
/// look into it.
pub const DEFAULT_FILTER: &str = "info,librdkafka=warn";
/// Overrides the default filter as a whole: `ONCED_LOG=info,onced::source=debug`.
const VARIABLE: &str = "ONCED_LOG";

/// How a log event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for people, in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error(
        "{source_name} = \"{filter}\" is not a log filter ({reason}); write it like \"{DEFAULT_FILTER}\""
    )]
    Filter { source_name: &'static str, filter: String, reason: String },
    #[error("{VARIABLE} = {0:?} is not UTF-8; write it like \"{DEFAULT_FILTER}\"")]
    NotUtf8(OsString),
    #[error("this process has a log subscriber already; leave out one of the two")]
    Taken,
}

/// Starts logging for the process. `default_filter` counts where `ONCED_LOG` is empty or not set.
///
/// # Errors
///
/// When the filter cannot be read, or a subscriber was set before.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), LoggingError> {
    let filter = filter(env::var(VARIABLE), default_filter)?;
    let ansi = io::stderr().is_terminal();
    subscriber(format, filter, ansi, io::stderr).try_init().map_err(|_| LoggingError::Taken)
}

/// Passes on what librdkafka logs. Not that a property is unknown to this kind of handle: the
/// user's properties go to all kinds, and unknown ones were refused when they were read.
pub fn librdkafka(level: RDKafkaLogLevel, facility: &str, text: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
    match level {
        _ if facility == "CONFWARN" => {}
        Emerg | Alert | Critical | Error => {
            tracing::error!(target: "librdkafka", "librdkafka: {facility} {text}");
        }
        Warning => tracing::warn!(target: "librdkafka", "librdkafka: {facility} {text}"),
        Notice | Info => tracing::info!(target: "librdkafka", "librdkafka: {facility} {text}"),
        Debug => tracing::debug!(target: "librdkafka", "librdkafka: {facility} {text}"),
    }
}

fn filter(
    variable: Result<String, VarError>,
    default_filter: &str,
) -> Result<EnvFilter, LoggingError> {
    let (source_name, filter) = match variable {
        Ok(filter) if !filter.trim().is_empty() => (VARIABLE, filter),
        Ok(_) | Err(VarError::NotPresent) => ("the log filter", default_filter.to_owned()),
        Err(VarError::NotUnicode(value)) => return Err(LoggingError::NotUtf8(value)),
    };
    EnvFilter::builder().parse(&filter).map_err(|error| LoggingError::Filter {
        source_name,
        reason: error.to_string(),
        filter,
    })
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    ansi: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => Box::new(builder.with_ansi(ansi).finish()),
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_current_span(false).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, directives: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = filter(Ok(directives.to_owned()), "").unwrap();
        let subscriber = subscriber(format, filter, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_with_its_fields() {
        let log = || tracing::warn!(partition = 3, "Failed to store the offset.");
        let text = logged(LogFormat::Text, "info", log);
        assert!(text.contains("WARN"), "{text}");
        assert!(text.ends_with("Failed to store the offset. partition=3\n"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colour where nobody looks");
    }

    #[test]
    fn an_event_in_json_has_its_fields_beside_the_message() {
        let log = || tracing::warn!(partition = 3, "Failed to store the offset.");
        let event: serde_json::Value =
            serde_json::from_str(&logged(LogFormat::Json, "info", log)).unwrap();
        assert_eq!(event["level"], "WARN");
        assert_eq!(event["message"], "Failed to store the offset.");
        assert_eq!(event["partition"].as_u64(), Some(3));
        assert!(event["timestamp"].is_string());
    }

    #[test]
    fn the_default_filter_keeps_the_client_library_quiet() {
        let text = logged(LogFormat::Text, DEFAULT_FILTER, || {
            tracing::info!(target: "librdkafka", "chatter");
            tracing::warn!(target: "librdkafka", "trouble");
            tracing::info!("ours");
            tracing::debug!("detail");
        });
        assert!(text.contains("trouble") && text.contains("ours"), "{text}");
        assert!(!text.contains("chatter") && !text.contains("detail"), "{text}");
    }

    #[test]
    fn the_variable_wins_where_it_says_something() {
        let read = |variable: Result<&str, VarError>| {
            filter(variable.map(str::to_owned), "warn").map(|filter| filter.to_string())
        };
        assert_eq!(read(Ok("debug")).unwrap(), "debug");
        assert_eq!(read(Ok("  ")).unwrap(), "warn");
        assert_eq!(read(Err(VarError::NotPresent)).unwrap(), "warn");
        let error = read(Ok("onced=loud")).unwrap_err().to_string();
        assert!(error.starts_with("ONCED_LOG = \"onced=loud\" is not a log filter"), "{error}");
    }
}
