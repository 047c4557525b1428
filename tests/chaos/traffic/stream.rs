//! The seeded stream of one route's records.
//!
//! Owns: which record comes next, and what it looks like.
//! Never: sends one.

use std::time::{Duration, Instant};

use super::{PARTITIONS, Route};

/// Users of the service, chosen by a law close to Zipf's: the first one is chosen most.
const USERS: f64 = 10_000.0;
/// The largest distance, in messages, between a record and one that repeats it.
const LAG_MAX: f64 = 100_000.0;
/// Of so many records one has no key.
const UNIDENTIFIED_EVERY: u32 = 500;
/// Of so many repetitions one has another payload.
const CONFLICT_EVERY: u32 = 150;
/// Of so many messages one is refused by the handler.
const REFUSED_EVERY: u64 = 700;
/// Of so many messages one is too large for the output topic.
const OVERSIZE_EVERY: u64 = 20_000;
/// More than the output topic takes.
const OVERSIZE_BYTES: usize = 200_000;
/// What the output topic takes.
pub const OUTPUT_BYTES_MAX: &str = "100000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first record of a message.
    First(u32),
    Repeated(u32),
    /// The key of a message with another payload.
    Conflict(u32),
    /// A record without a key, counted for itself.
    Unidentified(u32),
}

/// What must become of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// Handled, or suppressed as a duplicate.
    Handled,
    Conflict,
    Unidentified,
    /// Refused by the service.
    Refused,
    /// Refused by the output topic.
    TooLarge,
}

impl Fate {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Handled => "none",
            Self::Conflict => "conflict",
            Self::Unidentified => "missing-identity",
            Self::Refused => "rejected",
            Self::TooLarge => "too-large",
        }
    }
}

pub struct Stream {
    seed: u64,
    route: Route,
    random: fastrand::Rng,
    duplicates_percent: u32,
    next_id: u32,
    unidentified: u32,
    /// Each with when it was sent, every 256 messages.
    sent: Vec<(u32, Instant)>,
    age_max: Duration,
    /// Messages from here on are young enough to be repeated.
    young: usize,
}

impl Stream {
    pub fn new(seed: u64, route: Route, duplicates_percent: u32, age_max: Duration) -> Self {
        let random = fastrand::Rng::with_seed(mix(seed, 77 + route as u64));
        Self {
            seed,
            route,
            random,
            duplicates_percent,
            next_id: 0,
            unidentified: 0,
            sent: Vec::new(),
            age_max,
            young: 0,
        }
    }

    pub fn next(&mut self) -> Kind {
        if self.next_id > 1_000 {
            if self.random.u32(..UNIDENTIFIED_EVERY) == 0 {
                self.unidentified += 1;
                return Kind::Unidentified(self.unidentified);
            }
            if self.random.u32(..100) < self.duplicates_percent
                && let Some(id) = self.repeated()
            {
                let conflict = self.random.u32(..CONFLICT_EVERY) == 0;
                return if conflict { Kind::Conflict(id) } else { Kind::Repeated(id) };
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        if id.is_multiple_of(256) {
            self.sent.push((id, Instant::now()));
        }
        Kind::First(id)
    }

    /// A message of before, near ones more often than far ones.
    fn repeated(&mut self) -> Option<u32> {
        while self.sent.get(self.young + 1).is_some_and(|(_, at)| at.elapsed() > self.age_max) {
            self.young += 1;
        }
        let oldest = self.sent.get(self.young).map_or(0, |(id, _)| *id);
        #[expect(clippy::cast_possible_truncation, reason = "at most 100,000")]
        #[expect(clippy::cast_sign_loss, reason = "a power is not negative")]
        let lag = LAG_MAX.powf(self.random.f64()) as u32;
        let id = self.next_id.checked_sub(lag).filter(|id| *id >= oldest)?;
        // What becomes a letter leaves no entry: a repetition would be handled for itself.
        (id < self.next_id && self.fate_of(id) == Fate::Handled).then_some(id)
    }

    pub fn fate_of(&self, id: u32) -> Fate {
        fate(self.seed, self.route, id)
    }

    pub fn key(&self, kind: Kind) -> String {
        format!("user-{}", self.user(kind))
    }

    pub fn partition(&self, kind: Kind) -> i32 {
        partition_of_user(self.user(kind))
    }

    pub fn idempotency_key(&self, kind: Kind) -> Option<String> {
        match kind {
            Kind::First(id) | Kind::Repeated(id) | Kind::Conflict(id) => Some(format!("m-{id}")),
            Kind::Unidentified(_) => None,
        }
    }

    pub fn payload(&self, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::First(id) | Kind::Repeated(id) => payload(self.seed, self.route, id),
            Kind::Conflict(id) => {
                format!(r#"{{"id":{id},"amount":"another","n":{}}}"#, self.random_of(id))
                    .into_bytes()
            }
            Kind::Unidentified(n) => format!(r#"{{"unidentified":{n}}}"#).into_bytes(),
        }
    }

    /// What the acknowledgement of a record must know of it.
    pub fn opaque(&self, kind: Kind) -> usize {
        let (fate, id) = match kind {
            Kind::First(id) => (self.fate_of(id), id),
            Kind::Repeated(id) => (Fate::Handled, id),
            Kind::Conflict(id) => (Fate::Conflict, id),
            Kind::Unidentified(n) => (Fate::Unidentified, n),
        };
        (fate as usize) << 32 | id as usize
    }

    fn user(&self, kind: Kind) -> u64 {
        let number = match kind {
            Kind::First(id) | Kind::Repeated(id) | Kind::Conflict(id) => u64::from(id),
            Kind::Unidentified(n) => u64::from(n) | 1 << 40,
        };
        user(self.seed, number)
    }

    fn random_of(&self, id: u32) -> u64 {
        mix(self.seed, u64::from(id) | 1 << 50)
    }
}

/// Fate and, where the record has a key, message of what [`Stream::opaque`] made.
pub fn from_opaque(opaque: usize) -> (Fate, Option<u32>) {
    const FATES: [Fate; 5] =
        [Fate::Handled, Fate::Conflict, Fate::Unidentified, Fate::Refused, Fate::TooLarge];
    let fate = FATES[(opaque >> 32) & 7];
    let id = u32::try_from(opaque & 0xffff_ffff).expect("32 bits fit");
    (fate, (fate != Fate::Unidentified).then_some(id))
}

/// What must become of a message's first record.
pub fn fate(seed: u64, route: Route, id: u32) -> Fate {
    let number = mix(seed ^ 0x5eed, u64::from(id));
    match route {
        Route::Once if number.is_multiple_of(OVERSIZE_EVERY) => Fate::TooLarge,
        Route::Least if number.is_multiple_of(REFUSED_EVERY) => Fate::Refused,
        _ => Fate::Handled,
    }
}

pub fn payload(seed: u64, route: Route, id: u32) -> Vec<u8> {
    let user = user(seed, u64::from(id));
    let amount = mix(seed, u64::from(id)) % 100_000;
    let mut text =
        format!(r#"{{"id":{id},"user":{user},"amount":{amount},"note":"payment {id} of user"}}"#);
    if fate(seed, route, id) == Fate::TooLarge {
        text.truncate(text.len() - 2);
        // Random enough that no compression makes it fit.
        let mut random = fastrand::Rng::with_seed(u64::from(id));
        text.extend((0..OVERSIZE_BYTES).map(|_| random.alphanumeric()));
        text.push_str("\"}");
    }
    text.into_bytes()
}

/// Where all records of a message are.
pub fn partition(seed: u64, id: u32) -> i32 {
    partition_of_user(user(seed, u64::from(id)))
}

fn partition_of_user(user: u64) -> i32 {
    let partition = mix(user, 3) % u64::from(PARTITIONS.unsigned_abs());
    i32::try_from(partition).expect("there are few partitions")
}

/// The number of a message from its payload.
pub fn id_of(payload: &[u8]) -> Option<u32> {
    let rest = payload.strip_prefix(br#"{"id":"#)?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

fn user(seed: u64, number: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    let share = (mix(seed, number) >> 11) as f64 / (1_u64 << 53) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "at most 10,000")]
    #[expect(clippy::cast_sign_loss, reason = "a power is not negative")]
    let user = USERS.powf(share) as u64;
    user
}

/// Two numbers into one that looks random.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
