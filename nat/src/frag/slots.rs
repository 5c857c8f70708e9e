//! Datagrams by key and by age: a slab whose slots are in a list in the order they were made, so that the oldest is at
//! hand, and a table of slot numbers.

use super::DatagramKey;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use vswitch_core::clock::Nanos;

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<T> {
    key: DatagramKey,
    until: Nanos,
    older: u32,
    younger: u32,
    value: T,
}

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    table: HashTable<u32>,
    hasher: RandomState,
    oldest: u32,
    youngest: u32,
    /// Datagrams by hash of their source.
    sources: Vec<u16>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::default(),
            oldest: NONE,
            youngest: NONE,
            sources: vec![0; 256],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn find(&self, key: &DatagramKey) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table
            .find(hash, |s| self.slots[*s as usize].key == *key)
            .copied()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut T {
        &mut self.slots[slot as usize].value
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize).map(|s| &s.value)
    }

    pub(super) fn key(&self, slot: u32) -> DatagramKey {
        self.slots[slot as usize].key
    }

    pub(super) fn until(&self, slot: u32) -> Nanos {
        self.slots[slot as usize].until
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// How many datagrams the key's source has, with those of sources that hash alike.
    pub(super) fn of_source(&self, key: &DatagramKey) -> u16 {
        self.sources[self.source(key)]
    }

    fn source(&self, key: &DatagramKey) -> usize {
        self.hasher.hash_one((key.zone, key.src)) as usize % self.sources.len()
    }

    /// Takes a slot as the youngest; the key must not be there. Its value may be one used before.
    pub(super) fn insert(&mut self, key: DatagramKey, until: Nanos) -> u32
    where
        T: Default,
    {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                key,
                until,
                older: NONE,
                younger: NONE,
                value: T::default(),
            });
            (self.slots.len() - 1) as u32
        });
        let s = &mut self.slots[at as usize];
        (s.key, s.until, s.older, s.younger) = (key, until, self.youngest, NONE);
        match self.youngest {
            NONE => self.oldest = at,
            before => self.slots[before as usize].younger = at,
        }
        self.youngest = at;
        let source = self.source(&key);
        self.sources[source] += 1;
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.table.insert_unique(hasher.hash_one(key), at, |s| {
            hasher.hash_one(slots[*s as usize].key)
        });
        at
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let s = &self.slots[slot as usize];
        let (key, older, younger) = (s.key, s.older, s.younger);
        let hash = self.hasher.hash_one(key);
        let Ok(entry) = self.table.find_entry(hash, |s| *s == slot) else {
            return;
        };
        entry.remove();
        match older {
            NONE => self.oldest = younger,
            o => self.slots[o as usize].younger = younger,
        }
        match younger {
            NONE => self.youngest = older,
            y => self.slots[y as usize].older = older,
        }
        let source = self.source(&key);
        self.sources[source] -= 1;
        self.free.push(slot);
    }
}
