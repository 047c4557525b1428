//! The harness tells the truth: what a test of the daemon relies on is itself tested.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::panic;
use std::time::{Duration, Instant};

use super::{
    Committed, HttpService, Kafka, Message, Metrics, OwnedRecord, Request, Response, http_get,
    payments, unique, wait_until, wait_until_eq,
};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn what_was_produced_is_read_back_byte_for_byte() {
    let Some(kafka) = Kafka::shared_or_skip("what_was_produced_is_read_back_byte_for_byte") else {
        return;
    };
    let topic = kafka.topic("roundtrip").partitions(2).create();
    let odd = Message::new([0xff, 0x00])
        .key("")
        .partition(1)
        .timestamp(1_700_000_000_000)
        .header([0xc3, 0x28], "a name that is not UTF-8")
        .header("twice", "first")
        .header("twice", [0xff])
        .header("", "")
        .null_header("null");
    kafka.produce(&topic, [odd.clone(), Message::tombstone("gone").partition(0)]);

    let records = kafka.read_all(&topic);
    let [tombstone, read] = records.as_slice() else { panic!("two records: {records:?}") };
    assert_eq!((tombstone.partition, tombstone.key_text()), (0, Some("gone".to_owned())));
    assert_eq!(tombstone.payload, None, "a tombstone's payload is null");
    assert_eq!((read.partition, read.offset, read.timestamp), (1, 0, odd.timestamp));
    assert_eq!((&read.key, &read.payload), (&odd.key, &odd.payload));
    assert_eq!(read.headers, odd.headers);
    assert_eq!(read.header("twice").as_deref(), Some("first"));
}

#[test]
fn a_header_name_with_a_nul_can_be_produced() {
    let Some(kafka) = Kafka::shared_or_skip("a_header_name_with_a_nul_can_be_produced") else {
        return;
    };
    let topic = kafka.topic("nul").create();
    kafka.produce(&topic, [Message::new("x").header("a\0b", "1")]);
    assert_eq!(kafka.read_all(&topic)[0].headers, [(b"a".to_vec(), Some(b"1".to_vec()))]);
}

#[test]
fn a_record_of_ten_megabytes_fits() {
    let Some(kafka) = Kafka::shared_or_skip("a_record_of_ten_megabytes_fits") else { return };
    let topic = kafka.topic("large").create();
    kafka.produce(&topic, [Message::new(vec![b'x'; 10_000_000])]);
    assert_eq!(kafka.read_all(&topic)[0].payload.as_ref().map(Vec::len), Some(10_000_000));
}

#[test]
fn a_refused_record_fails_the_test_that_produced_it() {
    let Some(kafka) = Kafka::shared_or_skip("a_refused_record_fails_the_test_that_produced_it")
    else {
        return;
    };
    let topic = kafka.topic("refused").config("max.message.bytes", "1000").create();
    let large = Message::new(vec![b'x'; 10_000]);
    let produced = panic::catch_unwind(|| kafka.produce(&topic, [large]));
    assert!(produced.is_err(), "the broker refuses a record that is too large");
}

#[test]
fn only_committed_transactions_are_read() {
    let Some(kafka) = Kafka::shared_or_skip("only_committed_transactions_are_read") else { return };
    let topic = kafka.topic("transactions").create();
    kafka.begin(&topic, [Message::new("aborted")]).abort();
    kafka.begin(&topic, [Message::new("committed")]).commit();
    let open = kafka.begin(&topic, [Message::new("open")]);
    kafka.produce(&topic, [Message::new("behind the open one")]);

    assert_eq!(texts(&kafka.read_all(&topic)), ["committed"]);
    let all = ["aborted", "committed", "open", "behind the open one"];
    assert_eq!(texts(&kafka.read_uncommitted(&topic)), all);
    let stable = kafka.stable_end_offset(&topic, 0);
    assert_eq!((stable, kafka.end_offset(&topic, 0)), (4, 6), "two markers, one open record");

    open.commit();
    assert_eq!(
        texts(&kafka.read_at_least(&topic, 3, SOON)),
        ["committed", "open", "behind the open one"]
    );
}

#[test]
fn offsets_are_set_and_read_back_with_their_metadata() {
    let Some(kafka) = Kafka::shared_or_skip("offsets_are_set_and_read_back_with_their_metadata")
    else {
        return;
    };
    let topic = kafka.topic("offsets").partitions(2).create();
    let group = unique("group");
    assert_eq!(kafka.committed(&group, &topic, 0), None);

    kafka.set_offset(&group, &topic, 1, 7, "grüße");
    let expected = Committed { offset: 7, metadata: "grüße".to_owned() };
    assert_eq!(kafka.committed(&group, &topic, 1), Some(expected));

    kafka.set_offsets(&group, &topic, &[1, 2]);
    let expected = Committed { offset: 2, metadata: String::new() };
    assert_eq!(kafka.committed(&group, &topic, 1), Some(expected));

    kafka.delete_group(&group);
    assert_eq!(kafka.committed_offset(&group, &topic, 0), None);
    assert_eq!(kafka.members(&group), 0);
}

#[test]
fn topics_change_under_a_reader() {
    let Some(kafka) = Kafka::shared_or_skip("topics_change_under_a_reader") else { return };
    let topic = kafka.topic("changing").create();
    kafka.produce(&topic, ["a", "b", "c"].map(Message::new));
    kafka.delete_records(&topic, 0, 2);
    assert_eq!(kafka.start_offset(&topic, 0), 2);
    assert_eq!(texts(&kafka.read_all(&topic)), ["c"]);

    kafka.add_partitions(&topic, 3);
    kafka.configure_topic(&topic, &[("retention.ms", "60000")]);
    assert_eq!(kafka.partitions(&topic), 3);

    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[]);
    assert_eq!(kafka.end_offset(&topic, 0), 0, "a new topic under the old name");
}

#[test]
fn a_compacted_topic_is_compacted_within_a_test() {
    let Some(kafka) = Kafka::shared_or_skip("a_compacted_topic_is_compacted_within_a_test") else {
        return;
    };
    let topic = kafka
        .topic("compacted")
        .config("cleanup.policy", "compact")
        .config("segment.ms", "100")
        .config("min.cleanable.dirty.ratio", "0.01")
        .create();
    kafka.produce(&topic, ["old", "new"].map(|text| Message::new(text).key("k")));
    std::thread::sleep(Duration::from_millis(200));
    // The active segment is never cleaned; this record begins another one.
    kafka.produce(&topic, [Message::new("other").key("other")]);
    wait_until_eq(
        "the old value is gone",
        SOON,
        vec!["new".to_owned(), "other".to_owned()],
        || texts(&kafka.read_all(&topic)),
    );
}

#[test]
fn a_private_broker_goes_away_and_comes_back_with_its_data() {
    let test = "a_private_broker_goes_away_and_comes_back_with_its_data";
    let Some(kafka) = Kafka::private_or_skip(test, &[("max.connections", "1234")]) else { return };
    let topic = kafka.topic("kept").create();
    kafka.produce(&topic, [Message::new("before")]);
    let port = kafka.bootstrap().parse::<SocketAddr>().expect("an address");

    kafka.stop();
    assert!(TcpStream::connect(port).is_err(), "nobody listens");
    kafka.start();
    kafka.kill();
    assert!(TcpStream::connect(port).is_err(), "nobody listens");
    kafka.start();
    kafka.produce(&topic, [Message::new("after")]);
    assert_eq!(texts(&kafka.read_all(&topic)), ["before", "after"]);
}

#[test]
fn payments_are_the_same_for_the_same_seed() {
    let all: Vec<_> = payments(10_000, 0.1, 1).collect();
    assert_eq!(all, payments(10_000, 0.1, 1).collect::<Vec<_>>());
    assert_ne!(all, payments(10_000, 0.1, 2).collect::<Vec<_>>());

    let distinct: HashSet<_> = all.iter().map(|message| &message.payload).collect();
    assert_eq!(distinct.len() as u64, payments(10_000, 0.1, 1).distinct());
    assert!((8_800..9_200).contains(&distinct.len()), "{}", distinct.len());
    let bytes: usize =
        all.iter().filter_map(|message| message.payload.as_ref()).map(Vec::len).sum();
    assert!((180..220).contains(&(bytes / all.len())), "{}", bytes / all.len());
}

#[test]
fn the_service_answers_as_told_and_remembers() {
    let mut service = HttpService::start(|request| match request.path.as_str() {
        "/slow" => Response::ok().after(Duration::from_millis(50)).body("late"),
        "/busy" => Response::status(503).retry_after(2),
        _ => Response::hang_up(),
    });
    let address = service.url("").replace("http://", "").parse().expect("an address");

    let begun = Instant::now();
    assert_eq!(http_get(address, "/slow").expect("an answer").body, "late");
    assert!(begun.elapsed() >= Duration::from_millis(50), "it takes its time");
    let busy = http_get(address, "/busy").expect("an answer");
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("2")));
    assert!(http_get(address, "/gone").is_err(), "it hangs up");
    service.refuse_connections(1);
    assert!(http_get(address, "/busy").is_err(), "it drops the connection unread");
    assert_eq!(service.wait_for(3, SOON).len(), 3);

    service.go_away();
    assert!(TcpStream::connect(address).is_err(), "nobody listens");
    service.come_back();
    assert_eq!(http_get(address, "/busy").expect("an answer").status, 503);
    assert_eq!((service.requests().len(), service.max_in_flight()), (4, 1));
}

#[test]
fn a_connection_to_the_service_is_kept_alive() {
    let service = HttpService::start(|request| Response::ok().body(request.body.clone()));
    let address: SocketAddr = service.url("").replace("http://", "").parse().expect("an address");
    let mut stream = TcpStream::connect(address).expect("it listens");
    let posts = [
        "POST /a HTTP/1.1\r\nX-Key: k\r\nContent-Length: 3\r\n\r\none",
        "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntw\r\n1\r\no\r\n0\r\n\r\n",
    ];
    for (post, body) in posts.into_iter().zip(["one", "two"]) {
        stream.write_all(post.as_bytes()).expect("it reads");
        let mut answer = [0; 128];
        let length = stream.read(&mut answer).expect("it answers");
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(body), "{answer}");
    }
    let requests = service.requests();
    assert_eq!(requests.iter().map(Request::body_text).collect::<Vec<_>>(), ["one", "two"]);
    assert!(requests.iter().all(|request| request.connection == 0), "one connection");
    assert_eq!(service.header_values("x-key"), ["k"]);
}

#[test]
fn metrics_are_summed_over_the_labels_that_match() {
    let metrics = Metrics::parse(
        "# HELP onced_records_total Records.\n\
         # TYPE onced_records_total counter\n\
         onced_records_total{route=\"a\",verdict=\"fresh\"} 3\n\
         onced_records_total{route=\"b\",verdict=\"fresh\"} 4e0\n\
         onced_records_total{route=\"b\",verdict=\"dup\\\"licate}\"} 5\n\
         onced_ready 1 1700000000000\n",
    );
    assert!((metrics.value("onced_records_total", &[("verdict", "fresh")]) - 7.0).abs() < 1e-9);
    assert!((metrics.value("onced_records_total", &[]) - 12.0).abs() < 1e-9);
    assert!((metrics.value("onced_ready", &[]) - 1.0).abs() < 1e-9);
    assert!(metrics.has("onced_records_total", &[("verdict", "dup\"licate}")]));
    assert!(!metrics.has("onced_records", &[]));
    let verdicts = metrics.by_label("onced_records_total", "route");
    assert_eq!(verdicts.into_iter().collect::<Vec<_>>(), [("a".into(), 3.0), ("b".into(), 9.0)]);
}

#[test]
fn waiting_in_vain_names_what_was_waited_for_and_last_seen() {
    let waited = panic::catch_unwind(|| {
        wait_until("the moon", Duration::ZERO, || Err::<(), _>("only clouds"));
    });
    let panic = waited.expect_err("the time is over");
    let text = panic.downcast_ref::<String>().expect("a message");
    assert!(text.contains("the moon") && text.contains("only clouds"), "{text}");
}

fn texts(records: &[OwnedRecord]) -> Vec<String> {
    records.iter().filter_map(OwnedRecord::payload_text).collect()
}
