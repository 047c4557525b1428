//! `onced rewind`: the deliberate way to handle records again.
//!
//! ```text
//! both groups' offsets, topics --> plan (pure) --> table --> with --yes: the group, then high water
//! ```
//!
//! A rewind begins a generation: shards and high-water offsets of before count as absent, and
//! letters of before say nothing of the records from its start on.
//!
//! Owns: the order of the commits, and what is printed. Never: joins the group; moves an offset
//! while the group has members; moves one forward.

pub(crate) mod plan;

use std::io::{self, Write as _};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde_json::json;

use self::plan::{Order, PlanError, Sight, Step, Target, plan};
use crate::cli::{self, ConfigArgs};
use crate::clock;
use crate::config::{Config, Route};
use crate::daemon::exit;
use crate::pipeline::assign::{Refusal, Terms};
use crate::pipeline::standing::Standing;
use crate::record::{Offset, Partition, Timestamp};
use crate::source::Position;
use crate::source::client::without_value;
use crate::source::companion::Companion;
use crate::source::lookup::Lookup;

/// What to rewind, and how far.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").args(["to_offset", "to_time", "to_earliest", "to_committed"]))]
#[command(group = ArgGroup::new("asked").args(["to_offset", "to_time", "to_earliest", "to_committed", "accept_partitions"]).multiple(true).required(true))]
pub struct RewindArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only the topics of this route.
    #[arg(long)]
    route: Option<String>,
    /// Only this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only this partition. Needs --topic where there are several.
    #[arg(long, conflicts_with = "accept_partitions")]
    partition: Option<i32>,
    /// Handle the records from this offset on again, of one partition.
    #[arg(long, value_name = "N")]
    to_offset: Option<i64>,
    /// Handle the records of this time or later again.
    #[arg(long, value_name = "RFC3339", value_parser = time)]
    to_time: Option<i64>,
    /// Handle all records again that the topic still has.
    #[arg(long)]
    to_earliest: bool,
    /// Handle all records again from the group's committed offset on, whatever the log counts as
    /// handled beyond it: for a cluster that lost the end of a transaction.
    #[arg(long)]
    to_committed: bool,
    /// Accept that topics have more partitions now; those that were added begin at their first
    /// record. Equal keys may lie in two partitions from now on, and are not compared.
    #[arg(long)]
    accept_partitions: bool,
    /// Do it. Without this it only says what it would do.
    #[arg(long)]
    yes: bool,
    /// Print one JSON object: {"done", "partitions": [{"topic", "partition", "committed",
    /// "high_water", "action", "start", "again"}]}.
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<i64, String> {
    let time = humantime::parse_rfc3339(text).map_err(|error| error.to_string())?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|error| error.to_string())?;
    i64::try_from(since.as_millis()).map_err(|error| error.to_string())
}

impl RewindArgs {
    fn target(&self) -> Option<Target> {
        let offset = self.to_offset.map(|offset| Target::Offset(Offset(offset)));
        let time = self.to_time.map(|time| Target::Time(Timestamp(time)));
        let earliest = self.to_earliest.then_some(Target::Earliest);
        let committed = self.to_committed.then_some(Target::Committed);
        offset.or(time).or(earliest).or(committed)
    }
}

#[derive(Debug, thiserror::Error)]
enum RewindError {
    #[error("{0}")]
    Usage(String),
    #[error(
        "the group {group} has members: stop all instances first; one that was killed leaves after its session.timeout.ms"
    )]
    Members { group: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("kafka: {action}: {}", without_value(.source))]
    Kafka { action: String, source: KafkaError },
    #[error(
        "the group was moved, but the high-water group {group} was not ({}); nothing is wrong with that: its offsets are of the generation before and count no more, and onced writes it when it starts", without_value(.source)
    )]
    HalfDone { group: String, source: KafkaError },
    #[error("cannot write to standard output")]
    Print(#[from] io::Error),
}

impl RewindError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Plan(PlanError::Refused(_)) => exit::TOPIC,
            _ => exit::FAILED,
        }
    }
}

fn failed(action: impl Into<String>) -> impl FnOnce(KafkaError) -> RewindError {
    let action = action.into();
    move |source| RewindError::Kafka { action, source }
}

/// Shows what a rewind would do, or does it. Returns the exit code.
pub fn run(args: &RewindArgs) -> u8 {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(error) => return cli::config_error(&error),
    };
    match rewind(args, &config) {
        Ok(()) => exit::OK,
        Err(RewindError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

fn rewind(args: &RewindArgs, config: &Config) -> Result<(), RewindError> {
    let topics = topics(args, config)?;
    let make = || failed("cannot make a client");
    let kafka = &config.kafka;
    let handles = Handles {
        lookup: Lookup::new(kafka).map_err(make())?,
        group: Companion::of_group(kafka, kafka.group.clone()).map_err(make())?,
        high_water: Companion::new(kafka).map_err(make())?,
    };
    handles.refuse_members()?;
    let order = Order {
        target: args.target(),
        accept_partitions: args.accept_partitions,
        now: clock::now(),
    };
    let mut planned = Vec::new();
    for (route, topic) in topics {
        planned.extend(handles.plan_topic(route, &topic, args, &order)?);
    }
    check_selection(args, &planned)?;
    if args.yes {
        handles.commit(&planned)?;
    }
    print(args, &planned)?;
    Ok(())
}

/// The topics that were asked for, each with its route.
fn topics<'a>(
    args: &RewindArgs,
    config: &'a Config,
) -> Result<Vec<(&'a Route, Arc<str>)>, RewindError> {
    let routes = config.routes.iter();
    let named = |route: &&Route| args.route.as_ref().is_none_or(|name| **name == *route.name);
    let all = routes
        .filter(named)
        .flat_map(|route| route.topics.iter().map(move |topic| (route, Arc::clone(topic))));
    let wanted = |topic: &Arc<str>| args.topic.as_ref().is_none_or(|name| **name == **topic);
    let found: Vec<_> = all.filter(|(_, topic)| wanted(topic)).collect();
    if found.is_empty() {
        let known: Vec<_> = config
            .routes
            .iter()
            .map(|route| format!("{} {:?}", route.name, route.topics))
            .collect();
        let text = format!("no such route or topic; routes and their topics: {}", known.join(", "));
        return Err(RewindError::Usage(text));
    }
    if args.partition.is_some() && found.len() > 1 {
        let text = "--partition needs --topic where there are several".to_owned();
        return Err(RewindError::Usage(text));
    }
    Ok(found)
}

fn check_selection(args: &RewindArgs, planned: &[Planned]) -> Result<(), RewindError> {
    let text = if planned.is_empty() {
        "no such partition"
    } else if args.to_offset.is_some() && planned.len() > 1 {
        "--to-offset needs --topic and --partition where there are several partitions"
    } else {
        return Ok(());
    };
    Err(RewindError::Usage(text.to_owned()))
}

/// A partition with what is done to it.
struct Planned {
    sight: Sight,
    step: Step,
}

struct Handles {
    lookup: Lookup,
    group: Companion,
    high_water: Companion,
}

impl Handles {
    fn refuse_members(&self) -> Result<(), RewindError> {
        let members = |companion: &Companion| {
            let action = format!("cannot describe the group {}", companion.group());
            companion.members().map_err(failed(action))
        };
        if members(&self.group)? > 0 {
            return Err(RewindError::Members { group: self.group.group().to_owned() });
        }
        if members(&self.high_water)? > 0 {
            let group = self.high_water.group().to_owned();
            return Err(PlanError::from(Refusal::HighWaterMembers { group }).into());
        }
        Ok(())
    }

    fn plan_topic(
        &self,
        route: &Route,
        topic: &Arc<str>,
        args: &RewindArgs,
        order: &Order,
    ) -> Result<Vec<Planned>, RewindError> {
        let ask = || failed(format!("cannot look at the topic {topic}"));
        let topic_id = self.lookup.topic_id(topic).map_err(ask())?;
        let partition_count = self.lookup.partition_count(topic).map_err(ask())?;
        let terms = Terms {
            topic_id: &topic_id,
            partition_count,
            definition: route.identity.definition(),
            window: &route.window,
        };
        let partitions: Vec<_> = (0..partition_count)
            .filter(|index| args.partition.is_none_or(|wanted| wanted == *index))
            .map(|index| Partition::new(Arc::clone(topic), index))
            .collect();
        let committed = self.group.committed(&partitions).map_err(ask())?;
        let high_water = self.high_water.committed(&partitions).map_err(ask())?;
        let mut planned = Vec::new();
        let offsets = committed.into_iter().zip(high_water);
        for (partition, (committed, high_water)) in partitions.into_iter().zip(offsets) {
            let group = self.high_water.group();
            let (committed, high_water) = (committed.as_ref(), high_water.as_ref());
            let standing = Standing::of(&partition, group, committed, high_water, None)
                .map_err(PlanError::from)?;
            let (first, _) = self.lookup.ends(&partition).map_err(ask())?;
            let at_time = match order.target {
                Some(Target::Time(time)) => self.lookup.at_time(&partition, time).map_err(ask())?,
                _ => None,
            };
            let sight = Sight { partition, standing, first, at_time };
            let step = plan(&sight, &terms, order)?;
            planned.push(Planned { sight, step });
        }
        Ok(planned)
    }

    /// The group first. After a crash in between, the high-water group is of an older generation
    /// than the group and counts as absent: the rewind is done. The other way round, it would be of
    /// a newer one and lower than the group, and the rewind would be lost without a word.
    ///
    /// Where nothing runs again both are of one generation and at one offset, and then the group's
    /// metadata count.
    fn commit(&self, planned: &[Planned]) -> Result<(), RewindError> {
        let steps = planned.iter().filter_map(|planned| planned.step.position());
        let positions: Vec<Position> = steps.cloned().collect();
        self.group.commit(&positions).map_err(|source| match source.rdkafka_error_code() {
            // So a broker answers who is not a member, where there are members.
            Some(RDKafkaErrorCode::UnknownMemberId) => {
                RewindError::Members { group: self.group.group().to_owned() }
            }
            _ => failed(format!("cannot move the group {}", self.group.group()))(source),
        })?;
        self.high_water.commit(&positions).map_err(|source| RewindError::HalfDone {
            group: self.high_water.group().to_owned(),
            source,
        })
    }
}

fn print(args: &RewindArgs, planned: &[Planned]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        let partitions: Vec<_> = planned.iter().map(as_json).collect();
        return writeln!(out, "{}", json!({ "done": args.yes, "partitions": partitions }));
    }
    let text = |offset: Option<Offset>| offset.map_or("-".to_owned(), |offset| offset.to_string());
    let width = planned.iter().map(|of| of.sight.partition.to_string().len()).max().unwrap_or(0);
    let width = width.max("partition".len());
    writeln!(
        out,
        "{:width$}  {:>12}  {:>12}  {:>12}  {:>12}",
        "partition", "committed", "high water", "new start", "run again"
    )?;
    for Planned { sight, step } in planned {
        let standing = &sight.standing;
        writeln!(
            out,
            "{:width$}  {:>12}  {:>12}  {:>12}  {:>12}",
            sight.partition.to_string(),
            text(standing.committed),
            text(standing.high_water),
            step.position().map_or("stays".to_owned(), |position| position.offset.to_string()),
            step.again(),
        )?;
    }
    if args.to_committed {
        let done = if args.yes { "done" } else { "nothing was changed; with --yes" };
        return writeln!(out, "{done}: the log counts nothing beyond these offsets as handled");
    }
    let again: i64 = planned.iter().map(|of| of.step.again()).sum();
    let moved = planned.iter().filter(|of| of.step.position().is_some()).count();
    match (moved, args.yes) {
        (0, _) => writeln!(out, "nothing to do"),
        (_, true) => writeln!(out, "done: up to {again} records run again at the next start"),
        (_, false) => writeln!(
            out,
            "nothing was changed; with --yes up to {again} records would run again at the next start"
        ),
    }
}

fn as_json(planned: &Planned) -> serde_json::Value {
    let Planned { sight, step } = planned;
    json!({
        "topic": &*sight.partition.topic,
        "partition": sight.partition.index,
        "committed": sight.standing.committed.map(|offset| offset.0),
        "high_water": sight.standing.high_water.map(|offset| offset.0),
        "action": step.name(),
        "start": step.position().map(|position| position.offset.0),
        "again": step.again(),
    })
}
