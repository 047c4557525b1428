//! Dead letters on their way: sent, acknowledged, made smaller where the broker refuses them.
//!
//! A record is settled only when the broker has its letter; until then the letter is sent again.

use std::time::Duration;

use super::records::Subject;
use super::{Due, Worker};
use crate::commit::letters::{Form, Letter, Reason};
use crate::commit::producer::SendError;
use crate::dedup::Entry;
use crate::fault::{self, Bug};
use crate::metrics::VerdictLabel;

/// A letter that is not acknowledged yet.
pub(super) struct LetterJob {
    letter: Letter,
    subject: Subject,
    route: usize,
    verdict: VerdictLabel,
}

/// How long to wait before a letter that could not be sent is sent again.
const AGAIN: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn dead_letter(
        &mut self,
        route: usize,
        subject: Subject,
        reason: Reason,
        error: String,
        verdict: VerdictLabel,
    ) {
        let config = &self.shared.routes[route].config;
        let coordinates = subject.record.coordinates();
        if config.dead_letter.is_none() {
            let reason = format!(
                "{coordinates} would be a dead letter ({}: {error}), but routes.{}.dead_letter.topic is not set",
                reason.as_str(),
                config.name
            );
            self.shared.routes[route].pause(&self.shared.readiness, reason);
            // It stays where a paused route leaves it, with its key and its permit.
            match subject.claim {
                Some(claim) => self.dispatch[route].resubmit(claim),
                None if self.is_exactly_once(route) => self.halt(&subject.record.partition),
                None => {}
            }
            return;
        }
        let exactly_once = self.is_exactly_once(route);
        let Some(owned) = self.owned.get_mut(&subject.record.partition) else { return };
        owned.out += usize::from(!exactly_once);
        tracing::warn!(route = %config.name, coordinates, reason = reason.as_str(), error, "A record becomes a dead letter.");
        let letter = Letter {
            record: subject.record.clone(),
            reason,
            error,
            attempts: subject.claim.as_ref().map_or(0, |claim| claim.attempt),
            route: config.name.to_string(),
            identity: subject.identity,
            origin: owned.origin.clone(),
            form: Form::Whole,
        };
        if exactly_once {
            return self.letter_in_transaction(route, letter, verdict);
        }
        let token = self.next_letter;
        self.next_letter += 1;
        self.letters.insert(token, LetterJob { letter, subject, route, verdict });
        self.send_letter(token);
    }

    pub(super) fn send_letter(&mut self, token: u64) {
        let (Some(job), Some(producer)) = (self.letters.get(&token), &self.shared.letters) else {
            return;
        };
        let Some(topic) = &self.shared.routes[job.route].config.dead_letter else { return };
        if let Err(error) = producer.send(topic, &job.letter, token, &self.acknowledged) {
            self.letter_answered(token, Err(error));
        }
    }

    pub(super) fn letter_answered(&mut self, token: u64, result: Result<(), SendError>) {
        match result {
            Ok(()) => self.letter_sent(token),
            Err(SendError::TooLarge) => self.send_smaller(token),
            Err(error) => {
                tracing::error!(%error, cause = ?std::error::Error::source(&error).map(ToString::to_string), "A dead letter was not acknowledged; it is sent again.");
                self.later(AGAIN, Due::Letter { token });
            }
        }
    }

    fn send_smaller(&mut self, token: u64) {
        let Some(job) = self.letters.get_mut(&token) else { return };
        let Some(smaller) = job.letter.form.smaller() else {
            let coordinates = job.letter.record.coordinates();
            let route = job.route;
            let reason = format!(
                "even the smallest dead letter of {coordinates} is larger than its topic takes"
            );
            return self.shared.routes[route].pause(&self.shared.readiness, reason);
        };
        job.letter.form = smaller;
        self.send_letter(token);
    }

    fn letter_sent(&mut self, token: u64) {
        let Some(LetterJob { letter, subject, route, verdict }) = self.letters.remove(&token)
        else {
            return;
        };
        self.shared.routes[route].metrics.dead_letters.add(letter.reason, 1);
        let record = &subject.record;
        let owned =
            self.owned.get_mut(&record.partition).filter(|owned| owned.epoch == subject.epoch);
        match (owned, subject.claim) {
            // The partition is somebody else's now; the letter settles its record there too.
            (None, Some(claim)) => self.give_up(route, claim),
            (None, None) => {}
            (Some(owned), claim) => {
                owned.out -= 1;
                match claim {
                    Some(claim) => {
                        let left = fault::bug(Bug::LetterLeavesEntry).then_some(Entry {
                            offset: claim.record.offset,
                            time: claim.time,
                            check: claim.check,
                        });
                        self.settle_claim(route, &claim, verdict, left);
                    }
                    None => {
                        self.settle(&record.partition, record.offset, record.size(), verdict, None)
                    }
                }
            }
        }
    }
}
