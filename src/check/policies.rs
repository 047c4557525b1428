//! What happens to the records of a route that are not simply handled, a line for each policy.
//!
//! Owns: the words for it. Pure.
//! Never: repeats a rule of the configuration, which was checked when it was read.

use super::report::Row;
use crate::config::{Conflict, Duplicate, Exhausted, Missing, Route};

/// The policies of one route.
pub fn rows(route: &Route) -> Vec<Row> {
    vec![dead_letter(route), missing(route), conflict(route), duplicate(route), exhausted(route)]
}

fn dead_letter(route: &Route) -> Row {
    let subject = format!("routes.{}.dead_letter", route.name);
    match &route.dead_letter {
        Some(topic) => Row::ok(subject, format!("letters go to the topic {topic}")),
        None => Row::note(
            subject,
            "no dead-letter topic: a record that the handler rejects pauses the route",
            format!("set routes.{}.dead_letter.topic", route.name),
        ),
    }
}

fn missing(route: &Route) -> Row {
    let subject = format!("routes.{}.identity.missing", route.name);
    match route.missing {
        Missing::Process => {
            Row::ok(subject, "a record without a key is handled, and not deduplicated")
        }
        Missing::DeadLetter => letters(route, subject, "a record without a key"),
        Missing::Fail => Row::note(
            subject,
            "the daemon stops with exit code 1 at the first record without a key",
            "",
        ),
    }
}

fn conflict(route: &Route) -> Row {
    let subject = format!("routes.{}.policy.conflict", route.name);
    match route.conflict {
        Conflict::DeadLetter => letters(route, subject, "a known key with another payload"),
        Conflict::Suppress => {
            Row::ok(subject, "a known key with another payload is suppressed, as a duplicate")
        }
        Conflict::Process => Row::ok(subject, "a known key with another payload is handled"),
    }
}

fn duplicate(route: &Route) -> Row {
    let subject = format!("routes.{}.policy.duplicate", route.name);
    match route.duplicate {
        Duplicate::Suppress => Row::ok(subject, "a duplicate is suppressed and counted"),
    }
}

fn exhausted(route: &Route) -> Row {
    let subject = format!("routes.{}.retry.exhausted", route.name);
    let attempts = match route.retry.attempts {
        1 => "1 attempt".to_owned(),
        many => format!("{many} attempts"),
    };
    match route.exhausted {
        Exhausted::DeadLetter => {
            letters(route, subject, &format!("a record that still fails after {attempts}"))
        }
        Exhausted::Pause => {
            let found = format!("after {attempts} the partition waits for the other system");
            Row::ok(subject, found)
        }
    }
}

/// A record that goes to the dead-letter topic, if there is one.
fn letters(route: &Route, subject: String, record: &str) -> Row {
    if route.dead_letter.is_some() {
        return Row::ok(subject, format!("{record} goes to the dead-letter topic"));
    }
    Row::warning(
        subject,
        format!("no dead-letter topic: the route pauses at the first {}", first(record)),
        format!("set routes.{}.dead_letter.topic, or another policy", route.name),
    )
}

fn first(record: &str) -> &str {
    record.strip_prefix("a ").unwrap_or(record)
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::super::tests::route;
    use super::*;

    #[track_caller]
    fn check(set: &[&str], key: &str, level: Level, found: &str) {
        let rows = rows(&route(set));
        let row = rows.iter().find(|row| row.subject == format!("routes.r.{key}")).unwrap();
        assert_eq!((row.level, row.found.as_str()), (level, found));
    }

    #[test]
    fn without_a_dead_letter_topic_the_route_pauses_at_the_first_one() {
        let pauses = "no dead-letter topic: the route pauses at the first";
        check(
            &[],
            "policy.conflict",
            Level::Warning,
            &format!("{pauses} known key with another payload"),
        );
        check(
            &[],
            "retry.exhausted",
            Level::Warning,
            &format!("{pauses} record that still fails after 5 attempts"),
        );
        check(
            &[],
            "dead_letter",
            Level::Note,
            "no dead-letter topic: a record that the handler rejects pauses the route",
        );
    }

    #[test]
    fn with_a_dead_letter_topic_all_is_well() {
        let set = &["dead_letter.topic=dead", "identity.missing=dead-letter"];
        assert!(rows(&route(set)).iter().all(|row| row.level == Level::Ok));
        check(
            set,
            "identity.missing",
            Level::Ok,
            "a record without a key goes to the dead-letter topic",
        );
    }

    #[test]
    fn other_policies_need_no_dead_letter_topic() {
        let set = &["identity.missing=fail", "policy.conflict=process", "retry.exhausted=pause"];
        check(
            set,
            "identity.missing",
            Level::Note,
            "the daemon stops with exit code 1 at the first record without a key",
        );
        check(set, "policy.conflict", Level::Ok, "a known key with another payload is handled");
        check(
            set,
            "retry.exhausted",
            Level::Ok,
            "after 5 attempts the partition waits for the other system",
        );
        check(
            &["policy.conflict=suppress"],
            "policy.conflict",
            Level::Ok,
            "a known key with another payload is suppressed, as a duplicate",
        );
    }
}
