//! The handler of a route: which kinds there are, and which keys belong to which.
//!
//! Never: builds a handler, or reaches the system behind it.

use std::time::Duration;

use super::section::{Choices, Section, any_of};
use super::{HandlerKind, raw};
use crate::handler::kafka::{Partitioner, Place};
use crate::handler::{http, kafka};

/// The kinds of this version.
const AVAILABLE: [&str; 3] = ["stdout", "http", "kafka"];
/// Their names are kept, so that a configuration for a later version says what it lacks.
const UNAVAILABLE: [&str; 2] = ["command", "postgres"];

/// True where a name cannot be registered from Rust.
pub(super) fn is_built_in(name: &str) -> bool {
    AVAILABLE.contains(&name) || UNAVAILABLE.contains(&name)
}

/// Where a problem was written down, the kind that is returned stands for nothing.
pub(super) fn resolve(
    at: &mut Section<'_>,
    raw: &raw::Handler,
    registered: &[String],
) -> HandlerKind {
    let Some(kind) = raw.kind.as_deref() else {
        let rule = format!("is needed; known handlers: {}", known(registered));
        at.missing("handler.kind", rule);
        return HandlerKind::Stdout;
    };
    if UNAVAILABLE.contains(&kind) {
        let rule = "not available in this version; known handlers:";
        at.problem("handler.kind", format!("{rule} {}", known(registered)));
        return HandlerKind::Stdout;
    }
    let resolved = match kind {
        "stdout" => HandlerKind::Stdout,
        "http" => HandlerKind::Http(http(at, raw)),
        "kafka" => HandlerKind::Kafka(kafka(at, raw)),
        name if registered.iter().any(|registered| registered == name) => {
            HandlerKind::Registered(name.into())
        }
        _ => {
            let rule = format!("there is no such handler; known handlers: {}", known(registered));
            at.problem("handler.kind", rule);
            return HandlerKind::Stdout;
        }
    };
    check_keys(at, raw, kind);
    resolved
}

/// Handlers that are called, record by record.
const CALLED: &[&str] = &["http", "stdout"];

const PARTITION: &Choices<Place> = &[("key", Ok(Place::Key)), ("same", Ok(Place::Same))];

const PARTITIONER: &Choices<Partitioner> = &[
    ("murmur2", Ok(Partitioner::Murmur2)),
    ("crc32", Ok(Partitioner::Crc32)),
    ("fnv1a", Ok(Partitioner::Fnv1a)),
    ("random", Ok(Partitioner::Random)),
];

fn kafka(at: &mut Section<'_>, raw: &raw::Handler) -> kafka::Config {
    let topic = match raw.topic.as_deref() {
        Some(topic) => at.topic("handler.topic", topic),
        None => {
            at.missing("handler.topic", "is needed: the topic that records are passed on to");
            "".into()
        }
    };
    let place = raw.partition.as_deref();
    if place == Some("same") && raw.partitioner.is_some() {
        at.problem(
            "handler.partitioner",
            "has no effect with handler.partition = \"same\": leave it out",
        );
    }
    kafka::Config {
        topic,
        partition: at.choice("handler.partition", place, PARTITION, Place::default()),
        partitioner: at.choice(
            "handler.partitioner",
            raw.partitioner.as_deref(),
            PARTITIONER,
            Partitioner::default(),
        ),
    }
}

fn known(registered: &[String]) -> String {
    let names = AVAILABLE.into_iter().chain(registered.iter().map(String::as_str));
    let names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    let advice =
        if registered.is_empty() { ", and those registered from Rust (none here)" } else { "" };
    format!("{}{advice}", names.join(", "))
}

/// A key that has no effect is a misunderstanding.
fn check_keys(at: &mut Section<'_>, raw: &raw::Handler, kind: &str) {
    for (key, given, kinds) in [
        ("url", raw.url.is_some(), &["http", "postgres"][..]),
        ("timeout", raw.timeout.is_some(), &["http"]),
        ("topic", raw.topic.is_some(), &["kafka"]),
        ("partition", raw.partition.is_some(), &["kafka"]),
        ("partitioner", raw.partitioner.is_some(), &["kafka"]),
        ("command", raw.command.is_some(), &["command"]),
        ("children", raw.children.is_some(), &["command"]),
        ("statement", raw.statement.is_some(), &["postgres"]),
        ("parameters", raw.parameters.is_some(), &["postgres"]),
        ("batch", raw.batch.is_some(), &["postgres"]),
        ("concurrency", kind == "kafka" && raw.concurrency.is_some(), CALLED),
        ("order", kind == "kafka" && raw.order.is_some(), CALLED),
        ("rate", kind == "kafka" && raw.rate.is_some(), CALLED),
        ("idempotency_key", kind == "kafka" && raw.idempotency_key.is_some(), CALLED),
    ] {
        if given && !kinds.contains(&kind) {
            let available = kinds.iter().any(|kind| AVAILABLE.contains(kind));
            let note = if available { "" } else { ", not available in this version" };
            let rule = format!(
                "belongs to the {} handler{note}; the handler of this route is {kind:?}: leave it \
                 out",
                any_of(kinds)
            );
            at.problem(&format!("handler.{key}"), rule);
        }
    }
}

fn http(at: &mut Section<'_>, raw: &raw::Handler) -> http::Config {
    let timeout = at.duration(
        "handler.timeout",
        raw.timeout.as_deref(),
        Duration::from_secs(10),
        Duration::from_millis(1)..=Duration::from_secs(60 * 60),
    );
    let url = raw.url.clone().unwrap_or_default();
    if raw.url.is_none() {
        at.missing("handler.url", "is needed: the URL that each record is posted to");
    } else if let Err(rule) = check_url(&url) {
        at.problem("handler.url", rule);
    }
    http::Config { url, timeout }
}

/// Absolute, of a scheme that the handler speaks, with a host.
fn check_url(url: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be an absolute URL, as in \"http://127.0.0.1:8080/payments\"";
    if url.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err("must not hold spaces or control characters; write a space as %20");
    }
    let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err("must start with http:// or https://");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let bracketed = name.starts_with('[') && name.ends_with(']');
    if name.is_empty() || (name.contains(':') && !bracketed) {
        return Err(FORM);
    }
    match port.map(str::parse::<u16>) {
        Some(Err(_)) => Err("must have a port of at most 65535, or none"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_route_refused, route};
    use super::super::{Mode, Sources, load};
    use super::*;

    fn load_with(handlers: &[&str], kind: &str) -> Result<HandlerKind, String> {
        let handlers: Vec<_> = handlers.iter().map(|name| (*name).to_owned()).collect();
        let set = ["kafka.group=g", "routes.p.topics=t", &format!("routes.p.handler.kind={kind}")];
        let set = set.map(str::to_owned);
        let sources = Sources { set: &set, handlers: &handlers, ..Sources::default() };
        let config = load(&sources).map_err(|error| error.to_string())?;
        Ok(config.routes[0].handler.clone())
    }

    #[test]
    fn a_registered_handler_is_a_kind() {
        let handler = load_with(&["book"], "book").unwrap();
        assert!(matches!(handler, HandlerKind::Registered(name) if name == "book"));
    }

    #[test]
    fn an_unknown_kind_lists_the_known_ones() {
        assert_eq!(
            load_with(&["book", "ship"], "shop").unwrap_err(),
            "routes.p.handler.kind = \"shop\": there is no such handler; known handlers: \"stdout\", \
             \"http\", \"kafka\", \"book\", \"ship\" (--set routes.p.handler.kind)"
        );
        assert_eq!(
            load_with(&[], "command").unwrap_err(),
            "routes.p.handler.kind = \"command\": not available in this version; known handlers: \
             \"stdout\", \"http\", \"kafka\", and those registered from Rust (none here) \
             (--set routes.p.handler.kind)"
        );
    }

    #[test]
    fn a_registered_handler_must_not_hide_another() {
        for name in ["http", "kafka"] {
            let error = load_with(&[name], "stdout").unwrap_err();
            assert!(error.starts_with("handlers: "), "{error}");
        }
    }

    #[test]
    fn a_kafka_handler_is_exactly_once_and_has_a_topic_of_its_own() {
        let only = ["handler={ kind = 'kafka', topic = 'out', partitioner = 'crc32' }"];
        let passed = route(&only);
        let HandlerKind::Kafka(config) = passed.handler else { panic!("not kafka: {passed:?}") };
        assert_eq!((&*config.topic, config.partitioner), ("out", Partitioner::Crc32));
        assert_eq!((config.partition, passed.mode), (Place::Key, Mode::ExactlyOnce));
        check_route_refused(
            &["handler.kind=kafka"],
            &["handler.topic: is needed: the topic that records are passed on to"],
        );
        for wrong in [
            "handler={ kind = 'kafka', topic = 'payments' }",
            "handler={ kind = 'kafka', topic = 'out', concurrency = 3 }",
            "handler={ kind = 'kafka', topic = 'out', partition = 'same', partitioner = 'crc32' }",
        ] {
            let key = "routes.payments.handler.";
            let error = super::super::tests::load_set(&[&format!("routes.payments.{wrong}")]);
            let [problem] = error.unwrap_err().problems.try_into().expect("one problem");
            assert!(problem.key.starts_with(key), "{problem:?}");
        }
        for mode in ["at-least-once", "at-most-once"] {
            let mode = format!("routes.payments.mode={mode}");
            let handler = format!("routes.payments.{}", only[0]);
            assert!(super::super::tests::load_set(&[&mode, &handler]).is_err());
        }
        assert!(super::super::tests::load_set(&["routes.payments.mode=exactly-once"]).is_err());
    }

    #[test]
    fn an_http_handler_has_a_url_and_a_timeout() {
        let route = route(&["handler={ kind = 'http', url = 'http://h', timeout = '3s' }"]);
        let HandlerKind::Http(config) = route.handler else { panic!("not http: {route:?}") };
        assert_eq!(config.url, "http://h");
        assert_eq!(config.timeout, Duration::from_secs(3));
        check_route_refused(
            &["handler.kind=http"],
            &["handler.url: is needed: the URL that each record is posted to"],
        );
        check_route_refused(
            &["handler={ kind = 'http', url = 'ftp://me:pw@h' }"],
            &["handler.url = \"ftp://...@h\": must start with http:// or https:// \
               (--set routes.payments.handler)"],
        );
    }

    #[test]
    fn a_key_of_another_handler_is_refused() {
        check_route_refused(
            &["handler.url=http://h", "handler.topic=out", "handler.batch=5"],
            &[
                "handler.url = \"http://h\": belongs to the http or postgres handler; the handler of \
                 this route is \"stdout\": leave it out (--set routes.payments.handler.url)",
                "handler.topic = \"out\": belongs to the kafka handler; the handler of this \
                 route is \"stdout\": leave it out (--set routes.payments.handler.topic)",
                "handler.batch = 5: belongs to the postgres handler, not available in this version; \
                 the handler of this route is \"stdout\": leave it out \
                 (--set routes.payments.handler.batch)",
            ],
        );
    }

    #[test]
    fn the_keys_of_a_handler_that_is_not_available_are_not_the_problem() {
        check_route_refused(
            &["handler={ kind = 'postgres', url = 'postgres://h', statement = 's', batch = 5 }"],
            &[
                "handler.kind = \"postgres\": not available in this version; known handlers: \"stdout\", \
               \"http\", \"kafka\", and those registered from Rust (none here) (--set routes.payments.handler)",
            ],
        );
    }

    #[test]
    fn absolute_http_urls_are_accepted() {
        for url in [
            "http://127.0.0.1:8080/payments",
            "https://payments.example",
            "HTTPS://user:secret@payments.example:443/a?b=c#d",
            "http://[::1]:8080/",
            "http://[::1]",
            "http://localhost?x=http://y:z",
        ] {
            assert_eq!(check_url(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for url in [
            "",
            "payments",
            "/payments",
            "127.0.0.1:8080/payments",
            "ftp://payments.example",
            "http://",
            "http:///payments",
            "http://:8080",
            "http://a:b:c/",
            "http://host:99999/",
            "http://host:port/",
            "http://ho st/",
            "http://user@/",
        ] {
            assert!(check_url(url).is_err(), "{url}");
        }
    }
}
