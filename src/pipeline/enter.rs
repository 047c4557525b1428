//! Everything that has to be known before the first record of a partition: offsets, letters and
//! the shard. It may take long, so it runs on a thread of its own while the poll loop keeps the
//! membership alive.
//!
//! Owns: the order of these questions. Never: decides the start (see `assign`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rustc_hash::FxHashMap;

use super::assign::{Known, Plan, Refusal, Terms, plan};
use super::{Failure, Route, Shared};
use crate::clock;
use crate::commit::Frontier;
use crate::commit::letters::Origin;
use crate::commit::offsets::Metadata;
use crate::config::Start;
use crate::dedup::acts::Acts;
use crate::dedup::expiry::millis;
use crate::dedup::shard::Owner;
use crate::dedup::{Shard, State};
use crate::record::{Offset, Partition, Timestamp};
use crate::source::letters;
use crate::source::lookup::{Committed, Lookup};

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
}

/// Set when the partitions were taken away again before they were entered.
pub(super) type Cancelled = Arc<AtomicBool>;

/// Finds out where the partitions start. Goes on trying while the broker does not answer.
pub(super) fn enter(
    shared: &Shared,
    lookup: &Lookup,
    partitions: &[Partition],
    cancelled: &Cancelled,
) -> Result<Vec<Entered>, Failure> {
    let mut pause = Duration::from_millis(100);
    loop {
        match try_enter(shared, lookup, partitions, cancelled) {
            Err(Failure::Kafka { action, source })
                if !gives_up(shared, cancelled) && passes(&source) =>
            {
                tracing::warn!(action, error = %source, "The broker did not answer; asking again.");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(5));
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

/// What is known of one partition from the broker and from the log.
struct Sighted {
    partition: Partition,
    route: usize,
    topic_id: String,
    partition_count: i32,
    committed: Option<Committed>,
    shard: Option<(Shard, Owner, State)>,
    /// The stream time at `C'`, else at the position.
    stream_time: Option<Timestamp>,
    /// From the commit where it is ours, else as the shard remembers them.
    acts: Acts,
}

fn try_enter(
    shared: &Shared,
    lookup: &Lookup,
    partitions: &[Partition],
    cancelled: &Cancelled,
) -> Result<Vec<Entered>, Failure> {
    let failed = |action: &str| {
        let action = action.to_owned();
        move |source| Failure::Kafka { action, source }
    };
    let committed =
        lookup.committed(partitions).map_err(failed("cannot read the group's offsets"))?;
    check_others(shared, lookup, partitions, &committed)?;
    let mut sighted = Vec::with_capacity(partitions.len());
    for (partition, committed) in partitions.iter().zip(committed) {
        if let Some(sight) = sight(shared, lookup, partition, committed)? {
            sighted.push(sight);
        }
    }
    let mut letters = read_letters(shared, lookup, &sighted, cancelled)
        .map_err(failed("cannot read the dead-letter topic"))?;
    let mut entered = Vec::with_capacity(sighted.len());
    for sight in sighted {
        let letters = letters.remove(&sight.partition).unwrap_or_default();
        entered.push(begin(shared, lookup, sight, letters)?);
    }
    Ok(entered)
}

fn sight(
    shared: &Shared,
    lookup: &Lookup,
    partition: &Partition,
    committed: Option<Committed>,
) -> Result<Option<Sighted>, Failure> {
    let failed = |source| Failure::Kafka {
        action: format!("cannot describe the topic {}", partition.topic),
        source,
    };
    let Some(route) = shared.route_of(&partition.topic) else { return Ok(None) };
    let topic_id = lookup.topic_id(&partition.topic).map_err(failed)?;
    let partition_count = lookup.partition_count(&partition.topic).map_err(failed)?;
    let shard = shared.log.shard(partition)?;
    let shard =
        keep_usable(shared, &shared.routes[route], partition, &topic_id, partition_count, shard)?;
    if let Some(metadata) = committed.as_ref().and_then(|committed| committed.metadata.as_ref()) {
        check_metadata(&shared.routes[route], partition, &topic_id, partition_count, metadata)?;
    }
    let said = committed.as_ref().and_then(|committed| committed.metadata.as_ref());
    let remembered = shard.as_ref().map(|(_, owner, _)| &owner.acts);
    let acts = said.map(|said| &said.acts).or(remembered).cloned().unwrap_or_default();
    let stream_time = said
        .and_then(|said| said.stream_time)
        .or(shard.as_ref().and_then(|(_, _, state)| state.stream_time));
    Ok(Some(Sighted {
        partition: partition.clone(),
        route,
        topic_id,
        partition_count,
        committed,
        shard,
        stream_time,
        acts,
    }))
}

/// A partition without an offset may have been added to a topic that the group knows: then its
/// other partitions have offsets, and those say how many there were.
fn check_others(
    shared: &Shared,
    lookup: &Lookup,
    partitions: &[Partition],
    committed: &[Option<Committed>],
) -> Result<(), Failure> {
    let failed = |partition: &Partition| {
        let action =
            format!("cannot read the offsets of the other partitions of {}", partition.topic);
        |source| Failure::Kafka { action, source }
    };
    let mut looked_at = Vec::new();
    for (partition, _) in partitions.iter().zip(committed).filter(|(_, found)| found.is_none()) {
        let known = looked_at.contains(&&partition.topic);
        let Some(route) = shared.route_of(&partition.topic).filter(|_| !known) else { continue };
        looked_at.push(&partition.topic);
        let topic_id = lookup.topic_id(&partition.topic).map_err(failed(partition))?;
        let count = lookup.partition_count(&partition.topic).map_err(failed(partition))?;
        let all: Vec<_> =
            (0..count).map(|index| Partition::new(Arc::clone(&partition.topic), index)).collect();
        let others = lookup.committed(&all).map_err(failed(partition))?;
        for (other, found) in all.iter().zip(others) {
            if let Some(metadata) = found.and_then(|found| found.metadata) {
                check_metadata(&shared.routes[route], other, &topic_id, count, &metadata)?;
            }
        }
    }
    Ok(())
}

/// The shard, unless it was written under a shorter window: then it is dropped and absorbed anew.
fn keep_usable(
    shared: &Shared,
    route: &Route,
    partition: &Partition,
    topic_id: &str,
    partition_count: i32,
    shard: Option<(Shard, Owner, State)>,
) -> Result<Option<(Shard, Owner, State)>, Failure> {
    let Some((shard, owner, state)) = shard else { return Ok(None) };
    let was = Metadata {
        definition: owner.definition,
        topic_id: owner.topic_id.clone(),
        partition_count: owner.partition_count,
        stream_time: state.stream_time,
        acts: Default::default(),
    };
    check_metadata(route, partition, topic_id, partition_count, &was)?;
    let window = &route.config.window;
    if owner.ttl < window.ttl || owner.lateness < window.lateness {
        tracing::info!(%partition, "The window has grown; the log of this partition is absorbed again.");
        shared.log.drop_shard(shard)?;
        return Ok(None);
    }
    let kept = shared.log.change_owner(shard, &mut |owner| {
        owner.ttl = window.ttl;
        owner.lateness = window.lateness;
        owner.definition = route.definition;
        owner.owned_at_ms = clock::now().0;
    })?;
    Ok(kept.map(|owner| (shard, owner, state)))
}

fn check_metadata(
    route: &Route,
    partition: &Partition,
    topic_id: &str,
    partition_count: i32,
    was: &Metadata,
) -> Result<(), Refusal> {
    let (definition, window) = (route.definition, &route.config.window);
    Terms { topic_id, partition_count, definition, window }.check(partition, was, clock::now())
}

type LetterOffsets = FxHashMap<Partition, BTreeSet<Offset>>;

/// The letters of these partitions; each dead-letter topic is read once.
fn read_letters(
    shared: &Shared,
    lookup: &Lookup,
    sighted: &[Sighted],
    cancelled: &Cancelled,
) -> Result<LetterOffsets, KafkaError> {
    let mut found = LetterOffsets::default();
    let mut topics: FxHashMap<&str, Vec<&Sighted>> = FxHashMap::default();
    for sight in sighted {
        if let Some(topic) = &shared.routes[sight.route].config.dead_letter {
            topics.entry(topic).or_default().push(sight);
        }
    }
    for (topic, sighted) in topics {
        let since = sighted.iter().map(|sight| letters_since(shared, sight)).min().flatten();
        let keep_on = || !gives_up(shared, cancelled);
        letters::read(&shared.config.kafka, lookup, topic, since, &keep_on, |letter| {
            let of_ours = sighted.iter().find(|sight| sight.partition == letter.partition);
            if of_ours.is_some_and(|sight| origin(shared, sight) == letter.origin) {
                found.entry(letter.partition).or_default().insert(letter.offset);
            }
        })?;
    }
    Ok(found)
}

/// Letters are dated by the wall clock: older ones belong to records that left the window.
fn letters_since(shared: &Shared, sight: &Sighted) -> Option<Timestamp> {
    let window = &shared.routes[sight.route].config.window;
    let horizon = window.horizon(sight.stream_time?);
    Some(Timestamp(horizon.0.saturating_sub(millis(window.skew))))
}

fn origin(shared: &Shared, sight: &Sighted) -> Origin {
    Origin {
        group: shared.config.kafka.group.clone(),
        topic_id: sight.topic_id.clone(),
        generation: sight.acts.generation,
    }
}

fn begin(
    shared: &Shared,
    lookup: &Lookup,
    sight: Sighted,
    letters: BTreeSet<Offset>,
) -> Result<Entered, Failure> {
    let partition = sight.partition.clone();
    let known = known(shared, lookup, &sight).map_err(|source| Failure::Kafka {
        action: format!("cannot read the ends of {partition}"),
        source,
    })?;
    let plan = plan(&partition, &known)?;
    let origin = origin(shared, &sight);
    let metadata = metadata(shared, &sight, &known, &plan);
    let acts = metadata.acts.clone();
    let (shard, state) = match sight.shard {
        Some((shard, _, state)) => {
            // Before the skip is committed: it must not be lost in between.
            shared.log.change_owner(shard, &mut |owner| owner.acts = acts.clone())?;
            (shard, state)
        }
        None => {
            let state = State { position: plan.start, ..State::default() };
            let owner = owner(&shared.routes[sight.route], &sight, &partition, acts);
            (shared.log.create_shard(owner, &state)?, state)
        }
    };
    tracing::info!(
        %partition, start = %plan.start, position = ?known.position, committed = ?known.committed,
        absorb_until = %plan.absorb_until, letters = letters.len(), "The partition starts."
    );
    Ok(Entered {
        cut: known.first > Offset(0) && plan.start == known.first && plan.absorb_until > plan.start,
        frontier: Frontier::new(&state, plan.start, letters),
        route: sight.route,
        committed: known.committed,
        partition,
        shard,
        plan,
        metadata,
        origin,
    })
}

fn known(shared: &Shared, lookup: &Lookup, sight: &Sighted) -> Result<Known, KafkaError> {
    let partition = &sight.partition;
    let (first, end) = lookup.ends(partition)?;
    let committed = sight.committed.as_ref();
    let window = &shared.routes[sight.route].config.window;
    let window_start = match sight.stream_time {
        None => Some(first),
        Some(stream_time) => lookup.at_time(partition, window.horizon(stream_time))?,
    };
    let start = match shared.config.kafka.start {
        Start::Earliest => first,
        Start::Latest => end,
        Start::At(time) => lookup.at_time(partition, time)?.unwrap_or(end),
    };
    Ok(Known {
        committed: committed.map(|committed| committed.offset),
        committed_by_us: committed.is_some_and(|committed| committed.metadata.is_some()),
        high_water: None,
        position: sight.shard.as_ref().map(|(_, _, state)| state.position),
        window_start,
        first,
        end,
        start,
    })
}

fn metadata(shared: &Shared, sight: &Sighted, known: &Known, plan: &Plan) -> Metadata {
    let mut acts = sight.acts.clone();
    if let Some(skip) = plan.skip {
        if known.committed.is_some() {
            tracing::warn!(partition = %sight.partition, from = %skip.from, to = %skip.to, "Somebody moved the group's offset forward; these records are not handled.");
        }
        acts.skip(skip, known.window_start);
    }
    Metadata {
        definition: shared.routes[sight.route].definition,
        topic_id: sight.topic_id.clone(),
        partition_count: sight.partition_count,
        stream_time: sight.stream_time,
        acts,
    }
}

fn owner(route: &Route, sight: &Sighted, partition: &Partition, acts: Acts) -> Owner {
    Owner {
        topic: partition.topic.to_string(),
        topic_id: sight.topic_id.clone(),
        partition: partition.index,
        partition_count: sight.partition_count,
        definition: route.definition,
        ttl: route.config.window.ttl,
        lateness: route.config.window.lateness,
        acts,
        owned_at_ms: clock::now().0,
    }
}
