//! Everything that has to be known before the first record of a partition: offsets, letters and
//! the shard. It may take long, so it runs on a thread of its own while the poll loop keeps the
//! membership alive.
//!
//! ```text
//! C, then H --> shard --> ends, X, last record --> plan --> letters --> shard written
//! ```
//!
//! Owns: the order of these questions. Never: decides the start (see `standing` and `assign`).

mod broker;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rustc_hash::FxHashMap;

pub(crate) use self::broker::{Broker, Questions};
use super::assign::{Known, Plan, Refusal, Terms, plan};
use super::standing::Standing;
use super::{Failure, Route, Shared};
use crate::clock;
use crate::commit::Frontier;
use crate::commit::letters::Origin;
use crate::commit::offsets::Metadata;
use crate::config::Start;
use crate::dedup::acts::Acts;
use crate::dedup::expiry::millis;
use crate::dedup::shard::{LastSettled, Owner};
use crate::dedup::{Batch, Shard, State};
use crate::fault::{Bug, Point, bug, point};
use crate::identity::Identifier;
use crate::record::{Offset, Partition, Timestamp};
use crate::source::Position;
use crate::source::lookup::Committed;

/// A partition that is ready to start.
pub(crate) struct Entered {
    pub(super) partition: Partition,
    pub(super) route: usize,
    pub(super) shard: Shard,
    pub(super) frontier: Frontier,
    pub(super) plan: Plan,
    pub(super) committed: Option<Offset>,
    pub(super) metadata: Metadata,
    pub(super) origin: Origin,
    /// Retention took a part of the window: the log is complete from the first record on.
    pub(super) cut: bool,
    /// `H`: nothing lower is written to the high-water group.
    pub(super) high_water: Option<Offset>,
    /// The group's offset as it stands, where it is ours.
    pub(super) standing: Option<Position>,
}

/// Set when the partitions were taken away again before they were entered.
pub(super) type Cancelled = Arc<AtomicBool>;

/// How long to wait before a refusal is looked at once more.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// Finds out where the partitions start. Goes on trying while the broker does not answer.
pub(super) fn enter(
    shared: &Shared,
    broker: &dyn Broker,
    partitions: &[Partition],
    cancelled: &Cancelled,
) -> Result<Vec<Entered>, Failure> {
    let mut pause = Duration::from_millis(100);
    let mut refused = false;
    loop {
        match try_enter(shared, broker, partitions, cancelled) {
            Err(Failure::Kafka { action, source })
                if !gives_up(shared, cancelled) && passes(&source) =>
            {
                let hint = hint(&source);
                tracing::warn!(action, error = %source, hint, "The broker did not answer; asking again.");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            // A broker that has just lost a partition, or comes back from the dead, may speak of
            // the past.
            Err(Failure::Refused(refusal)) if !refused => {
                tracing::warn!(%refusal, "The partitions cannot be started; looking once more.");
                refused = true;
                std::thread::sleep(SECOND_LOOK);
            }
            result => return result,
        }
    }
}

fn gives_up(shared: &Shared, cancelled: &Cancelled) -> bool {
    cancelled.load(Ordering::Relaxed) || shared.shutdown.requested()
}

fn passes(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        )
    )
}

/// A transaction whose markers the broker left out holds back the group's offsets for ever: the
/// client only says that it took too long. See `commit::transaction::leftovers`.
fn hint(error: &KafkaError) -> &'static str {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::OperationTimedOut) => {
            "no broker answers in time, or a transaction that moved the offsets does not end: look with kafka-transactions.sh find-hanging"
        }
        _ => "",
    }
}

fn failed(action: impl Into<String>) -> impl FnOnce(KafkaError) -> Failure {
    let action = action.into();
    move |source| Failure::Kafka { action, source }
}

/// What is known of one partition from the broker and from the log.
struct Sighted {
    partition: Partition,
    route: usize,
    topic_id: String,
    partition_count: i32,
    committed: Option<Committed>,
    standing: Standing,
    shard: Option<(Shard, State)>,
}

/// One try: asks each question once, in the order that makes the answers fit together.
///
/// # Errors
/// A refusal, or the first question that was not answered.
pub(crate) fn try_enter(
    shared: &Shared,
    broker: &dyn Broker,
    partitions: &[Partition],
    cancelled: &Cancelled,
) -> Result<Vec<Entered>, Failure> {
    // The group first, as it is written: so what is read of the high-water group is at least as
    // new, and a transaction that moved both has ended in both. Members of an older generation
    // cannot move the group's offset any more; their last word to the high-water group may still
    // come, but it says nothing that the group's offset does not say.
    let committed =
        broker.committed(partitions).map_err(failed("cannot read the group's offsets"))?;
    point(Point::CommittedRead);
    let high_water = read_high_water(broker, partitions)?;
    point(Point::HighWaterRead);
    check_others(shared, broker, partitions, &committed)?;
    let mut sighted = Vec::with_capacity(partitions.len());
    let offsets = committed.into_iter().zip(high_water);
    for (partition, (committed, high_water)) in partitions.iter().zip(offsets) {
        if let Some(sight) = sight(shared, broker, partition, committed, high_water.as_ref())? {
            sighted.push(sight);
        }
    }
    let last = reread_last(shared, broker, &sighted)?;
    let mut planned = Vec::with_capacity(sighted.len());
    for (sight, last) in sighted.into_iter().zip(last) {
        let action = format!("cannot read the ends of {}", sight.partition);
        let known = known(shared, broker, &sight, last).map_err(failed(action))?;
        let plan = plan(&sight.partition, &known)?;
        planned.push((sight, known, plan));
    }
    // After the group's offsets: the letters of what lies below them are in the topic by now.
    let mut letters = read_letters(shared, broker, &planned, cancelled)
        .map_err(failed("cannot read the dead-letter topic"))?;
    point(Point::LettersRead);
    let mut entered = Vec::with_capacity(planned.len());
    for (sight, known, plan) in planned {
        let letters = letters.remove(&sight.partition).unwrap_or_default();
        entered.push(begin(shared, sight, &known, plan, letters)?);
    }
    point(Point::Entered);
    Ok(entered)
}

fn read_high_water(
    broker: &dyn Broker,
    partitions: &[Partition],
) -> Result<Vec<Option<Committed>>, Failure> {
    if bug(Bug::NoHighWater) {
        return Ok(vec![None; partitions.len()]);
    }
    let group = broker.high_water_group();
    let members = broker
        .high_water_members()
        .map_err(failed(format!("cannot describe the group {group}")))?;
    if members > 0 {
        return Err(Refusal::HighWaterMembers { group: group.to_owned() }.into());
    }
    broker.high_water(partitions).map_err(failed(format!("cannot read the offsets of {group}")))
}

fn sight(
    shared: &Shared,
    broker: &dyn Broker,
    partition: &Partition,
    committed: Option<Committed>,
    high_water: Option<&Committed>,
) -> Result<Option<Sighted>, Failure> {
    let describe = || failed(format!("cannot describe the topic {}", partition.topic));
    let Some(index) = shared.route_of(&partition.topic) else { return Ok(None) };
    let route = &shared.routes[index];
    let topic_id = broker.topic_id(&partition.topic).map_err(describe())?;
    let partition_count = broker.partition_count(&partition.topic).map_err(describe())?;
    let shard = shared.log.shard(partition)?;
    let of_shard = shard.as_ref().map(|(_, owner, state)| (owner, state));
    let group = broker.high_water_group();
    let mut standing = Standing::of(partition, group, committed.as_ref(), high_water, of_shard)?;
    let terms = terms(route, &topic_id, partition_count);
    standing.check(partition, &terms, of_shard, clock::now())?;
    let kept = keep_usable(shared, route, partition, partition_count, &standing, shard)?;
    if kept.is_none() && standing.shard_counts {
        // Dropped for its window: what it knew of time goes with it.
        standing.stream_time = standing.metadata.as_ref().and_then(|said| said.stream_time);
    }
    Ok(Some(Sighted {
        partition: partition.clone(),
        route: index,
        topic_id,
        partition_count,
        committed,
        standing,
        shard: kept,
    }))
}

fn terms<'a>(route: &'a Route, topic_id: &'a str, partition_count: i32) -> Terms<'a> {
    let (definition, window) = (route.definition, &route.config.window);
    Terms { topic_id, partition_count, definition, window }
}

/// A partition without an offset may have been added to a topic that the group knows: then its
/// other partitions have offsets, and those say how many there were.
fn check_others(
    shared: &Shared,
    broker: &dyn Broker,
    partitions: &[Partition],
    committed: &[Option<Committed>],
) -> Result<(), Failure> {
    let mut looked_at = Vec::new();
    for (partition, _) in partitions.iter().zip(committed).filter(|(_, found)| found.is_none()) {
        let known = looked_at.contains(&&partition.topic);
        let Some(route) = shared.route_of(&partition.topic).filter(|_| !known) else { continue };
        looked_at.push(&partition.topic);
        let topic = &partition.topic;
        let ask = || failed(format!("cannot read the offsets of the other partitions of {topic}"));
        let topic_id = broker.topic_id(topic).map_err(ask())?;
        let count = broker.partition_count(topic).map_err(ask())?;
        let all: Vec<_> =
            (0..count).map(|index| Partition::new(Arc::clone(topic), index)).collect();
        let others = broker.committed(&all).map_err(ask())?;
        for (other, found) in all.iter().zip(others) {
            if let Some(metadata) = found.and_then(|found| found.metadata) {
                let terms = terms(&shared.routes[route], &topic_id, count);
                terms.check(other, &metadata, clock::now())?;
            }
        }
    }
    Ok(())
}

/// The shard, unless it is of an older generation or was written under a shorter window: then it is
/// dropped, and the partition absorbed anew.
fn keep_usable(
    shared: &Shared,
    route: &Route,
    partition: &Partition,
    partition_count: i32,
    standing: &Standing,
    shard: Option<(Shard, Owner, State)>,
) -> Result<Option<(Shard, State)>, Failure> {
    let Some((shard, owner, mut state)) = shard else { return Ok(None) };
    let window = &route.config.window;
    let reason = if !standing.shard_counts {
        "The group was rewound; the log of this partition is absorbed again."
    } else if owner.ttl < window.ttl || owner.lateness < window.lateness {
        "The window has grown; the log of this partition is absorbed again."
    } else {
        if owner.definition != route.definition {
            // Its check is of the old definition and compares with nothing any more. Written before
            // the row says so, or a crash in between would compare it after all.
            state.last = None;
            let mut batch = Batch::default();
            batch.put_state(shard, state.clone());
            shared.log.write(&mut batch)?;
        }
        let kept = shared.log.change_owner(shard, &mut |owner| {
            owner.ttl = window.ttl;
            owner.lateness = window.lateness;
            owner.definition = route.definition;
            owner.partition_count = partition_count;
            owner.owned_at_ms = clock::now().0;
        })?;
        return Ok(kept.map(|_| (shard, state)));
    };
    tracing::info!(%partition, "{reason}");
    shared.log.drop_shard(shard)?;
    Ok(None)
}

/// The last settled records, as the log knows them and as the topic has them now.
type Last = Option<(LastSettled, LastSettled)>;

/// Reads the last settled record of each shard again that goes on at its position.
fn reread_last(
    shared: &Shared,
    broker: &dyn Broker,
    sighted: &[Sighted],
) -> Result<Vec<Last>, Failure> {
    let wanted: Vec<_> = sighted.iter().map(last_wanted).collect();
    let offsets: Vec<_> = sighted
        .iter()
        .zip(&wanted)
        .filter_map(|(sight, last)| last.map(|last| (sight.partition.clone(), last.offset)))
        .collect();
    if offsets.is_empty() {
        return Ok(vec![None; sighted.len()]);
    }
    let records = broker
        .records_at(&offsets)
        .map_err(failed("cannot read the last records that were handled"))?;
    let mut records = records.into_iter();
    let compare = |(sight, last): (&Sighted, Option<LastSettled>)| {
        let last = last?;
        let record = records.next().flatten()?;
        let mut identifier = Identifier::new(shared.routes[sight.route].config.identity.clone());
        let check = identifier.identify(&record).check;
        Some((last, LastSettled { offset: record.offset, timestamp: record.timestamp, check }))
    };
    Ok(sighted.iter().zip(wanted).map(compare).collect())
}

fn last_wanted(sight: &Sighted) -> Option<LastSettled> {
    let (_, state) = sight.shard.as_ref()?;
    state.last.filter(|_| Some(state.position) >= sight.standing.settled())
}

fn known(
    shared: &Shared,
    broker: &dyn Broker,
    sight: &Sighted,
    last: Last,
) -> Result<Known, KafkaError> {
    let (partition, standing) = (&sight.partition, &sight.standing);
    let (first, end) = broker.ends(partition)?;
    let window = &shared.routes[sight.route].config.window;
    let window_start = match standing.stream_time {
        None => Some(first),
        Some(stream_time) => broker.at_time(partition, window.horizon(stream_time))?,
    };
    let start = match shared.config.kafka.start {
        Start::Earliest => first,
        Start::Latest => end,
        Start::At(time) => broker.at_time(partition, time)?.unwrap_or(end),
    };
    Ok(Known {
        committed: standing.committed,
        committed_by_us: standing.committed_by_us,
        high_water: standing.high_water,
        position: sight.shard.as_ref().map(|(_, state)| state.position),
        last,
        window_start,
        first,
        end,
        start,
    })
}

type LetterOffsets = FxHashMap<Partition, BTreeSet<Offset>>;
type Planned = (Sighted, Known, Plan);

/// The letters of these partitions; each dead-letter topic is read once.
fn read_letters(
    shared: &Shared,
    broker: &dyn Broker,
    planned: &[Planned],
    cancelled: &Cancelled,
) -> Result<LetterOffsets, KafkaError> {
    let mut found = LetterOffsets::default();
    let mut topics: FxHashMap<&str, Vec<&Sighted>> = FxHashMap::default();
    for (sight, _, plan) in planned {
        let route = &shared.routes[sight.route];
        if let Some(topic) = &route.config.dead_letter
            && route.needs_letters(plan)
            && !bug(Bug::LettersUnread)
        {
            topics.entry(topic).or_default().push(sight);
        }
    }
    for (topic, sighted) in topics {
        let since = sighted.iter().map(|sight| letters_since(shared, sight)).min().flatten();
        let keep_on = || !gives_up(shared, cancelled);
        broker.letters(topic, since, &keep_on, &mut |letter| {
            let of_ours = sighted.iter().find(|sight| sight.partition == letter.partition);
            if of_ours.is_some_and(|sight| settles(shared, sight, &letter.origin, letter.offset)) {
                found.entry(letter.partition).or_default().insert(letter.offset);
            }
        })?;
    }
    Ok(found)
}

/// A letter of this group and topic, that no later rewind has undone.
fn settles(shared: &Shared, sight: &Sighted, origin: &Origin, offset: Offset) -> bool {
    origin.group == shared.config.kafka.group
        && origin.topic_id == sight.topic_id
        && sight.standing.acts.letter_counts(origin.generation, offset)
}

/// Letters are dated by the wall clock: older ones belong to records that left the window.
fn letters_since(shared: &Shared, sight: &Sighted) -> Option<Timestamp> {
    let window = &shared.routes[sight.route].config.window;
    let horizon = window.horizon(sight.standing.stream_time?);
    Some(Timestamp(horizon.0.saturating_sub(millis(window.skew))))
}

fn begin(
    shared: &Shared,
    sight: Sighted,
    known: &Known,
    plan: Plan,
    letters: BTreeSet<Offset>,
) -> Result<Entered, Failure> {
    let partition = sight.partition.clone();
    let metadata = metadata(shared, &sight, known, &plan);
    let acts = metadata.acts.clone();
    let (shard, mut state) = match &sight.shard {
        Some((shard, state)) => {
            // Before the skip is committed: it must not be lost in between.
            shared.log.change_owner(*shard, &mut |owner| owner.acts = acts.clone())?;
            (*shard, state.clone())
        }
        None => {
            let state = State { position: plan.start, ..State::default() };
            let owner = owner(&shared.routes[sight.route], &sight, acts);
            (shared.log.create_shard(owner, &state)?, state)
        }
    };
    point(Point::ShardCreated);
    if plan.absorb_until <= plan.start {
        // No record will bring the clock to where it stood.
        state.stream_time = state.stream_time.max(sight.standing.stream_time);
    }
    tracing::info!(
        %partition, start = %plan.start, position = ?known.position, committed = ?known.committed,
        high_water = ?known.high_water, absorb_until = %plan.absorb_until, letters = letters.len(),
        "The partition starts."
    );
    let generation = metadata.acts.generation;
    let origin =
        Origin { group: shared.config.kafka.group.clone(), topic_id: sight.topic_id, generation };
    Ok(Entered {
        cut: known.first > Offset(0) && plan.start == known.first && plan.absorb_until > plan.start,
        frontier: Frontier::new(&state, plan.start, letters),
        route: sight.route,
        committed: known.committed,
        high_water: known.high_water,
        standing: standing_position(&partition, sight.committed),
        partition,
        shard,
        plan,
        metadata,
        origin,
    })
}

fn standing_position(partition: &Partition, committed: Option<Committed>) -> Option<Position> {
    let committed = committed?;
    let metadata = committed.metadata?.encode().0;
    Some(Position { partition: partition.clone(), offset: committed.offset, metadata })
}

fn metadata(shared: &Shared, sight: &Sighted, known: &Known, plan: &Plan) -> Metadata {
    let mut acts = sight.standing.acts.clone();
    if let Some(window_start) = known.window_start() {
        acts.prune(window_start, letters_since(shared, sight));
    }
    if let Some(skip) = plan.skip {
        if known.committed.is_some() {
            tracing::warn!(partition = %sight.partition, from = %skip.from, to = %skip.to, "Somebody moved the group's offset forward; these records are not handled.");
        }
        acts.skip(skip);
    }
    if bug(Bug::SkipForgotten) {
        acts.skips.clear();
    }
    Metadata {
        definition: shared.routes[sight.route].definition,
        topic_id: sight.topic_id.clone(),
        partition_count: sight.partition_count,
        stream_time: sight.standing.stream_time,
        acts,
    }
}

fn owner(route: &Route, sight: &Sighted, acts: Acts) -> Owner {
    Owner {
        topic: sight.partition.topic.to_string(),
        topic_id: sight.topic_id.clone(),
        partition: sight.partition.index,
        partition_count: sight.partition_count,
        definition: route.definition,
        ttl: route.config.window.ttl,
        lateness: route.config.window.lateness,
        acts,
        owned_at_ms: clock::now().0,
    }
}
