//! One route: its defaults, its limits and what its keys demand of one another.
//!
//! Owns: what this version can do for a route, and the way out where it cannot.
//! Never: looks at another route (see `resolve`).

use std::sync::Arc;
use std::time::Duration;

use super::error::{Problem, key_text};
use super::section::{Choices, Section};
use super::{
    Conflict, Duplicate, Exhausted, HandlerKind, KeyGiven, Missing, Mode, Order, Route, handler,
    identity, raw,
};
use crate::dedup::expiry::{Anchor, Window};
use crate::handler::retry::{Backoff, Policy};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(31_557_600);

/// Beyond what any topic keeps.
const TTL_MAX: Duration = Duration::from_secs(10 * YEAR.as_secs());

const CONCURRENCY: u32 = 64;
/// A write to a pipe waits for nobody.
const CONCURRENCY_STDOUT: u32 = 1024;
const CONCURRENCY_MAX: u32 = 100_000;

const NO_AT_MOST_ONCE: &str = "not available in this version; under \"at-least-once\" every \
                               attempt carries the same idempotency key";

const MODES: &Choices<Mode> = &[
    ("at-least-once", Ok(Mode::AtLeastOnce)),
    ("exactly-once", Ok(Mode::ExactlyOnce)),
    ("at-most-once", Err(NO_AT_MOST_ONCE)),
];

/// The handler decides: a call to the outside cannot be undone, and an output can.
fn mode(at: &mut Section<'_>, given: Option<&str>, handler: &HandlerKind) -> Mode {
    let (own, rule) = match handler {
        HandlerKind::Kafka(_) => (
            Mode::ExactlyOnce,
            "a kafka handler is always \"exactly-once\": outputs and offsets are one transaction; \
             leave it out",
        ),
        _ => (
            Mode::AtLeastOnce,
            "needs a kafka handler: a call to another system cannot be taken back; under \
             \"at-least-once\" every attempt carries the same idempotency key",
        ),
    };
    let chosen = at.choice("mode", given, MODES, own);
    if chosen != own {
        at.problem("mode", rule);
    }
    own
}

const MISSING: &Choices<Missing> = &[
    ("process", Ok(Missing::Process)),
    ("dead-letter", Ok(Missing::DeadLetter)),
    ("fail", Ok(Missing::Fail)),
];

const ANCHOR: &Choices<Anchor> = &[("first", Ok(Anchor::First)), ("last", Ok(Anchor::Last))];

const ORDER: &Choices<Order> = &[
    ("record-key", Ok(Order::RecordKey)),
    ("identity", Ok(Order::Identity)),
    ("partition", Ok(Order::Partition)),
];

const KEY_GIVEN: &Choices<KeyGiven> =
    &[("identity", Ok(KeyGiven::Identity)), ("client", Ok(KeyGiven::Client))];

const EXHAUSTED: &Choices<Exhausted> =
    &[("dead-letter", Ok(Exhausted::DeadLetter)), ("pause", Ok(Exhausted::Pause))];

const CONFLICT: &Choices<Conflict> = &[
    ("dead-letter", Ok(Conflict::DeadLetter)),
    ("suppress", Ok(Conflict::Suppress)),
    ("process", Ok(Conflict::Process)),
];

const DUPLICATE: &Choices<Duplicate> = &[
    ("suppress", Ok(Duplicate::Suppress)),
    ("audit", Err("not available in this version; use \"suppress\", which counts duplicates")),
    (
        "replay-result",
        Err("not available in this version, which keeps no results; use \"suppress\""),
    ),
];

/// Where the keys of a route stand.
pub(super) fn prefix(name: &str) -> String {
    key_text(&["routes", name])
}

/// Names from Rust must not hide what comes with onced.
pub(super) fn check_registered(handlers: &[String], problems: &mut Vec<Problem>) {
    for name in handlers.iter().filter(|name| handler::is_built_in(name)) {
        let rule = format!(
            "the handler registered as {name:?} has the name of one that comes with onced; register \
             it under another name"
        );
        problems.push(Problem::new("handlers", None, &rule));
    }
}

pub(super) fn resolve(
    mut at: Section<'_>,
    name: &str,
    raw: &raw::Route,
    registered: &[String],
) -> Route {
    let at = &mut at;
    check_name(at, name);
    refuse_unavailable(at, raw);
    let handler = handler::resolve(at, &raw.handler, registered);
    let concurrency = match handler {
        HandlerKind::Stdout => CONCURRENCY_STDOUT,
        HandlerKind::Http(_) | HandlerKind::Registered(_) | HandlerKind::Kafka(_) => CONCURRENCY,
    };
    let conflict = at.choice(
        "policy.conflict",
        raw.policy.conflict.as_deref(),
        CONFLICT,
        Conflict::DeadLetter,
    );
    let route = Route {
        name: name.into(),
        topics: topics(at, name, raw.topics.as_deref()),
        mode: mode(at, raw.mode.as_deref(), &handler),
        identity: identity::resolve(at, &raw.identity, conflict),
        missing: at.choice(
            "identity.missing",
            raw.identity.missing.as_deref(),
            MISSING,
            Missing::Process,
        ),
        window: window(at, &raw.window),
        concurrency: at.whole(
            "handler.concurrency",
            raw.handler.concurrency,
            concurrency,
            1..=CONCURRENCY_MAX,
        ) as usize,
        order: at.choice("handler.order", raw.handler.order.as_deref(), ORDER, Order::RecordKey),
        rate: at.whole("handler.rate", raw.handler.rate, 0, 0..=u32::MAX),
        idempotency_key: at.choice(
            "handler.idempotency_key",
            raw.handler.idempotency_key.as_deref(),
            KEY_GIVEN,
            KeyGiven::Identity,
        ),
        handler,
        retry: retry(at, &raw.retry),
        exhausted: at.choice(
            "retry.exhausted",
            raw.retry.exhausted.as_deref(),
            EXHAUSTED,
            Exhausted::DeadLetter,
        ),
        dead_letter: match raw.dead_letter.topic.as_deref() {
            None | Some("") => None,
            Some(topic) => Some(at.topic("dead_letter.topic", topic)),
        },
        conflict,
        duplicate: at.choice(
            "policy.duplicate",
            raw.policy.duplicate.as_deref(),
            DUPLICATE,
            Duplicate::Suppress,
        ),
    };
    check_dead_letter(at, raw);
    route
}

fn check_name(at: &mut Section<'_>, name: &str) {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = name.bytes().next().is_some_and(legal);
    if !first || !name.bytes().all(|byte| legal(byte) || matches!(byte, b'_' | b'-')) {
        at.problem_here(
            "is not the name of a route: lower-case letters, digits, \"_\" and \"-\", the first a \
             letter or a digit",
        );
    }
}

const LEAVE_OUT: &str = "not available in this version; leave it out";
const RESULT_MAX: u64 = 64 << 10;

fn refuse_unavailable(at: &mut Section<'_>, raw: &raw::Route) {
    if raw.shadow == Some(true) {
        at.problem(
            "shadow",
            "not available in this version, which handles every fresh record; use false",
        );
    }
    if raw.policy.audit_topic.as_deref().is_some_and(|topic| !topic.is_empty()) {
        at.problem("policy.audit_topic", LEAVE_OUT);
    }
    if raw.results.keep == Some(true) {
        at.problem(
            "results.keep",
            "not available in this version, which keeps no results; use false",
        );
    }
    if raw.results.topic.as_deref().is_some_and(|topic| !topic.is_empty()) {
        at.problem("results.topic", LEAVE_OUT);
    }
    if at.size("results.max", raw.results.max.as_deref(), RESULT_MAX, 0..=u64::MAX) != RESULT_MAX {
        at.problem("results.max", LEAVE_OUT);
    }
}

fn topics(at: &mut Section<'_>, name: &str, given: Option<&[String]>) -> Vec<Arc<str>> {
    match given {
        None => {
            let origin = at.origin_of_route(name);
            let rule = "is needed: what this route reads, as in [\"payments\"]";
            at.missing("topics", format!("{rule}{origin}"));
            Vec::new()
        }
        Some([]) => {
            at.problem("topics", "must name at least one topic");
            Vec::new()
        }
        Some(names) => names.iter().map(|name| at.topic("topics", name)).collect(),
    }
}

fn window(at: &mut Section<'_>, raw: &raw::Window) -> Window {
    let zero = Duration::ZERO;
    let five_minutes = Duration::from_secs(5 * 60);
    Window {
        ttl: at.duration("window.ttl", raw.ttl.as_deref(), DAY, MILLISECOND..=TTL_MAX),
        lateness: at.duration(
            "window.lateness",
            raw.lateness.as_deref(),
            five_minutes,
            zero..=YEAR,
        ),
        skew: at.duration("window.skew", raw.skew.as_deref(), five_minutes, zero..=YEAR),
        anchor: at.choice("window.anchor", raw.anchor.as_deref(), ANCHOR, Anchor::First),
    }
}

fn retry(at: &mut Section<'_>, raw: &raw::Retry) -> Policy {
    let default = Policy::default();
    let Backoff { first, factor, max, jitter } = default.backoff;
    let attempts = at.whole("retry.attempts", raw.attempts, default.attempts, 1..=u32::MAX);
    let raw = &raw.backoff;
    let first = at.duration("retry.backoff.first", raw.first.as_deref(), first, MILLISECOND..=HOUR);
    let factor = at.number("retry.backoff.factor", raw.factor, factor, 1.0..=100.0);
    let max = at.duration("retry.backoff.max", raw.max.as_deref(), max, MILLISECOND..=DAY);
    if first > max {
        // Blame the key that was written.
        let key = if raw.max.is_some() { "retry.backoff.max" } else { "retry.backoff.first" };
        let (first, max) = (humantime::format_duration(first), humantime::format_duration(max));
        at.problem(key, format!("backoff.max ({max}) must be at least backoff.first ({first})"));
    }
    Policy {
        attempts,
        backoff: Backoff { first, factor, max, jitter: raw.jitter.unwrap_or(jitter) },
    }
}

/// A policy that is written down must be possible. Where dead-letter is only the default, the
/// route pauses at the first record that needs it.
fn check_dead_letter(at: &mut Section<'_>, raw: &raw::Route) {
    let topic = at.key("dead_letter.topic");
    if raw.dead_letter.topic.as_deref().is_some_and(|topic| !topic.is_empty())
        || at.is_broken("dead_letter.topic")
    {
        return;
    }
    for (key, given, instead) in [
        ("identity.missing", &raw.identity.missing, "\"process\" or \"fail\""),
        ("retry.exhausted", &raw.retry.exhausted, "\"pause\""),
        ("policy.conflict", &raw.policy.conflict, "\"suppress\" or \"process\""),
    ] {
        if given.as_deref() == Some("dead-letter") {
            at.problem(key, format!("needs {topic}; set it, or use {instead}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_refused, check_route_refused, load_set, route};
    use super::*;

    #[test]
    fn every_choice_can_be_made() {
        let route = route(&[
            "identity.key=['json:/id', 'record-key', 'fingerprint']",
            "identity.scope=['topic', 'text:POST /payments']",
            "identity.missing=fail",
            "identity.fingerprint={ include = ['/a'], exclude = ['/a/b'] }",
            "identity.digest=xxh3",
            "window={ ttl = '1h', lateness = '0s', skew = '1s', anchor = 'last' }",
            "handler={ concurrency = 2, order = 'identity', rate = 3, idempotency_key = 'client' }",
            "retry={ attempts = 1, exhausted = 'pause' }",
            "retry.backoff={ first = '1s', factor = 1, max = '1s', jitter = false }",
            "dead_letter.topic=dead",
            "policy={ conflict = 'suppress', duplicate = 'suppress' }",
        ]);
        assert_eq!(route.identity.keys.len(), 3);
        assert_eq!(route.identity.scope.len(), 2);
        assert_eq!(route.identity.fingerprint.include.len(), 1);
        assert_eq!(route.identity.digest, crate::identity::Digest::Xxh3);
        assert_eq!(route.missing, Missing::Fail);
        assert_eq!(route.window.ttl, HOUR);
        assert_eq!(route.window.anchor, Anchor::Last);
        assert_eq!((route.concurrency, route.rate), (2, 3));
        assert_eq!(route.order, Order::Identity);
        assert_eq!(route.idempotency_key, KeyGiven::Client);
        let backoff = Backoff { first: SECOND, factor: 1.0, max: SECOND, jitter: false };
        assert_eq!(route.retry, Policy { attempts: 1, backoff });
        assert_eq!(route.exhausted, Exhausted::Pause);
        assert_eq!(route.dead_letter.as_deref(), Some("dead"));
        assert_eq!(route.conflict, Conflict::Suppress);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn concurrency_depends_on_the_handler() {
        assert_eq!(route(&[]).concurrency, 1024);
        assert_eq!(route(&["handler.kind=http", "handler.url=http://h"]).concurrency, 64);
    }

    #[test]
    fn a_policy_that_names_dead_letter_needs_its_topic() {
        let policies = [
            "identity.missing=dead-letter",
            "retry.exhausted=dead-letter",
            "policy.conflict=dead-letter",
        ];
        check_route_refused(
            &policies,
            &[
                "identity.missing = \"dead-letter\": needs routes.payments.dead_letter.topic; set it, \
                 or use \"process\" or \"fail\" (--set routes.payments.identity.missing)",
                "retry.exhausted = \"dead-letter\": needs routes.payments.dead_letter.topic; set it, \
                 or use \"pause\" (--set routes.payments.retry.exhausted)",
                "policy.conflict = \"dead-letter\": needs routes.payments.dead_letter.topic; set it, \
                 or use \"suppress\" or \"process\" (--set routes.payments.policy.conflict)",
            ],
        );
        let with_topic = [&policies[..], &["dead_letter.topic=dead"]].concat();
        assert_eq!(route(&with_topic).missing, Missing::DeadLetter);
    }

    #[test]
    fn dead_letter_as_a_default_needs_no_topic() {
        let route = route(&[]);
        assert_eq!(route.exhausted, Exhausted::DeadLetter);
        assert_eq!(route.conflict, Conflict::DeadLetter);
        assert_eq!(route.dead_letter, None);
    }

    #[test]
    fn the_name_of_a_route_is_plain() {
        for name in ["a", "0", "payments_eu-1"] {
            let prefix = format!("routes.{name}");
            let keys = [format!("{prefix}.topics=x"), format!("{prefix}.handler.kind=stdout")];
            assert!(load_set(&[&keys[0], &keys[1]]).is_ok(), "{name}");
        }
        check_refused(
            &["routes.Eu={ topics = ['x'], handler = { kind = 'stdout' } }"],
            &[
                "routes.Eu: is not the name of a route: lower-case letters, digits, \"_\" and \"-\", the \
               first a letter or a digit",
            ],
        );
        for name in ["_a", "-a", "", "ä", "a b", "\"a.b\""] {
            assert!(load_set(&[&format!("routes.{name}.topics=x")]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_not_available_is_known_and_refused() {
        for (key, value) in [
            ("mode", "\"at-most-once\""),
            ("shadow", "true"),
            ("policy.duplicate", "\"audit\""),
            ("policy.duplicate", "\"replay-result\""),
            ("policy.audit_topic", "\"audit\""),
            ("results.keep", "true"),
            ("results.max", "\"1MiB\""),
            ("results.topic", "\"results\""),
            ("handler.kind", "\"command\""),
            ("handler.kind", "\"postgres\""),
        ] {
            let error = load_set(&[&format!("routes.payments.{key}={value}")]).unwrap_err();
            let [problem] = error.problems.as_slice() else { panic!("one problem: {error}") };
            assert_eq!(problem.key, format!("routes.payments.{key}"));
            assert_eq!(problem.value.as_deref(), Some(value));
            assert!(problem.message.starts_with("not available in this version"), "{error}");
        }
    }

    #[test]
    fn what_is_not_available_may_be_written_as_off() {
        route(&[
            "mode=at-least-once",
            "shadow=false",
            "policy.audit_topic=",
            "results={ keep = false, max = '64KiB', topic = '' }",
        ]);
    }

    #[test]
    fn a_backoff_does_not_end_below_its_start() {
        check_route_refused(
            &["retry.backoff.first=1m"],
            &[
                "retry.backoff.first = \"1m\": backoff.max (30s) must be at least backoff.first (1m) \
               (--set routes.payments.retry.backoff.first)",
            ],
        );
        check_route_refused(
            &["retry.backoff={ first = '1m', max = '1s' }"],
            &["retry.backoff.max = \"1s\": backoff.max (1s) must be at least backoff.first (1m) \
               (--set routes.payments.retry.backoff)"],
        );
    }
}
