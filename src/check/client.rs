//! `[kafka.properties]`: does the client accept them?
//!
//! Owns: handles of every kind that onced makes, for a moment.
//! Never: sends anything: these handles know no broker. Shows the value of a property.

use std::time::Duration;

use rdkafka::error::KafkaError;

use super::report::Row;
use crate::commit::producer::LetterProducer;
use crate::config::Kafka;
use crate::source::lookup::Lookup;
use crate::source::{Source, client};

/// The client makes its handles and says what it does not like.
pub fn row(kafka: &Kafka) -> Row {
    match try_to_make(&Kafka { brokers: String::new(), ..kafka.clone() }) {
        Ok(()) if kafka.properties.iter().next().is_none() => {
            Row::ok("kafka.properties", "none is set")
        }
        Ok(()) => Row::ok("kafka.properties", "the client accepts them"),
        Err(error) => Row::failed(
            "kafka.properties",
            format!("the client refuses: {}", client::without_value(&error)),
            "correct or remove it; the names are librdkafka's",
        ),
    }
}

fn try_to_make(kafka: &Kafka) -> Result<(), KafkaError> {
    Lookup::new(kafka)?;
    LetterProducer::new(client::base(kafka))?;
    // In no group yet, so it does not matter whether it left in time.
    let _ = Source::subscribe(kafka, &["none"])?.leave(Duration::from_secs(1));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::super::tests::config_with;
    use super::*;

    #[track_caller]
    fn check(property: &str, level: Level, found: &str) {
        // Put there by hand: the configuration refuses each alone, but not what they make together.
        let pair = property.split_once('=').map(|(name, value)| (name.into(), value.into()));
        let properties = pair.into_iter().collect();
        let row = row(&Kafka { properties, ..config_with(&[]).kafka });
        assert_eq!(row.level, level, "{row:?}");
        assert!(row.found.contains(found), "{row:?}");
        assert!(!row.found.contains("hunter2"), "{row:?}");
    }

    #[test]
    fn the_client_says_which_property_it_refuses_and_never_its_value() {
        check("client.id=me", Level::Ok, "accepts them");
        for name in ["sasl.pasword", "session.timeout.ms", "security.protocol"] {
            check(&format!("{name}=hunter2"), Level::Failed, name);
        }
    }

    #[test]
    fn properties_that_contradict_one_another_are_refused() {
        check("max.in.flight.requests.per.connection=100", Level::Failed, "max.in.flight");
        check("session.timeout.ms=400000", Level::Failed, "max.poll.interval.ms");
    }
}
