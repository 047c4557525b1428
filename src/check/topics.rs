//! Topics: are they there, may they be used, and do they keep what the window needs?
//!
//! Owns: the judgement of one topic. Pure.
//! Never: asks the broker (see `broker`).

use std::time::Duration;

use bytesize::ByteSize;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::report::Row;
use crate::config::{HandlerKind, Route};
use crate::dedup::expiry::millis;
use crate::source::admin::TopicSettings;

/// What the broker says of a topic that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    pub partitions: i32,
    /// Partitions that no broker leads now.
    pub leaderless: Vec<i32>,
    /// Of the partition that has the fewest. 0: the broker does not say.
    pub fewest_replicas: usize,
    /// `None`: the broker does not say.
    pub allowed: Option<Allowed>,
}

/// What this user may do with a topic or a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    pub read: bool,
    pub write: bool,
}

/// The answers about one topic.
#[derive(Debug)]
pub struct Facts {
    pub described: Result<Described, RDKafkaErrorCode>,
    /// `None`: not asked, since there is no such topic or the broker fell silent.
    pub settings: Option<Result<TopicSettings, KafkaError>>,
}

/// What a topic is to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Input,
    /// Letters are written there, and read again when a partition starts.
    DeadLetter,
    /// Transactions write there.
    Output,
}

/// A topic in its role.
#[derive(Clone, Copy, Debug)]
pub struct Topic<'a> {
    pub name: &'a str,
    pub role: Role,
    pub route: &'a Route,
    pub facts: &'a Facts,
    /// The largest batch that any input topic of the route takes.
    pub input_bytes_max: Option<i64>,
    /// The largest answer that the client takes.
    pub receive_bytes_max: i64,
}

impl Topic<'_> {
    pub fn rows(&self) -> Vec<Row> {
        let described = match &self.facts.described {
            Ok(described) => described,
            Err(code) => return vec![self.unusable(*code)],
        };
        let mut rows = vec![self.there(described)];
        rows.extend(self.one_replica(described));
        match &self.facts.settings {
            // The client does not pass on that the settings may not be read: it tells none.
            Some(Ok(settings)) if settings.max_message_bytes.is_none() => {
                rows.push(self.settings_unknown());
            }
            Some(Ok(settings)) if self.role == Role::Output => {
                rows.extend(self.without_key(settings));
                rows.extend(self.message_bytes(settings));
            }
            Some(Ok(settings)) => {
                rows.push(self.retention(settings));
                rows.extend(self.by_size(settings));
                rows.extend(self.without_key(settings));
                rows.extend(self.message_bytes(settings));
            }
            Some(Err(_)) => rows.push(self.settings_unknown()),
            None => {}
        }
        rows
    }

    fn subject(&self) -> String {
        match self.role {
            Role::Input => format!("topic {}", self.name),
            Role::DeadLetter => format!("dead-letter topic {}", self.name),
            Role::Output => format!("output topic {}", self.name),
        }
    }

    /// Where the topic is named in the configuration.
    fn key(&self) -> String {
        let key = match self.role {
            Role::Input => "topics",
            Role::DeadLetter => "dead_letter.topic",
            Role::Output => "handler.topic",
        };
        format!("routes.{}.{key}", self.route.name)
    }

    fn operations(&self) -> &'static str {
        match self.role {
            Role::Input => "READ, DESCRIBE and DESCRIBE_CONFIGS",
            Role::DeadLetter => "WRITE, READ, DESCRIBE and DESCRIBE_CONFIGS",
            Role::Output => "WRITE, DESCRIBE and DESCRIBE_CONFIGS",
        }
    }

    fn unusable(&self, code: RDKafkaErrorCode) -> Row {
        let (name, key) = (self.name, self.key());
        let (found, advice) = match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => (
                "there is no such topic".to_owned(),
                format!("create it (kafka-topics.sh --create --topic {name}), or correct {key}"),
            ),
            RDKafkaErrorCode::TopicAuthorizationFailed => (
                "authorization failed: this user may not describe the topic".to_owned(),
                format!("allow {} on it, or use another user", self.operations()),
            ),
            RDKafkaErrorCode::InvalidTopic => {
                ("this is not the name of a topic".to_owned(), format!("correct {key}"))
            }
            code => (format!("the broker answers: {code}"), format!("mend that, or correct {key}")),
        };
        Row::failed(self.subject(), found, advice)
    }

    fn there(&self, described: &Described) -> Row {
        let partitions = match described.partitions {
            1 => "1 partition".to_owned(),
            many => format!("{many} partitions"),
        };
        if !described.leaderless.is_empty() {
            let found = format!(
                "no broker leads partition {}, of {partitions}",
                super::numbers(&described.leaderless)
            );
            return Row::failed(self.subject(), found, "start the brokers that hold it");
        }
        let Some(allowed) = described.allowed else {
            let found =
                format!("{partitions}; permissions not checked: the broker does not say them");
            return Row::note(self.subject(), found, "");
        };
        let needed = match self.role {
            Role::Input => &[(allowed.read, "READ")][..],
            Role::DeadLetter => &[(allowed.write, "WRITE"), (allowed.read, "READ")],
            Role::Output => &[(allowed.write, "WRITE")],
        };
        let lacking: Vec<_> =
            needed.iter().filter(|(has, _)| !has).map(|(_, name)| *name).collect();
        if !lacking.is_empty() {
            let lacking = lacking.join(" and ");
            let found = format!("authorization failed: this user has no {lacking} on the topic");
            return Row::failed(
                self.subject(),
                found,
                format!("allow {lacking} on it, or use another user"),
            );
        }
        let may = match self.role {
            Role::Input => "may be read",
            Role::DeadLetter => "may be written and read",
            Role::Output => "may be written",
        };
        Row::ok(self.subject(), format!("{partitions}, {may}"))
    }

    /// See `commit::transaction::leftovers`.
    fn one_replica(&self, described: &Described) -> Option<Row> {
        let transacts = matches!(self.route.handler, HandlerKind::Kafka(_));
        if !transacts || self.role == Role::Input || described.fewest_replicas != 1 {
            return None;
        }
        let found =
            "one replica: a broker that dies can leave a transaction open, which stops the route";
        Some(Row::warning(
            self.subject(),
            found,
            "give it three replicas and min.insync.replicas=2",
        ))
    }

    fn settings_unknown(&self) -> Row {
        if self.role == Role::Output {
            let found = "max.message.bytes not checked: the broker did not tell the settings";
            return Row::warning(self.subject(), found, "allow DESCRIBE_CONFIGS on it");
        }
        let found = "retention not checked: the broker did not tell the settings";
        let name = &self.route.name;
        let advice = format!(
            "allow DESCRIBE_CONFIGS on it, or compare retention.ms with routes.{name}.window yourself"
        );
        Row::warning(self.subject(), found, advice)
    }

    /// What the topic keeps against what a rebuild of the log has to read.
    fn retention(&self, settings: &TopicSettings) -> Row {
        let window = &self.route.window;
        let needed_ms = millis(window.ttl).saturating_add(millis(window.lateness));
        let needed = format!("window.ttl and window.lateness together are {}", duration(needed_ms));
        let Some(keeps_ms) = settings.keeps_ms() else {
            return Row::ok(self.subject(), format!("keeps records for ever; {needed}"));
        };
        if keeps_ms >= needed_ms {
            return Row::ok(
                self.subject(),
                format!("keeps records for {}; {needed}", duration(keeps_ms)),
            );
        }
        let by_compaction = settings.compacted && keeps_ms == settings.min_compaction_lag_ms;
        let (keeps, setting) = if by_compaction {
            ("is compacted, and sure to keep records for only", "min.compaction.lag.ms")
        } else {
            ("keeps records for only", "retention.ms")
        };
        let found = format!("{keeps} {} ({setting}); {needed}", duration(keeps_ms));
        let consequence = match self.role {
            Role::Input => "a log that is lost forgets older messages",
            Role::DeadLetter | Role::Output => {
                "a log that is lost takes records of older letters for handled"
            }
        };
        let advice = format!(
            "{consequence}: set {setting} to at least {needed_ms}, or shorten routes.{}.window",
            self.route.name
        );
        Row::warning(self.subject(), found, advice)
    }

    fn by_size(&self, settings: &TopicSettings) -> Option<Row> {
        let bytes = settings.retention_bytes?;
        let found = format!(
            "also limited by size: {} a partition (retention.bytes); whether that lasts for the window depends on the traffic",
            size(bytes)
        );
        Some(Row::note(
            self.subject(),
            found,
            "make it larger than what comes in within the window",
        ))
    }

    /// A compacted topic refuses records without a key, and letters keep the key of their record.
    fn without_key(&self, settings: &TopicSettings) -> Option<Row> {
        if self.role == Role::Input || !settings.compacted {
            return None;
        }
        if self.role == Role::Output {
            let found = "is compacted: it refuses records without a key, which stops the route";
            return Some(Row::note(self.subject(), found, "see that every record has a key"));
        }
        let found = "is compacted: it refuses the letters of records without a key, and keeps one \
                     letter for each key";
        Some(Row::warning(self.subject(), found, "use a topic with cleanup.policy=delete"))
    }

    fn message_bytes(&self, settings: &TopicSettings) -> Option<Row> {
        let bytes = settings.max_message_bytes?;
        let takes = format!("takes up to {} at once (max.message.bytes)", size(bytes));
        Some(match (self.role, self.input_bytes_max) {
            (Role::Input, _) if bytes > self.receive_bytes_max => Row::warning(
                self.subject(),
                format!("{takes}, more than the client: {}", size(self.receive_bytes_max)),
                "raise \"receive.message.max.bytes\" in kafka.properties",
            ),
            (Role::Output, Some(input)) if bytes < input => Row::warning(
                self.subject(),
                format!("{takes}, less than the input: {}", size(input)),
                "a larger record becomes a dead letter, or pauses a route that has no dead-letter topic: raise max.message.bytes",
            ),
            (Role::DeadLetter, Some(input)) if bytes < input => Row::warning(
                self.subject(),
                format!("{takes}, less than the input: {}", size(input)),
                "the letter of a larger record goes without its payload: raise max.message.bytes",
            ),
            _ => Row::ok(self.subject(), takes),
        })
    }
}

fn duration(ms: i64) -> String {
    humantime::format_duration(Duration::from_millis(ms.unsigned_abs())).to_string()
}

fn size(bytes: i64) -> String {
    ByteSize::b(bytes.unsigned_abs()).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::super::tests::route;
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn described() -> Described {
        let allowed = Some(Allowed { read: true, write: true });
        Described { partitions: 12, leaderless: Vec::new(), fewest_replicas: 3, allowed }
    }

    fn settings() -> TopicSettings {
        TopicSettings {
            retention_ms: Some(168 * HOUR_MS),
            max_message_bytes: Some(1 << 20),
            ..TopicSettings::default()
        }
    }

    fn judged(
        role: Role,
        described: Result<Described, RDKafkaErrorCode>,
        settings: TopicSettings,
    ) -> Vec<Row> {
        let route = route(&["window={ ttl = '24h', lateness = '1h' }"]);
        let settings = described.is_ok().then_some(Ok(settings));
        topic(&route, role, &Facts { described, settings }).rows()
    }

    fn topic<'a>(route: &'a Route, role: Role, facts: &'a Facts) -> Topic<'a> {
        Topic {
            name: "t",
            role,
            route,
            facts,
            input_bytes_max: Some(1 << 20),
            receive_bytes_max: 100_000_000,
        }
    }

    #[track_caller]
    fn check(rows: &[Row], level: Level, found: &str, advice: &str) {
        let row =
            rows.iter().find(|row| row.found.contains(found)).unwrap_or_else(|| panic!("{rows:?}"));
        assert_eq!(row.level, level, "{row:?}");
        assert!(row.advice.contains(advice), "{row:?}");
    }

    fn worst(rows: &[Row]) -> Level {
        rows.iter().map(|row| row.level).max().unwrap()
    }

    #[test]
    fn a_topic_that_is_there_and_keeps_enough_is_fine() {
        for role in [Role::Input, Role::DeadLetter] {
            let rows = judged(role, Ok(described()), settings());
            assert_eq!(worst(&rows), Level::Ok, "{rows:?}");
            check(&rows, Level::Ok, "12 partitions, may be", "");
            check(
                &rows,
                Level::Ok,
                "keeps records for 7days; window.ttl and window.lateness together are 1day 1h",
                "",
            );
            check(&rows, Level::Ok, "takes up to 1.0 MiB", "");
        }
    }

    #[test]
    fn a_missing_topic_is_named_with_the_way_out() {
        let rows = judged(Role::Input, Err(RDKafkaErrorCode::UnknownTopicOrPartition), settings());
        assert_eq!(rows[0].subject, "topic t");
        check(&rows, Level::Failed, "no such topic", "or correct routes.r.topics");
        let rows =
            judged(Role::DeadLetter, Err(RDKafkaErrorCode::UnknownTopicOrPartition), settings());
        assert_eq!(rows[0].subject, "dead-letter topic t");
        check(&rows, Level::Failed, "no such topic", "or correct routes.r.dead_letter.topic");
    }

    #[test]
    fn what_is_not_allowed_says_so() {
        let rows = judged(Role::Input, Err(RDKafkaErrorCode::TopicAuthorizationFailed), settings());
        check(&rows, Level::Failed, "authorization failed", "allow READ, DESCRIBE");
        let with =
            |read, write| Described { allowed: Some(Allowed { read, write }), ..described() };
        let rows = judged(Role::Input, Ok(with(false, true)), settings());
        check(&rows, Level::Failed, "has no READ", "allow READ on it");
        let rows = judged(Role::DeadLetter, Ok(with(true, false)), settings());
        check(&rows, Level::Failed, "has no WRITE", "allow WRITE on it");
        let rows = judged(Role::DeadLetter, Ok(with(false, false)), settings());
        check(&rows, Level::Failed, "has no WRITE and READ", "");
        assert_eq!(worst(&judged(Role::Input, Ok(with(true, false)), settings())), Level::Ok);
    }

    #[test]
    fn an_output_is_written_and_not_read() {
        let with =
            |read, write| Described { allowed: Some(Allowed { read, write }), ..described() };
        // What it keeps is the affair of its readers.
        let short = TopicSettings { retention_ms: Some(1), ..settings() };
        assert_eq!(worst(&judged(Role::Output, Ok(with(false, true)), short)), Level::Ok);
        let rows = judged(Role::Output, Ok(with(true, false)), settings());
        assert_eq!(rows[0].subject, "output topic t");
        check(&rows, Level::Failed, "has no WRITE", "allow WRITE on it");
        let small = TopicSettings { max_message_bytes: Some(1_000), ..settings() };
        let rows = judged(Role::Output, Ok(described()), small);
        check(&rows, Level::Warning, "less than the input", "becomes a dead letter");
        let missing = Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        let rows = judged(Role::Output, missing, settings());
        check(&rows, Level::Failed, "no such topic", "or correct routes.r.handler.topic");
    }

    #[test]
    fn one_replica_of_an_output_is_too_few() {
        let one = Described { fewest_replicas: 1, ..described() };
        let facts = Facts { described: Ok(one), settings: None };
        let outside = route(&[]);
        assert_eq!(worst(&topic(&outside, Role::DeadLetter, &facts).rows()), Level::Ok);
        let passes_on = route(&["handler={ kind = 'kafka', topic = 'out' }"]);
        for role in [Role::Output, Role::DeadLetter] {
            let rows = topic(&passes_on, role, &facts).rows();
            check(&rows, Level::Warning, "one replica", "three replicas");
        }
        assert_eq!(worst(&topic(&passes_on, Role::Input, &facts).rows()), Level::Ok);
    }

    #[test]
    fn an_old_broker_does_not_say_what_is_allowed() {
        let rows = judged(Role::Input, Ok(Described { allowed: None, ..described() }), settings());
        check(&rows, Level::Note, "permissions not checked", "");
    }

    #[test]
    fn a_partition_without_a_leader_cannot_be_used() {
        let rows = judged(
            Role::Input,
            Ok(Described { leaderless: vec![3, 4], ..described() }),
            settings(),
        );
        check(
            &rows,
            Level::Failed,
            "no broker leads partition 3-4, of 12 partitions",
            "start the brokers",
        );
    }

    #[test]
    fn retention_shorter_than_the_window_is_a_warning() {
        let short = TopicSettings { retention_ms: Some(25 * HOUR_MS - 1), ..settings() };
        check(
            &judged(Role::Input, Ok(described()), short.clone()),
            Level::Warning,
            "(retention.ms)",
            "to at least 90000000",
        );
        check(
            &judged(Role::DeadLetter, Ok(described()), short),
            Level::Warning,
            "(retention.ms)",
            "takes records of older letters for handled",
        );
        let enough = TopicSettings { retention_ms: Some(25 * HOUR_MS), ..settings() };
        assert_eq!(worst(&judged(Role::Input, Ok(described()), enough)), Level::Ok);
        let for_ever = TopicSettings { retention_ms: None, ..settings() };
        check(&judged(Role::Input, Ok(described()), for_ever), Level::Ok, "for ever", "");
    }

    #[test]
    fn compaction_counts_by_its_lag() {
        let compacted = |min_compaction_lag_ms| TopicSettings {
            retention_ms: None,
            compacted: true,
            min_compaction_lag_ms,
            ..settings()
        };
        check(
            &judged(Role::Input, Ok(described()), compacted(0)),
            Level::Warning,
            "is compacted",
            "set min.compaction.lag.ms",
        );
        assert_eq!(
            worst(&judged(Role::Input, Ok(described()), compacted(25 * HOUR_MS))),
            Level::Ok
        );
        let rows = judged(Role::DeadLetter, Ok(described()), compacted(25 * HOUR_MS));
        check(&rows, Level::Warning, "without a key", "cleanup.policy=delete");
    }

    #[test]
    fn a_limit_by_size_is_worth_a_note() {
        let sized = TopicSettings { retention_bytes: Some(1 << 30), ..settings() };
        check(&judged(Role::Input, Ok(described()), sized), Level::Note, "1.0 GiB a partition", "");
    }

    #[test]
    fn sizes_are_compared() {
        let small = TopicSettings { max_message_bytes: Some(1 << 10), ..settings() };
        check(
            &judged(Role::DeadLetter, Ok(described()), small.clone()),
            Level::Warning,
            "less than the input",
            "without its payload",
        );
        assert_eq!(worst(&judged(Role::Input, Ok(described()), small)), Level::Ok);
        let large = TopicSettings { max_message_bytes: Some(1 << 30), ..settings() };
        check(
            &judged(Role::Input, Ok(described()), large),
            Level::Warning,
            "more than the client",
            "receive.message.max.bytes",
        );
    }

    #[test]
    fn settings_that_are_not_told_are_a_warning() {
        let denied = KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed);
        for settings in [Err(denied), Ok(TopicSettings::default())] {
            let facts = Facts { described: Ok(described()), settings: Some(settings) };
            let rows = topic(&route(&[]), Role::Input, &facts).rows();
            check(&rows, Level::Warning, "did not tell the settings", "allow DESCRIBE_CONFIGS");
        }
    }
}
