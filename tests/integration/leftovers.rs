//! Transactions that stay open in an output topic: nothing is passed on beside them.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::exactly_once::{Stage, source};
use crate::exactly_once_faults::{dies, faults_binary, placed};
use crate::harness::{Daemon, Kafka, unique, wait_until};
use crate::scene::SOON;

/// Null where it does not answer yet.
fn status(onced: &Daemon) -> serde_json::Value {
    let reply = onced.get("/status");
    reply.map_or_else(
        |_| serde_json::Value::Null,
        |reply| serde_json::from_str(&reply.body).expect("/status is JSON"),
    )
}

fn settling(onced: &Daemon) -> bool {
    let phases = status(onced)["transactions"].as_array().cloned().unwrap_or_default();
    phases.iter().any(|at| at["phase"] == "settling")
}

/// After a broker died: waits until the daemon is at work again, and ends for it what Kafka left
/// open, as the README says.
pub fn recover(stage: &Stage<'_>, onced: &mut Daemon) {
    if stuck(stage, onced) {
        onced.terminate();
        end_what_hangs(stage, onced);
        onced.start();
        onced.wait_ready();
    }
}

/// Waits until it has caught up, or says that a transaction does not end. True: it says so.
fn stuck(stage: &Stage<'_>, onced: &Daemon) -> bool {
    let partitions = 0..stage.kafka.partitions(&stage.input);
    let ends: Vec<_> =
        partitions.map(|partition| stage.kafka.end_offset(&stage.input, partition)).collect();
    let asked = "a transaction that moved the offsets does not end";
    wait_until("it recovers, or says why not", Duration::from_secs(90), || {
        let status = status(onced);
        let known = status["partitions"].as_array().cloned().unwrap_or_default();
        let committed = known.iter().map(|of| of["committed_offset"].as_i64());
        if committed.eq(ends.iter().copied().map(Some)) {
            return Ok(false);
        }
        let reasons = status["not_ready_because"].to_string();
        let stuck = reasons.contains("is open since") || onced.stderr().matches(asked).count() > 1;
        if stuck { Ok(true) } else { Err(status) }
    })
}

/// Aborts what hangs. Outputs of records that the group has not committed are passed on again;
/// those of records that it has are written again here.
pub fn end_what_hangs(stage: &Stage<'_>, onced: &Daemon) {
    let hung = stage.kafka.abort_what_hangs(&[&stage.output, &stage.dead]);
    let mut records = stage.kafka.read_uncommitted(&stage.output);
    records.retain(|record| {
        let of = (&record.topic, record.partition);
        hung.iter().any(|(topic, at, since)| (topic, *at) == of && record.offset >= *since)
    });
    let mut again = BTreeSet::new();
    for record in records {
        let (partition, offset) = source(&record);
        let index = partition.rsplit_once('/').expect("topic/partition").1.to_owned();
        let at = index.parse().expect("a number");
        let committed = stage.kafka.committed_offset(&stage.group, &stage.input, at);
        if offset < committed.unwrap_or(0) {
            stage.kafka.produce(&stage.output, [record.into()]);
        } else {
            again.insert(index);
        }
    }
    for index in again {
        let place = ["--topic", &stage.input, "--partition", &index];
        let output = onced.run([
            "rewind",
            place[0],
            place[1],
            place[2],
            place[3],
            "--to-committed",
            "--yes",
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

/// What `/status` says about why it is not ready, once it says this word.
fn reason(onced: &Daemon, word: &str) -> String {
    wait_until(&format!("it says {word:?}"), Duration::from_secs(60), || {
        let status = status(onced);
        let reasons = status["not_ready_because"].as_array().cloned().unwrap_or_default();
        let told = reasons.iter().find_map(|reason| {
            reason.as_str().filter(|text| text.contains(word)).map(str::to_owned)
        });
        told.ok_or(status["not_ready_because"].clone())
    })
}

#[test]
fn what_another_has_open_is_waited_for() {
    let Some(kafka) = Kafka::shared_or_skip("what_another_has_open_is_waited_for") else { return };
    let stage = Stage::new(kafka, "foreign", 2);
    let foreign: BaseProducer = kafka
        .client(&[("transactional.id", &unique("foreign")), ("transaction.timeout.ms", "60000")]);
    foreign.init_transactions(SOON).expect("a producer registers");
    foreign.begin_transaction().expect("a transaction begins");
    let record = BaseRecord::to(&stage.output).partition(1).key("").payload("theirs");
    foreign.send(record).map_err(|(error, _)| error).expect("there is room");
    foreign.flush(SOON).expect("it is delivered");

    stage.produce(placed(0..100));
    let mut onced = stage.daemon().start();
    wait_until("it waits for what is open", SOON, || settling(&onced));
    onced.wait_ready();
    // It tells after a while, and until then has passed on nothing.
    let reason = reason(&onced, "is open since");
    assert!(reason.contains(&format!("{}/1", stage.output)), "{reason}");
    assert!(reason.ends_with("since offset 0"), "{reason}");
    assert_eq!(stage.written(), 1, "only theirs");

    foreign.abort_transaction(SOON).expect("they abort");
    onced.wait_ready();
    stage.wait_committed();
    stage.expect_each_once(100);
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
}

/// A cluster of one broker, killed with a transaction open, comes back after the transaction's
/// timeout: nearly always its coordinator aborts at once, finds no leader yet for the partition that
/// it is about to lead, and never writes the marker.
#[test]
fn a_marker_that_kafka_leaves_out_doubles_nothing() {
    let name = "a_marker_that_kafka_leaves_out_doubles_nothing";
    let Some(kafka) = Kafka::private_or_skip(name, &[]) else { return };
    let Some(binary) = faults_binary() else { return };
    let stage = Stage::new(&kafka, "marker", 1);
    stage.produce(placed(0..100));
    let mut onced = dies(&stage, &binary, "outputs-delivered:1", "one");
    onced.start();
    wait_until("it dies with a transaction open", SOON, || !onced.running());
    assert_eq!(stage.written(), 100);
    kafka.kill();
    kafka.start();

    onced = dies(&stage, &binary, "", "one").adopt(onced);
    onced.start();
    if stuck(&stage, &onced) {
        let reason = reason(&onced, "is open since");
        assert!(reason.ends_with("/0 is open since offset 0"), "{reason}");
        assert_eq!(stage.written(), 100, "nothing is passed on");
        // What the message says helps.
        kafka.abort_what_hangs(&[&stage.output]);
    }
    onced.wait_ready();
    stage.wait_committed();
    stage.expect_each_once(100);
}
