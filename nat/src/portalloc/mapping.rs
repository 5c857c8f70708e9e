//! Mappings, found from either side.

use super::Internal;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) internal: Internal,
    /// Index of the external address.
    pub(super) address: u16,
    pub(super) port: u16,
    /// 0 in a free slot.
    pub(super) leases: u32,
    /// One more each time the slot is used.
    pub(super) generation: u32,
}

impl Mapping {
    fn outside(&self) -> (u16, u8, u16) {
        (self.address, self.internal.proto, self.port)
    }
}

#[derive(Debug, Default)]
pub(super) struct Mappings {
    slots: Vec<Mapping>,
    free: Vec<u32>,
    by_inside: HashTable<u32>,
    by_outside: HashTable<u32>,
    hasher: RandomState,
}

impl Mappings {
    pub(super) fn len(&self) -> usize {
        self.by_inside.len()
    }

    pub(super) fn get(&self, index: u32) -> &Mapping {
        &self.slots[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Mapping {
        &mut self.slots[index as usize]
    }

    pub(super) fn is_live(&self, index: u32, generation: u32) -> bool {
        self.slots
            .get(index as usize)
            .is_some_and(|m| m.generation == generation && m.leases > 0)
    }

    pub(super) fn inside(&self, internal: &Internal) -> Option<u32> {
        self.by_inside
            .find(self.hasher.hash_one(internal), |i| {
                self.get(*i).internal == *internal
            })
            .copied()
    }

    pub(super) fn outside(&self, address: u16, proto: u8, port: u16) -> Option<u32> {
        let key = (address, proto, port);
        self.by_outside
            .find(self.hasher.hash_one(key), |i| self.get(*i).outside() == key)
            .copied()
    }

    pub(super) fn insert(&mut self, internal: Internal, address: u16, port: u16) -> u32 {
        let mut mapping = Mapping {
            internal,
            address,
            port,
            leases: 0,
            generation: 0,
        };
        let index = match self.free.pop() {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                mapping.generation = slot.generation.wrapping_add(1);
                *slot = mapping;
                index
            }
            None => {
                self.slots.push(mapping);
                (self.slots.len() - 1) as u32
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        let inside = |i: &u32| hasher.hash_one(slots[*i as usize].internal);
        let outside = |i: &u32| hasher.hash_one(slots[*i as usize].outside());
        self.by_inside.insert_unique(inside(&index), index, inside);
        self.by_outside
            .insert_unique(outside(&index), index, outside);
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> Mapping {
        let mapping = self.slots[index as usize];
        let (inside, outside) = (
            self.hasher.hash_one(mapping.internal),
            self.hasher.hash_one(mapping.outside()),
        );
        if let Ok(e) = self.by_inside.find_entry(inside, |i| *i == index) {
            e.remove();
        }
        if let Ok(e) = self.by_outside.find_entry(outside, |i| *i == index) {
            e.remove();
        }
        self.free.push(index);
        mapping
    }
}
