//! Reads single values of a section and writes down what is wrong with them.
//!
//! Owns: the rules that many keys share (durations, sizes, ranges, choices).
//! Never: stops at a problem. A value that breaks a rule is replaced by the default, so that the
//! rest can be checked.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use super::error::Problem;
use super::layers::Layers;

/// The values of a choice: what it means, or why it cannot be had and what to do instead.
pub(super) type Choices<T> = [(&'static str, Result<T, &'static str>)];

/// One section, or a route with all its sections. Keys are relative to it.
pub(super) struct Section<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
    prefix: String,
}

impl<'a> Section<'a> {
    pub(super) fn new(
        layers: &'a Layers,
        problems: &'a mut Vec<Problem>,
        prefix: impl Into<String>,
    ) -> Self {
        Self { layers, problems, prefix: prefix.into() }
    }

    /// The whole name of a key.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// Writes down a problem with a key, with its value and where that comes from.
    pub(super) fn problem(&mut self, key: &str, rule: impl Display) {
        let key = self.key(key);
        let given = self.layers.given(&key);
        let value = given.and_then(|given| given.shown());
        let message = match given {
            Some(given) => format!("{rule} ({})", given.origin),
            None => rule.to_string(),
        };
        self.problems.push(Problem::new(key, value, &message));
    }

    /// A problem with a key that is not there; says nothing if it is there in a wrong form, since
    /// that was said already.
    pub(super) fn missing(&mut self, key: &str, rule: impl Display) {
        if self.layers.given(&self.key(key)).is_none() {
            self.problem(key, rule);
        }
    }

    /// A problem with the section itself.
    pub(super) fn problem_here(&mut self, rule: impl Display) {
        self.problems.push(Problem::new(self.prefix.clone(), None, &rule.to_string()));
    }

    /// True where the key is there in a wrong form, which was said already.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.layers.given(&self.key(key)).is_some_and(|given| !given.usable)
    }

    /// Where a route is first named; a route that nobody meant comes from a misspelled key.
    pub(super) fn origin_of_route(&self, name: &str) -> String {
        let origin = self.layers.routes.get(name);
        origin.map(|origin| format!(" ({origin})")).unwrap_or_default()
    }

    pub(super) fn duration(
        &mut self,
        key: &str,
        given: Option<&str>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(text) = given else { return default };
        match humantime::parse_duration(text) {
            Ok(value) => self.within(key, value, default, range, |limit| {
                humantime::format_duration(limit).to_string()
            }),
            Err(error) => {
                let rule = "must be a duration with its unit, as in \"500ms\", \"30s\" or \"24h\"";
                self.problem(key, format!("{rule}: {error}"));
                default
            }
        }
    }

    pub(super) fn size(
        &mut self,
        key: &str,
        given: Option<&str>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let Some(text) = given else { return default };
        match text.parse::<ByteSize>() {
            Ok(value) => self.within(key, value.as_u64(), default, range, |limit| {
                ByteSize(limit).display().iec().to_string().replace(".0 ", "")
            }),
            Err(_) => {
                self.problem(key, "must be a size with its unit, as in \"64KiB\" or \"256MiB\"");
                default
            }
        }
    }

    pub(super) fn whole(
        &mut self,
        key: &str,
        given: Option<i64>,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> u32 {
        let Some(value) = given else { return default };
        let (least, most) = range.into_inner();
        let range = i64::from(least)..=i64::from(most);
        let value = self.within(key, value, i64::from(default), range, |limit| limit.to_string());
        u32::try_from(value).unwrap_or(default)
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        given: Option<f64>,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> f64 {
        let Some(value) = given else { return default };
        self.within(key, value, default, range, |limit| format!("{limit:.1}"))
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        given: Option<&str>,
        choices: &Choices<T>,
        default: T,
    ) -> T {
        let Some(text) = given else { return default };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, Ok(value))) => *value,
            Some((_, Err(instead))) => {
                self.problem(key, instead);
                default
            }
            None => {
                let known = choices.iter().filter(|(_, meaning)| meaning.is_ok());
                let known: Vec<_> = known.map(|(name, _)| format!("\"{name}\"")).collect();
                self.problem(key, format!("must be {}", any_of(&known)));
                default
            }
        }
    }

    /// A list, each item in its own form. An item that has not is left out.
    pub(super) fn items<T>(&mut self, key: &str, given: Option<&[String]>) -> Option<Vec<T>>
    where
        T: FromStr<Err: Display>,
    {
        let parse = |text: &String| match text.parse() {
            Ok(item) => Some(item),
            Err(error) => {
                self.problem(key, error);
                None
            }
        };
        given.map(|items| items.iter().filter_map(parse).collect())
    }

    /// A topic: what Kafka allows as its name.
    pub(super) fn topic(&mut self, key: &str, name: &str) -> Arc<str> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > TOPIC_BYTES_MAX || !name.bytes().all(legal) {
            let rule = format!(
                "{name:?} is not the name of a topic: letters, digits, \".\", \"_\" and \"-\", \
                 at least 1 and at most {TOPIC_BYTES_MAX}"
            );
            self.problem(key, rule);
        } else if matches!(name, "." | "..") {
            self.problem(key, format!("Kafka has no topic named {name:?}"));
        }
        name.into()
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        key: &str,
        value: T,
        default: T,
        range: RangeInclusive<T>,
        text: impl Fn(T) -> String,
    ) -> T {
        if range.contains(&value) {
            return value;
        }
        let rule = if value < *range.start() {
            format!("must be at least {}", text(*range.start()))
        } else {
            format!("must be at most {}", text(*range.end()))
        };
        self.problem(key, rule);
        default
    }
}

/// Kafka's own limit.
const TOPIC_BYTES_MAX: usize = 249;

/// `a`, `a or b`, `a, b or c`.
pub(super) fn any_of<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<_> = items.iter().map(AsRef::as_ref).collect();
    match items.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{check_refused, check_route_refused, load_set, route};

    #[test]
    fn durations_and_sizes_carry_their_unit() {
        let config =
            load_set(&["log.flush_interval=1m 30s", "log.memory=1GiB", "log.disk_reserve=0B"])
                .unwrap();
        assert_eq!(config.log.disk_reserve, 0);
        assert_eq!(config.log.flush_interval, Duration::from_secs(90));
        assert_eq!(config.log.memory, 1 << 30);
        check_refused(
            &["kafka.commit_interval=30", "log.memory=lots"],
            &[
                "kafka.commit_interval = \"30\": must be a duration with its unit, as in \"500ms\", \
                 \"30s\" or \"24h\": time unit needed, for example 30sec or 30ms (--set \
                 kafka.commit_interval)",
                "log.memory = \"lots\": must be a size with its unit, as in \"64KiB\" or \"256MiB\" \
                 (--set log.memory)",
            ],
        );
    }

    #[test]
    fn limits_are_part_of_their_range() {
        for (key, least, most) in [
            ("window.ttl", "1ms", "10y"),
            ("window.lateness", "0s", "1y"),
            ("window.skew", "0s", "1y"),
            ("handler.concurrency", "1", "100000"),
            ("handler.rate", "0", "4294967295"),
            ("retry.attempts", "1", "4294967295"),
            ("retry.backoff.factor", "1", "100.0"),
        ] {
            route(&[&format!("{key}={least}")]);
            route(&[&format!("{key}={most}")]);
        }
    }

    #[test]
    fn a_value_beyond_its_limit_is_refused_with_the_limit() {
        for (key, value, rule) in [
            ("window.ttl", "\"999us\"", "must be at least 1ms"),
            ("window.ttl", "\"11y\"", "must be at most 10years"),
            ("window.lateness", "\"2y\"", "must be at most 1year"),
            ("window.skew", "\"2y\"", "must be at most 1year"),
            ("handler.concurrency", "0", "must be at least 1"),
            ("handler.concurrency", "100001", "must be at most 100000"),
            ("handler.rate", "-1", "must be at least 0"),
            ("retry.attempts", "0", "must be at least 1"),
            ("retry.attempts", "-9223372036854775808", "must be at least 1"),
            ("retry.backoff.factor", "0.5", "must be at least 1.0"),
            ("retry.backoff.factor", "inf", "must be at most 100.0"),
            ("retry.backoff.factor", "nan", "must be at most 100.0"),
        ] {
            let line = format!("{key} = {value}: {rule} (--set routes.payments.{key})");
            check_route_refused(&[&format!("{key}={value}")], &[&line]);
        }
    }

    #[test]
    fn a_choice_names_its_values() {
        check_route_refused(
            &["handler.order=key", "window.anchor=FIRST"],
            &[
                "window.anchor = \"FIRST\": must be \"first\" or \"last\" \
                 (--set routes.payments.window.anchor)",
                "handler.order = \"key\": must be \"record-key\", \"identity\" or \"partition\" \
                 (--set routes.payments.handler.order)",
            ],
        );
    }

    #[test]
    fn a_topic_has_a_name_that_kafka_allows() {
        route(&[&format!("topics={}", "a".repeat(249)), "dead_letter.topic=A.b_c-9"]);
        for name in ["", "a b", "^payments.*", "a,b", "ä", &"a".repeat(250), ".", ".."] {
            let error = load_set(&[&format!("routes.payments.topics=['{name}']")]).unwrap_err();
            assert_eq!(error.problems.len(), 1, "{error}");
            assert_eq!(error.problems[0].key, "routes.payments.topics");
        }
    }
}
