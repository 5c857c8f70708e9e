//! Answers that were fetched, until their TTL ends: bounded in number and bytes.
//!
//! An entry is the resolver's message, cleaned of OPT, with the places of its TTLs. Which one goes when room is needed is
//! decided by a queue with a second chance: what was asked for since it was last looked at goes to the back, once.

use super::wire::{self, Question, kind, rcode};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// Longest that an answer is kept.
const LONGEST: u32 = 86_400;
/// Longest for "there is none" (RFC 2308 5 suggests one to three hours).
const LONGEST_NEGATIVE: u32 = 10_800;
/// For a resolver's failure (RFC 9520 3.2: at least a second, at most 5 minutes).
const FAILURE: u32 = 5;
/// What an entry costs beside its bytes.
const OVERHEAD: usize = 160;
/// Entries that one insertion gives a second chance at most.
const CHANCES: usize = 32;

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) question: Question,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

#[derive(Debug)]
struct Entry {
    message: Box<[u8]>,
    /// Where the TTLs are.
    ttls: Box<[u16]>,
    since: Nanos,
    until: Nanos,
    asked: bool,
    /// Tells this entry from an older one of the key in the queue.
    serial: u64,
}

/// Counts of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Entries now.
    pub entries: usize,
    /// Bytes they take.
    pub bytes: usize,
    /// Entries that had to go before their time.
    pub evicted: u64,
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Arc<Key>, Entry, foldhash::quality::RandomState>,
    queue: VecDeque<(Arc<Key>, u64)>,
    max_entries: usize,
    max_bytes: usize,
    bytes: usize,
    serial: u64,
    evicted: u64,
}

impl Cache {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Cache {
        Cache {
            entries: HashMap::default(),
            queue: VecDeque::new(),
            max_entries,
            max_bytes,
            bytes: 0,
            serial: 0,
            evicted: 0,
        }
    }

    /// The message with its TTLs counted down.
    pub(super) fn get(&mut self, key: &Key, now: Nanos) -> Option<Vec<u8>> {
        let entry = self.entries.get_mut(key)?;
        if entry.until <= now {
            self.remove(key);
            return None;
        }
        entry.asked = true;
        let mut message = entry.message.to_vec();
        let age = u32::try_from(now.since(entry.since).as_secs()).unwrap_or(u32::MAX);
        for at in &entry.ttls {
            let at = usize::from(*at);
            let ttl = wire::u32_at(&message, at).unwrap_or(0);
            if let Some(field) = message.get_mut(at..at + 4) {
                field.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
            }
        }
        Some(message)
    }

    /// Keeps a cleaned message as long as it says.
    pub(super) fn put(&mut self, key: Key, message: &[u8], now: Nanos) {
        let Some((ttl, ttls)) = lifetime(&key.question, message).filter(|(ttl, _)| *ttl > 0) else {
            return;
        };
        let cost = message.len() + key.question.name.len() + ttls.len() * 2 + OVERHEAD;
        if cost > self.max_bytes || self.max_entries == 0 {
            return;
        }
        self.remove(&key);
        self.make_room(cost, now);
        self.serial += 1;
        let key = Arc::new(key);
        self.queue.push_back((key.clone(), self.serial));
        self.bytes += cost;
        let entry = Entry {
            message: message.into(),
            ttls: ttls.into(),
            since: now,
            until: now.after(Duration::from_secs(ttl.into())),
            asked: false,
            serial: self.serial,
        };
        self.entries.insert(key, entry);
    }

    fn make_room(&mut self, cost: usize, now: Nanos) {
        let mut chances = CHANCES;
        // Stale places in the queue are bounded as well.
        while self.entries.len() >= self.max_entries
            || self.bytes + cost > self.max_bytes
            || self.queue.len() > self.max_entries * 2
        {
            let Some((key, serial)) = self.queue.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&*key).filter(|e| e.serial == serial) else {
                continue;
            };
            if entry.asked && entry.until > now && chances > 0 {
                chances -= 1;
                entry.asked = false;
                self.queue.push_back((key, serial));
            } else {
                self.evicted += u64::from(entry.until > now);
                self.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -=
                old.message.len() + key.question.name.len() + old.ttls.len() * 2 + OVERHEAD;
        }
    }

    /// Forgets everything, as when the resolvers change.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.queue.clear();
        self.bytes = 0;
    }

    /// Forgets failures of resolvers.
    pub(super) fn forget_failures(&mut self) {
        let failed = |e: &Entry| {
            wire::u16_at(&e.message, 2).is_some_and(|flags| flags & 15 == rcode::SERV_FAIL)
        };
        let all = self.entries.iter().filter(|(_, e)| failed(e));
        let keys: Vec<Arc<Key>> = all.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            entries: self.entries.len(),
            bytes: self.bytes,
            evicted: self.evicted,
        }
    }
}

/// How long a message may be kept in seconds, and where its TTLs are (RFC 2308).
fn lifetime(question: &Question, message: &[u8]) -> Option<(u32, Vec<u16>)> {
    let code = wire::u16_at(message, 2)? & 15;
    let (_, end) = Question::read(message)?;
    let records = wire::records(message, end)?;
    let ttls: Vec<u16> = records
        .iter()
        .map(|r| u16::try_from(r.ttl_at).ok())
        .collect::<Option<_>>()?;
    // A TTL with the top bit set is zero (RFC 2181 8).
    let ttl = |t: u32| if t > i32::MAX as u32 { 0 } else { t };
    let shortest = records.iter().map(|r| ttl(r.ttl)).min();
    let answered = records
        .iter()
        .any(|r| r.section == 0 && (r.kind == question.kind || question.kind == kind::ANY));
    let secs = match code {
        rcode::NO_ERROR if answered => shortest?.min(LONGEST),
        rcode::NO_ERROR | rcode::NX_DOMAIN => {
            // Without an SOA it may not be kept (RFC 2308 5).
            let soa = records
                .iter()
                .find(|r| r.section == 1 && r.kind == kind::SOA)?;
            let (data, end) = soa.data;
            let at = end.checked_sub(4).filter(|at| *at >= data)?;
            let minimum = wire::u32_at(message, at)?;
            shortest?.min(ttl(minimum)).min(LONGEST_NEGATIVE)
        }
        rcode::SERV_FAIL => FAILURE,
        _ => return None,
    };
    Some((secs, ttls))
}
