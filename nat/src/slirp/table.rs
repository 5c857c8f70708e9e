//! Flows by tuple, their timers, and which of them makes room.
//!
//! Room is made by a flow without a connection as long as there is one, so these have a list of their own: among few of them and very many
//! connections one is found at once. Of all that could go only a few are looked at, from where the last search ended.

use super::Key;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// Places looked at for a connection to make room, and flows found that could.
const LOOKED_AT: usize = 1024;
const CANDIDATES: usize = 16;
/// The worth of a connection in use, and how long one has to be idle to make room all the same.
const IN_USE: u8 = 4;
const LONG_IDLE: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Slot<F> {
    pub(super) key: Key,
    pub(super) flow: F,
    /// When something was last sent or received.
    pub(super) used: Nanos,
    /// It waits for its turn.
    pub(super) queued: bool,
    /// Its earliest timer.
    timer: Nanos,
    /// Its place among those that go first.
    first: Option<u32>,
}

/// All flows; their number is bounded.
#[derive(Debug)]
pub(super) struct Table<F> {
    slots: Vec<Option<Slot<F>>>,
    free: Vec<u32>,
    index: HashMap<Key, u32, RandomState>,
    timers: BinaryHeap<Reverse<(Nanos, u32)>>,
    limit: usize,
    /// Descriptors that others have, of those.
    aside: usize,
    /// Flows that make room before all others.
    first: Vec<u32>,
    /// Where to look next for one that makes room: among them, and among all.
    hands: [usize; 2],
}

impl<F> Table<F> {
    pub(super) fn new(limit: usize) -> Table<F> {
        Table {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::with_hasher(RandomState::default()),
            timers: BinaryHeap::new(),
            limit,
            aside: 0,
            first: Vec::new(),
            hands: [0; 2],
        }
    }

    /// How many places there are, in use or free.
    pub(super) fn places(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn is_full(&self) -> bool {
        self.index.len() + self.aside >= self.limit
    }

    /// Leaves so many descriptors to others.
    pub(super) fn set_aside(&mut self, n: usize) {
        self.aside = n;
    }

    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.index.get(key).copied()
    }

    pub(super) fn get(&mut self, i: u32) -> Option<&mut Slot<F>> {
        self.slots.get_mut(i as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Slot<F>)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(i, s)| Some((i, s.as_ref()?)))
    }

    /// `first`: it makes room before those that aren't so.
    pub(super) fn insert(&mut self, now: Nanos, key: Key, flow: F, first: bool) -> u32 {
        let slot = Some(Slot {
            key,
            flow,
            used: now,
            queued: false,
            timer: Nanos::MAX,
            first: first.then_some(self.first.len() as u32),
        });
        let i = match self.free.pop() {
            Some(i) => i,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        if let Some(place) = self.slots.get_mut(i as usize) {
            *place = slot;
        }
        if first {
            self.first.push(i);
        }
        self.index.insert(key, i);
        i
    }

    pub(super) fn remove(&mut self, i: u32) -> Option<F> {
        let slot = self.slots.get_mut(i as usize)?.take()?;
        self.index.remove(&slot.key);
        self.free.push(i);
        if let Some(at) = slot.first.map(|at| at as usize)
            && at < self.first.len()
        {
            self.first.swap_remove(at);
            let moved = self.first.get(at).copied();
            if let Some(moved) = moved.and_then(|m| self.get(m)) {
                moved.first = Some(at as u32);
            }
        }
        Some(slot.flow)
    }

    /// Has a flow expire at `due` or earlier.
    pub(super) fn arm(&mut self, i: u32, due: Nanos) {
        if let Some(slot) = self.slots.get_mut(i as usize).and_then(Option::as_mut)
            && due < slot.timer
        {
            slot.timer = due;
            self.timers.push(Reverse((due, i)));
        }
    }

    /// The next flow whose time has come. A timer that was put off since waits on.
    pub(super) fn expired(&mut self, now: Nanos, due: impl Fn(&F) -> Nanos) -> Option<u32> {
        while let Some(Reverse((at, i))) = self.timers.peek().copied() {
            if at > now {
                return None;
            }
            self.timers.pop();
            let Some(slot) = self.get(i).filter(|s| s.timer == at) else {
                continue;
            };
            slot.timer = Nanos::MAX;
            let due = due(&slot.flow);
            if due <= now {
                return Some(i);
            }
            self.arm(i, due);
        }
        None
    }

    /// When the next timer runs out.
    pub(super) fn next(&self) -> Nanos {
        self.timers
            .peek()
            .map_or(Nanos::MAX, |Reverse((at, _))| *at)
    }

    /// The flow of least worth, and of these the one idle for longest, among a few; none if all of them are in use.
    pub(super) fn least(&mut self, now: Nanos, worth: impl Fn(&F) -> u8) -> Option<u32> {
        let mut best: Option<(u8, Nanos, u32)> = None;
        let mut consider = |slot: &Slot<F>, i: u32| {
            let worth = worth(&slot.flow);
            if worth >= IN_USE && now.since(slot.used) < LONG_IDLE {
                return false;
            }
            let this = (worth, slot.used, i);
            if best.is_none_or(|b| this < b) {
                best = Some(this);
            }
            true
        };
        let [hand, _] = &mut self.hands;
        for _ in 0..CANDIDATES.min(self.first.len()) {
            *hand = (*hand + 1) % self.first.len();
            let i = self.first.get(*hand).copied().unwrap_or(u32::MAX);
            if let Some(Some(slot)) = self.slots.get(i as usize) {
                consider(slot, i);
            }
        }
        let (mut found, [_, hand]) = (0, &mut self.hands);
        let len = self.slots.len();
        for _ in 0..LOOKED_AT.min(len) {
            if !self.first.is_empty() || found == CANDIDATES {
                break;
            }
            *hand = (*hand + 1) % len;
            if let Some(Some(slot)) = self.slots.get(*hand) {
                found += usize::from(consider(slot, *hand as u32));
            }
        }
        best.map(|b| b.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key {
            proto: 17,
            inside: ([192, 0, 2, 1], port).into(),
            outside: ([198, 51, 100, 1], 9).into(),
        }
    }

    #[test]
    fn a_flow_is_small() {
        use super::super::{Flow, Mirror, tcp};
        let slot = size_of::<Option<Slot<Flow>>>();
        let mirror = size_of::<(Mirror, tcp::Host)>();
        let index = size_of::<(Key, u32)>();
        println!("slot {slot}, mirror {mirror}, index {index}");
        assert!(slot + mirror + index <= 640);
    }

    #[test]
    fn the_least_worth_and_longest_idle_makes_room() {
        let mut t: Table<u8> = Table::new(3);
        let second = |s: u64| Nanos(s * 1_000_000_000);
        let flows = [(1, 4), (2, 1), (3, 1)];
        for (port, worth) in flows {
            assert!(!t.is_full());
            t.insert(second(port.into()), key(port), worth, worth < 2);
        }
        assert!(t.is_full());
        let least = |t: &mut Table<u8>, now| {
            let i = t.least(second(now), |w| *w)?;
            let port = t.get(i)?.key.inside.port();
            t.remove(i);
            Some(port)
        };
        assert_eq!(least(&mut t, 10), Some(2));
        assert_eq!(least(&mut t, 10), Some(3));
        assert_eq!(least(&mut t, 10), None, "in use");
        assert_eq!(least(&mut t, 400), Some(1));
        assert_eq!(t.find(&key(1)), None);
    }

    #[test]
    fn the_few_that_go_first_are_found_among_very_many() {
        let mut t: Table<u8> = Table::new(20_000);
        let now = Nanos(1_000_000_000);
        for port in 0..10_000 {
            // Two in the middle, one ending connection in front.
            let worth = match port {
                0 => 2,
                5_000 | 6_000 => 1,
                _ => 4,
            };
            t.insert(now, key(port), worth, worth == 1);
        }
        for left in [1, 0] {
            let i = t.least(now, |w| *w).expect("one goes");
            assert_eq!(t.remove(i), Some(1));
            assert_eq!(t.first.len(), left);
        }
        // Of connections the one that ends, in as many searches as it takes to see all.
        let found = (0..10).find_map(|_| t.least(now, |w| *w));
        assert_eq!(found.and_then(|i| t.remove(i)), Some(2));
        assert!((0..10).all(|_| t.least(now, |w| *w).is_none()));
    }

    #[test]
    fn timers_run_out_in_order_and_can_be_put_off() {
        let mut t: Table<Nanos> = Table::new(9);
        let at = |n| Nanos(n);
        for (port, due) in [(1, 30), (2, 20), (3, 10)] {
            let i = t.insert(at(0), key(port), at(due), false);
            t.arm(i, at(due));
        }
        assert_eq!(t.next(), at(10));
        // The first is put off after it was armed, the second is gone.
        let i = t.find(&key(3)).expect("there");
        t.get(i).expect("there").flow = at(25);
        let i = t.find(&key(2)).expect("there");
        t.remove(i);
        assert_eq!(t.expired(at(22), |d| *d), None);
        assert_eq!(t.next(), at(25));
        let i = t.expired(at(40), |d| *d).and_then(|i| t.get(i));
        assert_eq!(i.map(|s| s.key.inside.port()), Some(3));
        let i = t.expired(at(40), |d| *d).and_then(|i| t.get(i));
        assert_eq!(i.map(|s| s.key.inside.port()), Some(1));
        assert_eq!(t.next(), Nanos::MAX);
    }
}
