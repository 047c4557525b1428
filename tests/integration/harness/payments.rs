//! Input that looks like payments, the same for the same seed.

use super::message::Message;

/// A duplicate repeats one of this many latest payments.
const LOOK_BACK: u64 = 1_000;

/// `count` records of about 200 bytes of JSON, each with an `Idempotency-Key`. With probability
/// `duplicate_share` a record repeats an earlier one, byte for byte.
pub fn payments(count: usize, duplicate_share: f64, seed: u64) -> Payments {
    Payments { left: count, duplicate_share, next: 0, random: fastrand::Rng::with_seed(seed) }
}

/// The payment of a number: always the same bytes.
pub fn payment(number: u64) -> Message {
    let mut random = fastrand::Rng::with_seed(number);
    let account = random.u32(..10_000);
    let payload = format!(
        r#"{{"payment":{{"id":"pay-{number:012}","amount":{},"currency":"EUR"}},"account":"acc-{account:05}","reference":"invoice {:016x}{:016x}","status":"authorised","channel":"web","region":"eu-1"}}"#,
        random.u32(1..1_000_000),
        random.u64(..),
        random.u64(..),
    );
    Message::new(payload).key(format!("acc-{account:05}")).idempotency_key(&key(number))
}

fn key(number: u64) -> String {
    format!("pay-{number:012}")
}

#[derive(Clone, Debug)]
pub struct Payments {
    left: usize,
    duplicate_share: f64,
    /// The number of the next payment that is new, so also how many there were.
    next: u64,
    random: fastrand::Rng,
}

impl Payments {
    /// How many different payments are among those that are left to come.
    pub fn distinct(&self) -> u64 {
        let mut rest = self.clone();
        while rest.step().is_some() {}
        rest.next - self.next
    }

    fn step(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        if self.next > 0 && self.random.f64() < self.duplicate_share {
            return Some(self.random.u64(self.next.saturating_sub(LOOK_BACK)..self.next));
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

impl Iterator for Payments {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        self.step().map(payment)
    }
}
