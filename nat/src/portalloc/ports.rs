//! Which ports of one address and protocol are taken: a bit each.

use std::ops::RangeInclusive;

const WORDS: usize = 65_536 / 64;

/// Ports of a parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parity {
    Any,
    /// That of this port.
    Of(u16),
}

/// 8 KiB, and as much again if ports are reserved.
#[derive(Debug)]
pub(super) struct Ports {
    taken: Box<[u64; WORDS]>,
    reserved: Option<Box<[u64; WORDS]>>,
    /// Nothing was free below, and from, port 1024: so that an exhausted address isn't searched for every new flow.
    full: [bool; 2],
}

impl Ports {
    pub(super) fn new() -> Ports {
        Ports {
            taken: Box::new([0; WORDS]),
            reserved: None,
            full: [false; 2],
        }
    }

    fn unavailable(&self, word: usize) -> u64 {
        self.taken[word] | self.reserved.as_ref().map_or(0, |r| r[word])
    }

    /// Leased, resting or reserved.
    pub(super) fn is_taken(&self, port: u16) -> bool {
        self.unavailable(usize::from(port) / 64) >> (port % 64) & 1 != 0
    }

    pub(super) fn take(&mut self, port: u16) {
        self.taken[usize::from(port) / 64] |= 1 << (port % 64);
    }

    pub(super) fn free(&mut self, port: u16) {
        self.taken[usize::from(port) / 64] &= !(1 << (port % 64));
        self.full = [false; 2];
    }

    pub(super) fn reserve(&mut self, port: u16, on: bool) {
        let words = self.reserved.get_or_insert_with(|| Box::new([0; WORDS]));
        let word = &mut words[usize::from(port) / 64];
        if on {
            *word |= 1 << (port % 64);
        } else {
            *word &= !(1 << (port % 64));
            self.full = [false; 2];
        }
    }

    /// A free port of the range: the first at or after a random place in it, going round (RFC 6056 3.3.1). A word at a
    /// time, so at most 1,025 steps. The ranges that it is asked for begin on either side of 1024, one each.
    pub(super) fn find(
        &mut self,
        range: &RangeInclusive<u16>,
        parity: Parity,
        random: u64,
    ) -> Option<u16> {
        let (low, high) = (*range.start(), *range.end());
        let class = usize::from(low >= 1024);
        if low > high || self.full[class] {
            return None;
        }
        let start = low + (random % (u64::from(high - low) + 1)) as u16;
        let found = self
            .first(start, high, parity)
            .or_else(|| self.first(low, start, parity));
        self.full[class] = found.is_none() && parity == Parity::Any;
        found
    }

    /// The first free port from `low` to `high`.
    fn first(&self, low: u16, high: u16, parity: Parity) -> Option<u16> {
        let wanted = match parity {
            Parity::Any => u64::MAX,
            Parity::Of(port) => 0x5555_5555_5555_5555 << (port & 1),
        };
        let (first, last) = (usize::from(low) / 64, usize::from(high) / 64);
        for i in first..=last {
            let mut free = !self.unavailable(i) & wanted;
            if i == first {
                free &= u64::MAX << (low % 64);
            }
            if i == last {
                free &= u64::MAX >> (63 - high % 64);
            }
            if free != 0 {
                return Some((i * 64) as u16 + free.trailing_zeros() as u16);
            }
        }
        None
    }
}
