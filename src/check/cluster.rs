//! The cluster: does it answer, and to this user?
//!
//! Owns: what a question without an answer means. Pure.
//! Never: asks (see `broker`).

use super::broker::{Cluster, Trouble};
use super::report::Row;

/// Who answers at the brokers' addresses.
pub fn row(brokers: &str, cluster: &Result<Cluster, Trouble>) -> Row {
    let subject = "kafka.brokers";
    let trouble = match cluster {
        Ok(cluster) => {
            let count = if cluster.brokers == 1 {
                "1 broker".to_owned()
            } else {
                format!("{} brokers", cluster.brokers)
            };
            return Row::ok(subject, format!("{count} at {brokers}, cluster {}", cluster.id));
        }
        Err(trouble) => trouble,
    };
    let unchecked = "topics, permissions and the group were not checked";
    match trouble {
        Trouble::Authentication { reason } => Row::failed(
            subject,
            format!("authentication failed at {brokers}: {reason}"),
            format!("correct security.protocol and sasl.* in kafka.properties; {unchecked}"),
        ),
        Trouble::Silence { waited, reasons } => Row::failed(
            subject,
            format!(
                "no broker answered at {brokers} within {:.0?}{}",
                waited,
                reasons_text(reasons)
            ),
            format!("{}; {unchecked}", way_out(reasons)),
        ),
        Trouble::Answer(code) => {
            Row::failed(subject, format!("{brokers} answers: {code}"), unchecked)
        }
    }
}

/// A question after the first: somebody did answer at the addresses of the configuration.
pub fn unanswered(subject: &str, trouble: &Trouble) -> Row {
    match trouble {
        Trouble::Authentication { reason } => Row::failed(
            subject,
            format!("not checked, authentication failed: {reason}"),
            "every broker must accept this user",
        ),
        Trouble::Silence { waited, reasons } => Row::failed(
            subject,
            format!("not checked: no answer within {waited:.0?}{}", reasons_text(reasons)),
            ADVERTISED,
        ),
        Trouble::Answer(code) => Row::failed(
            subject,
            format!("not checked, the broker answers: {code}"),
            "run the check again",
        ),
    }
}

const ADVERTISED: &str =
    "the brokers must be reachable under the names that they advertise (advertised.listeners)";

/// The client calls an address of the configuration `.../bootstrap`; others were told by a broker
/// that did answer.
fn way_out(reasons: &[String]) -> &'static str {
    if reasons.iter().any(|reason| !reason.contains("/bootstrap")) {
        return ADVERTISED;
    }
    "start the brokers, or correct kafka.brokers or security.protocol"
}

fn reasons_text(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::Level;
    use super::*;

    fn silence(reason: &str) -> Trouble {
        Trouble::Silence { waited: Duration::from_millis(3001), reasons: vec![reason.to_owned()] }
    }

    #[test]
    fn a_silent_broker_is_named_with_the_reason() {
        let reason = "b:1/bootstrap: Connection refused";
        let row = row("b:1,c:2", &Err(silence(reason)));
        assert_eq!(row.level, Level::Failed);
        assert_eq!(row.found, format!("no broker answered at b:1,c:2 within 3s: {reason}"));
        assert!(row.advice.starts_with("start the brokers"));
    }

    #[test]
    fn a_broker_that_names_itself_wrongly_did_answer() {
        let row = row("b:1", &Err(silence("internal:9092/1: Failed to resolve")));
        assert!(row.advice.contains("advertised.listeners"), "{row:?}");
    }

    #[test]
    fn a_refused_user_is_told_apart_from_a_silent_broker() {
        let refused = Trouble::Authentication { reason: "Invalid password".to_owned() };
        let row = row("b:1", &Err(refused));
        assert_eq!(row.level, Level::Failed);
        assert_eq!(row.found, "authentication failed at b:1: Invalid password");
        assert!(row.advice.contains("sasl.*"));
    }
}
