//! The admin server, from the outside: what its pages say while onced is idle, absorbs or is
//! paused, and that its numbers add up.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{
    Daemon, DaemonBuilder, HttpService, Kafka, Message, Metrics, Response, payments, unique,
    wait_until, wait_until_eq,
};

const SOON: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"
commit_interval = "100ms"
[log]
dir = "{dir}"
memory = "16MiB"
disk_reserve = "1MiB"
[admin]
listen = "{admin}"
[runtime]
workers = 1
[routes.pay]
topics = ["{input}"]
"#;

const STDOUT: &str = "handler = { kind = \"stdout\" }\n";

fn daemon(group: &str, input: &str, route: &str) -> DaemonBuilder {
    Daemon::with(&[CONFIG, route].concat()).fill("group", group).fill("input", input)
}

#[track_caller]
fn wait_committed(kafka: &Kafka, group: &str, topic: &str, offset: i64) {
    wait_until_eq("the committed offset", SOON, Some(offset), || {
        kafka.committed_offset(group, topic, 0)
    });
}

/// Status and body.
fn page(daemon: &Daemon, path: &str) -> (u16, String) {
    let reply = daemon.get(path).expect("the admin server answers");
    (reply.status, reply.body)
}

/// An answer to any request, as text.
fn ask(daemon: &Daemon, request: &str) -> String {
    let mut stream = TcpStream::connect(daemon.admin()).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a socket has a timeout");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    // A server that has said enough may close the connection under what was not read.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The types of the families, by name; each has a text of help.
fn families(exposition: &str) -> BTreeMap<String, String> {
    let helped: BTreeMap<&str, &str> = exposition
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
        .collect();
    let typed = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    typed
        .map(|(name, kind)| {
            let help = helped.get(name).unwrap_or_else(|| panic!("{name} has no help"));
            assert!(help.len() > 10 && help.ends_with('.'), "{name} has poor help: {help}");
            (name.to_owned(), kind.to_owned())
        })
        .collect()
}

/// Every family that has a meaning from the start, of a route with a handler.
const FAMILIES: [(&str, &str); 22] = [
    ("onced_records_total", "counter"),
    ("onced_outcomes_total", "counter"),
    ("onced_dead_letters_total", "counter"),
    ("onced_handler_seconds", "histogram"),
    ("onced_end_to_end_seconds", "histogram"),
    ("onced_duplicate_distance_seconds", "histogram"),
    ("onced_log_lookup_seconds", "histogram"),
    ("onced_log_write_seconds", "histogram"),
    ("onced_log_entries", "gauge"),
    ("onced_log_bytes", "gauge"),
    ("onced_log_expired_total", "counter"),
    ("onced_window_seconds", "gauge"),
    ("onced_position", "gauge"),
    ("onced_committed_offset", "gauge"),
    ("onced_lag_records", "gauge"),
    ("onced_absorb_remaining_records", "gauge"),
    ("onced_in_flight", "gauge"),
    ("onced_skipped_total", "counter"),
    ("onced_rebalances_total", "counter"),
    ("onced_ready", "gauge"),
    ("onced_build_info", "gauge"),
    ("onced_undated_total", "counter"),
];

/// Families and labels whose series are there before anything happened.
const ZEROES: [(&str, &str, &[&str]); 3] = [
    (
        "onced_records_total",
        "verdict",
        &["fresh", "duplicate", "replayed", "conflict", "in_doubt", "unidentified", "absorbed"],
    ),
    ("onced_outcomes_total", "outcome", &["done", "retry", "reject", "fatal"]),
    (
        "onced_dead_letters_total",
        "reason",
        &["rejected", "exhausted", "conflict", "missing-identity", "undecodable", "too-large"],
    ),
];

#[test]
fn an_idle_daemon_shows_every_family_at_zero_and_is_ready() {
    let test = "an_idle_daemon_shows_every_family_at_zero_and_is_ready";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let input = kafka.topic("input").create();
    let group = unique("admin");
    let mut daemon = daemon(&group, &input, STDOUT).start();
    daemon.wait_ready();
    assert_eq!(page(&daemon, "/livez"), (200, "ok\n".to_owned()));
    assert_eq!(page(&daemon, "/readyz"), (200, "ready\n".to_owned()));

    let reply = daemon.get("/metrics").expect("an answer");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4"));
    let families = families(&reply.body);
    for (name, kind) in FAMILIES {
        assert_eq!(families.get(name).map(String::as_str), Some(kind), "{name}");
    }
    let metrics = Metrics::parse(&reply.body);
    for (name, label, values) in ZEROES {
        let found = metrics.by_label(name, label);
        let expected: BTreeMap<_, _> =
            values.iter().map(|value| ((*value).to_owned(), 0.0)).collect();
        assert_eq!(found, expected, "{name}");
        assert!(metrics.has(name, &[("route", "pay")]), "{name} has the route");
    }
    for name in ["onced_handler_seconds_count", "onced_in_flight", "onced_undated_total"] {
        assert!(metrics.has(name, &[("route", "pay")]), "{name}");
    }
    let partition = [("topic", input.as_str()), ("partition", "0")];
    for name in ["onced_position", "onced_lag_records", "onced_skipped_total"] {
        assert!(metrics.has(name, &partition), "{name}");
        assert!(metrics.value(name, &partition) < 0.5, "{name}");
    }
    assert!((metrics.value("onced_window_seconds", &partition) - 86_400.0).abs() < 1.0);
    assert!((metrics.value("onced_ready", &[]) - 1.0).abs() < 0.1);
    assert!(metrics.has("onced_build_info", &[("version", env!("CARGO_PKG_VERSION"))]));
    assert!(metrics.value("process_resident_memory_bytes", &[]) > 1e6);

    let status = daemon.status();
    assert_eq!((&status["ready"], &status["group"]), (&true.into(), &group.as_str().into()));
    let route = &status["routes"][0];
    assert_eq!((&route["name"], &route["handler"]), (&"pay".into(), &"stdout".into()));
    assert!(route["paused_because"].is_null(), "{status}");
    assert_eq!(route["topics"][0], input.as_str());
    assert_eq!(status["partitions"].as_array().map(Vec::len), Some(1), "{status}");
    assert!(daemon.terminate().success());
    assert!(daemon.stdout_lines().is_empty(), "standard output is for records");
}

#[test]
fn other_pages_and_methods_are_refused_and_nothing_is_changed() {
    let test = "other_pages_and_methods_are_refused_and_nothing_is_changed";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let input = kafka.topic("input").create();
    let mut daemon = daemon(&unique("admin"), &input, STDOUT).start();
    daemon.wait_ready();
    assert_eq!(page(&daemon, "/nothing").0, 404);
    assert_eq!(page(&daemon, "/metrics/").0, 404);
    let (status, body) = page(&daemon, "/");
    assert!(status == 200 && body.contains("/readyz"), "{body}");
    let request = |method: &str, path: &str| {
        ask(&daemon, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    };
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/", "/livez", "/readyz", "/metrics", "/status"] {
            let answer = request(method, path);
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        }
    }
    let head = request("HEAD", "/readyz");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let large = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let answer = ask(&daemon, &large);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = ask(&daemon, "nonsense\r\n\r\n");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(page(&daemon, "/livez").0, 200, "it goes on");
}

#[test]
fn while_it_absorbs_it_lives_and_is_not_ready() {
    let Some(kafka) = Kafka::shared_or_skip("while_it_absorbs_it_lives_and_is_not_ready") else {
        return;
    };
    let input = kafka.topic("input").create();
    let group = unique("admin");
    let numbered = |from: i32, to: i32| {
        (from..to).map(|n| Message::new("x").idempotency_key(&n.to_string())).collect::<Vec<_>>()
    };
    // The group was another consumer's, which read past a transaction that is open still.
    kafka.produce(&input, numbered(0, 10));
    let open = kafka.begin(&input, numbered(10, 11));
    kafka.produce(&input, numbered(11, 20));
    kafka.set_offsets(&group, &input, &[15]);
    let mut daemon = daemon(&group, &input, STDOUT).start();
    let remaining = |daemon: &Daemon| {
        daemon.try_metrics().map_or(-1.0, |m| m.value("onced_absorb_remaining_records", &[])) as i64
    };
    wait_until("it has absorbed what can be read", SOON, || {
        let absorbed = daemon.try_metrics().map_err(|error| error.to_string())?;
        let absorbed = absorbed.value("onced_records_total", &[("verdict", "absorbed")]) as i64;
        if absorbed == 10 { Ok(()) } else { Err(absorbed.to_string()) }
    });
    assert_eq!(remaining(&daemon), 5);
    let (status, body) = page(&daemon, "/readyz");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains(&format!("{input}/0")) && body.contains("up to 15"), "{body}");
    assert_eq!(page(&daemon, "/livez").0, 200);
    let status = daemon.status();
    assert_eq!(status["ready"], false);
    assert!(status["not_ready_because"].to_string().contains("up to 15"), "{status}");
    assert_eq!(status["partitions"][0]["state"], "absorbing", "{status}");
    assert!(daemon.metrics().value("onced_ready", &[]) < 0.5);
    assert!(daemon.stdout_lines().is_empty(), "nothing is handled while it absorbs");

    open.commit();
    daemon.wait_ready();
    wait_committed(kafka, &group, &input, kafka.end_offset(&input, 0));
    assert_eq!(remaining(&daemon), 0);
    let verdicts = daemon.metrics().by_label("onced_records_total", "verdict");
    assert_eq!((verdicts["absorbed"] as i64, verdicts["fresh"] as i64), (15, 5), "{verdicts:?}");
    assert_eq!(daemon.stdout_lines().len(), 5);
    wait_until_eq("the lag", SOON, 0, || daemon.metrics().value("onced_lag_records", &[]) as i64);
}

#[test]
fn a_paused_route_is_said_on_every_page() {
    let Some(kafka) = Kafka::shared_or_skip("a_paused_route_is_said_on_every_page") else { return };
    let input = kafka.topic("input").create();
    let group = unique("admin");
    let service = HttpService::start(|_| Response::status(400));
    let route = format!("handler = {{ kind = \"http\", url = \"{}\" }}\n", service.url("/"));
    let daemon = daemon(&group, &input, &route).start();
    kafka.produce(&input, [Message::new("x").idempotency_key("x")]);
    let body = wait_until("it is paused", SOON, || {
        let reply = daemon.get("/readyz").map_err(|error| error.to_string())?;
        if reply.body.contains("paused") { Ok(reply.body) } else { Err(reply.body) }
    });
    assert!(
        body.contains("route pay is paused") && body.contains(&format!("{input}/0/0")),
        "{body}"
    );
    let status = daemon.status();
    assert!(status["routes"][0]["paused_because"].is_string(), "{status}");
    assert_eq!(page(&daemon, "/livez").0, 200);
    let metrics = daemon.metrics();
    assert!(metrics.value("onced_ready", &[]) < 0.5);
    assert!(metrics.value("onced_records_total", &[]) < 0.5, "the record is not settled");
    wait_until_eq("the lag", SOON, 1, || daemon.metrics().value("onced_lag_records", &[]) as i64);
}

#[test]
fn verdicts_add_up_to_the_records_and_outcomes_to_the_calls() {
    let test = "verdicts_add_up_to_the_records_and_outcomes_to_the_calls";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (input, dead) = (kafka.topic("input").create(), kafka.topic("dead").create());
    let group = unique("admin");
    let service = HttpService::start(|request| {
        let text = request.body_text();
        match request.header("onced-attempt") {
            Some("1") if text.contains("\"amount\":1") => Response::status(503),
            _ if text == "bad" => Response::status(400),
            _ => Response::ok(),
        }
    });
    let route = "dead_letter = { topic = \"{dead}\" }\nhandler = { kind = \"http\", url = \"{url}\" }\n\
        retry = { backoff = { first = \"10ms\" } }\n";
    let daemon =
        daemon(&group, &input, route).fill("dead", &dead).fill("url", &service.url("/")).start();
    let good = payments(2_000, 0.3, 5);
    let distinct = good.distinct() as i64;
    let mut messages: Vec<_> = good.collect();
    messages.extend((0..7).map(|_| Message::new("no key")));
    messages.extend((0..5).map(|n| Message::new("bad").idempotency_key(&format!("bad {n}"))));
    messages.extend((0..3).map(|n| Message::new(n.to_string()).idempotency_key("one")));
    let count = messages.len() as i64;
    kafka.produce(&input, messages);
    wait_committed(kafka, &group, &input, count);

    let metrics = daemon.metrics();
    let verdicts = metrics.by_label("onced_records_total", "verdict");
    let of = |verdict: &str| verdicts[verdict] as i64;
    assert_eq!(verdicts.values().sum::<f64>() as i64, count, "{verdicts:?}");
    // The bad ones were fresh too, and one of those with the same key.
    assert_eq!(of("fresh"), distinct + 5 + 1, "{verdicts:?}");
    assert_eq!((of("duplicate"), of("unidentified")), (2_000 - distinct, 7), "{verdicts:?}");
    assert_eq!((of("conflict"), of("absorbed")), (2, 0), "{verdicts:?}");
    let calls = service.requests().len() as i64;
    assert_eq!(metrics.value("onced_outcomes_total", &[]) as i64, calls);
    assert_eq!(metrics.value("onced_handler_seconds_count", &[]) as i64, calls);
    let letters = metrics.by_label("onced_dead_letters_total", "reason");
    assert_eq!((letters["rejected"] as i64, letters["conflict"] as i64), (5, 2), "{letters:?}");
    assert_eq!(
        metrics.value("onced_dead_letters_total", &[]) as i64,
        kafka.read_all(&dead).len() as i64
    );
    assert_eq!(metrics.value("onced_in_flight", &[]) as i64, 0);
    assert_eq!(
        metrics.value("onced_duplicate_distance_seconds_count", &[]) as i64,
        of("duplicate")
    );
    assert_eq!(metrics.value("onced_position", &[]) as i64, count);
    // What the broker acknowledged is shown within the next look.
    wait_until_eq("the committed offset that is shown", SOON, count, || {
        daemon.metrics().value("onced_committed_offset", &[]) as i64
    });
}

#[test]
fn promtool_finds_nothing_to_say() {
    let test = "promtool_finds_nothing_to_say";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped {test}: promtool is not installed");
        return;
    }
    let input = kafka.topic("input").create();
    let mut daemon = daemon(&unique("admin"), &input, STDOUT).start();
    daemon.wait_ready();
    let exposition = page(&daemon, "/metrics").1;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it ran before");
    let mut stdin = promtool.stdin.take().expect("a pipe");
    stdin.write_all(exposition.as_bytes()).expect("it reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("a child of ours");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn standard_output_holds_records_and_nothing_else() {
    let Some(kafka) = Kafka::shared_or_skip("standard_output_holds_records_and_nothing_else")
    else {
        return;
    };
    let input = kafka.topic("input").create();
    let group = unique("admin");
    let properties = "[kafka.properties]\n\"debug\" = \"all\"\n\"sasl.password\" = \"secret-word-7\"\n\
        \"ssl.key.password\" = \"secret-word-8\"\n[log]";
    let config = [CONFIG, STDOUT].concat().replace("[log]", properties);
    let mut daemon = Daemon::with(&config)
        .fill("group", &group)
        .fill("input", &input)
        .env("ONCED_LOG", "trace")
        .start();
    kafka.produce(&input, payments(100, 0.5, 3));
    wait_committed(kafka, &group, &input, 100);
    let status = page(&daemon, "/status").1;
    assert!(daemon.terminate().success());
    assert_eq!(daemon.stdout_json().len() as u64, payments(100, 0.5, 3).distinct());
    let stderr = daemon.stderr();
    assert!(stderr.contains("DEBUG librdkafka"), "the client's words are in the log");
    for text in [&stderr, &status] {
        assert!(!text.contains("secret-word"), "a password is told");
    }

    let refused = Daemon::with(&config.replace("[log]", "[log]\nno_such_key = 1"))
        .fill("group", &group)
        .fill("input", &input)
        .prepare();
    let output = refused.run(["run"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty() && !said.contains("secret-word"), "{said}");
}
