//! From numbers to a verdict.
//!
//! Pure. The numbers come from three sides: what the scenario sent, what the payment service and
//! the dead-letter topic saw, and what the daemon counted. A check holds only where they agree.
//!
//! Owns: what counts as handled once. Never: prints (see `screen`).

use std::collections::BTreeSet;

use serde::Serialize;

use super::ledger::Ledger;
use super::scenario::{Kind, Scenario};

/// Everything that was counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Numbers {
    pub sent: Sent,
    pub kill: Kill,
    pub handled: Handled,
    /// What the daemon counted, before and after the kill together.
    pub settled: Settled,
    pub dead_letters: Vec<DeadLetter>,
    /// Records beyond the offsets that the group has committed in the end.
    pub uncommitted: u64,
}

/// What went into the topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Sent {
    pub records: u64,
    /// Different payments; each has a key of its own.
    pub payments: u64,
    pub cents: u64,
    pub client_retries: u64,
    pub late_duplicates: u64,
    pub producer_repeats: u64,
    /// Records with the key of another payment.
    pub conflicts: u64,
    pub conflict_key: String,
    /// What would be charged if every record counted.
    pub cents_of_all_records: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Kill {
    /// The daemon's setting: the most calls at once.
    pub concurrency: u64,
    /// Calls that were charged and not answered.
    pub in_flight: u64,
}

/// What the payment service saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Handled {
    pub calls: u64,
    pub keys: u64,
    /// Payments of the scenario that were charged.
    pub payments: u64,
    pub cents: u64,
    /// Payments that were charged under more than one key.
    pub charged_twice: u64,
    /// Charges that belong to no payment of the scenario, or are of another amount.
    pub foreign: u64,
    /// Calls beyond the first, with the same key, of those that were in flight at the kill.
    pub repeated_after_kill: u64,
    /// All other calls beyond the first of their key.
    pub repeated_otherwise: u64,
    /// Accounts whose payments were not charged in the order in which they were sent.
    pub accounts_out_of_order: u64,
}

/// Records by the daemon's verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Settled {
    pub fresh: u64,
    pub duplicate: u64,
    pub conflict: u64,
    pub other: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DeadLetter {
    /// The client's `Idempotency-Key`.
    pub key: String,
    pub reason: String,
    /// topic/partition/offset
    pub source: String,
    pub payload: String,
}

/// One sentence that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub what: &'static str,
    pub holds: bool,
    pub seen: String,
}

impl Sent {
    pub(super) fn of(scenario: &Scenario) -> Self {
        let count = |kind| scenario.count(kind) as u64;
        let conflict = scenario.records.iter().find(|record| record.kind == Kind::Conflict);
        Self {
            records: scenario.records.len() as u64,
            payments: scenario.payments.len() as u64,
            cents: scenario.payments.iter().map(|payment| payment.cents).sum(),
            client_retries: count(Kind::ClientRetry),
            late_duplicates: count(Kind::LateDuplicate),
            producer_repeats: count(Kind::ProducerRepeat),
            conflicts: count(Kind::Conflict),
            conflict_key: conflict.map_or_else(String::new, |it| scenario.payment(*it).key.clone()),
            cents_of_all_records: scenario.records.iter().map(|it| scenario.cents(*it)).sum(),
        }
    }

    pub(super) fn repeats(&self) -> u64 {
        self.client_retries + self.late_duplicates + self.producer_repeats
    }
}

impl Handled {
    pub(super) fn of(ledger: &Ledger, scenario: &Scenario) -> Self {
        let bookings = ledger.bookings();
        let (mut after_kill, mut otherwise) = (0, 0);
        for (key, booking) in bookings {
            let again = booking.calls - 1;
            // The first call was lost with the daemon; one more is what that costs.
            let lost = u64::from(ledger.unanswered().contains(key)).min(again);
            after_kill += lost;
            otherwise += again - lost;
        }
        let known: BTreeSet<(&str, &str, u64)> = scenario
            .payments
            .iter()
            .map(|payment| (&*payment.key, &*payment.account, payment.cents))
            .collect();
        let charged: Vec<_> = bookings
            .values()
            .map(|booking| &booking.order)
            .map(|order| (&*order.payment.id, &*order.account, order.payment.cents))
            .collect();
        let ours: Vec<_> = charged.iter().filter(|order| known.contains(*order)).collect();
        let foreign = charged.len() - ours.len();
        let different: BTreeSet<_> = ours.iter().collect();
        Self {
            calls: ledger.calls(),
            keys: bookings.len() as u64,
            payments: different.len() as u64,
            cents: charged.iter().map(|(_, _, cents)| cents).sum(),
            charged_twice: (ours.len() - different.len()) as u64,
            foreign: foreign as u64 + ledger.contradictions(),
            repeated_after_kill: after_kill,
            repeated_otherwise: otherwise,
            accounts_out_of_order: out_of_order(ledger, scenario),
        }
    }
}

fn out_of_order(ledger: &Ledger, scenario: &Scenario) -> u64 {
    let accounts: BTreeSet<&str> = scenario.payments.iter().map(|it| &*it.account).collect();
    let wrong = |account: &&&str| {
        let sent = scenario.payments.iter().filter(|it| it.account == **account);
        !sent.map(|payment| &payment.key).eq(ledger.of_account(account))
    };
    accounts.iter().filter(wrong).count() as u64
}

impl Settled {
    pub(super) fn records(&self) -> u64 {
        self.fresh + self.duplicate + self.conflict + self.other
    }
}

impl std::ops::Add for Settled {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            fresh: self.fresh + other.fresh,
            duplicate: self.duplicate + other.duplicate,
            conflict: self.conflict + other.conflict,
            other: self.other + other.other,
        }
    }
}

impl Numbers {
    /// All of it must hold.
    pub(super) fn checks(&self) -> Vec<Check> {
        vec![
            self.charged_once(),
            self.none_lost(),
            self.repeats_suppressed(),
            self.kill_repeats_what_was_in_flight(),
            self.conflict_dead_lettered(),
            self.order_kept(),
        ]
    }

    fn charged_once(&self) -> Check {
        let Self { sent, handled, .. } = self;
        let holds = handled.payments == sent.payments
            && handled.keys == sent.payments
            && handled.cents == sent.cents
            && (handled.charged_twice, handled.foreign) == (0, 0);
        let right = handled.cents == sent.cents;
        let instead =
            if right { String::new() } else { format!(" instead of {}", money(sent.cents)) };
        let seen = format!(
            "{} of {}, {}{instead}; twice: {}, foreign: {}",
            number(handled.payments),
            number(sent.payments),
            money(handled.cents),
            handled.charged_twice,
            handled.foreign
        );
        Check { what: "Every payment was charged once", holds, seen }
    }

    fn none_lost(&self) -> Check {
        let Self { sent, settled, uncommitted, .. } = self;
        let holds = settled.records() == sent.records
            && settled.fresh == sent.payments
            && settled.other == 0
            && *uncommitted == 0;
        let seen = format!(
            "{} of {} settled, {} of {} handled; not committed: {}",
            number(settled.records()),
            number(sent.records),
            number(settled.fresh),
            number(sent.payments),
            number(*uncommitted)
        );
        Check { what: "No record was lost", holds, seen }
    }

    fn repeats_suppressed(&self) -> Check {
        let Self { sent, handled, settled, .. } = self;
        let holds = settled.duplicate == sent.repeats() && handled.repeated_otherwise == 0;
        let seen = format!(
            "{} of {} held back; calls because of a repeat: {}",
            number(settled.duplicate),
            number(sent.repeats()),
            number(handled.repeated_otherwise)
        );
        Check { what: "Every repeat was suppressed", holds, seen }
    }

    fn kill_repeats_what_was_in_flight(&self) -> Check {
        let Self { kill, handled, .. } = self;
        // A call without an answer must be made again: nobody knows what became of it.
        let holds = handled.repeated_after_kill == kill.in_flight
            && kill.in_flight > 0
            && kill.in_flight <= kill.concurrency;
        let seen = format!(
            "{} in flight (at most {}), {} called again with the same key",
            kill.in_flight, kill.concurrency, handled.repeated_after_kill
        );
        Check { what: "The kill repeated only the calls in flight", holds, seen }
    }

    fn conflict_dead_lettered(&self) -> Check {
        let Self { sent, settled, dead_letters, .. } = self;
        let right =
            |letter: &DeadLetter| letter.reason == "conflict" && letter.key == sent.conflict_key;
        let holds = dead_letters.len() as u64 == sent.conflicts
            && settled.conflict == sent.conflicts
            && dead_letters.iter().all(right);
        let shown = |letter: &DeadLetter| format!("{} ({})", letter.key, letter.reason);
        let letters: Vec<_> = dead_letters.iter().take(5).map(shown).collect();
        let letters = if letters.is_empty() { "none".to_owned() } else { letters.join(", ") };
        let seen = format!("dead letters: {letters}");
        Check { what: "The reused key went to the dead letters", holds, seen }
    }

    fn order_kept(&self) -> Check {
        let wrong = self.handled.accounts_out_of_order;
        let seen = format!("accounts out of order: {}", number(wrong));
        Check { what: "Each account was charged in the order sent", holds: wrong == 0, seen }
    }
}

/// `12345` as `12,345`.
pub(super) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn money(cents: u64) -> String {
    format!("EUR {}.{:02}", number(cents / 100), cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::ledger::{Item, Order};
    use crate::demo::scenario::Record;

    fn order(scenario: &Scenario, payment: usize) -> Order {
        let payment = &scenario.payments[payment];
        let item = Item { id: payment.key.clone(), cents: payment.cents };
        Order { payment: item, account: payment.account.clone() }
    }

    /// A service that was called as it should be: each payment once, under a key of its own, and
    /// those in flight at a kill twice.
    fn ledger(scenario: &Scenario, in_flight: usize) -> Ledger {
        let mut ledger = Ledger::default();
        let count = scenario.payments.len();
        ledger.withhold_after(count - in_flight);
        let again = count - in_flight..count;
        for payment in (0..count).chain(again) {
            ledger.call(&format!("key-{payment}"), order(scenario, payment));
        }
        ledger
    }

    fn good() -> (Scenario, Numbers) {
        let scenario = Scenario::generate(1, 100);
        let sent = Sent::of(&scenario);
        let numbers = Numbers {
            handled: Handled::of(&ledger(&scenario, 16), &scenario),
            kill: Kill { concurrency: 16, in_flight: 16 },
            settled: Settled {
                fresh: sent.payments,
                duplicate: sent.repeats(),
                conflict: 1,
                other: 0,
            },
            dead_letters: vec![DeadLetter {
                key: sent.conflict_key.clone(),
                reason: "conflict".to_owned(),
                source: "payments/1/2".to_owned(),
                payload: String::new(),
            }],
            sent,
            uncommitted: 0,
        };
        (scenario, numbers)
    }

    fn broken(numbers: &Numbers) -> Vec<&'static str> {
        numbers.checks().iter().filter(|check| !check.holds).map(|check| check.what).collect()
    }

    #[track_caller]
    fn breaks(what: &str, spoil: impl FnOnce(&mut Numbers)) {
        let (_, mut numbers) = good();
        spoil(&mut numbers);
        assert_eq!(broken(&numbers), [what], "{numbers:?}");
    }

    #[test]
    fn what_is_sent_adds_up() {
        let (_, Numbers { sent, .. }) = good();
        assert_eq!(sent.records, sent.payments + sent.repeats() + sent.conflicts);
        assert!(sent.cents_of_all_records > sent.cents);
    }

    #[test]
    fn good_numbers_pass() {
        assert_eq!(broken(&good().1), [""; 0]);
    }

    #[test]
    fn a_charge_that_is_missing_doubled_or_wrong_fails() {
        let what = "Every payment was charged once";
        breaks(what, |it| it.handled.payments -= 1);
        breaks(what, |it| it.handled.cents += 1);
        breaks(what, |it| it.handled.keys += 1);
        breaks(what, |it| it.handled.charged_twice = 1);
        breaks(what, |it| it.handled.foreign = 1);
    }

    #[test]
    fn a_record_that_is_lost_fails() {
        let what = "No record was lost";
        breaks(what, |it| it.settled.fresh -= 1);
        breaks(what, |it| it.settled.other = 1);
        breaks(what, |it| it.uncommitted = 1);
    }

    #[test]
    fn a_repeat_that_was_called_or_not_counted_fails() {
        let what = "Every repeat was suppressed";
        breaks(what, |it| it.handled.repeated_otherwise = 1);
        let (_, mut numbers) = good();
        numbers.settled.duplicate -= 1;
        assert!(broken(&numbers).contains(&what));
    }

    #[test]
    fn a_kill_that_repeats_more_or_less_than_was_in_flight_fails() {
        let what = "The kill repeated only the calls in flight";
        breaks(what, |it| it.handled.repeated_after_kill += 1);
        breaks(what, |it| it.handled.repeated_after_kill -= 1);
        breaks(what, |it| it.kill.concurrency = 15);
        breaks(what, |it| (it.kill.in_flight, it.handled.repeated_after_kill) = (0, 0));
    }

    #[test]
    fn a_dead_letter_that_is_missing_or_of_another_payment_fails() {
        let what = "The reused key went to the dead letters";
        breaks(what, |it| it.dead_letters.clear());
        breaks(what, |it| it.dead_letters.push(it.dead_letters[0].clone()));
        breaks(what, |it| it.dead_letters[0].key.push('x'));
        breaks(what, |it| it.dead_letters[0].reason = "exhausted".to_owned());
        let (_, mut numbers) = good();
        numbers.settled.conflict = 0;
        assert!(broken(&numbers).contains(&what));
    }

    #[test]
    fn an_account_out_of_order_fails() {
        let what = "Each account was charged in the order sent";
        breaks(what, |it| it.handled.accounts_out_of_order = 1);
    }

    #[test]
    fn a_payment_under_two_keys_is_charged_twice() {
        let (scenario, mut numbers) = good();
        let mut ledger = ledger(&scenario, 16);
        ledger.call("another key", order(&scenario, 5));
        numbers.handled = Handled::of(&ledger, &scenario);
        assert_eq!(numbers.handled.charged_twice, 1);
        assert!(broken(&numbers).contains(&"Every payment was charged once"));
    }

    #[test]
    fn the_amount_of_the_conflict_is_foreign() {
        let (scenario, mut numbers) = good();
        let mut ledger = ledger(&scenario, 16);
        let conflict = scenario.records.iter().find(|it| it.kind == Kind::Conflict).unwrap();
        let payload = scenario.payload(Record { ..*conflict });
        ledger.call("another key", serde_json::from_str(&payload).unwrap());
        numbers.handled = Handled::of(&ledger, &scenario);
        assert_eq!((numbers.handled.foreign, numbers.handled.charged_twice), (1, 0));
    }

    #[test]
    fn payments_of_an_account_in_another_order_are_noticed() {
        let scenario = Scenario::generate(1, 100);
        let mut ledger = Ledger::default();
        for payment in (0..100).rev() {
            ledger.call(&format!("key-{payment}"), order(&scenario, payment));
        }
        assert!(Handled::of(&ledger, &scenario).accounts_out_of_order > 0);
    }

    #[test]
    fn a_call_of_a_repeat_is_told_from_one_after_the_kill() {
        let scenario = Scenario::generate(1, 100);
        let mut ledger = ledger(&scenario, 16);
        ledger.call("key-3", order(&scenario, 3));
        ledger.call("key-99", order(&scenario, 99));
        let handled = Handled::of(&ledger, &scenario);
        assert_eq!((handled.repeated_after_kill, handled.repeated_otherwise), (16, 2));
    }

    #[test]
    fn numbers_are_written_for_people() {
        let written = [0, 999, 1_000, 12_345, 1_234_567].map(number);
        assert_eq!(written, ["0", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!(money(123_456_709), "EUR 1,234,567.09");
    }
}
