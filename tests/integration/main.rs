//! The integration tests: onced as a process, against a real Kafka.
//!
//! ```text
//! harness        the words that the tests are written in, and tests of its own
//! ```
//!
//! All tests share one broker, which `scripts/kafka` starts with the first of them; every test has
//! topics and groups of its own. Where Java or Maven is missing, a test that needs the broker is
//! skipped and says so; with `CI` set it fails instead.

mod harness;
