//! What is sent: payments, their repeats, and one key that is used twice.
//!
//! Pure: the same seed and number of payments give the same records.
//!
//! Owns: the records, their order, and where in it the daemon is killed and a producer restarts.
//! Never: sends.

use fastrand::Rng;

/// Of the payments, how many are sent again soon after, once or twice.
const CLIENT_RETRIES: f64 = 0.2;
/// And how many turn up again much later.
const LATE_DUPLICATES: f64 = 0.1;
/// A client that hears nothing sends again within this many payments.
const RETRY_WITHIN: f64 = 20.0;
/// The least distance of a late duplicate, in payments.
const LATE_FROM: f64 = 30.0;

/// The daemon is killed when the first of these parts is sent; the service stops answering after
/// the second, so that there is something left to be in flight.
const SENT_BEFORE_KILL: f64 = 0.65;
const ANSWERED_BEFORE_KILL: f64 = 0.4;
const _: () = assert!(ANSWERED_BEFORE_KILL < SENT_BEFORE_KILL);

/// The producer restarts here, and its last records are the 20th part of the payments.
const PRODUCER_RESTART: f64 = 0.8;
const PRODUCER_REPEATS: usize = 20;
/// The key of one of the first payments comes back here, with another amount.
const CONFLICT: f64 = 0.9;
const CONFLICT_OF: usize = 4;

/// Enough accounts that calls are in flight at once although each account waits its turn.
const ACCOUNTS_MIN: usize = 100;
const PAYMENTS_PER_ACCOUNT: usize = 8;

/// One payment, as the client means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payment {
    /// The client's `Idempotency-Key`, and the id in the payload.
    pub key: String,
    pub account: String,
    pub cents: u64,
}

/// Why a record is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    First,
    ClientRetry,
    LateDuplicate,
    ProducerRepeat,
    /// Another amount under the key of an earlier payment.
    Conflict,
}

/// One record to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Index into [`Scenario::payments`].
    pub payment: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scenario {
    pub payments: Vec<Payment>,
    /// In the order in which they are sent.
    pub records: Vec<Record>,
    /// So many records are sent before the kill.
    pub kill_at: usize,
    /// So many calls are answered before the kill.
    pub answered: usize,
    /// The record with which the restarted producer begins.
    pub restart_at: usize,
    pub conflict_cents: u64,
}

impl Scenario {
    /// `count`: different payments, at least 100.
    pub(super) fn generate(seed: u64, count: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        let payments = payments(count, &mut random);
        let conflict_of = random.usize(..count / CONFLICT_OF);
        let mut records = stream(count, conflict_of, &mut random);
        let kill_at = first_of(&records, part(count, SENT_BEFORE_KILL));
        let restart_at = first_of(&records, part(count, PRODUCER_RESTART));
        let repeats = newest(&records[..restart_at], count / PRODUCER_REPEATS);
        records.splice(restart_at..restart_at, repeats);
        let conflict_cents = payments[conflict_of].cents + random.u64(1..=10_000);
        let answered = part(count, ANSWERED_BEFORE_KILL);
        Self { payments, records, kill_at, answered, restart_at, conflict_cents }
    }

    pub(super) fn payment(&self, record: Record) -> &Payment {
        &self.payments[record.payment]
    }

    pub(super) fn cents(&self, record: Record) -> u64 {
        match record.kind {
            Kind::Conflict => self.conflict_cents,
            _ => self.payment(record).cents,
        }
    }

    /// A repeat has the bytes of its first.
    pub(super) fn payload(&self, record: Record) -> String {
        let Payment { key, account, .. } = self.payment(record);
        let cents = self.cents(record);
        format!(r#"{{"payment":{{"id":"{key}","cents":{cents}}},"account":"{account}"}}"#)
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.records.iter().filter(|record| record.kind == kind).count()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a count")]
fn part(count: usize, share: f64) -> usize {
    (count as f64 * share) as usize
}

fn payments(count: usize, random: &mut Rng) -> Vec<Payment> {
    let accounts = ACCOUNTS_MIN.max(count / PAYMENTS_PER_ACCOUNT);
    let payment = |number: usize| Payment {
        key: format!("pay-{number:05}-{:08x}", random.u32(..)),
        account: format!("acc-{:04}", random.usize(..accounts)),
        cents: random.u64(100..100_000),
    };
    (0..count).map(payment).collect()
}

/// Everything but what the producer repeats. Time is counted in payments.
fn stream(count: usize, conflict_of: usize, random: &mut Rng) -> Vec<Record> {
    let mut timed = Vec::with_capacity(count * 3 / 2);
    for payment in 0..count {
        let at = payment as f64;
        timed.push((at, Record { payment, kind: Kind::First }));
        if random.f64() < CLIENT_RETRIES {
            for _ in 0..random.usize(1..=2) {
                let again = at + 0.5 + random.f64() * RETRY_WITHIN;
                timed.push((again, Record { payment, kind: Kind::ClientRetry }));
            }
        }
        if random.f64() < LATE_DUPLICATES {
            let again = at + LATE_FROM + random.f64() * (count as f64 - at);
            timed.push((again, Record { payment, kind: Kind::LateDuplicate }));
        }
    }
    let conflict = Record { payment: conflict_of, kind: Kind::Conflict };
    timed.push((part(count, CONFLICT) as f64 + 0.5, conflict));
    timed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    timed.into_iter().map(|(_, record)| record).collect()
}

/// Where the payment is sent for the first time.
fn first_of(records: &[Record], payment: usize) -> usize {
    let first = Record { payment, kind: Kind::First };
    records.iter().position(|record| *record == first).unwrap_or(records.len())
}

/// The last `count` records once more: the producer does not know how far it had come.
fn newest(records: &[Record], count: usize) -> Vec<Record> {
    let again = |record: &Record| Record { kind: Kind::ProducerRepeat, ..*record };
    records[records.len().saturating_sub(count)..].iter().map(again).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn scenarios() -> impl Iterator<Item = Scenario> {
        let sizes = [100, 101, 500, 2_000];
        sizes.into_iter().flat_map(|count| (0..20).map(move |seed| Scenario::generate(seed, count)))
    }

    #[test]
    fn the_same_seed_sends_the_same_records_and_another_one_others() {
        assert_eq!(Scenario::generate(7, 500), Scenario::generate(7, 500));
        assert_ne!(Scenario::generate(7, 500), Scenario::generate(8, 500));
    }

    #[test]
    fn every_payment_is_sent_first_once_and_repeated_only_after_that() {
        for scenario in scenarios() {
            let mut sent = HashSet::new();
            for record in &scenario.records {
                let new = record.kind == Kind::First;
                assert_eq!(sent.insert(record.payment), new, "{record:?}");
            }
            assert_eq!(sent.len(), scenario.payments.len());
            let keys: HashSet<_> = scenario.payments.iter().map(|payment| &payment.key).collect();
            assert_eq!(keys.len(), sent.len());
        }
    }

    #[test]
    fn a_repeat_has_the_bytes_of_its_first_and_the_conflict_has_others() {
        for scenario in scenarios() {
            for record in &scenario.records {
                let first = Record { kind: Kind::First, ..*record };
                let same = scenario.payload(*record) == scenario.payload(first);
                assert_eq!(same, record.kind != Kind::Conflict, "{record:?}");
            }
        }
    }

    #[test]
    fn there_are_repeats_of_every_kind_and_one_conflict() {
        for scenario in scenarios() {
            for kind in [Kind::ClientRetry, Kind::LateDuplicate, Kind::ProducerRepeat] {
                assert!(scenario.count(kind) >= 3, "{kind:?}");
            }
            assert_eq!(scenario.count(Kind::Conflict), 1);
        }
    }

    #[test]
    fn the_conflict_and_the_producer_s_restart_come_after_the_kill() {
        for scenario in scenarios() {
            assert!(scenario.answered < scenario.kill_at && scenario.kill_at < scenario.restart_at);
            let conflict = scenario.records.iter().position(|it| it.kind == Kind::Conflict);
            assert!(conflict.is_some_and(|at| at > scenario.kill_at));
            let repeat = scenario.records[scenario.restart_at];
            assert_eq!(repeat.kind, Kind::ProducerRepeat);
        }
    }

    #[test]
    fn the_largest_stream_fits_into_the_mock_cluster() {
        let scenario = Scenario::generate(1, super::super::PAYMENTS_MAX as usize);
        // Key, header and the client's framing come on top of the payload.
        let bytes: usize =
            scenario.records.iter().map(|it| scenario.payload(*it).len() + 100).sum();
        // 5 MiB a partition, and they do not fill evenly.
        assert!(bytes < super::super::cluster::PARTITIONS as usize * (5 << 20) / 3, "{bytes}");
    }
}
