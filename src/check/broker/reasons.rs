//! Why a question waits: what the client says of its brokers in the meantime.

use std::ptr;

use rdkafka::bindings as native;
use rdkafka::error::RDKafkaErrorCode;

use super::answers::text;
use super::{Event, Trouble};

/// Enough to see what is wrong; a cluster may have many brokers, all with the same problem.
const REASONS_MAX: usize = 3;

/// What the client says of its brokers while a question waits.
#[derive(Default)]
pub struct Reasons {
    pub texts: Vec<String>,
    /// All brokers that are known are.
    pub unreachable: bool,
}

impl Reasons {
    /// # Errors
    /// A refused user: no further try will do better, and accounts are locked after a few.
    pub fn add_error(&mut self, code: RDKafkaErrorCode, event: &Event) -> Result<(), Trouble> {
        // SAFETY: the event is alive.
        let reason = unsafe { text(native::rd_kafka_event_error_string(event.0.as_ptr())) };
        match code {
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                return Err(Trouble::Authentication { reason: without_times(&reason).to_owned() });
            }
            // Says no more than the reasons of the single brokers.
            RDKafkaErrorCode::AllBrokersDown => self.unreachable = true,
            _ => self.add(&reason),
        }
        Ok(())
    }

    pub fn add_log(&mut self, event: &Event) {
        let (mut facility, mut message, mut level) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the event is alive, and the texts live as long as it.
        let (facility, message) = unsafe {
            native::rd_kafka_event_log(
                event.0.as_ptr(),
                &raw mut facility,
                &raw mut message,
                &raw mut level,
            );
            (text(facility), text(message))
        };
        if facility == "FAIL" {
            // "[thrd:...]: " says which thread of the client it was.
            self.add(message.split_once("]: ").map_or(message.as_str(), |(_, reason)| reason));
        }
    }

    fn add(&mut self, reason: &str) {
        let reason = without_times(reason.trim()).to_owned();
        if self.texts.len() < REASONS_MAX && !self.texts.contains(&reason) {
            self.texts.push(reason);
        }
    }
}

/// librdkafka adds how long it tried, which makes every try a text of its own.
fn without_times(reason: &str) -> &str {
    reason.rfind(" (after ").map_or(reason, |at| &reason[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_counts_once_however_long_it_took() {
        let reason = "h:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused";
        let mut reasons = Reasons::default();
        for ms in 0..10 {
            reasons.add(&format!("{reason} (after {ms}ms in state CONNECT)"));
        }
        assert_eq!(reasons.texts, [reason]);
    }

    #[test]
    fn a_few_reasons_are_enough() {
        let mut reasons = Reasons::default();
        (0..10).for_each(|broker| reasons.add(&format!("h:{broker}: no")));
        assert_eq!(reasons.texts.len(), REASONS_MAX);
    }
}
