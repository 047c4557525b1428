//! Crash points and known bugs: what the proof needs to be able to fail.
//!
//! A crash point is a place between two steps of the protocol. Armed, it kills the process there
//! as `kill -9` would. A bug is a mistake that somebody could make; built in, the verifier or the
//! simulation must notice it.
//!
//! Constraints:
//! - Without the feature `faults` (and outside of unit tests) everything here is constant and
//!   compiled away.
//! - One bug at a time.
//!
//! ```text
//! ONCED_CRASH=<point>[:<hits>]   dies at this hit of the point; without a number at the first
//! ONCED_BUG=<bug>                has this bug
//! ```

macro_rules! names {
    ($(#[$of:meta])* $kind:ident, $all:ident { $($(#[$doc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$doc])* $name,)* }

        /// All of them, in the order of a record's way.
        pub const $all: &[$kind] = &[$($kind::$name,)*];

        impl $kind {
            /// The name in the environment and in reports.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            #[must_use]
            pub fn by_name(name: &str) -> Option<Self> {
                $all.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}

names! {
    /// A place where the process can be made to die.
    Point, POINTS {
        Offered = "offered",
        CommittedRead = "committed-read",
        HighWaterRead = "high-water-read",
        LettersRead = "letters-read",
        ShardCreated = "shard-created",
        Entered = "entered",
        FirstCommit = "first-commit",
        Assigned = "assigned",
        Decided = "decided",
        Absorbed = "absorbed",
        TransactionBegun = "transaction-begun",
        OutputProduced = "output-produced",
        OutputsDelivered = "outputs-delivered",
        OffsetsSent = "offsets-sent",
        HighWaterSent = "high-water-sent",
        TransactionCommitted = "transaction-committed",
        TransactionAborted = "transaction-aborted",
        ProducerRecycled = "producer-recycled",
        BeforeLogWrite = "before-log-write",
        AfterLogWrite = "after-log-write",
        BeforeFlush = "before-flush",
        BeforeIngest = "before-ingest",
        AfterFlush = "after-flush",
        BeforeCall = "before-call",
        AfterCall = "after-call",
        LetterSent = "letter-sent",
        LetterAcknowledged = "letter-acknowledged",
        BeforeOffsetCommit = "before-offset-commit",
        AfterOffsetCommit = "after-offset-commit",
        AfterHighWaterCommit = "after-high-water-commit",
        DrainStarted = "drain-started",
        Drained = "drained",
        Unassigned = "unassigned",
        Reentering = "re-entering",
    }
}

names! {
    /// A mistake that can be built in.
    Bug, BUGS {
        /// The offset is committed before the record is handled.
        CommitBeforeProcess = "commit-before-process",
        /// The log is written before the transaction is committed.
        LogBeforeCommit = "log-before-commit",
        /// Offsets are committed beside the transaction.
        OffsetsOutside = "offsets-outside",
        /// Letters are sent beside the transaction.
        LettersOutside = "letters-outside",
        /// Group metadata of the first transaction are used for ever.
        StaleMetadata = "stale-metadata",
        /// The epochs of the partitions are not compared before a commit.
        NoEpochCheck = "no-epoch-check",
        /// Partitions are given back without waiting for what is out.
        FenceBeforeDrain = "fence-before-drain",
        /// A partition that was lost goes on settling and committing.
        LostCommits = "lost-commits",
        /// The frontier counts the highest offset instead of the gapless run.
        FrontierIgnoresGaps = "frontier-ignores-gaps",
        /// Nothing is absorbed.
        NoAbsorb = "no-absorb",
        /// The absorb ends at the position instead of the committed offset.
        AbsorbEndsEarly = "absorb-ends-early",
        /// Expiry goes by the wall clock.
        WallClockExpiry = "wall-clock-expiry",
        /// The window is twice as long on the read path.
        WindowTwice = "window-twice",
        /// The compaction filter uses the stream time of now instead of the last flush.
        FilterAheadOfFlush = "filter-ahead-of-flush",
        /// The identity is 64 bits of the key's length and first bytes.
        WeakIdentity = "weak-identity",
        /// A failed write of the log is ignored.
        IgnoreLogError = "ignore-log-error",
        /// A late commit is not followed by a new producer.
        NoRecycle = "no-recycle",
        /// After an abort the partitions go on where they are.
        NoReentry = "no-re-entry",
        /// Records that cannot be identified are dropped without a word.
        DropUnidentified = "drop-unidentified",
        /// The high-water group is committed before the group.
        HighWaterFirst = "high-water-first",
        /// The high-water group is never read.
        NoHighWater = "no-high-water",
        /// Letters are not read at the start.
        LettersUnread = "letters-unread",
        /// Letters are read only to the last stable offset.
        LettersToStable = "letters-to-stable",
        /// Skipped records enter the log.
        SkipEnters = "skip-enters",
        /// A skip is not carried on in the commits.
        SkipForgotten = "skip-forgotten",
        /// A dead-lettered record leaves an entry.
        LetterLeavesEntry = "letter-leaves-entry",
        /// A duplicate in the same transaction is not seen.
        NoOverlay = "no-overlay",
    }
}

/// Dies here where the point is armed.
#[inline]
pub fn point(point: Point) {
    armed::point(point);
}

/// Whether the daemon has this bug.
#[inline]
#[must_use]
pub fn bug(bug: Bug) -> bool {
    armed::bug(bug)
}

#[cfg(not(any(test, feature = "faults")))]
mod armed {
    use super::{Bug, Point};

    #[inline(always)]
    pub(super) fn point(_: Point) {}

    #[inline(always)]
    pub(super) fn bug(_: Bug) -> bool {
        false
    }
}

#[cfg(all(feature = "faults", not(test)))]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{BUGS, Bug, POINTS, Point};

    struct Armed {
        point: Point,
        hits: AtomicU64,
    }

    static CRASH: OnceLock<Option<Armed>> = OnceLock::new();
    static BUG: OnceLock<Option<Bug>> = OnceLock::new();

    pub(super) fn point(point: Point) {
        let armed = CRASH.get_or_init(read_crash).as_ref().filter(|armed| armed.point == point);
        if armed.is_some_and(|armed| armed.hits.fetch_sub(1, Ordering::SeqCst) == 1) {
            // SAFETY: no memory is involved. The signal cannot be caught, so this does not return.
            unsafe { libc::raise(libc::SIGKILL) };
        }
    }

    pub(super) fn bug(bug: Bug) -> bool {
        *BUG.get_or_init(read_bug) == Some(bug)
    }

    fn read_crash() -> Option<Armed> {
        let text = std::env::var("ONCED_CRASH").ok().filter(|text| !text.is_empty())?;
        let (name, hits) = text.split_once(':').unwrap_or((&text, "1"));
        let names = || POINTS.iter().map(|point| point.name()).collect::<Vec<_>>();
        let point = Point::by_name(name)
            .unwrap_or_else(|| panic!("ONCED_CRASH={text}: no such point; known: {:?}", names()));
        let hits = hits.parse().expect("ONCED_CRASH=<point>:<hits>, with a number");
        Some(Armed { point, hits: AtomicU64::new(hits) })
    }

    fn read_bug() -> Option<Bug> {
        let text = std::env::var("ONCED_BUG").ok().filter(|text| !text.is_empty())?;
        let names = || BUGS.iter().map(|bug| bug.name()).collect::<Vec<_>>();
        let bug = Bug::by_name(&text);
        Some(bug.unwrap_or_else(|| panic!("ONCED_BUG={text}: no such bug; known: {:?}", names())))
    }
}

/// In unit tests the thread that runs the simulation says what happens.
#[cfg(test)]
pub(crate) mod armed {
    use std::cell::Cell;

    use super::{Bug, Point};

    thread_local! {
        static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Builds a bug in, for this thread, until the next call.
    pub(crate) fn set_bug(bug: Option<Bug>) {
        BUG.set(bug);
    }

    pub(super) fn point(_: Point) {}

    pub(super) fn bug(bug: Bug) -> bool {
        BUG.get() == Some(bug)
    }
}
