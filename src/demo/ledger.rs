//! The books of the payment service: what was charged, by `Idempotency-Key`.
//!
//! The service is a good one: it charges a key once, however often it is called. What would be
//! charged twice is therefore visible only as a payment under two keys.
//!
//! Owns: what a call means. Never: speaks HTTP (see `service`).

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;

/// The payload of a call.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Order {
    pub payment: Item,
    pub account: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Item {
    pub id: String,
    pub cents: u64,
}

/// What the service does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Charged,
    /// This key was charged before; nothing happens.
    Known,
    /// Charged, and the caller must not hear of it.
    Withheld,
    /// The key was charged for another payment or amount.
    Contradiction,
}

#[derive(Clone, Debug)]
pub(super) struct Booking {
    pub order: Order,
    pub calls: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    calls: u64,
    contradictions: u64,
    by_key: BTreeMap<String, Booking>,
    /// The ids of an account's payments, in the order in which they were charged.
    by_account: HashMap<String, Vec<String>>,
    withhold_after: Option<usize>,
    /// Keys whose caller got no answer.
    unanswered: HashSet<String>,
}

impl Ledger {
    pub(super) fn call(&mut self, key: &str, order: Order) -> Answer {
        self.calls += 1;
        if let Some(booking) = self.by_key.get_mut(key) {
            booking.calls += 1;
            let same = booking.order == order;
            self.contradictions += u64::from(!same);
            return if same { Answer::Known } else { Answer::Contradiction };
        }
        let withheld = self.withhold_after.is_some_and(|count| self.by_key.len() >= count);
        let account = self.by_account.entry(order.account.clone()).or_default();
        account.push(order.payment.id.clone());
        self.by_key.insert(key.to_owned(), Booking { order, calls: 1 });
        if withheld {
            self.unanswered.insert(key.to_owned());
            return Answer::Withheld;
        }
        Answer::Charged
    }

    /// After so many payments no caller gets an answer, until [`Ledger::answer_again`].
    pub(super) fn withhold_after(&mut self, count: usize) {
        self.withhold_after = Some(count);
    }

    pub(super) fn answer_again(&mut self) {
        self.withhold_after = None;
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    pub(super) fn contradictions(&self) -> u64 {
        self.contradictions
    }

    /// By `Idempotency-Key`.
    pub(super) fn bookings(&self) -> &BTreeMap<String, Booking> {
        &self.by_key
    }

    /// The ids of an account's payments, in the order in which they were charged.
    pub(super) fn of_account(&self, account: &str) -> &[String] {
        self.by_account.get(account).map_or(&[], Vec::as_slice)
    }

    pub(super) fn unanswered(&self) -> &HashSet<String> {
        &self.unanswered
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn order(id: &str, cents: u64) -> Order {
        Order { payment: Item { id: id.to_owned(), cents }, account: "acc".to_owned() }
    }

    #[test]
    fn a_key_is_charged_once_and_every_call_is_counted() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.call("k", order("p", 5)), Answer::Charged);
        assert_eq!(ledger.call("k", order("p", 5)), Answer::Known);
        assert_eq!(ledger.call("k", order("p", 6)), Answer::Contradiction);
        assert_eq!((ledger.calls(), ledger.contradictions()), (3, 1));
        assert_eq!(ledger.bookings()["k"].calls, 3);
        assert_eq!(ledger.of_account("acc"), ["p"]);
    }

    #[test]
    fn a_withheld_answer_is_of_a_payment_that_was_charged() {
        let mut ledger = Ledger::default();
        ledger.withhold_after(1);
        assert_eq!(ledger.call("a", order("1", 5)), Answer::Charged);
        assert_eq!(ledger.call("b", order("2", 5)), Answer::Withheld);
        ledger.answer_again();
        assert_eq!(ledger.call("b", order("2", 5)), Answer::Known);
        assert_eq!(ledger.call("c", order("3", 5)), Answer::Charged);
        assert!(ledger.unanswered().iter().eq(["b"]));
        assert_eq!(ledger.bookings().len(), 3);
    }
}
