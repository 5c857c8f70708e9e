//! The forwarding database (FDB) of one network: (VLAN, MAC) -> port.
//!
//! A hash table with a random seed per table, entries inline (16 bytes), so that a look-up touches one or two cache
//! lines. It is bounded, in all and per port. Times are whole seconds.
//!
//! Ageing walks the buckets a few at a time ([`Fdb::sweep`]). A finished walk knows the oldest entry and so when the next one
//! is due: a table without entries never asks for one.
//!
//! With several workers each has a copy. An entry is *remote* where another worker heard the MAC: it is renewed and aged by
//! news from there ([`crate::worker::Sync`]), and forgotten by itself only after three ageing times without news, for
//! news can be lost.

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
    /// The port has as many addresses as it may.
    PortFull,
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

/// Which entries to flush; a field that is `None` matches all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushFilter {
    /// Only at this port.
    pub port: Option<PortId>,
    /// Only in this VLAN.
    pub vid: Option<u16>,
    /// Only this address.
    pub mac: Option<MacAddr>,
    /// Static entries as well.
    pub statics: bool,
}

/// Where a dump goes on. If the table was resized in between, it begins anew: the reader keeps entries by (VLAN, MAC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdbCursor {
    bucket: usize,
    buckets: usize,
}

/// What the sweep says of an entry it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// Removed, for its time was over.
    Aged,
    /// Learned here, and alive.
    Alive,
}

/// A key no frame has: VLAN identifiers have 12 bits.
pub(super) const NO_KEY: u64 = u64::MAX;

pub(super) fn key(vid: u16, mac: MacAddr) -> u64 {
    u64::from(vid) << 48 | mac.to_u64()
}

/// The FDB of one network.
#[derive(Debug)]
pub struct Fdb {
    table: HashTable<FdbEntry>,
    hasher: RandomState,
    limit: usize,
    /// Learned entries by port index.
    learned: Vec<u32>,
    /// Bucket the sweep goes on at.
    cursor: usize,
    /// Size of the table when the sweep began.
    swept_buckets: usize,
    /// Earliest end of life among what this sweep has passed.
    earliest: u32,
    /// Second the next sweep begins; `u32::MAX` if there is nothing to age.
    due: u32,
}

impl Fdb {
    /// An empty table of at most `limit` entries.
    #[must_use]
    pub fn new(limit: usize) -> Fdb {
        Fdb {
            table: HashTable::new(),
            hasher: RandomState::default(),
            limit,
            learned: Vec::new(),
            cursor: 0,
            swept_buckets: 0,
            earliest: u32::MAX,
            due: u32::MAX,
        }
    }

    /// Changes the bound; entries beyond it stay until they age.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Where the address is.
    #[must_use]
    pub fn lookup(&self, vid: u16, mac: MacAddr) -> Option<PortId> {
        self.lookup_key(key(vid, mac))
    }

    pub(super) fn lookup_key(&self, k: u64) -> Option<PortId> {
        self.table
            .find(self.hasher.hash_one(k), |e| e.key == k)
            .map(|e| e.port)
    }

    /// The entry of the address.
    #[must_use]
    pub fn get(&self, vid: u16, mac: MacAddr) -> Option<&FdbEntry> {
        let k = key(vid, mac);
        self.table.find(self.hasher.hash_one(k), |e| e.key == k)
    }

    /// Notes that the address was seen at `port` in second `now`; `port_limit` bounds what the port has learned.
    pub fn learn(
        &mut self,
        vid: u16,
        mac: MacAddr,
        port: PortId,
        now: u32,
        port_limit: u32,
    ) -> Learn {
        let k = key(vid, mac);
        let hash = self.hasher.hash_one(k);
        if let Some(e) = self.table.find_mut(hash, |e| e.key == k) {
            if e.port == port {
                // Written once a second at most, so that a busy entry's cache line stays clean.
                if (e.seen != now || e.remote) && !e.is_static {
                    e.seen = now;
                    e.remote = false;
                }
                return Learn::Refreshed;
            }
            if e.is_static {
                return Learn::Pinned(e.port);
            }
            if count(&self.learned, port) >= port_limit {
                return Learn::PortFull;
            }
            let was = std::mem::replace(&mut e.port, port);
            e.seen = now;
            e.remote = false;
            self.count_change(was, -1);
            self.count_change(port, 1);
            return Learn::Moved(was);
        }
        if count(&self.learned, port) >= port_limit {
            return Learn::PortFull;
        }
        if self.table.len() >= self.limit {
            return Learn::Full;
        }
        self.insert(FdbEntry {
            key: k,
            seen: now,
            port,
            is_static: false,
            remote: false,
        });
        Learn::New
    }

    /// What [`Fdb::learn`] would do. Changes nothing.
    #[must_use]
    pub fn would_learn(&self, vid: u16, mac: MacAddr, port: PortId, port_limit: u32) -> Learn {
        match self.get(vid, mac) {
            Some(e) if e.port == port => Learn::Refreshed,
            Some(e) if e.is_static => Learn::Pinned(e.port),
            _ if count(&self.learned, port) >= port_limit => Learn::PortFull,
            Some(e) => Learn::Moved(e.port),
            None if self.table.len() >= self.limit => Learn::Full,
            None => Learn::New,
        }
    }

    fn insert(&mut self, entry: FdbEntry) {
        if !entry.is_static {
            self.count_change(entry.port, 1);
        }
        let hasher = &self.hasher;
        self.table
            .insert_unique(self.hasher.hash_one(entry.key), entry, |e| {
                hasher.hash_one(e.key)
            });
    }

    fn count_change(&mut self, port: PortId, by: i32) {
        if self.learned.len() <= port.index() {
            self.learned.resize(port.index() + 1, 0);
        }
        let n = &mut self.learned[port.index()];
        *n = n.saturating_add_signed(by);
    }

    /// Another worker saw the address at `port` in second `seen`. Returns our own entry if it is a later sighting, which the
    /// other has to be told.
    pub(super) fn learn_remote(
        &mut self,
        vid: u16,
        mac: MacAddr,
        port: PortId,
        seen: u32,
    ) -> Option<FdbEntry> {
        let k = key(vid, mac);
        let hash = self.hasher.hash_one(k);
        if let Some(e) = self.table.find_mut(hash, |e| e.key == k) {
            if e.is_static {
                return None;
            }
            if e.port == port {
                if e.remote {
                    e.seen = e.seen.max(seen);
                }
                return None;
            }
            if !e.remote && e.seen > seen {
                return Some(*e);
            }
            let was = std::mem::replace(&mut e.port, port);
            e.seen = seen;
            e.remote = true;
            self.count_change(was, -1);
            self.count_change(port, 1);
        } else if self.table.len() < self.limit {
            self.insert(FdbEntry {
                key: k,
                seen,
                port,
                is_static: false,
                remote: true,
            });
        }
        None
    }

    /// The worker that had heard the address says that it aged. Returns our entry if we hear it ourselves.
    pub(super) fn age_remote(&mut self, vid: u16, mac: MacAddr, port: PortId) -> Option<FdbEntry> {
        let k = key(vid, mac);
        let e = *self.table.find(self.hasher.hash_one(k), |e| e.key == k)?;
        if e.is_static || e.port != port {
            return None;
        }
        if e.remote {
            self.remove(vid, mac);
            return None;
        }
        Some(e)
    }

    /// Pins the address to a port; replaces what was learned. False when the table is full.
    pub fn add_static(&mut self, vid: u16, mac: MacAddr, port: PortId) -> bool {
        self.remove(vid, mac);
        if self.table.len() >= self.limit {
            return false;
        }
        self.insert(FdbEntry {
            key: key(vid, mac),
            seen: 0,
            port,
            is_static: true,
            remote: false,
        });
        true
    }

    /// Removes the address, static or learned.
    pub fn remove(&mut self, vid: u16, mac: MacAddr) -> Option<FdbEntry> {
        let k = key(vid, mac);
        let hash = self.hasher.hash_one(k);
        let entry = self.table.find_entry(hash, |e| e.key == k).ok()?.remove().0;
        if !entry.is_static {
            self.count_change(entry.port, -1);
        }
        Some(entry)
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

    /// Number of addresses learned at a port.
    #[must_use]
    pub fn learned_at(&self, port: PortId) -> u32 {
        count(&self.learned, port)
    }

    /// All entries. Not bounded: [`Fdb::dump`] is for the control plane.
    pub fn iter(&self) -> impl Iterator<Item = &FdbEntry> {
        self.table.iter()
    }

    /// Entries of the next `budget` buckets; with the place to go on at, or `None` after the last.
    #[must_use]
    pub fn dump(&self, from: FdbCursor, budget: usize) -> (Vec<FdbEntry>, Option<FdbCursor>) {
        let buckets = self.table.num_buckets();
        let first = if from.buckets == buckets {
            from.bucket
        } else {
            0
        };
        let last = first.saturating_add(budget.max(1)).min(buckets);
        let some = (first..last)
            .filter_map(|i| self.table.get_bucket(i).copied())
            .collect();
        let next = (last < buckets).then_some(FdbCursor {
            bucket: last,
            buckets,
        });
        (some, next)
    }

    /// Removes what the filter matches, but for the gateway's entry; returns how many. Walks the whole table.
    pub fn flush(&mut self, filter: FlushFilter) -> usize {
        self.remove_if(|e| {
            e.port != PortId::GATEWAY
                && (filter.statics || !e.is_static)
                && filter.port.is_none_or(|p| p == e.port)
                && filter.vid.is_none_or(|v| v == e.vid())
                && filter.mac.is_none_or(|m| m == e.mac())
        })
    }

    /// Removes the entries for which `which` says so; returns how many.
    pub fn remove_if(&mut self, mut which: impl FnMut(&FdbEntry) -> bool) -> usize {
        let before = self.table.len();
        let learned = &mut self.learned;
        self.table.retain(|e| {
            let goes = which(e);
            if goes
                && !e.is_static
                && let Some(n) = learned.get_mut(e.port.index())
            {
                *n = n.saturating_sub(1);
            }
            !goes
        });
        before - self.table.len()
    }

    /// If nothing is scheduled and there are entries: schedules the first sweep and returns when it is due.
    pub fn arm(&mut self, now: u32, ageing: u32) -> Option<u32> {
        if self.due != u32::MAX || ageing == 0 || self.table.is_empty() {
            return None;
        }
        self.due = now.saturating_add(ageing);
        Some(self.due)
    }

    /// The ageing time changed: sweeps at the next tick.
    pub(super) fn rearm(&mut self) {
        self.due = 0;
    }

    /// Ages: looks at up to `budget` buckets and returns the second the next call is due (`u32::MAX`: never). `ageing` is in seconds, 0 for never. `each` is told of entries removed and alive and may
    /// stop the sweep for this time by returning false.
    pub fn sweep(
        &mut self,
        now: u32,
        ageing: u32,
        budget: usize,
        mut each: impl FnMut(&FdbEntry, Swept) -> bool,
    ) -> u32 {
        if ageing == 0 || (self.table.is_empty() && self.cursor == 0) {
            self.due = u32::MAX;
        }
        if now < self.due {
            return self.due;
        }
        let buckets = self.table.num_buckets();
        if self.swept_buckets != buckets {
            // Resized: entries are elsewhere now.
            self.swept_buckets = buckets;
            self.cursor = 0;
            self.earliest = u32::MAX;
        }
        let last = self.cursor.saturating_add(budget).min(buckets);
        while self.cursor < last {
            let Ok(entry) = self.table.get_bucket_entry(self.cursor) else {
                self.cursor += 1;
                continue;
            };
            let e = *entry.get();
            self.cursor += 1;
            if e.is_static {
                continue;
            }
            let life = if e.remote {
                ageing.saturating_mul(3)
            } else {
                ageing
            };
            let end = e.seen.saturating_add(life);
            let go_on = if end <= now {
                entry.remove();
                self.count_change(e.port, -1);
                each(&e, Swept::Aged)
            } else {
                self.earliest = self.earliest.min(end);
                e.remote || each(&e, Swept::Alive)
            };
            if !go_on {
                break;
            }
        }
        if self.cursor >= buckets {
            self.cursor = 0;
            let earliest = std::mem::replace(&mut self.earliest, u32::MAX);
            // Not more than sixteen sweeps per ageing time, and one a second.
            let gap = (ageing / 16).max(1);
            self.due = if self.table.is_empty() {
                self.table = HashTable::new();
                u32::MAX
            } else {
                // Entries may have come behind the cursor, so at the latest after one ageing time.
                earliest
                    .max(now.saturating_add(gap))
                    .min(now.saturating_add(ageing.max(gap)))
            };
        }
        self.due
    }
}

fn count(learned: &[u32], port: PortId) -> u32 {
    learned.get(port.index()).copied().unwrap_or(0)
}
