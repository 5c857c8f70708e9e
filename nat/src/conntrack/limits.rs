//! How many connections a source has: a sketch that can't overflow.
//!
//! A table of sources would itself need a bound, an age and an eviction order, and a flood of invented sources would fill it.
//! Instead each source has a counter in each of two rows, chosen by the keyed hash, and its number is the lesser of the two (a
//! count-min sketch; Cormode and Muthukrishnan 2005). Connections are counted up and down exactly, so a source is overcounted
//! only while it shares both counters with others: among 1,000 sources the chance that any two do is 10^-4.

use super::hash::Keyed;

/// Counters of a row.
const ROW: usize = 1 << 16;

/// Connections by source.
#[derive(Debug)]
pub(super) struct Sources {
    counts: Vec<u32>,
    keyed: Keyed,
}

impl Sources {
    pub(super) fn new(seed: u64) -> Sources {
        Sources {
            counts: vec![0; 2 * ROW],
            keyed: Keyed::new(!seed),
        }
    }

    fn places(&self, source: [u64; 2]) -> [usize; 2] {
        let hash = self.keyed.pair(source) as usize;
        [hash % ROW, ROW + (hash >> 32) % ROW]
    }

    /// Connections of a source.
    pub(super) fn get(&self, source: [u64; 2]) -> u32 {
        let [a, b] = self.places(source);
        self.counts[a].min(self.counts[b])
    }

    pub(super) fn add(&mut self, source: [u64; 2]) {
        for at in self.places(source) {
            self.counts[at] += 1;
        }
    }

    pub(super) fn sub(&mut self, source: [u64; 2]) {
        for at in self.places(source) {
            self.counts[at] = self.counts[at].saturating_sub(1);
        }
    }

    /// Bytes reserved.
    pub(super) fn memory(&self) -> usize {
        self.counts.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_sources_are_told_apart_in_a_flood_of_others() {
        let mut sources = Sources::new(7);
        let source = |n: u64| [0xffff_c000_0200 + n, 0];
        for n in 0..1000 {
            for _ in 0..=n {
                sources.add(source(n));
            }
        }
        for n in 0..1000 {
            assert_eq!(sources.get(source(n)), n as u32 + 1);
        }
        for n in 0..200_000 {
            sources.add([n << 32, 1]);
        }
        let over = (0..1000)
            .map(|n| sources.get(source(n)) - (n as u32 + 1))
            .max();
        assert!(over <= Some(20), "{over:?} too many");
        for n in 0..200_000 {
            sources.sub([n << 32, 1]);
        }
        for n in 0..1000 {
            for _ in 0..=n {
                sources.sub(source(n));
            }
        }
        assert!(sources.counts.iter().all(|&n| n == 0));
    }
}
