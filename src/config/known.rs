//! The keys that there are, and the nearest one to a key that there is not.
//!
//! Owns: the list of keys with the form of each value.
//! Never: knows a default or a limit (see `resolve` and `route`).

use toml::Value;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// Text that may carry a password.
    Url,
    Duration,
    Size,
    /// Text, or a time as TOML spells it.
    Moment,
    Whole,
    Number,
    Flag,
    List,
    /// A scalar that goes to librdkafka as text; may be a password.
    Property,
}

/// `*` stands for any one name. Below `kafka.properties`, names keep their dots.
pub(super) const KEYS: &[(&str, Form)] = &[
    ("kafka.brokers", Form::Text),
    ("kafka.group", Form::Text),
    ("kafka.start", Form::Moment),
    ("kafka.commit_interval", Form::Duration),
    ("kafka.transaction_interval", Form::Duration),
    ("kafka.properties.*", Form::Property),
    ("log.dir", Form::Text),
    ("log.memory", Form::Size),
    ("log.flush_interval", Form::Duration),
    ("log.disk_reserve", Form::Size),
    ("admin.listen", Form::Text),
    ("runtime.workers", Form::Whole),
    ("runtime.drain_timeout", Form::Duration),
    ("routes.*.topics", Form::List),
    ("routes.*.mode", Form::Text),
    ("routes.*.shadow", Form::Flag),
    ("routes.*.identity.key", Form::List),
    ("routes.*.identity.scope", Form::List),
    ("routes.*.identity.missing", Form::Text),
    ("routes.*.identity.fingerprint.canonical", Form::Text),
    ("routes.*.identity.fingerprint.include", Form::List),
    ("routes.*.identity.fingerprint.exclude", Form::List),
    ("routes.*.identity.digest", Form::Text),
    ("routes.*.window.ttl", Form::Duration),
    ("routes.*.window.lateness", Form::Duration),
    ("routes.*.window.skew", Form::Duration),
    ("routes.*.window.anchor", Form::Text),
    ("routes.*.handler.kind", Form::Text),
    ("routes.*.handler.url", Form::Url),
    ("routes.*.handler.timeout", Form::Duration),
    ("routes.*.handler.concurrency", Form::Whole),
    ("routes.*.handler.order", Form::Text),
    ("routes.*.handler.rate", Form::Whole),
    ("routes.*.handler.idempotency_key", Form::Text),
    ("routes.*.handler.topic", Form::Text),
    ("routes.*.handler.partition", Form::Text),
    ("routes.*.handler.partitioner", Form::Text),
    ("routes.*.handler.command", Form::List),
    ("routes.*.handler.children", Form::Whole),
    ("routes.*.handler.statement", Form::Text),
    ("routes.*.handler.parameters", Form::List),
    ("routes.*.handler.batch", Form::Whole),
    ("routes.*.retry.attempts", Form::Whole),
    ("routes.*.retry.backoff.first", Form::Duration),
    ("routes.*.retry.backoff.factor", Form::Number),
    ("routes.*.retry.backoff.max", Form::Duration),
    ("routes.*.retry.backoff.jitter", Form::Flag),
    ("routes.*.retry.exhausted", Form::Text),
    ("routes.*.dead_letter.topic", Form::Text),
    ("routes.*.policy.duplicate", Form::Text),
    ("routes.*.policy.audit_topic", Form::Text),
    ("routes.*.policy.conflict", Form::Text),
    ("routes.*.results.keep", Form::Flag),
    ("routes.*.results.max", Form::Size),
    ("routes.*.results.topic", Form::Text),
];

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Key(Form),
    Section,
    Unknown,
}

pub(super) fn find(path: &[String]) -> Found {
    for (pattern, form) in KEYS {
        let mut parts = pattern.split('.');
        if !path.iter().all(|name| parts.next().is_some_and(|part| part == "*" || part == name)) {
            continue;
        }
        return if parts.next().is_none() { Found::Key(*form) } else { Found::Section };
    }
    Found::Unknown
}

/// The known key or section that is most like this path.
pub(super) fn nearest(path: &[String]) -> String {
    let wanted = comparable(&path.join("."));
    candidates(route_in(path).unwrap_or("NAME"))
        .min_by_key(|candidate| difference(&wanted, &comparable(candidate)))
        .unwrap_or_default()
}

/// The name of the route, where the path looks like one of a route.
fn route_in(path: &[String]) -> Option<&str> {
    let [section, route, ..] = path else { return None };
    (strsim::osa_distance(section, "routes") <= 2).then_some(route)
}

/// Every key and section; `route` is the name to show for routes.
fn candidates(route: &str) -> impl Iterator<Item = String> {
    KEYS.iter().flat_map(move |(pattern, _)| {
        let pattern = pattern.trim_end_matches(".*").replace('*', route);
        let ends: Vec<_> = pattern.match_indices('.').map(|(end, _)| end).collect();
        let sections: Vec<_> = ends.into_iter().map(|end| pattern[..end].to_owned()).collect();
        std::iter::once(pattern).chain(sections)
    })
}

/// A variable may have one underscore where two are needed.
fn comparable(key: &str) -> String {
    key.to_lowercase().replace('_', ".")
}

/// A key of the right name in the wrong section is near, whatever its section is called.
const MOVED: usize = 2;

fn difference(wanted: &str, candidate: &str) -> (usize, usize) {
    let distance = strsim::osa_distance(wanted, candidate);
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let moved = last(wanted) == last(candidate);
    (if moved { distance.min(MOVED) } else { distance }, distance)
}

impl Form {
    /// The value in the one type that `raw` expects, or the rule that it breaks.
    pub(super) fn check(self, value: &Value) -> Result<Value, &'static str> {
        match (self, value) {
            (
                Self::Text | Self::Url | Self::Duration | Self::Size | Self::Moment,
                Value::String(_),
            )
            | (Self::Whole, Value::Integer(_))
            | (Self::Number, Value::Float(_) | Value::Integer(_))
            | (Self::Flag, Value::Boolean(_)) => Ok(value.clone()),
            (Self::List, Value::Array(items)) if items.iter().all(Value::is_str) => {
                Ok(value.clone())
            }
            (Self::Moment, Value::Datetime(time)) => Ok(Value::String(time.to_string())),
            (Self::Property, Value::String(text)) => Ok(Value::String(text.clone())),
            (Self::Property, Value::Integer(_) | Value::Boolean(_)) => {
                Ok(Value::String(value.to_string()))
            }
            _ => Err(self.rule()),
        }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Text | Self::Url => "must be text in quotes",
            Self::Duration => "must be a duration in quotes with its unit, as in \"30s\"",
            Self::Size => "must be a size in quotes with its unit, as in \"256MiB\"",
            Self::Moment => "must be \"earliest\", \"latest\" or an RFC 3339 time",
            Self::Whole => "must be a whole number",
            Self::Number => "must be a number",
            Self::Flag => "must be true or false",
            Self::List => "must be a list of texts, as in [\"one\", \"two\"]",
            Self::Property => "must be a text, a whole number, true or false",
        }
    }

    /// A value that comes as plain text, from a variable or an argument. TOML where the form asks
    /// for it; for text, 5 is "5".
    pub(super) fn read(self, text: &str) -> Value {
        match self {
            Self::Whole | Self::Number | Self::Flag => {
                parse(text).unwrap_or_else(|| Value::from(text))
            }
            Self::List => match parse(text) {
                Some(list @ Value::Array(_)) => list,
                _ if text.is_empty() => Value::Array(Vec::new()),
                _ => Value::Array(vec![Value::from(unquoted(text))]),
            },
            _ => Value::from(unquoted(text)),
        }
    }
}

/// One TOML value.
fn parse(text: &str) -> Option<Value> {
    text.trim().parse().ok()
}

fn unquoted(text: &str) -> String {
    match parse(text) {
        Some(Value::String(inner)) if text.trim_start().starts_with(['"', '\'']) => inner,
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(key: &str) -> Vec<String> {
        key.split('.').map(str::to_owned).collect()
    }

    #[track_caller]
    fn check_nearest(key: &str, expected: &str) {
        assert_eq!(nearest(&path(key)), expected);
    }

    #[test]
    fn a_misspelled_key_leads_to_the_right_one() {
        check_nearest("kafka.broker", "kafka.brokers");
        check_nearest("kafak", "kafka");
        check_nearest("kafak.group", "kafka.group");
        check_nearest("kafka.propertis", "kafka.properties");
        check_nearest("routes.payments.topic", "routes.payments.topics");
        check_nearest("routes.payments.windw", "routes.payments.window");
        check_nearest("routes.payments.window.TTL", "routes.payments.window.ttl");
        check_nearest(
            "routes.payments.identity.fingerprint.exlude",
            "routes.payments.identity.fingerprint.exclude",
        );
    }

    #[test]
    fn a_key_in_the_wrong_section_leads_to_the_right_section() {
        check_nearest("routes.payments.ttl", "routes.payments.window.ttl");
        check_nearest("routes.payments.handler.attempts", "routes.payments.retry.attempts");
        check_nearest("kafka.dir", "log.dir");
        check_nearest("ttl", "routes.NAME.window.ttl");
        check_nearest("route.payments.ttl", "routes.payments.window.ttl");
    }

    #[test]
    fn a_single_underscore_leads_to_the_key_with_a_section() {
        check_nearest("kafka_brokers", "kafka.brokers");
        check_nearest("log_memory", "log.memory");
    }

    #[test]
    fn sections_and_keys_are_told_apart() {
        assert_eq!(find(&path("kafka.group")), Found::Key(Form::Text));
        assert_eq!(find(&path("kafka.properties")), Found::Section);
        assert_eq!(find(&path("kafka.properties.acks")), Found::Key(Form::Property));
        assert_eq!(find(&path("routes.any.retry.backoff")), Found::Section);
        assert_eq!(find(&path("routes.any")), Found::Section);
        assert_eq!(find(&path("kafka.group.x")), Found::Unknown);
        assert_eq!(find(&[]), Found::Section);
    }

    #[test]
    fn text_stays_text_whatever_it_looks_like() {
        for (text, value) in [
            ("5", "5"),
            ("true", "true"),
            ("[1]", "[1]"),
            ("\"5\"", "5"),
            ("'a b'", "a b"),
            ("\"open", "\"open"),
            ("", ""),
            (" spaced ", " spaced "),
        ] {
            assert_eq!(Form::Text.read(text), Value::from(value));
        }
    }

    #[test]
    fn numbers_flags_and_lists_are_read_as_toml() {
        assert_eq!(Form::Whole.read("5"), Value::from(5));
        assert_eq!(Form::Number.read("2.5"), Value::from(2.5));
        assert_eq!(Form::Flag.read("true"), Value::from(true));
        assert_eq!(Form::Whole.read("five"), Value::from("five"));
        assert_eq!(Form::List.read("['a', 'b']"), Value::from(vec!["a", "b"]));
        assert_eq!(Form::List.read("a"), Value::from(vec!["a"]));
        assert_eq!(Form::List.read("5"), Value::from(vec!["5"]));
        assert_eq!(Form::List.read(""), Value::Array(Vec::new()));
    }

    #[test]
    fn properties_become_text() {
        assert_eq!(Form::Property.check(&Value::from(6000)), Ok(Value::from("6000")));
        assert_eq!(Form::Property.check(&Value::from(true)), Ok(Value::from("true")));
        assert!(Form::Property.check(&Value::from(1.5)).is_err());
    }
}
