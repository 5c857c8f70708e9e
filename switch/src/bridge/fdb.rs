//! The forwarding database (FDB) of one network: (VLAN, MAC) -> port.
//!
//! A hash table with a random seed per table, entries inline, so that a look-up touches one or two cache lines. It is
//! bounded; ageing walks the buckets a few at a time. Times are whole seconds.

use crate::port::PortId;
use crate::wire::MacAddr;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// What learning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// The address is new.
    New,
    /// Known at this port: its age begins anew.
    Refreshed,
    /// It was at the port given.
    Moved(PortId),
    /// A static entry has it at another port.
    Pinned(PortId),
    /// The table is full.
    Full,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    key: u64,
    /// Second it was last seen.
    pub seen: u32,
    /// Where it is.
    pub port: PortId,
    /// Entered by configuration: neither moves nor ages.
    pub is_static: bool,
    /// Learned by another worker, which will tell when it ages.
    pub remote: bool,
}

impl FdbEntry {
    /// The address.
    #[must_use]
    pub fn mac(&self) -> MacAddr {
        MacAddr::from_u64(self.key & 0xffff_ffff_ffff)
    }

    /// The VLAN; 0 in networks that aren't VLAN aware.
    #[must_use]
    pub fn vid(&self) -> u16 {
        (self.key >> 48) as u16
    }
}

fn key(vid: u16, mac: MacAddr) -> u64 {
    u64::from(vid) << 48 | mac.to_u64()
}

/// The FDB of one network.
#[derive(Debug)]
pub struct Fdb {
    table: HashTable<FdbEntry>,
    hasher: RandomState,
    limit: usize,
}

impl Fdb {
    /// An empty table of at most `limit` entries.
    #[must_use]
    pub fn new(limit: usize) -> Fdb {
        Fdb {
            table: HashTable::new(),
            hasher: RandomState::default(),
            limit,
        }
    }

    /// Where the address is.
    #[must_use]
    pub fn lookup(&self, vid: u16, mac: MacAddr) -> Option<PortId> {
        let k = key(vid, mac);
        self.table
            .find(self.hasher.hash_one(k), |e| e.key == k)
            .map(|e| e.port)
    }

    /// Notes that the address was seen at `port` in second `now`.
    pub fn learn(&mut self, vid: u16, mac: MacAddr, port: PortId, now: u32) -> Learn {
        let k = key(vid, mac);
        let hash = self.hasher.hash_one(k);
        if let Some(e) = self.table.find_mut(hash, |e| e.key == k) {
            if e.port == port {
                if !e.is_static {
                    e.seen = now;
                    e.remote = false;
                }
                return Learn::Refreshed;
            }
            if e.is_static {
                return Learn::Pinned(e.port);
            }
            let was = std::mem::replace(&mut e.port, port);
            e.seen = now;
            e.remote = false;
            return Learn::Moved(was);
        }
        if self.table.len() >= self.limit {
            return Learn::Full;
        }
        let entry = FdbEntry {
            key: k,
            seen: now,
            port,
            is_static: false,
            remote: false,
        };
        self.table
            .insert_unique(hash, entry, |e| self.hasher.hash_one(e.key));
        Learn::New
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &FdbEntry> {
        self.table.iter()
    }

    /// Removes the entries for which `which` says so; returns how many.
    pub fn remove_if(&mut self, mut which: impl FnMut(&FdbEntry) -> bool) -> usize {
        let before = self.table.len();
        self.table.retain(|e| !which(e));
        before - self.table.len()
    }
}
