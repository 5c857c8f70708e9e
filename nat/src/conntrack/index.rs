//! The map from hash to connection and direction.
//!
//! Open addressing with linear probing over 8-byte slots: the upper half is the tuple's hash, the lower the entry (connection << 1 |
//! direction) plus one, 0 an empty slot. A look-up reads one cache line of the map in nearly all cases (at most two thirds of the
//! slots are used), and compares tuples only where all 32 bits of the hash agree.
//!
//! The number of slots is fixed when the table is made, and removal shifts what follows back instead of leaving tombstones: so it
//! never grows, rehashes or cleans up, and no call ever takes longer than a probe sequence. That, and being all zeros (the
//! kernel backs it with memory page by page as it is used), is why this isn't a general-purpose hash table.

/// The map.
#[derive(Debug)]
pub(super) struct Index {
    slots: Vec<u64>,
}

impl Index {
    /// For at most `entries` entries.
    pub(super) fn new(entries: usize) -> Index {
        Index {
            slots: vec![0; (entries + entries / 2).max(8)],
        }
    }

    /// Where the search for a hash begins: it grows with the hash, as removal needs.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() {
            0
        } else {
            at + 1
        }
    }

    /// Forwards from one slot to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.slots.len() - from
        }
    }

    /// Reads the first slot of a hash, to have it in the cache.
    pub(super) fn touch(&self, hash: u32) -> u64 {
        self.slots[self.home(hash)]
    }

    /// The first entry with this hash that `is` the one.
    #[inline]
    pub(super) fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            let entry = slot as u32 - 1;
            if (slot >> 32) as u32 == hash && is(entry) {
                return Some(entry);
            }
            at = self.next(at);
        }
    }

    /// Enters an entry that isn't there. The caller keeps the bound given to `new`.
    pub(super) fn insert(&mut self, hash: u32, entry: u32) {
        let mut at = self.home(hash);
        while self.slots[at] != 0 {
            at = self.next(at);
        }
        self.slots[at] = u64::from(hash) << 32 | u64::from(entry + 1);
    }

    /// Removes an entry if it is there.
    pub(super) fn remove(&mut self, hash: u32, entry: u32) {
        let sought = u64::from(hash) << 32 | u64::from(entry + 1);
        let mut gap = self.home(hash);
        while self.slots[gap] != sought {
            if self.slots[gap] == 0 {
                return;
            }
            gap = self.next(gap);
        }
        let mut at = gap;
        loop {
            at = self.next(at);
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            let home = self.home((slot >> 32) as u32);
            // It may fill the gap if its search passes there.
            if self.distance(home, at) >= self.distance(gap, at) {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = 0;
    }

    /// The slots, for advice about their memory.
    pub(super) fn slots(&self) -> &Vec<u64> {
        &self.slots
    }

    /// Bytes reserved.
    pub(super) fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_of_colliding_hashes_nothing_gets_lost() {
        // Hashes at both ends, so that runs wrap around and into each other.
        let hash = |n: u32| match n % 4 {
            0 => u32::MAX,
            1 => u32::MAX - 1,
            2 => 0,
            _ => n << 26,
        };
        let mut index = Index::new(64);
        let mut there = vec![];
        let mut draw = 1u32;
        for round in 0..20_000u32 {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let n = (draw >> 16) % 90;
            if let Some(i) = there.iter().position(|&x| x == n) {
                there.swap_remove(i);
                index.remove(hash(n), n);
            } else if there.len() < 64 {
                there.push(n);
                index.insert(hash(n), n);
            }
            index.remove(hash(91), 91);
            for n in 0..90 {
                let found = index.find(hash(n), |e| e == n);
                assert_eq!(found.is_some(), there.contains(&n), "{n} in round {round}");
            }
        }
        assert_eq!(index.slots.iter().filter(|&&s| s != 0).count(), there.len());
    }
}
