//! Sparse bit vectors over rows, each distinct one stored once.
//!
//! A vector has a summary with a bit per word of 64 rows, and of its words only those that aren't zero. So the words of a
//! vector are read in ascending order at the cost of counting bits of the summary.

use super::CompileError;
use hashbrown::HashMap;

/// Most memory of all vectors of a policy, in words of eight bytes.
const MAX_WORDS: usize = 8 << 20;

/// A vector of a [`Vectors`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorId(u32);

/// Vectors. The first is empty.
#[derive(Debug)]
pub(super) struct Vectors {
    /// Words of a summary.
    pub(super) span: usize,
    summaries: Vec<u64>,
    starts: Vec<u32>,
    words: Vec<u64>,
}

/// A vector as it is read: its summary and its words.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) summary: &'a [u64],
    pub(super) words: &'a [u64],
}

impl Vectors {
    pub(super) fn view(&self, id: VectorId) -> View<'_> {
        let at = id.0 as usize;
        let summary = self
            .summaries
            .get(at * self.span..(at + 1) * self.span)
            .unwrap_or_default();
        let start = self.starts.get(at).map_or(0, |s| *s as usize);
        View {
            summary,
            words: self.words.get(start..).unwrap_or_default(),
        }
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        (self.summaries.len() + self.words.len()) * 8 + self.starts.len() * 4
    }
}

/// A dense vector under construction.
#[derive(Clone, Debug)]
pub(super) struct Dense(pub(super) Vec<u64>);

impl Dense {
    pub(super) fn new(rows: usize) -> Dense {
        Dense(vec![0; rows.div_ceil(64).max(1)])
    }

    pub(super) fn set(&mut self, row: u32) {
        self.0[row as usize / 64] |= 1 << (row % 64);
    }

    pub(super) fn unset(&mut self, row: u32) {
        self.0[row as usize / 64] &= !(1 << (row % 64));
    }

    /// A bit per word that isn't zero.
    pub(super) fn summary(&self) -> Vec<u64> {
        let mut summary = vec![0; self.0.len().div_ceil(64)];
        for (i, _) in self.0.iter().enumerate().filter(|(_, w)| **w != 0) {
            summary[i / 64] |= 1 << (i % 64);
        }
        summary
    }
}

/// Makes [`Vectors`].
#[derive(Debug)]
pub(super) struct Builder {
    made: Vectors,
    known: HashMap<Box<[u64]>, u32, foldhash::fast::RandomState>,
}

impl Builder {
    pub(super) fn new(rows: usize) -> Builder {
        let mut b = Builder {
            made: Vectors {
                span: Dense::new(rows).summary().len(),
                summaries: Vec::new(),
                starts: Vec::new(),
                words: Vec::new(),
            },
            known: HashMap::default(),
        };
        // The empty one, which is never too large.
        let _ = b.add(&Dense::new(rows));
        b
    }

    /// Adds a vector.
    pub(super) fn add(&mut self, dense: &Dense) -> Result<VectorId, CompileError> {
        let mut key = dense.summary();
        key.extend(dense.0.iter().filter(|w| **w != 0));
        if let Some(id) = self.known.get(&key[..]) {
            return Ok(VectorId(*id));
        }
        let m = &mut self.made;
        if m.words.len() + m.summaries.len() + key.len() > MAX_WORDS {
            return Err(CompileError::TooEntangled);
        }
        let id = m.starts.len() as u32;
        m.starts.push(m.words.len() as u32);
        m.summaries.extend(&key[..m.span]);
        m.words.extend(&key[m.span..]);
        self.known.insert(key.into(), id);
        Ok(VectorId(id))
    }

    pub(super) fn finish(mut self) -> Vectors {
        self.made.summaries.shrink_to_fit();
        self.made.words.shrink_to_fit();
        self.made
    }
}
