//! Which bytes of a datagram have come.

use super::FragDrop;

/// Most fragments of a datagram that are followed: 64 KiB in packets of 576 bytes are 119.
const MAX_FRAGMENTS: usize = 128;

/// Ranges that have come, in order, none touching another's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    /// Begin and end of each.
    parts: Vec<(u16, u16)>,
    /// Bytes in them.
    covered: u32,
    /// Length of the datagram, once the last fragment has told.
    total: Option<u16>,
}

impl Ranges {
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.covered = 0;
        self.total = None;
    }

    /// Notes a fragment. An overlap, bytes behind the end, or two ends are [`FragDrop::Overlap`].
    pub(super) fn add(&mut self, begin: u16, end: u16, more: bool) -> Result<(), FragDrop> {
        let at = self.parts.partition_point(|p| p.0 < begin);
        let same = self.parts.get(at) == Some(&(begin, end));
        if same && more != (self.total == Some(end)) {
            return Err(FragDrop::Duplicate);
        }
        let before = at.checked_sub(1).and_then(|i| self.parts.get(i));
        let after = self.parts.get(at);
        let contradicts = self.total.is_some_and(|t| end > t || !more)
            // Something is where the last fragment begins, or behind it.
            || (!more && self.parts.last().is_some_and(|p| p.1 > begin));
        if contradicts || before.is_some_and(|p| p.1 > begin) || after.is_some_and(|p| p.0 < end) {
            return Err(FragDrop::Overlap);
        }
        if self.parts.len() >= MAX_FRAGMENTS {
            return Err(FragDrop::TooMany);
        }
        self.parts.insert(at, (begin, end));
        self.covered += u32::from(end - begin);
        if !more {
            self.total = Some(end);
        }
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.total.is_some_and(|t| u32::from(t) == self.covered)
    }
}
