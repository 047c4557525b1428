//! `onced demo`, which needs no broker: it comes to its verdict, soon, and leaves nothing behind.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A newcomer waits for it.
const SOON: Duration = Duration::from_secs(30);

/// Runs the demo with a folder for temporary files of its own.
fn demo(arguments: &[&str]) -> (Output, TempDir) {
    let temporary = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = Command::new(env!("CARGO_BIN_EXE_onced"));
    command.arg("demo").args(arguments).env("TMPDIR", temporary.path());
    // Settings for a daemon, which the demo's own must not take over.
    command.env("ONCED_KAFKA__BROKERS", "127.0.0.1:1").env_remove("ONCED_LOG");
    (command.output().expect("onced can be started"), temporary)
}

#[track_caller]
fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}\n{output:?}"))
}

#[test]
fn the_demo_handles_every_payment_once_and_says_so_in_numbers() {
    let begun = Instant::now();
    let (output, temporary) = demo(&["--json", "--payments", "500", "--seed", "7"]);
    let took = begun.elapsed();
    let result = json(&output);
    assert_eq!(result["verdict"], "passed", "{result:#}");
    assert!(output.status.success(), "{output:?}");
    assert!(took < SOON, "it took {took:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "a pipe gets the result alone");

    let numbers = &result["numbers"];
    let count =
        |pointer: &str| numbers.pointer(pointer).and_then(Value::as_u64).unwrap_or(u64::MAX);
    let repeats = count("/sent/client_retries")
        + count("/sent/late_duplicates")
        + count("/sent/producer_repeats");
    assert_eq!(count("/sent/payments"), 500);
    assert_eq!(count("/sent/records"), 500 + repeats + 1, "{numbers:#}");
    assert_eq!(count("/handled/calls"), 500 + count("/kill/in_flight"), "{numbers:#}");
    assert_eq!(count("/handled/cents"), count("/sent/cents"), "{numbers:#}");
    assert_eq!(count("/settled/duplicate"), repeats, "{numbers:#}");
    assert_eq!(numbers["dead_letters"][0]["reason"], "conflict", "{numbers:#}");

    let left: Vec<_> = fs::read_dir(temporary.path()).expect("the folder is there").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_demo_without_json_ends_with_a_verdict_in_words() {
    let (output, _temporary) = demo(&["--payments", "100"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("Verdict: every payment was handled once."), "{text}");
    assert!(!text.contains("WRONG"), "{text}");
}

#[test]
fn a_demo_that_cannot_run_fails_and_says_why() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onced"));
    let output = command.args(["demo", "--json"]).env("TMPDIR", "/nonexistent").output();
    let output = output.expect("onced can be started");
    assert_eq!(output.status.code(), Some(1));
    let result = json(&output);
    assert_eq!(result["verdict"], "failed");
    let error = result["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("cannot create the directory /nonexistent/"), "{error}");
}
