//! The integration tests: onced as a process, against a real Kafka.
//!
//! ```text
//! harness        the words that the tests are written in, and tests of its own
//! scene          what several of the tests set up
//! duplicates     what is suppressed, and what is not
//! crashes        kill -9, SIGTERM, brokers that die: nothing lost, nothing repeated without need
//! offsets        where partitions start: rewinds, lost directories, skips, refusals, two instances
//! highwater      offsets that tools, expiry and lost directories change: nothing runs again
//! rewind         `onced rewind`, and partitions that were added
//! window         time: expiry on read and on disk
//! disk           a disk that is full, and has space again
//! power          power cuts, full disks and failing calls on a file system of its own
//! torn           requests that are late, and answers that never come
//! exactly_once   the kafka handler: what is passed on, where to, and once
//! exactly_once_faults  the same when something dies, stalls or moves in the middle
//! letters        dead letters: their headers, and that they settle their records
//! http           the http handler from the outside; order, concurrency, rate
//! input          hostile and broken input: a clear result, and nothing lost
//! admin          the admin server and the metrics
//! library        handlers registered from Rust
//! check          `onced check`
//! verify         `onced verify` finds what was done wrong by hand, and nothing where nothing is
//! demo           `onced demo`, which needs no broker
//! tidy           what can be grepped: import arrows, sizes, names
//! ```
//!
//! All tests share one broker, which `scripts/kafka` starts with the first of them; every test has
//! topics and groups of its own. Where Java or Maven is missing, a test that needs the broker is
//! skipped and says so; with `CI` set it fails instead.

#![allow(clippy::cast_sign_loss, reason = "counters and counts are not negative")]

#[path = "../chaos/proxy/mod.rs"]
mod kafka_proxy;
mod harness;
#[path = "../chaos/disk.rs"]
mod loop_disk;
mod scene;

mod admin;
mod check;
mod crashes;
mod demo;
mod disk;
mod duplicates;
mod highwater;
mod exactly_once;
mod exactly_once_faults;
mod http;
mod input;
mod leftovers;
mod letters;
mod library;
mod offsets;
mod power;
mod rewind;
mod tidy;
mod torn;
mod verify;
mod window;
