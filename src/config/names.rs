//! How a key is spelled outside of a file: as a variable, and as an argument of `--set`.
//!
//! Owns: the prefix of variables, and which variables are none of ours.
//! Never: knows which keys there are (see `known`).

/// What every variable of onced starts with.
const PREFIX: &str = "ONCED_";

/// True where a variable is meant to be a key.
pub(super) fn is_key(name: &str, text: &str) -> bool {
    name.starts_with(PREFIX)
        && !["ONCED_LOG", "ONCED_LOG_FORMAT", "ONCED_CONFIG"].contains(&name)
        && !name.starts_with("ONCED_TEST_")
        && !is_fault(name)
        && !is_service_link(name, text)
}

/// What a build with known faults reads by itself.
fn is_fault(name: &str) -> bool {
    cfg!(feature = "faults") && ["ONCED_CRASH", "ONCED_BUG"].contains(&name)
}

/// Kubernetes gives every container the addresses of the services around it: for a service called
/// `onced`, `ONCED_SERVICE_HOST`, `ONCED_PORT` and `ONCED_PORT_9464_TCP_ADDR`. No key looks so.
fn is_service_link(name: &str, text: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| rest.starts_with(|digit: char| digit.is_ascii_digit());
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.split_once("_PORT_").is_some_and(numbered)
            || name.ends_with("_PORT") && text.contains("://"))
}

/// The path that a variable names. Variables have no case, and no hyphen: a route that is there
/// already gives its spelling.
pub(super) fn of_variable<'a>(
    variable: &str,
    routes: impl Iterator<Item = &'a String>,
) -> Vec<String> {
    let name = variable.strip_prefix(PREFIX).unwrap_or(variable);
    let parts: Vec<_> = name.split("__").map(str::to_lowercase).collect();
    match parts.as_slice() {
        [kafka, properties, name @ ..]
            if kafka == "kafka" && properties == "properties" && !name.is_empty() =>
        {
            vec![kafka.clone(), properties.clone(), name.join(".").replace('_', ".")]
        }
        [section, route, rest @ ..] if section == "routes" => {
            [&[section.clone(), spelling(route, routes)], rest].concat()
        }
        _ => parts,
    }
}

fn spelling<'a>(name: &str, routes: impl Iterator<Item = &'a String>) -> String {
    let folded = |name: &str| name.to_lowercase().replace('-', "_");
    let alike = routes.filter(|route| folded(route) == folded(name));
    // One of exactly this spelling comes before others.
    alike.min_by_key(|route| *route != name).cloned().unwrap_or_else(|| name.to_owned())
}

/// The variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__").replace('-', "_"))
}

/// Quoted parts are allowed, as in TOML. A property's name may also keep its dots unquoted.
pub(super) fn of_set(key: &str) -> Vec<String> {
    let unquoted = |part: &str| part.trim().trim_matches(['"', '\'']).to_owned();
    match key.strip_prefix("kafka.properties.") {
        Some(name) => vec!["kafka".into(), "properties".into(), unquoted(name)],
        None => key.split('.').map(unquoted).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{File, load_set};
    use super::super::{Sources, load};

    const FILE: &str = r#"
        [kafka]
        group = "from-file"
        brokers = "file:9092"

        [routes.payments-eu]
        topics = ["payments"]
        handler = { kind = "stdout", concurrency = 7 }
    "#;

    #[test]
    fn a_variable_finds_the_route_whatever_its_spelling() {
        let file = File::new(FILE);
        let config =
            file.load(&[("ONCED_ROUTES__PAYMENTS_EU__HANDLER__CONCURRENCY", "9")], &[]).unwrap();
        assert_eq!(config.routes.len(), 1);
        assert_eq!(config.routes[0].concurrency, 9);
    }

    #[test]
    fn a_variable_prefers_the_route_of_its_own_spelling() {
        let text = FILE.replace("payments-eu", "payments_eu").replace("\"payments\"", "\"other\"");
        let file = File::new(format!("{FILE}{}", &text[text.find("[routes").unwrap()..]));
        let config =
            file.load(&[("ONCED_ROUTES__PAYMENTS_EU__HANDLER__CONCURRENCY", "9")], &[]).unwrap();
        let of =
            |name| config.routes.iter().find(|route| &*route.name == name).unwrap().concurrency;
        assert_eq!((of("payments-eu"), of("payments_eu")), (7, 9));
    }

    #[test]
    fn variables_alone_make_a_configuration() {
        let env = [
            ("ONCED_KAFKA__GROUP", "5"),
            ("ONCED_KAFKA__PROPERTIES__SASL_USERNAME", "u"),
            ("ONCED_KAFKA__PROPERTIES__SASL__PASSWORD", "'p'"),
            ("ONCED_ADMIN__LISTEN", ""),
            ("ONCED_LOG__DIR", "/var/lib/onced"),
            ("ONCED_ROUTES__PAYMENTS_EU__TOPICS", "[\"a\", \"b\"]"),
            ("ONCED_ROUTES__PAYMENTS_EU__HANDLER__KIND", "stdout"),
            ("ONCED_ROUTES__PAYMENTS_EU__HANDLER__RATE", "100"),
            ("ONCED_ROUTES__PAYMENTS_EU__WINDOW__TTL", "2h"),
            ("ONCED_ROUTES__PAYMENTS_EU__RETRY__BACKOFF", "{ factor = 3, jitter = false }"),
            ("ONCED_ROUTES__PAYMENTS_EU__RETRY__BACKOFF__FACTOR", "4"),
            ("PATH", "/bin"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let config = load(&Sources { env, ..Sources::default() }).unwrap();
        assert_eq!(config.kafka.group, "5");
        let properties: Vec<_> = config.kafka.properties.iter().collect();
        assert_eq!(properties, [("sasl.password", "p"), ("sasl.username", "u")]);
        assert_eq!(config.admin.listen, None);
        let route = &config.routes[0];
        assert_eq!(&*route.name, "payments_eu");
        assert_eq!(route.topics.len(), 2);
        assert_eq!(route.rate, 100);
        assert_eq!(route.window.ttl.as_secs(), 7200);
        assert_eq!(route.retry.backoff.factor, 4.0);
        assert!(!route.retry.backoff.jitter);
    }

    #[test]
    fn variables_with_another_purpose_are_left_alone() {
        let file = File::new(FILE);
        let env = [
            ("ONCED_LOG", "debug"),
            ("ONCED_TEST_KAFKA__BROKER", "x"),
            ("ONCED_SERVICE_HOST", "10.0.0.1"),
            ("ONCED_SERVICE_PORT_ADMIN", "9464"),
            ("ONCED_PORT", "tcp://10.0.0.1:9464"),
            ("ONCED_PORT_9464_TCP_ADDR", "10.0.0.1"),
            ("ONCED_ADMIN_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ];
        assert!(file.load(&env, &[]).is_ok());
    }

    #[test]
    fn a_set_argument_may_be_spelled_as_in_a_file() {
        let config = load_set(&[
            "kafka.group = \"x=y\"",
            "kafka.properties.\"client.id\" = \"me\"",
            "kafka.properties.socket.keepalive.enable=true",
            "routes.\"payments\".topics = ['a', 'b']",
            "routes.payments.retry = { attempts = 9, backoff = { first = '1s' } }",
        ])
        .unwrap();
        assert_eq!(config.kafka.group, "x=y");
        let properties: Vec<_> = config.kafka.properties.iter().collect();
        assert_eq!(properties, [("client.id", "me"), ("socket.keepalive.enable", "true")]);
        assert_eq!(config.routes[0].topics.len(), 2);
        assert_eq!(config.routes[0].retry.attempts, 9);
        assert_eq!(config.routes[0].retry.backoff.first.as_secs(), 1);
    }
}
