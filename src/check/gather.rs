//! The questions, in their order: the disk, the cluster, the topics, the group.
//!
//! Owns: which question comes when, and when the rest is left out.
//! Never: judges an answer; asks a cluster that fell silent again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::broker::{Broker, PATIENCE, Topics, Trouble};
use super::directory::Contents;
use super::offsets::Sight;
use super::report::{Level, Row};
use super::topics::{Described, Facts, Role, Topic};
use super::{cluster, directory, group, offsets};
use crate::clock;
use crate::config::{Config, HandlerKind, Kafka, Route, Start};
use crate::dedup::State;
use crate::dedup::shard::Owner;
use crate::dedup::store::Stamp;
use crate::pipeline::assign::Known;
use crate::pipeline::standing::Standing;
use crate::record::Partition;
use crate::source::admin::{TopicSettings, topic_settings};
use crate::source::client::without_value;
use crate::source::companion::Companion;
use crate::source::lookup::Lookup;

/// How the client of an onced calls itself, unless `client.id` is set.
const CLIENT_ID: &str = "onced";

/// After this, partitions that are left are not looked at any more.
const OFFSETS_PATIENCE: Duration = Duration::from_secs(20);

/// Asks everything that is outside of this process, and returns the judgements.
pub fn rows(config: &Config) -> Vec<Row> {
    Check::new(config).rows()
}

/// What can be said where no client can be made.
pub fn rows_without_broker(config: &Config) -> Vec<Row> {
    let stamp = Stamp { cluster_id: String::new(), group: config.kafka.group.clone() };
    directory::Facts::gather(&config.log.dir).rows(&config.log.dir, config.log.disk_reserve, &stamp)
}

/// One check, with what its questions have found so far.
struct Check<'a> {
    config: &'a Config,
    directory: directory::Facts,
    topics: Topics,
}

impl<'a> Check<'a> {
    fn new(config: &'a Config) -> Self {
        Self { config, directory: directory::Facts::gather(&config.log.dir), topics: Topics::new() }
    }

    fn rows(mut self) -> Vec<Row> {
        let kafka = &self.config.kafka;
        let broker = match Broker::new(kafka) {
            Ok(broker) => broker,
            Err(error) => {
                let found = format!("the client cannot be made: {}", without_value(&error));
                return vec![Row::failed("kafka.brokers", found, "see the reason")];
            }
        };
        let cluster = broker.cluster();
        let mut rows = vec![cluster::row(&kafka.brokers, &cluster)];
        if cluster.is_ok() {
            match self.topic_rows(&broker) {
                Ok(topics) => {
                    rows.extend(topics);
                    rows.extend(self.group_rows(&broker));
                }
                Err(trouble) => rows.push(cluster::unanswered("topics and group", &trouble)),
            }
        }
        let cluster_id = cluster.map(|cluster| cluster.id).unwrap_or_default();
        let stamp = Stamp { cluster_id, group: kafka.group.clone() };
        let log = &self.config.log;
        rows.extend(self.directory.rows(&log.dir, log.disk_reserve, &stamp));
        rows
    }

    fn topic_rows(&mut self, broker: &Broker) -> Result<Vec<Row>, Trouble> {
        let names: BTreeSet<&str> = roles(self.config).map(|(_, _, name)| name).collect();
        let names: Vec<_> = names.into_iter().collect();
        self.topics = broker.topics(&names)?;
        let facts = self.facts(&names);
        let mut rows = Vec::new();
        for (route, role, name) in roles(self.config) {
            let Some(facts_of) = facts.get(name) else { continue };
            let topic = Topic {
                name,
                role,
                route,
                facts: facts_of,
                input_bytes_max: input_bytes_max(route, &facts),
                receive_bytes_max: receive_bytes_max(&self.config.kafka),
            };
            rows.extend(topic.rows());
        }
        Ok(rows)
    }

    /// What the broker says of each topic, with the settings of those that are there.
    fn facts<'n>(&self, names: &[&'n str]) -> BTreeMap<&'n str, Facts> {
        let mut settings = Settings::new(&self.config.kafka);
        let mut facts = BTreeMap::new();
        for name in names {
            let unknown = Err(RDKafkaErrorCode::UnknownTopicOrPartition);
            let described = self.topics.get(*name).cloned().unwrap_or(unknown);
            let settings = if described.is_ok() { settings.of(name) } else { None };
            facts.insert(*name, Facts { described, settings });
        }
        facts
    }

    fn group_rows(&self, broker: &Broker) -> Vec<Row> {
        let kafka = &self.config.kafka;
        let described = match broker.group(&kafka.group) {
            Ok(described) => described,
            Err(trouble) => {
                return vec![cluster::unanswered(&format!("group {}", kafka.group), &trouble)];
            }
        };
        let client_id = kafka.properties.get("client.id").unwrap_or(CLIENT_ID);
        let mut rows = group::rows(&kafka.group, client_id, &described);
        if report_failed(&rows) {
            return rows;
        }
        let asked = Lookup::new(kafka).and_then(|lookup| Ok((lookup, Companion::new(kafka)?)));
        match asked {
            Ok((lookup, companion)) => {
                match broker.group(companion.group()) {
                    Ok(described) => rows.push(group::high_water(companion.group(), &described)),
                    Err(trouble) => {
                        let subject = format!("group {}", companion.group());
                        rows.push(cluster::unanswered(&subject, &trouble));
                    }
                }
                if !report_failed(&rows) {
                    rows.extend(self.offset_rows(&lookup, &companion));
                }
            }
            Err(error) => {
                let found = format!("offsets not checked: {}", without_value(&error));
                rows.push(Row::warning(format!("group {}", kafka.group), found, "see the reason"));
            }
        }
        rows
    }

    fn offset_rows(&self, lookup: &Lookup, companion: &Companion) -> Vec<Row> {
        let ask = (lookup, companion);
        let (started, now, kafka) = (Instant::now(), clock::now(), &self.config.kafka);
        let mut rows = Vec::new();
        for (route, _, name) in roles(self.config).filter(|(_, role, _)| *role == Role::Input) {
            let Some(Ok(described)) = self.topics.get(name) else { continue };
            // A partition without a leader has no end to ask for; its row says so already.
            if !described.leaderless.is_empty() {
                continue;
            }
            if started.elapsed() > OFFSETS_PATIENCE {
                rows.push(offsets::not_looked_at(
                    &kafka.group,
                    name,
                    "the broker takes long to answer",
                ));
                continue;
            }
            match self.sights(ask, route, name, described, started + OFFSETS_PATIENCE) {
                Ok(sights) => {
                    rows.extend(offsets::rows(
                        &kafka.group,
                        route,
                        name,
                        &sights,
                        kafka.start,
                        now,
                    ));
                }
                Err(error) => {
                    rows.push(offsets_refused(&kafka.group, name, &error));
                    if silent(&error) {
                        break;
                    }
                }
            }
        }
        rows
    }

    /// What is known of each partition of a topic; as in the daemon, before it starts one.
    fn sights(
        &self,
        (lookup, companion): (&Lookup, &Companion),
        route: &Route,
        topic: &str,
        described: &Described,
        deadline: Instant,
    ) -> Result<Vec<Sight>, KafkaError> {
        let partitions: Vec<_> =
            (0..described.partitions).map(|index| Partition::new(topic, index)).collect();
        let topic_id = lookup.topic_id(topic)?;
        let committed = lookup.committed(&partitions)?;
        let high_water = companion.committed(&partitions)?;
        let mut sights = Vec::with_capacity(partitions.len());
        let offsets = committed.into_iter().zip(high_water);
        for (partition, (committed, high_water)) in partitions.into_iter().zip(offsets) {
            if Instant::now() > deadline {
                return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
            }
            let shard = self.shard(&partition);
            let standing = Standing::of(
                &partition,
                companion.group(),
                committed.as_ref(),
                high_water.as_ref(),
                shard.as_ref().map(|(owner, state)| (owner, state)),
            );
            let usable = shard.as_ref().filter(|(owner, _)| {
                offsets::usable(route, owner)
                    && standing.as_ref().is_ok_and(|standing| standing.shard_counts)
            });
            let weighed = match standing {
                Ok(standing) => {
                    let known = self.known(lookup, route, &partition, &standing, usable)?;
                    Ok((standing, known))
                }
                Err(refusal) => Err(refusal),
            };
            sights.push(Sight {
                partition,
                topic_id: topic_id.clone(),
                partition_count: described.partitions,
                shard,
                log_known: matches!(self.directory.contents, Contents::Empty | Contents::Log(_)),
                weighed,
            });
        }
        Ok(sights)
    }

    fn known(
        &self,
        lookup: &Lookup,
        route: &Route,
        partition: &Partition,
        standing: &Standing,
        shard: Option<&(Owner, State)>,
    ) -> Result<Known, KafkaError> {
        let (first, end) = lookup.ends(partition)?;
        let window_start = match standing.stream_time {
            _ if standing.settled().is_none() => None,
            None => Some(first),
            Some(stream_time) => lookup.at_time(partition, route.window.horizon(stream_time))?,
        };
        let start = match self.config.kafka.start {
            Start::Earliest => first,
            Start::Latest => end,
            Start::At(time) => lookup.at_time(partition, time)?.unwrap_or(end),
        };
        Ok(Known {
            committed: standing.committed,
            committed_by_us: standing.committed_by_us,
            high_water: standing.high_water,
            position: shard.map(|(_, state)| state.position),
            // Reading a record again is left to the daemon.
            last: None,
            window_start,
            first,
            end,
            start,
        })
    }

    fn shard(&self, partition: &Partition) -> Option<(Owner, State)> {
        let Contents::Log(peek) = &self.directory.contents else { return None };
        peek.shards.iter().find(|(owner, _)| owner.partition() == *partition).cloned()
    }
}

/// Every topic that a route names, with what it is to the route.
fn roles(config: &Config) -> impl Iterator<Item = (&Route, Role, &str)> {
    config.routes.iter().flat_map(|route| {
        let inputs = route.topics.iter().map(move |topic| (route, Role::Input, &**topic));
        let letters =
            route.dead_letter.iter().map(move |topic| (route, Role::DeadLetter, &**topic));
        let output = match &route.handler {
            HandlerKind::Kafka(kafka) => Some((route, Role::Output, &*kafka.topic)),
            _ => None,
        };
        inputs.chain(letters).chain(output)
    })
}

/// Settings of topics, one question each. After the first that is not answered none is asked any
/// more.
struct Settings<'a> {
    kafka: &'a Kafka,
    runtime: Option<tokio::runtime::Runtime>,
}

impl<'a> Settings<'a> {
    fn new(kafka: &'a Kafka) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Self { kafka, runtime: runtime.ok() }
    }

    fn of(&mut self, topic: &str) -> Option<Result<TopicSettings, KafkaError>> {
        let runtime = self.runtime.as_ref()?;
        let answer = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, topic_settings(self.kafka, topic)).await
        });
        let timed_out = Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        let answer = answer.unwrap_or(timed_out);
        if answer.as_ref().is_err_and(silent) {
            self.runtime = None;
        }
        Some(answer)
    }
}

fn input_bytes_max(route: &Route, facts: &BTreeMap<&str, Facts>) -> Option<i64> {
    let bytes = |topic: &std::sync::Arc<str>| match &facts.get(&**topic)?.settings {
        Some(Ok(settings)) => settings.max_message_bytes,
        _ => None,
    };
    route.topics.iter().filter_map(bytes).max()
}

/// librdkafka's default.
const RECEIVE_BYTES_MAX: i64 = 100_000_000;

fn receive_bytes_max(kafka: &Kafka) -> i64 {
    let given = kafka.properties.get("receive.message.max.bytes");
    given.and_then(|text| text.trim().parse().ok()).unwrap_or(RECEIVE_BYTES_MAX)
}

fn report_failed(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.level == Level::Failed)
}

fn silent(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
        )
    )
}

fn offsets_refused(group: &str, topic: &str, error: &KafkaError) -> Row {
    let subject = format!("group {group}, topic {topic}");
    match error.rdkafka_error_code() {
        Some(code) if !silent(error) => group::refused(&subject, code),
        _ => offsets::not_looked_at(group, topic, "the broker takes long to answer"),
    }
}
