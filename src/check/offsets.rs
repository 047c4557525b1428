//! The group's offsets: what would `onced run` do with each partition?
//!
//! Owns: the judgement. Pure; where a partition starts is decided by `pipeline::assign`, as in the
//! daemon.
//! Never: commits, or asks the broker (see `gather`).

use std::collections::BTreeMap;

use super::numbers;
use super::report::{Level, Row};
use crate::clock::rfc3339;
use crate::config::{Route, Start};
use crate::dedup::State;
use crate::dedup::shard::Owner;
use crate::pipeline::assign::{Known, Plan, Refusal, Terms, plan};
use crate::pipeline::standing::Standing;
use crate::record::{Offset, Partition, Timestamp};

/// What is known of one partition.
#[derive(Clone, Debug)]
pub struct Sight {
    pub partition: Partition,
    pub topic_id: String,
    pub partition_count: i32,
    pub shard: Option<(Owner, State)>,
    /// The log was looked at: without a shard it holds nothing of the partition.
    pub log_known: bool,
    /// What counts of the two groups and the log, and what follows from it.
    pub weighed: Result<(Standing, Known), Refusal>,
}

/// What `run` would do with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Begins where `kafka.start` says.
    Starts,
    GoesOn {
        behind: i64,
    },
    /// Reads offsets into the log first. `foreign`: another consumer committed them.
    Absorbs {
        offsets: i64,
        foreign: bool,
    },
    /// The log is ahead of the offset.
    Ahead {
        offsets: i64,
    },
    /// A tool moved the offset forward.
    Skips {
        offsets: i64,
    },
    Refuses(Refusal),
}

/// False where the daemon would drop the shard and absorb again: it was written under a shorter
/// window.
pub fn usable(route: &Route, owner: &Owner) -> bool {
    owner.ttl >= route.window.ttl && owner.lateness >= route.window.lateness
}

fn fate(route: &Route, sight: &Sight, now: Timestamp) -> Fate {
    match planned(route, sight, now) {
        Ok((known, plan)) => fate_of(sight.log_known, known, &plan),
        Err(refusal) => Fate::Refuses(refusal),
    }
}

/// What the daemon would do.
fn planned<'a>(
    route: &Route,
    sight: &'a Sight,
    now: Timestamp,
) -> Result<(&'a Known, Plan), Refusal> {
    let (standing, known) = sight.weighed.as_ref().map_err(Clone::clone)?;
    let terms = Terms {
        topic_id: &sight.topic_id,
        partition_count: sight.partition_count,
        definition: route.identity.definition(),
        window: &route.window,
    };
    let shard = sight.shard.as_ref().map(|(owner, state)| (owner, state));
    standing.check(&sight.partition, &terms, shard, now)?;
    Ok((known, plan(&sight.partition, known)?))
}

fn fate_of(log_known: bool, known: &Known, plan: &Plan) -> Fate {
    if !log_known {
        let behind =
            |committed: Offset| Fate::GoesOn { behind: (known.end.0 - committed.0).max(0) };
        return known.committed.map_or(Fate::Starts, behind);
    }
    if let Some(skip) = plan.skip.filter(|_| known.committed.is_some()) {
        return Fate::Skips { offsets: skip.to.0 - skip.from.0 };
    }
    match known.committed {
        None if known.position.is_none() => Fate::Starts,
        Some(committed) if plan.start > committed => {
            Fate::Ahead { offsets: plan.start.0 - committed.0 }
        }
        _ if plan.absorb_until > plan.start => Fate::Absorbs {
            offsets: plan.absorb_until.0 - plan.start.0,
            foreign: known.committed.is_some() && !known.committed_by_us,
        },
        _ => Fate::GoesOn { behind: (known.end.0 - plan.start.0).max(0) },
    }
}

/// The partitions of one topic: a row for each thing that would happen, not for each partition.
pub fn rows(
    group: &str,
    route: &Route,
    topic: &str,
    sights: &[Sight],
    start: Start,
    now: Timestamp,
) -> Vec<Row> {
    let subject = format!("group {group}, topic {topic}");
    let mut kinds: BTreeMap<u8, Vec<(i32, Fate)>> = BTreeMap::new();
    let mut numbers: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    for sight in sights {
        let fate = fate(route, sight, now);
        let kind = kind(&fate);
        numbers.entry(kind).or_default().extend(numbers_of(route, sight, now));
        kinds.entry(kind).or_default().push((sight.partition.index, fate));
    }
    let row = |(kind, alike): (u8, Vec<(i32, Fate)>)| {
        let mut row = row(&subject, &alike, sights.len(), start);
        let numbers = numbers.remove(&kind).unwrap_or_default();
        if !numbers.is_empty() {
            let more = numbers.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let shown: Vec<_> = numbers.into_iter().take(SHOWN).collect();
            row.found = format!("{} ({}{more})", row.found, shown.join("; "));
        }
        row
    };
    kinds.into_iter().map(row).collect()
}

/// Partitions of which a row shows the offsets.
const SHOWN: usize = 8;

/// The offsets of a partition: the group's, the high-water group's, and where it starts.
fn numbers_of(route: &Route, sight: &Sight, now: Timestamp) -> Option<String> {
    let (known, plan) = planned(route, sight, now).ok()?;
    let text = |offset: Option<Offset>| offset.map_or("none".to_owned(), |at| at.to_string());
    let (committed, high_water) = (text(known.committed), text(known.high_water));
    let mut shown =
        format!("{}: committed {committed}, high water {high_water}", sight.partition.index);
    if sight.log_known {
        shown.push_str(&format!(", start {}", plan.start));
    }
    Some(shown)
}

/// Fates of the same kind make one row.
fn kind(fate: &Fate) -> u8 {
    match fate {
        Fate::Starts => 0,
        Fate::GoesOn { .. } => 1,
        Fate::Absorbs { foreign: false, .. } => 2,
        Fate::Absorbs { foreign: true, .. } => 3,
        Fate::Ahead { .. } => 4,
        Fate::Skips { .. } => 5,
        Fate::Refuses(Refusal::Recreated { .. }) => 6,
        Fate::Refuses(Refusal::PartitionCount { .. }) => 7,
        Fate::Refuses(Refusal::Definition { .. }) => 8,
        Fate::Refuses(Refusal::Truncated { .. }) => 9,
        Fate::Refuses(_) => 10,
    }
}

fn row(subject: &str, alike: &[(i32, Fate)], of: usize, start: Start) -> Row {
    let indexes: Vec<_> = alike.iter().map(|(index, _)| *index).collect();
    let which = match alike {
        // A refusal names its partition.
        [(_, Fate::Refuses(_))] => String::new(),
        _ if indexes.len() == of => String::new(),
        _ => format!("partition {}: ", numbers(&indexes)),
    };
    let sum = |each: fn(&Fate) -> i64| -> i64 { alike.iter().map(|(_, fate)| each(fate)).sum() };
    let offsets = sum(|fate| match fate {
        Fate::GoesOn { behind: offsets }
        | Fate::Absorbs { offsets, .. }
        | Fate::Ahead { offsets }
        | Fate::Skips { offsets } => *offsets,
        Fate::Starts | Fate::Refuses(_) => 0,
    });
    let Some((_, first)) = alike.first() else { return Row::ok(subject, "no partition") };
    let (level, found, advice) = match first {
        Fate::Starts => (Level::Ok, format!("no offsets: starts at {}", start_text(start)), ""),
        Fate::GoesOn { .. } => {
            (Level::Ok, format!("goes on at its offsets, {offsets} behind the end"), "")
        }
        Fate::Absorbs { foreign: false, .. } => (
            Level::Note,
            format!(
                "about {offsets} offsets are read into the log first, and not handled again: the log does not hold them"
            ),
            "",
        ),
        Fate::Absorbs { foreign: true, .. } => (
            Level::Note,
            format!(
                "another consumer has committed offsets; about {offsets} below them are read into the log first and count as handled"
            ),
            "if that consumer did not handle them, choose another kafka.group",
        ),
        Fate::Ahead { .. } => (
            Level::Note,
            format!(
                "the offsets are {offsets} behind the log: what is settled is not handled again"
            ),
            "",
        ),
        Fate::Skips { .. } => (
            Level::Warning,
            format!("somebody moved the offsets forward: {offsets} offsets will not be handled"),
            "if they should be, move the offsets back before onced starts",
        ),
        Fate::Refuses(refusal) => {
            (Level::Failed, refusal.to_string(), "onced run ends with exit code 5")
        }
    };
    Row::new(level, subject, format!("{which}{found}"), advice)
}

fn start_text(start: Start) -> String {
    match start {
        Start::Earliest => "the first record (kafka.start = \"earliest\")".to_owned(),
        Start::Latest => "the end of the topic (kafka.start = \"latest\")".to_owned(),
        Start::At(time) => format!("the first record of {} or later (kafka.start)", rfc3339(time)),
    }
}

/// For partitions whose offsets could not be asked for.
pub fn not_looked_at(group: &str, topic: &str, why: &str) -> Row {
    let found = format!("offsets not checked: {why}");
    Row::warning(format!("group {group}, topic {topic}"), found, "run the check again")
}

#[cfg(test)]
mod tests {
    use super::super::tests::route;
    use super::*;
    use crate::commit::offsets::Metadata;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn known() -> Known {
        Known {
            committed: Some(Offset(500)),
            committed_by_us: true,
            high_water: Some(Offset(500)),
            position: Some(Offset(500)),
            last: None,
            window_start: Some(Offset(0)),
            first: Offset(0),
            end: Offset(1_000),
            start: Offset(0),
        }
    }

    fn metadata(route: &Route) -> Metadata {
        Metadata {
            definition: route.identity.definition(),
            topic_id: "id".to_owned(),
            partition_count: 4,
            stream_time: Some(NOW),
            acts: Default::default(),
        }
    }

    fn sight(index: i32, metadata: Option<Metadata>, known: Known) -> Sight {
        let standing = Standing {
            committed: known.committed,
            committed_by_us: known.committed_by_us,
            high_water: known.high_water,
            metadata,
            shard_counts: true,
            ..Standing::default()
        };
        Sight {
            partition: Partition::new("t", index),
            topic_id: "id".to_owned(),
            partition_count: 4,
            shard: None,
            log_known: true,
            weighed: Ok((standing, known)),
        }
    }

    #[track_caller]
    fn check(sights: &[Sight], expected: &[(Level, &str)]) {
        let rows = rows("g", &route(&[]), "t", sights, Start::Earliest, NOW);
        assert_eq!(rows.len(), expected.len(), "{rows:?}");
        for (row, (level, found)) in rows.iter().zip(expected) {
            assert_eq!(row.subject, "group g, topic t");
            assert_eq!(row.level, *level, "{row:?}");
            assert!(row.found.contains(found), "{row:?}");
        }
    }

    #[test]
    fn a_new_group_starts_where_the_configuration_says() {
        let new = Known { committed: None, position: None, ..known() };
        check(&[sight(0, None, new)], &[(Level::Ok, "no offsets: starts at the first record")]);
    }

    #[test]
    fn a_group_of_onced_goes_on() {
        let ours = Some(metadata(&route(&[])));
        check(
            &[sight(0, ours, known())],
            &[(Level::Ok, "goes on at its offsets, 500 behind the end")],
        );
    }

    #[test]
    fn partitions_with_the_same_fate_share_a_row() {
        let ours = Some(metadata(&route(&[])));
        let new = Known { committed: None, position: None, ..known() };
        let mut sights: Vec<_> = (0..3).map(|index| sight(index, ours.clone(), known())).collect();
        sights.push(sight(3, None, new));
        check(
            &sights,
            &[
                (Level::Ok, "partition 3: no offsets"),
                (Level::Ok, "partition 0-2: goes on at its offsets, 1500 behind"),
            ],
        );
    }

    #[test]
    fn what_the_log_lacks_is_absorbed() {
        let ours = Some(metadata(&route(&[])));
        let lost = Known { position: None, window_start: Some(Offset(200)), ..known() };
        check(
            &[sight(0, ours, lost.clone())],
            &[(Level::Note, "about 300 offsets are read into the log first")],
        );
        let foreign = Known { committed_by_us: false, window_start: Some(Offset(0)), ..lost };
        check(
            &[sight(0, None, foreign)],
            &[(Level::Note, "another consumer has committed offsets; about 500")],
        );
    }

    #[test]
    fn nothing_is_said_of_a_log_that_was_not_looked_at() {
        let ours = Some(metadata(&route(&[])));
        let unknown = Known { position: None, window_start: Some(Offset(200)), ..known() };
        let sight = Sight { log_known: false, ..sight(0, ours, unknown) };
        check(&[sight], &[(Level::Ok, "goes on at its offsets, 500 behind the end")]);
    }

    #[test]
    fn offsets_that_a_tool_has_moved_are_told() {
        let back = Known { committed: Some(Offset(100)), committed_by_us: false, ..known() };
        check(&[sight(0, None, back)], &[(Level::Note, "400 behind the log")]);
        let forward = Known { committed: Some(Offset(700)), committed_by_us: false, ..known() };
        check(&[sight(0, None, forward)], &[(Level::Warning, "200 offsets will not be handled")]);
    }

    #[test]
    fn the_offsets_of_both_groups_and_the_start_are_shown() {
        let ours = Some(metadata(&route(&[])));
        let reset = Known { committed: Some(Offset(0)), committed_by_us: false, ..known() };
        check(
            &[sight(0, ours, reset)],
            &[(Level::Note, "0: committed 0, high water 500, start 500")],
        );
    }

    #[test]
    fn a_high_water_group_that_a_tool_has_moved_fails() {
        let refusal = Refusal::HighWaterForeign {
            partition: Partition::new("t", 0),
            group: "g.onced".to_owned(),
            offset: Offset(3),
        };
        let sight = Sight { weighed: Err(refusal), ..sight(0, None, known()) };
        check(&[sight], &[(Level::Failed, "g.onced was not written by onced")]);
    }

    #[track_caller]
    fn check_refused(metadata: Metadata, known: Known, found: &str) {
        let rows =
            rows("g", &route(&[]), "t", &[sight(0, Some(metadata), known)], Start::Earliest, NOW);
        assert_eq!((rows.len(), rows[0].level), (1, Level::Failed));
        assert!(rows[0].found.contains(found), "{rows:?}");
        assert!(rows[0].advice.contains("exit code 5"));
    }

    #[test]
    fn what_run_refuses_fails() {
        let ours = metadata(&route(&[]));
        check_refused(
            Metadata { topic_id: "other".to_owned(), ..ours.clone() },
            known(),
            "recreated",
        );
        check_refused(
            Metadata { partition_count: 3, ..ours.clone() },
            known(),
            "had 3 partitions and now has 4",
        );
        check_refused(Metadata { definition: 1, ..ours.clone() }, known(), "identity");
        check_refused(ours.clone(), Known { end: Offset(400), ..known() }, "truncated");
        check_refused(ours, Known { first: Offset(600), ..known() }, "lost to retention");
    }

    #[test]
    fn a_changed_identity_does_not_matter_once_the_window_has_passed() {
        let old =
            Metadata { definition: 1, stream_time: Some(Timestamp(0)), ..metadata(&route(&[])) };
        check(&[sight(0, Some(old), known())], &[(Level::Ok, "goes on")]);
    }

    #[test]
    fn a_shard_of_a_shorter_window_is_not_usable() {
        let window = route(&[]).window;
        let owner = Owner {
            topic: "t".to_owned(),
            topic_id: String::new(),
            partition: 0,
            partition_count: 1,
            definition: 0,
            ttl: window.ttl,
            lateness: window.lateness,
            owned_at_ms: 0,
            acts: Default::default(),
        };
        assert!(usable(&route(&[]), &owner));
        assert!(!usable(&route(&["window.ttl=25h"]), &owner));
    }
}
