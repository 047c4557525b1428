//! The frontier: the contiguous prefix of a partition that is settled, and what is settled
//! beyond it.
//!
//! Records are settled in any order; the position moves only over a gapless run of *delivered*
//! records. Offsets have gaps (compaction, transaction markers), so it counts deliveries and never
//! numbers.
//!
//! Owns: the position and its stream time. Never: does I/O.

use std::collections::{BTreeSet, VecDeque};

use crate::dedup::expiry::StreamClock;
use crate::dedup::shard::{LastSettled, State};
use crate::fault::{self, Bug};
use crate::record::{Offset, Timestamp};

/// The settlement of one partition in one epoch.
#[derive(Clone, Debug)]
pub struct Frontier {
    position: Offset,
    stream_time: Option<Timestamp>,
    since: Option<Timestamp>,
    last: Option<LastSettled>,
    /// Delivered from the position on, in offset order; the first one is open.
    slots: VecDeque<Slot>,
    /// Settled by an earlier epoch according to the log, and not delivered yet.
    recovered: BTreeSet<Offset>,
    /// Settled by a letter, and not delivered yet. Read again at every start.
    letters: BTreeSet<Offset>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    mark: LastSettled,
    /// The stream time after this record.
    stream_time: Option<Timestamp>,
    settled: bool,
}

/// What the frontier says of an offset that is about to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Below the position: it moves no clock and takes no slot.
    Below,
    /// Delivered before in this epoch, or out of order: the source broke its promise.
    Repeated,
    /// Beyond the position and settled already.
    Settled,
    Open,
}

impl Frontier {
    /// Starts at `start`, which may lie beyond the recovered position (what lies between is
    /// settled), with the offsets that letters settle.
    #[must_use]
    pub fn new(state: &State, start: Offset, letters: impl IntoIterator<Item = Offset>) -> Self {
        let position = state.position.max(start);
        let mut recovered: BTreeSet<Offset> = state.settled_beyond.iter().copied().collect();
        let mut letters: BTreeSet<Offset> = letters.into_iter().collect();
        recovered = recovered.split_off(&position);
        letters = letters.split_off(&position);
        Self {
            position,
            stream_time: state.stream_time,
            since: state.since,
            last: state.last,
            slots: VecDeque::new(),
            recovered,
            letters,
        }
    }

    /// Every record below is settled.
    #[must_use]
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The clock as it stands after the last delivered record.
    #[must_use]
    pub fn clock(&self) -> StreamClock {
        StreamClock::at(self.slots.back().map_or(self.stream_time, |slot| slot.stream_time))
    }

    /// Records delivered at or beyond the position.
    #[must_use]
    pub fn span(&self) -> usize {
        self.slots.len()
    }

    /// Looks at an offset before it is delivered; changes nothing.
    #[must_use]
    pub fn look(&self, offset: Offset) -> Delivery {
        if offset < self.position {
            return Delivery::Below;
        }
        if self.slots.back().is_some_and(|slot| offset <= slot.mark.offset) {
            return Delivery::Repeated;
        }
        if self.recovered.contains(&offset) || self.letters.contains(&offset) {
            return Delivery::Settled;
        }
        Delivery::Open
    }

    /// Takes note of a delivered record that [`Frontier::look`] found open or settled.
    /// `stream_time` is the clock after it.
    pub fn deliver(&mut self, mark: LastSettled, stream_time: Option<Timestamp>) {
        debug_assert!(matches!(self.look(mark.offset), Delivery::Open | Delivery::Settled));
        // What is settled, but passed over by the delivery, is no longer in the topic.
        forget_below(&mut self.recovered, mark.offset);
        forget_below(&mut self.letters, mark.offset);
        let settled = self.recovered.remove(&mark.offset) | self.letters.remove(&mark.offset);
        self.slots.push_back(Slot { mark, stream_time, settled });
        if settled {
            self.advance();
        }
    }

    /// Settles a delivered record. Returns false where it was settled before or is not here.
    pub fn settle(&mut self, offset: Offset) -> bool {
        if fault::bug(Bug::FrontierIgnoresGaps) {
            let before = self.slots.iter_mut().filter(|slot| slot.mark.offset < offset);
            before.for_each(|slot| slot.settled = true);
            self.advance();
        }
        let Ok(index) = self.slots.binary_search_by_key(&offset, |slot| slot.mark.offset) else {
            return fault::bug(Bug::FrontierIgnoresGaps);
        };
        let newly = !std::mem::replace(&mut self.slots[index].settled, true);
        if index == 0 {
            self.advance();
        }
        newly
    }

    /// There is nothing to deliver below `end`: once all that was delivered is settled, the
    /// position is the end, also where the partition ends in records that are never delivered.
    pub fn end(&mut self, end: Offset) {
        if self.slots.is_empty() && end > self.position {
            self.position = end;
            self.recovered = self.recovered.split_off(&end);
            self.letters = self.letters.split_off(&end);
        }
    }

    /// Entries are complete only for records dated from here on.
    pub fn protect_since(&mut self, since: Option<Timestamp>) {
        self.since = since;
    }

    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// The stream time at the position.
    #[must_use]
    pub fn stream_time(&self) -> Option<Timestamp> {
        self.stream_time
    }

    /// What belongs into the log. Letters are read from their topic and are not repeated here.
    #[must_use]
    pub fn state(&self) -> State {
        let delivered = self.slots.iter().filter(|slot| slot.settled).map(|slot| slot.mark.offset);
        State {
            position: self.position,
            stream_time: self.stream_time,
            since: self.since,
            last: self.last,
            settled_beyond: delivered.chain(self.recovered.iter().copied()).collect(),
        }
    }

    fn advance(&mut self) {
        while let Some(slot) = self.slots.front().filter(|slot| slot.settled) {
            self.position = slot.mark.offset.next();
            self.stream_time = slot.stream_time;
            self.last = Some(slot.mark);
            self.slots.pop_front();
        }
    }
}

fn forget_below(offsets: &mut BTreeSet<Offset>, offset: Offset) {
    while offsets.first().is_some_and(|first| *first < offset) {
        offsets.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Check;

    fn mark(offset: i64) -> LastSettled {
        LastSettled {
            offset: Offset(offset),
            timestamp: Some(Timestamp(offset * 10)),
            check: Check(0),
        }
    }

    fn at(position: i64) -> Frontier {
        let state = State { position: Offset(position), ..State::default() };
        Frontier::new(&state, Offset(position), [])
    }

    fn deliver(frontier: &mut Frontier, offset: i64) {
        frontier.deliver(mark(offset), Some(Timestamp(offset * 10)));
    }

    #[test]
    fn the_position_waits_for_the_first_open_record() {
        let mut frontier = at(0);
        for offset in [0, 1, 5] {
            deliver(&mut frontier, offset);
        }
        assert!(frontier.settle(Offset(5)));
        assert!(frontier.settle(Offset(1)));
        assert_eq!(frontier.position(), Offset(0));
        assert_eq!(frontier.state().settled_beyond, [Offset(1), Offset(5)]);
        assert!(frontier.settle(Offset(0)));
        assert_eq!(frontier.position(), Offset(6));
        assert_eq!(frontier.stream_time(), Some(Timestamp(50)));
        assert!(!frontier.settle(Offset(0)));
    }

    #[test]
    fn the_stream_time_is_that_of_the_frontier_and_the_clock_that_of_the_last_delivery() {
        let mut frontier = at(0);
        deliver(&mut frontier, 0);
        deliver(&mut frontier, 1);
        frontier.settle(Offset(1));
        assert_eq!(frontier.state().stream_time, None);
        assert_eq!(frontier.clock().now(), Some(Timestamp(10)));
    }

    #[test]
    fn what_was_settled_beyond_is_not_delivered_as_open_again() {
        let state =
            State { position: Offset(10), settled_beyond: vec![Offset(12)], ..State::default() };
        let mut frontier = Frontier::new(&state, Offset(10), [Offset(11), Offset(3)]);
        assert_eq!(frontier.look(Offset(9)), Delivery::Below);
        assert_eq!(frontier.look(Offset(10)), Delivery::Open);
        deliver(&mut frontier, 10);
        assert_eq!(frontier.look(Offset(10)), Delivery::Repeated);
        for offset in [11, 12] {
            assert_eq!(frontier.look(Offset(offset)), Delivery::Settled);
            deliver(&mut frontier, offset);
        }
        frontier.settle(Offset(10));
        assert_eq!(frontier.position(), Offset(13));
        assert_eq!(frontier.state().settled_beyond, []);
    }

    #[test]
    fn the_end_moves_the_position_only_when_nothing_is_open() {
        let mut frontier = at(0);
        deliver(&mut frontier, 0);
        frontier.end(Offset(9));
        assert_eq!(frontier.position(), Offset(0));
        frontier.settle(Offset(0));
        frontier.end(Offset(9));
        assert_eq!(frontier.position(), Offset(9));
        frontier.end(Offset(4));
        assert_eq!(frontier.position(), Offset(9));
    }

    proptest! {
        /// Any order of settling, any gaps, a crash at any point: the position is the naive one,
        /// and a restart from the state never delivers a settled record as open.
        #[test]
        fn the_frontier_agrees_with_a_naive_model(
            gaps in prop::collection::vec(1i64..4, 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let offsets: Vec<i64> = gaps.iter().scan(-1, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut frontier = at(0);
            for offset in &offsets {
                deliver(&mut frontier, *offset);
            }
            let mut settled = BTreeSet::new();
            for index in order {
                let offset = offsets[index.index(offsets.len())];
                prop_assert_eq!(frontier.settle(Offset(offset)), settled.insert(offset));
                let open = offsets.iter().find(|o| !settled.contains(o));
                let expected = open.map_or(offsets[offsets.len() - 1] + 1, |first| {
                    offsets.iter().rev().find(|o| *o < first).map_or(0, |before| before + 1)
                });
                prop_assert_eq!(frontier.position(), Offset(expected));
                let state = frontier.state();
                let again = Frontier::new(&state, state.position, []);
                for offset in &offsets {
                    let open = again.look(Offset(*offset)) == Delivery::Open;
                    prop_assert_eq!(open, !settled.contains(offset));
                }
            }
        }
    }
}
