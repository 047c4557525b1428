//! The configuration: what every part of the daemon is told, checked before anything is opened.
//!
//! ```text
//! file  <  ONCED_SECTION__KEY  <  --set section.key=value
//!   --> layers    one value for each key, every key known (see known)
//!   --> raw       the TOML, key by key, as it is written
//!   --> resolve   defaults, limits, rules: nothing is left to interpret
//! ```
//!
//! Owns: [`Config`] and the one look at the environment for it.
//! Never: opens a port, a log or a connection; stops at the first problem; shows a password.

mod error;
mod handler;
mod identity;
mod known;
mod layers;
mod names;
mod properties;
mod raw;
mod resolve;
mod route;
mod section;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::error::{ConfigError, Problem};
pub use self::properties::Properties;

use self::layers::Layers;
use crate::dedup::expiry::Window;
use crate::handler::{http, kafka, retry};
use crate::record::Timestamp;

/// Where a configuration comes from; what is further down counts more. Not `Debug`: the environment
/// holds passwords.
#[derive(Clone, Default)]
pub struct Sources<'a> {
    /// TOML. Without a file, every key comes from the other layers.
    pub file: Option<&'a Path>,
    /// Variables by name, see [`environment`]. `ONCED_ROUTES__PAYMENTS__WINDOW__TTL` is
    /// `routes.payments.window.ttl`: two underscores separate the parts of a key. In a name of
    /// `kafka.properties`, an underscore is a dot.
    pub env: Vec<(String, String)>,
    /// `section.key=value`, the value in TOML or as plain text.
    pub set: &'a [String],
    /// Handlers that were registered from Rust: further values of `handler.kind`.
    pub handlers: &'a [String],
}

/// The variables of this process. What is not UTF-8 cannot be a key or a value of onced.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    let text = |text: std::ffi::OsString| text.into_string().ok();
    std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

/// Reads the layers and checks everything that can be checked without a broker.
///
/// # Errors
/// [`ConfigError`] with all problems that were found, not only the first.
pub fn load(sources: &Sources<'_>) -> Result<Config, ConfigError> {
    let mut layers = Layers::default();
    if !sources.file.is_none_or(|path| layers.add_file(path)) {
        return Err(ConfigError { problems: layers.problems });
    }
    layers.add_environment(&sources.env);
    for argument in sources.set {
        layers.add_set(argument);
    }
    let table = layers.table();
    let mut problems = std::mem::take(&mut layers.problems);
    match table.try_into() {
        Ok(raw) => {
            let config = resolve::resolve(&layers, raw, sources.handlers, &mut problems);
            if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
        }
        // The keys and forms were checked; whatever is left is still no reason to panic.
        Err(error) => {
            problems.push(Problem::new("configuration", None, error.message()));
            Err(ConfigError { problems })
        }
    }
}

/// Everything, resolved. There is at least one route, and no topic belongs to two.
#[derive(Clone, Debug)]
pub struct Config {
    pub kafka: Kafka,
    pub log: Log,
    pub admin: Admin,
    pub runtime: Runtime,
    /// In the order of their names.
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// Host and port of one broker or several, separated by commas.
    pub brokers: String,
    /// The companion group `<group>.onced` keeps the highest offsets; no group ends like this.
    pub group: String,
    /// Counts for partitions of which neither group nor log knows anything.
    pub start: Start,
    /// How often offsets are committed. Another instance runs again what was settled since then.
    pub commit_interval: Duration,
    /// The longest that an exactly-once route collects before it commits.
    pub transaction_interval: Duration,
    /// None of them is one that onced owns.
    pub properties: Properties,
}

/// Where a partition starts that was never read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
    /// At the first record of this time or later.
    At(Timestamp),
}

/// The dedup log on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Relative to the working directory.
    pub dir: PathBuf,
    /// Bytes for all that the log keeps in memory. At least 16 MiB.
    pub memory: u64,
    /// Bounds what a crash has to absorb where there is no write-ahead log.
    pub flush_interval: Duration,
    /// With less free bytes than this on the disk, nothing more is consumed. 0: no reserve.
    pub disk_reserve: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `None`: no admin server.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Threads that own partitions. At least 1.
    pub workers: usize,
    /// How long a rebalance or a stop waits for calls that are running. Shorter than
    /// `max.poll.interval.ms`, so that the partition is still ours when they have ended.
    pub drain_timeout: Duration,
}

/// Topics, identity, window, handler and policies that belong together.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: Arc<str>,
    /// At least one; no other route has any of them.
    pub topics: Vec<Arc<str>>,
    pub mode: Mode,
    pub identity: crate::identity::Config,
    pub missing: Missing,
    pub window: Window,
    pub handler: HandlerKind,
    /// Records whose handler was called and whose settlement is not in the log. At least 1.
    pub concurrency: usize,
    pub order: Order,
    /// Handler calls a second. 0: no limit.
    pub rate: u32,
    pub idempotency_key: KeyGiven,
    pub retry: retry::Policy,
    pub exhausted: Exhausted,
    /// The topic. Not an input topic of any route. `None`: the route pauses at the first record
    /// that needs it.
    pub dead_letter: Option<Arc<str>>,
    pub conflict: Conflict,
    pub duplicate: Duplicate,
}

/// What a crash may do to a record that is in work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// It runs again, with the same idempotency key.
    #[default]
    AtLeastOnce,
    /// What it did and its offset are visible together or not at all.
    ExactlyOnce,
}

/// What happens to a record without an identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// It is handled, and not deduplicated.
    #[default]
    Process,
    DeadLetter,
    /// The daemon stops with exit code 1.
    Fail,
}

#[derive(Clone, Debug)]
pub enum HandlerKind {
    Stdout,
    /// Of exactly-once routes, and they have no other.
    Kafka(kafka::Config),
    Http(http::Config),
    /// The name under which it was registered from Rust.
    Registered(String),
}

/// What is handled one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    RecordKey,
    Identity,
    Partition,
}

/// What a handler is given as idempotency key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyGiven {
    /// The identity in hexadecimal digits.
    #[default]
    Identity,
    /// The key as the client sent it.
    Client,
}

/// What happens to a record after its last attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exhausted {
    #[default]
    DeadLetter,
    /// The partition waits for the downstream system.
    Pause,
}

/// What happens to a record with the identity of another and another payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conflict {
    #[default]
    DeadLetter,
    Suppress,
    /// The payload is part of the identity: there are no conflicts.
    Process,
}

/// What happens to a duplicate, apart from being counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Duplicate {
    #[default]
    Suppress,
}

#[cfg(test)]
mod example;
#[cfg(test)]
mod tests;
