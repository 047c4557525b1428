//! The pipeline under a seeded model of everything around it: broker, group, log, handlers, time.
//!
//! ```text
//! real     Worker with Dispatch, InFlight, Frontier, verdicts, expiry; assign::plan; letters
//! model    broker and group (cluster, group, topic), log (disk), poll loop (process), start
//! checks   while it happens (ledger), and at the end against a log that forgets nothing (oracle)
//! ```
//!
//! One seed decides the setting, the records, every step and every fault; there is no other clock
//! and no thread. So a seed that fails fails again:
//!
//! ```text
//! ONCED_SIM_SEED=<n>     replays one seed and prints its steps
//! ONCED_SIM_SEEDS=<n>    so many seeds instead of 80,000
//! ONCED_SIM_FIRST=<n>    from this one on
//! ```

#![allow(clippy::cast_sign_loss, reason = "numbers of a model are small and not negative")]

mod cluster;
mod disk;
mod group;
mod ledger;
mod oracle;
mod process;
mod start;
mod topic;
mod transactions;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use self::world::{Summary, World};
use crate::fault::armed::set_bug;
use crate::fault::{BUGS, Bug};

const SEEDS: u64 = 80_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs a seed; a panic of the pipeline counts as a broken invariant.
fn run(seed: u64, keep_steps: bool) -> (Summary, Result<(), String>) {
    let world = AssertUnwindSafe(|| World::new(seed, keep_steps).run());
    catch_unwind(world).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        (Summary::default(), Err(format!("a panic: {}", text.unwrap_or_default())))
    })
}

fn show(seed: u64) -> String {
    let (report, result) = run(seed, true);
    format!(
        "{}\nseed {seed}: {result:?}\nreplay: ONCED_SIM_SEED={seed} scripts/test --lib simulation::eighty -- --nocapture",
        report.steps.join("\n")
    )
}

#[test]
fn eighty_thousand_seeds_hold() {
    if let Some(seed) = number("ONCED_SIM_SEED") {
        let text = show(seed);
        assert!(text.contains(": Ok(())"), "{text}");
        println!("{text}");
        return;
    }
    let seeds = number("ONCED_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("ONCED_SIM_FIRST").unwrap_or(0);
    let next = AtomicU64::new(0);
    let totals = [const { AtomicU64::new(0) }; 4];
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let failed = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let seed = first + next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds || failed.len() >= 5 {
                    return failed;
                }
                let (report, result) = run(seed, false);
                for (total, count) in
                    totals.iter().zip([report.records, report.calls, report.crashes, report.moves])
                {
                    total.fetch_add(count, Ordering::Relaxed);
                }
                failed.extend(result.err().map(|text| (seed, text)));
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let [records, calls, crashes, moves] = totals.map(AtomicU64::into_inner);
    println!(
        "{seeds} seeds from {first}: {records} records, {calls} calls, {crashes} crashes, {moves} members declared dead"
    );
    for (seed, text) in &failed {
        println!("seed {seed}: {text}");
    }
    if let Some((seed, _)) = failed.first() {
        panic!("{}", show(*seed));
    }
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for seed in 0..20 {
        let steps = || run(seed, true).0.steps;
        assert_eq!(steps(), steps(), "seed {seed}");
    }
}

/// A bug that is there shows within so many seeds.
const SEEDS_TO_CATCH: u64 = 20_000;

/// The first seed that shows the bug, and the invariant that broke.
fn caught(bug: Bug) -> Option<(u64, String)> {
    set_bug(Some(bug));
    let caught =
        (0..SEEDS_TO_CATCH).find_map(|seed| run(seed, false).1.err().map(|text| (seed, text)));
    set_bug(None);
    caught
}

/// Every known bug is built in, one after another. Some are in the real code that runs here, some
/// in the models of what talks to the broker, of the poll loop and of the disk.
#[test]
fn seeded_bugs_are_caught() {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        let mut found = Vec::new();
        while let Some(bug) = BUGS.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*bug, caught(*bug)));
        }
        found
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut missed = Vec::new();
    println!("{:24} {:>6}  the invariant that broke", "bug", "seeds");
    for bug in BUGS {
        match found.iter().find(|(of, _)| of == bug) {
            Some((_, Some((seed, text)))) => println!("{:24} {:6}  {text}", bug.name(), seed + 1),
            _ => missed.push(bug.name()),
        }
    }
    assert_eq!(missed, Vec::<&str>::new(), "not caught within {SEEDS_TO_CATCH} seeds");
    for seed in 0..10 {
        assert_eq!(run(seed, false).1, Ok(()), "a false alarm");
    }
}
