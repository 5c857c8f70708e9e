//! Dimensions: tables from a value to the vector of the rows that mention it.

use super::CompileError;
use super::vectors::{Builder, Dense, VectorId};
use std::collections::BTreeMap;

/// Rows that don't care about a dimension.
#[derive(Debug)]
pub(super) struct Wild {
    pub(super) words: Vec<u64>,
    pub(super) summary: Vec<u64>,
    /// How many they are.
    pub(super) count: usize,
}

impl Wild {
    /// The rows for which `wild` says so.
    pub(super) fn new(rows: usize, wild: impl Fn(usize) -> bool) -> Wild {
        let mut dense = Dense::new(rows);
        (0..rows)
            .filter(|row| wild(*row))
            .for_each(|row| dense.set(row as u32));
        Wild {
            summary: dense.summary(),
            count: dense.0.iter().map(|w| w.count_ones() as usize).sum(),
            words: dense.0,
        }
    }
}

/// A table from small numbers.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<VectorId>);

impl Table {
    pub(super) fn new(
        by_value: &BTreeMap<u16, Vec<u32>>,
        rows: usize,
        builder: &mut Builder,
    ) -> Result<Table, CompileError> {
        let mut table = Vec::new();
        for (value, members) in by_value {
            let mut dense = Dense::new(rows);
            members.iter().for_each(|r| dense.set(*r));
            table.resize(usize::from(*value), VectorId::default());
            table.push(builder.add(&dense)?);
        }
        Ok(Table(table))
    }

    pub(super) fn find(&self, value: Option<u16>) -> VectorId {
        let found = value.and_then(|v| self.0.get(usize::from(v)));
        found.copied().unwrap_or_default()
    }
}

/// A table from numbers in ranges: where each piece begins, ascending, and its vector.
#[derive(Debug)]
pub(super) struct Pieces<T> {
    starts: Vec<T>,
    vectors: Vec<VectorId>,
}

/// Numbers that addresses and ports are.
pub(super) trait Number: Copy + Ord {
    /// The next one; none after the last.
    fn next(self) -> Option<Self>;
}

macro_rules! number {
    ($($t:ty),+) => {
        $(impl Number for $t {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
        })+
    };
}
number!(u16, u32, u128);

impl<T: Number> Pieces<T> {
    /// From ranges (both ends belong to it), each with its row. Ranges of a row may overlap.
    pub(super) fn new(
        mut ranges: Vec<(u32, T, T)>,
        rows: usize,
        builder: &mut Builder,
    ) -> Result<Pieces<T>, CompileError> {
        ranges.sort_unstable_by_key(|(row, first, last)| (*row, *first, *last));
        let mut joined: Vec<(u32, T, T)> = Vec::new();
        for (row, first, last) in ranges {
            match joined.last_mut() {
                Some((r, _, end)) if *r == row && first <= *end => *end = last.max(*end),
                _ => joined.push((row, first, last)),
            }
        }
        let mut edges: Vec<(T, u32, bool)> = Vec::new();
        for (row, first, last) in joined {
            edges.push((first, row, true));
            edges.extend(last.next().map(|after| (after, row, false)));
        }
        // Of a row, an end comes before a beginning at the same place.
        edges.sort_unstable_by_key(|(at, row, begins)| (*at, *row, *begins));
        let mut pieces = Pieces {
            starts: Vec::new(),
            vectors: Vec::new(),
        };
        let mut active = Dense::new(rows);
        let mut i = 0;
        while let Some((at, ..)) = edges.get(i).copied() {
            while let Some((_, row, begins)) = edges.get(i).filter(|(a, ..)| *a == at) {
                if *begins {
                    active.set(*row);
                } else {
                    active.unset(*row);
                }
                i += 1;
            }
            pieces.starts.push(at);
            pieces.vectors.push(builder.add(&active)?);
        }
        Ok(pieces)
    }

    pub(super) fn find(&self, value: T) -> VectorId {
        let after = self.starts.partition_point(|s| *s <= value);
        let found = after.checked_sub(1).and_then(|i| self.vectors.get(i));
        found.copied().unwrap_or_default()
    }

    pub(super) fn memory(&self) -> usize {
        self.starts.len() * size_of::<T>() + self.vectors.len() * size_of::<VectorId>()
    }
}
