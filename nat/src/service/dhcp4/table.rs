//! Leases by client and by address, bounded, with their deadlines.
//!
//! An address has at most one entry and a client at most one address, so leases are unique by construction. An entry goes
//! offered -> bound -> past; *past* ones only remember who had the address, so that a client which comes back gets it
//! again, and are the first to be evicted. Addresses that a client found in use rest apart as *declined*.

use super::pool::Pool;
use hashbrown::{HashMap, HashSet};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::MacAddr;

/// Who a client is: its identifier, at the port where it lives. An identifier alone could be copied by a neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) port: Arc<str>,
    /// Client identifier, or hardware type and address.
    pub(super) id: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Offered,
    Bound,
    Past,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) client: Client,
    pub(super) mac: MacAddr,
    pub(super) host_name: Option<String>,
    pub(super) state: State,
    /// End of the offer or lease, or when it became past.
    pub(super) until: Nanos,
}

/// A lease as it is shown and saved; times are relative, so it outlives the clock of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address leased.
    pub address: Ipv4Addr,
    /// Hardware address of the client.
    pub mac: MacAddr,
    /// Name of the port the client is at.
    pub port: String,
    /// Client identifier, or hardware type and address where the client sent none.
    pub client_id: Vec<u8>,
    /// Host name the client asked for, unique among the leases.
    pub host_name: Option<String>,
    /// Time until it ends.
    pub remaining: Duration,
}

/// All leases of a server.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) pool: Pool,
    by_address: HashMap<Ipv4Addr, Entry, foldhash::quality::RandomState>,
    by_client: HashMap<Client, Ipv4Addr, foldhash::quality::RandomState>,
    by_name: HashMap<String, Ipv4Addr, foldhash::quality::RandomState>,
    /// Offered and bound entries of each port.
    per_port: HashMap<Arc<str>, usize, foldhash::quality::RandomState>,
    deadlines: BTreeSet<(Nanos, Ipv4Addr)>,
    past: BTreeSet<(Nanos, Ipv4Addr)>,
    declined: BTreeSet<(Nanos, Ipv4Addr)>,
    /// Addresses that stay marked in the pool whatever happens: static ones and the server's.
    reserved: HashSet<Ipv4Addr, foldhash::quality::RandomState>,
    limit: usize,
}

impl Table {
    pub(super) fn new(
        mut pool: Pool,
        limit: usize,
        reserved: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Table {
        let reserved: HashSet<_, _> = reserved.into_iter().collect();
        for address in &reserved {
            pool.mark(*address, true);
        }
        Table {
            pool,
            by_address: HashMap::default(),
            by_client: HashMap::default(),
            by_name: HashMap::default(),
            per_port: HashMap::default(),
            deadlines: BTreeSet::new(),
            past: BTreeSet::new(),
            declined: BTreeSet::new(),
            reserved,
            limit,
        }
    }

    /// The entry of a client, whatever its state.
    pub(super) fn of(&self, client: &Client) -> Option<(Ipv4Addr, &Entry)> {
        let address = self.by_client.get(client)?;
        Some((*address, self.by_address.get(address)?))
    }

    /// Whether `client` may have the address: nobody else holds it and it isn't declined.
    pub(super) fn available(&self, address: Ipv4Addr, client: &Client) -> bool {
        let held = self
            .by_address
            .get(&address)
            .is_some_and(|e| e.state != State::Past && e.client != *client);
        !held && !self.declined.iter().any(|(_, a)| *a == address)
    }

    /// Offered and bound entries of a port.
    pub(super) fn at_port(&self, port: &str) -> usize {
        self.per_port.get(port).copied().unwrap_or(0)
    }

    /// Whether an address is one that any client may have.
    pub(super) fn dynamic(&self, address: Ipv4Addr) -> bool {
        self.pool.contains(address) && !self.reserved.contains(&address)
    }

    /// The lease of an address.
    pub(super) fn lease(&self, address: Ipv4Addr, now: Nanos) -> Option<Lease> {
        let entry = self.by_address.get(&address)?;
        (entry.state == State::Bound).then(|| lease(address, entry, now))
    }

    fn unmark(&mut self, address: Ipv4Addr) {
        if !self.reserved.contains(&address) {
            self.pool.mark(address, false);
        }
    }

    /// Enters an offered or bound entry; what the client or the address had before goes. The host name stays only if no other
    /// lease has it. False when the table is full of leases.
    pub(super) fn put(&mut self, address: Ipv4Addr, mut entry: Entry) -> bool {
        if let Some(old) = self.by_client.get(&entry.client).copied() {
            self.forget(old);
        }
        self.forget(address);
        while self.by_address.len() >= self.limit {
            let Some((_, oldest)) = self.past.first().copied() else {
                return false;
            };
            self.forget(oldest);
        }
        if let Some(name) = &entry.host_name {
            if self.by_name.contains_key(name) {
                entry.host_name = None;
            } else {
                self.by_name.insert(name.clone(), address);
            }
        }
        self.pool.mark(address, true);
        self.deadlines.insert((entry.until, address));
        *self.per_port.entry(entry.client.port.clone()).or_default() += 1;
        self.by_client.insert(entry.client.clone(), address);
        self.by_address.insert(address, entry);
        true
    }

    /// Removes all trace of an address but a decline.
    pub(super) fn forget(&mut self, address: Ipv4Addr) -> Option<Entry> {
        self.deactivate(address);
        let entry = self.by_address.remove(&address)?;
        self.past.remove(&(entry.until, address));
        self.by_client.remove(&entry.client);
        Some(entry)
    }

    /// Ends a lease or an offer; its client is remembered.
    pub(super) fn release(&mut self, address: Ipv4Addr, now: Nanos) {
        self.deactivate(address);
        if let Some(entry) = self.by_address.get_mut(&address) {
            self.past.remove(&(entry.until, address));
            entry.state = State::Past;
            entry.host_name = None;
            entry.until = now;
            self.past.insert((now, address));
        }
    }

    /// Undoes what an active entry has beyond its place in the two maps.
    fn deactivate(&mut self, address: Ipv4Addr) {
        let Some(entry) = self.by_address.get(&address) else {
            return;
        };
        if entry.state == State::Past {
            return;
        }
        self.deadlines.remove(&(entry.until, address));
        let name = entry.host_name.clone();
        let port = entry.client.port.clone();
        self.unmark(address);
        if let Some(name) = name {
            self.by_name.remove(&name);
        }
        if let Some(n) = self.per_port.get_mut(&port) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.per_port.remove(&port);
            }
        }
    }

    /// Lets an address rest until `until`; of more than `most` resting ones the one nearest its end goes.
    pub(super) fn decline(&mut self, address: Ipv4Addr, until: Nanos, most: usize) {
        self.forget(address);
        self.declined.insert((until, address));
        self.pool.mark(address, true);
        if self.declined.len() > most
            && let Some((_, first)) = self.declined.pop_first()
        {
            self.unmark(first);
        }
    }

    /// Ends what is over at `now`, at most `budget` entries; the leases among them.
    pub(super) fn expire(&mut self, now: Nanos, budget: usize) -> Vec<Lease> {
        let mut ended = vec![];
        for _ in 0..budget {
            let Some((until, address)) = self.deadlines.first().copied() else {
                break;
            };
            if until > now {
                break;
            }
            if let Some(entry) = self.by_address.get(&address)
                && entry.state == State::Bound
            {
                ended.push(lease(address, entry, now));
            }
            self.release(address, now);
        }
        while let Some((until, address)) = self.declined.first().copied()
            && until <= now
        {
            self.declined.pop_first();
            self.unmark(address);
        }
        ended
    }

    /// When [`Table::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Nanos {
        let first = |set: &BTreeSet<(Nanos, Ipv4Addr)>| set.first().map_or(Nanos::MAX, |(t, _)| *t);
        first(&self.deadlines).min(first(&self.declined))
    }

    /// The leases, by end.
    pub(super) fn bound(&self) -> impl Iterator<Item = (Ipv4Addr, &Entry)> {
        self.deadlines
            .iter()
            .filter_map(|(_, a)| Some((*a, self.by_address.get(a)?)))
            .filter(|(_, e)| e.state == State::Bound)
    }
}

pub(super) fn lease(address: Ipv4Addr, entry: &Entry, now: Nanos) -> Lease {
    Lease {
        address,
        mac: entry.mac,
        port: entry.client.port.to_string(),
        client_id: entry.client.id.to_vec(),
        host_name: entry.host_name.clone(),
        remaining: entry.until.since(now),
    }
}
