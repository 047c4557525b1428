//! From what is written to what is meant: defaults, limits and the rules across sections.
//!
//! Owns: the sections that belong to the whole daemon, and what must hold between routes.
//! Never: opens anything. What only the broker can tell is checked later.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use toml::value::{Datetime, Offset};

use super::error::Problem;
use super::layers::Layers;
use super::properties;
use super::section::Section;
use super::{Admin, Config, HandlerKind, Kafka, Log, Route, Runtime, Start, raw, route};
use crate::record::Timestamp;

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

const MIB: u64 = 1 << 20;
/// Beyond any disk: a slip of the unit.
const SIZE_MAX: u64 = 1 << 50;
/// RocksDB needs room for a few memtables and the filters.
const MEMORY_MIN: u64 = 16 * MIB;

/// More threads than this only wait for one another's disk.
const WORKERS_MAX: u32 = 64;

/// Companion groups are named `<group>.onced`; a group of such a name could be another's companion.
const HIGH_WATER_SUFFIX: &str = ".onced";

/// Resolves everything. The configuration is of use only where no problem was added.
pub(super) fn resolve(
    layers: &Layers,
    raw: raw::Config,
    handlers: &[String],
    problems: &mut Vec<Problem>,
) -> Config {
    let kafka = kafka(Section::new(layers, problems, "kafka"), raw.kafka);
    let log = log(Section::new(layers, problems, "log"), &raw.log);
    let admin = admin(Section::new(layers, problems, "admin"), &raw.admin);
    let runtime = runtime(Section::new(layers, problems, "runtime"), &raw.runtime, &kafka);
    route::check_registered(handlers, problems);
    let mut routes = Vec::with_capacity(raw.routes.len());
    for (name, raw) in &raw.routes {
        let section = Section::new(layers, problems, route::prefix(name));
        routes.push(route::resolve(section, name, raw, handlers));
    }
    check_routes(layers, &routes, problems);
    Config { kafka, log, admin, runtime, routes }
}

fn kafka(mut at: Section<'_>, raw: raw::Kafka) -> Kafka {
    let brokers = raw.brokers.unwrap_or_else(|| "127.0.0.1:9092".into());
    if brokers.trim().is_empty() {
        at.problem("brokers", "must name at least one broker, as in \"127.0.0.1:9092\"");
    }
    Kafka {
        brokers,
        group: group(&mut at, raw.group),
        start: start(&mut at, raw.start.as_deref()),
        commit_interval: at.duration(
            "commit_interval",
            raw.commit_interval.as_deref(),
            Duration::from_secs(1),
            MILLISECOND..=HOUR,
        ),
        transaction_interval: at.duration(
            "transaction_interval",
            raw.transaction_interval.as_deref(),
            Duration::from_millis(100),
            MILLISECOND..=HOUR,
        ),
        properties: properties::resolve(&mut at, raw.properties),
    }
}

fn group(at: &mut Section<'_>, given: Option<String>) -> String {
    let Some(group) = given else {
        at.missing("group", "is needed: the name of the consumer group");
        return String::new();
    };
    if group.trim().is_empty() {
        at.problem("group", "must not be empty");
    }
    if group.ends_with(HIGH_WATER_SUFFIX) {
        at.problem(
            "group",
            format!(
                "must not end in {HIGH_WATER_SUFFIX:?}: onced keeps such a group beside each group"
            ),
        );
    }
    group
}

fn start(at: &mut Section<'_>, given: Option<&str>) -> Start {
    match given {
        None | Some("earliest") => Start::Earliest,
        Some("latest") => Start::Latest,
        Some(text) => moment(text).map_or_else(
            || {
                let rule = "must be \"earliest\", \"latest\" or an RFC 3339 time since 1970 with \
                            its offset, as in \"2026-01-31T08:00:00Z\"";
                at.problem("start", rule);
                Start::Earliest
            },
            Start::At,
        ),
    }
}

/// RFC 3339, at most to the year 9999.
fn moment(text: &str) -> Option<Timestamp> {
    let mut time: Datetime = text.trim().parse().ok()?;
    let minutes = match time.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    time.offset = Some(Offset::Z);
    let since =
        humantime::parse_rfc3339(&time.to_string()).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let local = i64::try_from(since.as_millis()).ok()?;
    Some(Timestamp(local - minutes * 60_000)).filter(|time| time.0 >= 0)
}

fn log(mut at: Section<'_>, raw: &raw::Log) -> Log {
    let dir = PathBuf::from(raw.dir.as_deref().unwrap_or("./onced-data"));
    if dir.as_os_str().is_empty() {
        at.problem("dir", "must not be empty; \".\" is the working directory");
    }
    Log {
        dir,
        memory: at.size("memory", raw.memory.as_deref(), 256 * MIB, MEMORY_MIN..=SIZE_MAX),
        flush_interval: at.duration(
            "flush_interval",
            raw.flush_interval.as_deref(),
            Duration::from_secs(30),
            100 * MILLISECOND..=HOUR,
        ),
        disk_reserve: at.size("disk_reserve", raw.disk_reserve.as_deref(), 512 * MIB, 0..=SIZE_MAX),
    }
}

fn admin(mut at: Section<'_>, raw: &raw::Admin) -> Admin {
    let text = raw.listen.as_deref().unwrap_or("127.0.0.1:9464");
    if text.is_empty() {
        return Admin { listen: None };
    }
    let listen = text.parse::<SocketAddr>().ok();
    if listen.is_none() {
        let rule = "must be an address and a port, as in \"127.0.0.1:9464\"; \"\" turns it off";
        at.problem("listen", rule);
    }
    Admin { listen }
}

fn runtime(mut at: Section<'_>, raw: &raw::Runtime, kafka: &Kafka) -> Runtime {
    let workers = at.whole("workers", raw.workers, default_workers(), 1..=WORKERS_MAX);
    let drain_timeout = at.duration(
        "drain_timeout",
        raw.drain_timeout.as_deref(),
        Duration::from_secs(30),
        MILLISECOND..=HOUR,
    );
    let poll_max = max_poll_interval(kafka);
    if drain_timeout >= poll_max {
        let drain = humantime::format_duration(drain_timeout);
        let poll = humantime::format_duration(poll_max);
        let rule = format!(
            "{drain} is not shorter than max.poll.interval.ms of kafka.properties ({poll}): a drain \
             as long as that loses the partition"
        );
        at.problem("drain_timeout", rule);
    }
    Runtime { workers: workers as usize, drain_timeout }
}

fn default_workers() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores - 1).unwrap_or(WORKERS_MAX).clamp(1, WORKERS_MAX)
}

/// As set, or librdkafka's default. What is not a number there is for librdkafka to refuse.
fn max_poll_interval(kafka: &Kafka) -> Duration {
    let given = kafka.properties.get("max.poll.interval.ms").and_then(|text| text.parse().ok());
    Duration::from_millis(given.unwrap_or(300_000))
}

/// What must hold between routes.
fn check_routes(layers: &Layers, routes: &[Route], problems: &mut Vec<Problem>) {
    if routes.is_empty() && layers.routes.is_empty() {
        let rule = "at least one route is needed, as in [routes.payments]";
        problems.push(Problem::new("routes", None, rule));
    }
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for route in routes {
        let mut at = Section::new(layers, problems, route::prefix(&route.name));
        for topic in &route.topics {
            match owners.insert(topic, &route.name) {
                Some(owner) if *owner == *route.name => {
                    at.problem("topics", format!("names topic {topic:?} twice"));
                }
                Some(owner) => at.problem(
                    "topics",
                    format!(
                        "topic {topic:?} belongs to route {owner:?} already; a topic belongs to \
                         one route"
                    ),
                ),
                None => {}
            }
        }
    }
    for route in routes {
        let HandlerKind::Kafka(kafka) = &route.handler else { continue };
        if route.topics.contains(&kafka.topic) {
            let rule = "is an input topic of this route: its outputs would be passed on for ever; \
                        choose another topic";
            Section::new(layers, problems, route::prefix(&route.name))
                .problem("handler.topic", rule);
        }
    }
    for route in routes {
        let Some(topic) = &route.dead_letter else { continue };
        if let Some(owner) = owners.get(&**topic) {
            let rule = format!(
                "is an input topic of route {owner:?}: its letters would be handled again; \
                 choose another topic"
            );
            Section::new(layers, problems, route::prefix(&route.name))
                .problem("dead_letter.topic", rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_refused, load_set};
    use super::*;

    #[track_caller]
    fn check_start(text: &str, expected: Start) {
        let config = load_set(&[&format!("kafka.start={text}")]).unwrap();
        assert_eq!(config.kafka.start, expected, "{text}");
    }

    #[test]
    fn a_start_is_an_end_of_the_topic_or_a_time() {
        check_start("earliest", Start::Earliest);
        check_start("latest", Start::Latest);
        check_start("1970-01-01T00:00:00Z", Start::At(Timestamp(0)));
        check_start("2026-01-31T08:00:00.250Z", Start::At(Timestamp(1_769_846_400_250)));
        check_start("2026-01-31T08:00:00+02:00", Start::At(Timestamp(1_769_839_200_000)));
        check_start("2026-01-31 08:00:00-00:30", Start::At(Timestamp(1_769_848_200_000)));
    }

    #[test]
    fn other_starts_are_refused() {
        for text in [
            "",
            "Earliest",
            "yesterday",
            "2026-01-31",
            "08:00:00",
            "2026-01-31T08:00:00",
            "2026-02-30T08:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
        ] {
            let error = load_set(&[&format!("kafka.start={text}")]).expect_err(text);
            assert_eq!(error.problems[0].key, "kafka.start");
        }
    }

    #[test]
    fn a_group_is_named_and_is_no_companion() {
        check_refused(
            &["kafka.group=a.onced"],
            &[
                "kafka.group = \"a.onced\": must not end in \".onced\": onced keeps such a group beside \
               each group (--set kafka.group)",
            ],
        );
        check_refused(
            &["kafka.group=", "kafka.brokers= "],
            &[
                "kafka.brokers = \"\": must name at least one broker, as in \"127.0.0.1:9092\" \
                 (--set kafka.brokers)",
                "kafka.group = \"\": must not be empty (--set kafka.group)",
            ],
        );
    }

    #[test]
    fn the_admin_server_has_an_address_or_is_off() {
        let config = load_set(&["admin.listen=[::1]:80"]).unwrap();
        assert_eq!(config.admin.listen, "[::1]:80".parse().ok());
        assert_eq!(load_set(&["admin.listen="]).unwrap().admin.listen, None);
        check_refused(
            &["admin.listen=:9464"],
            &[
                "admin.listen = \":9464\": must be an address and a port, as in \"127.0.0.1:9464\"; \"\" \
               turns it off (--set admin.listen)",
            ],
        );
    }

    #[test]
    fn workers_and_directory_have_limits() {
        assert_eq!(load_set(&["runtime.workers=64"]).unwrap().runtime.workers, 64);
        check_refused(
            &["runtime.workers=65", "log.dir="],
            &[
                "log.dir = \"\": must not be empty; \".\" is the working directory (--set log.dir)",
                "runtime.workers = 65: must be at most 64 (--set runtime.workers)",
            ],
        );
    }

    #[test]
    fn a_drain_ends_before_the_group_gives_the_partition_away() {
        check_refused(
            &["runtime.drain_timeout=5m"],
            &["runtime.drain_timeout = \"5m\": 5m is not shorter than max.poll.interval.ms of \
               kafka.properties (5m): a drain as long as that loses the partition (--set \
               runtime.drain_timeout)"],
        );
        let longer = "kafka.properties.max.poll.interval.ms=600000";
        assert!(load_set(&["runtime.drain_timeout=5m", longer]).is_ok());
        assert!(load_set(&["kafka.properties.max.poll.interval.ms=20000"]).is_err());
    }

    const OTHER: &str = "routes.other.handler.kind=stdout";

    #[test]
    fn a_topic_belongs_to_one_route() {
        check_refused(
            &[OTHER, "routes.other.topics=['x', 'payments']"],
            &[
                "routes.payments.topics = [\"payments\"]: topic \"payments\" belongs to route \"other\" \
               already; a topic belongs to one route (--set routes.payments.topics)",
            ],
        );
        check_refused(
            &["routes.payments.topics=['a', 'a']"],
            &["routes.payments.topics = [\"a\", \"a\"]: names topic \"a\" twice (--set \
               routes.payments.topics)"],
        );
    }

    #[test]
    fn letters_do_not_come_back_as_input() {
        check_refused(
            &[OTHER, "routes.other.topics=dead", "routes.payments.dead_letter.topic=dead"],
            &[
                "routes.payments.dead_letter.topic = \"dead\": is an input topic of route \"other\": its \
               letters would be handled again; choose another topic (--set \
               routes.payments.dead_letter.topic)",
            ],
        );
        assert!(load_set(&["routes.payments.dead_letter.topic=payments"]).is_err());
    }

    #[test]
    fn routes_may_share_a_dead_letter_topic_and_come_in_the_order_of_their_names() {
        let config = load_set(&[
            OTHER,
            "routes.other.topics=x",
            "routes.other.dead_letter.topic=dead",
            "routes.payments.dead_letter.topic=dead",
        ])
        .unwrap();
        let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
        assert_eq!(names, ["other", "payments"]);
    }
}
