//! What is wrong with a configuration, as data.
//!
//! Owns: [`ConfigError`], [`Problem`] and how keys and values are written in them.
//! Never: shows the value of a Kafka property or the password in a URL.

use std::fmt;

use toml::Value;

/// All problems that were found, so that one look is enough to mend them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

/// One line: `routes.payments.window.ttl = "0s": must be at least 1ms (onced.toml:12)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in dots. The file, where it could not be read at all.
    pub key: String,
    /// As it was given, in TOML. `None` where nothing was given, or where it may be a secret.
    pub value: Option<String>,
    /// The rule that is broken, the way out, and the layer that the value came from.
    pub message: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, value: Option<String>, message: &str) -> Self {
        // Names of variables and what parsers say may hold anything; a problem is one line.
        let message = message.replace('\n', ", ").replace(char::is_control, "?");
        Self { key: key.into(), value, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}: {}", self.key, self.message),
            None => write!(f, "{}: {}", self.key, self.message),
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// A path as it stands in TOML: what is not a bare key is quoted.
pub(super) fn key_text<S: AsRef<str>>(path: &[S]) -> String {
    let parts: Vec<_> = path.iter().map(|part| part_text(part.as_ref())).collect();
    parts.join(".")
}

fn part_text(part: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !part.is_empty() && part.bytes().all(bare) { part.into() } else { format!("{part:?}") }
}

/// Enough to recognise a value; a line of an error is not the place for a whole payload.
const SHOWN_CHARS_MAX: usize = 200;

/// A value in one line.
pub(super) fn value_text(value: &Value) -> String {
    let text = whole_text(value);
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text;
    }
    text.chars().take(SHOWN_CHARS_MAX).chain("...".chars()).collect()
}

fn whole_text(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(whole_text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<_> = table
                .iter()
                .map(|(key, value)| format!("{} = {}", part_text(key), whole_text(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_key_value_and_rule() {
        let problem = Problem {
            key: key_text(&["routes", "a b", "window", "ttl"]),
            value: Some(value_text(&Value::from("0s\n"))),
            message: "must be at least 1ms".into(),
        };
        let line = "routes.\"a b\".window.ttl = \"0s\\n\": must be at least 1ms";
        assert_eq!(problem.to_string(), line);
        let error = ConfigError { problems: vec![problem.clone(), problem] };
        assert_eq!(error.to_string(), format!("{line}\n{line}"));
    }

    #[test]
    fn a_long_value_is_cut_short() {
        let text = value_text(&Value::from("ä".repeat(1000)));
        assert_eq!(text.chars().count(), SHOWN_CHARS_MAX + 3);
    }

    #[test]
    fn nested_values_stay_in_one_line() {
        let value: Value = toml::from_str("a = [1, 'x\ty']\n[b]\nc = true").unwrap();
        assert_eq!(value_text(&value), r#"{ a = [1, "x\ty"], b = { c = true } }"#);
    }
}
