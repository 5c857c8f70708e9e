//! The addresses that may be given, as a bitmap: a full pool is searched a word at a time.

use std::net::Ipv4Addr;

/// Most addresses all ranges of a server may hold together: a bitmap of 128 KiB, searched in microseconds.
pub const MAX_ADDRESSES: usize = 1 << 20;

/// Ranges of addresses with a bit each: set means not to be given.
#[derive(Debug)]
pub(super) struct Pool {
    /// First address, length and index of the first bit, ascending and disjoint.
    ranges: Vec<(u32, usize, usize)>,
    words: Vec<u64>,
    len: usize,
    taken: usize,
}

impl Pool {
    /// `None` when ranges are reversed, overlap or are too long.
    pub(super) fn new(ranges: &[(Ipv4Addr, Ipv4Addr)]) -> Option<Pool> {
        let mut sorted: Vec<(u32, u32)> = ranges
            .iter()
            .map(|(a, b)| (u32::from(*a), u32::from(*b)))
            .collect();
        sorted.sort_unstable();
        let disjoint = sorted
            .iter()
            .zip(sorted.iter().skip(1))
            .all(|(a, b)| a.1 < b.0);
        if !disjoint || sorted.iter().any(|(a, b)| a > b) {
            return None;
        }
        let mut len = 0usize;
        let mut all = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            let n = (last - first) as usize + 1;
            all.push((first, n, len));
            len = len.saturating_add(n);
        }
        (len <= MAX_ADDRESSES).then(|| Pool {
            ranges: all,
            words: vec![0; len.div_ceil(64)],
            len,
            taken: 0,
        })
    }

    pub(super) fn index(&self, address: Ipv4Addr) -> Option<usize> {
        let address = u32::from(address);
        let at = self.ranges.partition_point(|(first, ..)| *first <= address);
        let (first, len, bit) = self.ranges.get(at.checked_sub(1)?)?;
        let offset = (address - first) as usize;
        (offset < *len).then_some(bit + offset)
    }

    fn address(&self, index: usize) -> Option<Ipv4Addr> {
        let at = self.ranges.partition_point(|(.., bit)| *bit <= index);
        let (first, _, bit) = self.ranges.get(at.checked_sub(1)?)?;
        Some(Ipv4Addr::from(first + u32::try_from(index - bit).ok()?))
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        self.index(address).is_some()
    }

    /// Addresses in all ranges, and how many of them are marked.
    pub(super) fn usage(&self) -> (usize, usize) {
        (self.len, self.taken)
    }

    /// Marks an address as not to be given, or to be given again.
    pub(super) fn mark(&mut self, address: Ipv4Addr, taken: bool) {
        let Some(index) = self.index(address) else {
            return;
        };
        if let Some(word) = self.words.get_mut(index / 64) {
            let bit = 1u64 << (index % 64);
            match (*word & bit != 0, taken) {
                (false, true) => self.taken += 1,
                (true, false) => self.taken -= 1,
                _ => return,
            }
            *word ^= bit;
        }
    }

    /// The first address not marked at or after bit `from`, cyclically, and its bit.
    pub(super) fn next_free(&self, from: usize) -> Option<(usize, Ipv4Addr)> {
        if self.taken >= self.len {
            return None;
        }
        let from = from % self.len;
        let words = self.words.len();
        // The first word comes twice: its upper part first, its lower part last.
        for step in 0..=words {
            let at = (from / 64 + step) % words;
            let mut free = !self.words.get(at)?;
            if step == 0 {
                free &= u64::MAX << (from % 64);
            }
            if at == words - 1 && !self.len.is_multiple_of(64) {
                free &= (1 << (self.len % 64)) - 1;
            }
            if free != 0 {
                let index = at * 64 + free.trailing_zeros() as usize;
                return Some((index, self.address(index)?));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_that_make_no_sense() {
        let a = |n| Ipv4Addr::new(192, 0, 2, n);
        assert!(Pool::new(&[(a(5), a(4))]).is_none());
        assert!(Pool::new(&[(a(1), a(9)), (a(9), a(20))]).is_none());
        assert!(Pool::new(&[(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)]).is_none());
        let mut none = Pool::new(&[]).unwrap();
        none.mark(a(1), true);
        assert_eq!(none.next_free(7), None);
    }

    proptest! {
        #[test]
        fn as_a_set_does_it(
            lens in prop::collection::vec(1u32..90, 1..4),
            marks in prop::collection::vec((0u32..400, any::<bool>()), 0..200),
            from in 0usize..1000,
        ) {
            let base = u32::from(Ipv4Addr::new(198, 51, 100, 0));
            let mut ranges = vec![];
            let mut model = vec![];
            let mut at = base;
            for len in lens {
                ranges.push((at.into(), (at + len - 1).into()));
                model.extend(at..at + len);
                at += len + 7;
            }
            let mut pool = Pool::new(&ranges).unwrap();
            let mut taken = std::collections::HashSet::new();
            for (offset, mark) in marks {
                let address = base + offset;
                pool.mark(address.into(), mark);
                if model.contains(&address) {
                    if mark { taken.insert(address); } else { taken.remove(&address); }
                }
            }
            prop_assert_eq!(pool.usage(), (model.len(), taken.len()));
            let start = from % model.len();
            let expected = (0..model.len())
                .map(|i| (start + i) % model.len())
                .find(|i| !taken.contains(&model[*i]))
                .map(|i| (i, Ipv4Addr::from(model[i])));
            prop_assert_eq!(pool.next_free(from), expected);
        }
    }
}
