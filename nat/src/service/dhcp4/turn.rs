//! One message of a client: what RFC 2131 4.3 has the server do.

use super::request::Request;
use super::table::{Client, Entry, State, lease};
use super::{Change, InUse, Reply, Server, reply};
use dhcproto::v4::MessageType;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// Free addresses that a request asks `in_use` about before it gives up.
const CANDIDATES: usize = 32;
/// Shortest lease given to a client that asks for less.
const SHORT_LEASE: Duration = Duration::from_secs(60);

/// One message being served.
pub(super) struct Turn<'a> {
    pub(super) server: &'a mut Server,
    pub(super) request: &'a Request,
    pub(super) client: Client,
    pub(super) now: Nanos,
    pub(super) changes: &'a mut Vec<Change>,
}

impl Turn<'_> {
    pub(super) fn discover(&mut self, in_use: InUse<'_>) -> Option<Reply> {
        let address = self.choose(in_use);
        let rapid = self.request.rapid_commit && self.server.config.rapid_commit;
        let reply = match address {
            Some(address) if rapid => self.bind(address),
            Some(address) => self.offer(address),
            None => None,
        };
        if reply.is_none() {
            self.server.stats.exhausted += 1;
        }
        reply
    }

    /// The address for a DISCOVER, in the order of the module's head.
    fn choose(&self, in_use: InUse<'_>) -> Option<Ipv4Addr> {
        let table = &self.server.table;
        if let Some(fixed) = self.fixed() {
            return Some(fixed);
        }
        let own = table.of(&self.client);
        if let Some((address, entry)) = own
            && entry.state != State::Past
            && self.server.table.dynamic(address)
        {
            return Some(address);
        }
        let had = own.map(|(address, _)| address);
        for address in had.into_iter().chain(self.request.requested) {
            if self.may_have(address) && !in_use(address) {
                return Some(address);
            }
        }
        // Not a secret: an even spread that is the same after a restart.
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        hasher.write(&self.client.id);
        let mut from = hasher.finish() as usize;
        for _ in 0..CANDIDATES {
            let (index, address) = table.pool.next_free(from)?;
            if !in_use(address) {
                return Some(address);
            }
            from = index + 1;
        }
        None
    }

    /// The client's fixed address, unless another client at the port has it already.
    fn fixed(&self) -> Option<Ipv4Addr> {
        let fixed = self
            .server
            .fixed(&self.client.port, self.request.chaddr)?
            .address;
        self.server
            .table
            .available(fixed, &self.client)
            .then_some(fixed)
    }

    fn may_have(&self, address: Ipv4Addr) -> bool {
        self.server.table.dynamic(address) && self.server.table.available(address, &self.client)
    }

    fn offer(&mut self, address: Ipv4Addr) -> Option<Reply> {
        let time = self.lease_time();
        let holds = self.server.table.of(&self.client);
        let bound = holds.is_some_and(|(a, e)| a == address && e.state == State::Bound);
        if !bound {
            let until = self.now.after(self.server.config.offer_time);
            self.enter(address, State::Offered, until)?;
        }
        self.server.stats.offers += 1;
        let config = &self.server.config;
        let lease = Some((address, time));
        let name = self.host_name();
        reply::give(config, self.request, MessageType::Offer, lease, name)
    }

    pub(super) fn request(&mut self, in_use: InUse<'_>) -> Option<Reply> {
        let request = self.request;
        if let Some(server) = request.server
            && server != self.server.config.server
        {
            // The client took another server's offer: ours is void.
            if let Some((address, entry)) = self.server.table.of(&self.client)
                && entry.state == State::Offered
            {
                self.server.table.release(address, self.now);
            }
            return None;
        }
        let Some(address) = request
            .requested
            .or(Some(request.ciaddr))
            .filter(|a| !a.is_unspecified())
        else {
            self.server.stats.invalid += 1;
            return None;
        };
        let holds = self.server.table.of(&self.client);
        let holds = holds.is_some_and(|(a, e)| a == address && e.state != State::Past);
        let granted = match self.fixed() {
            Some(fixed) => fixed == address,
            None => self.may_have(address) && (holds || !in_use(address)),
        };
        let reply = if granted { self.bind(address) } else { None };
        reply.or_else(|| {
            self.server.stats.naks += 1;
            reply::refuse(&self.server.config, request, "address not available")
        })
    }

    fn bind(&mut self, address: Ipv4Addr) -> Option<Reply> {
        let time = self.lease_time();
        self.enter(address, State::Bound, self.now.after(time))?;
        let (_, entry) = self.server.table.of(&self.client)?;
        self.changes
            .push(Change::Bound(lease(address, entry, self.now)));
        self.server.stats.acks += 1;
        let config = &self.server.config;
        let lease = Some((address, time));
        let name = self.host_name();
        reply::give(config, self.request, MessageType::Ack, lease, name)
    }

    /// Enters an offer or a lease; nothing where the port's share or the table is used up.
    fn enter(&mut self, address: Ipv4Addr, state: State, until: Nanos) -> Option<()> {
        let table = &mut self.server.table;
        let holds = table.of(&self.client);
        let active = holds.is_some_and(|(_, e)| e.state != State::Past);
        if !active && table.at_port(&self.client.port) >= self.server.config.max_per_port {
            return None;
        }
        if let Some((old, entry)) = holds
            && old != address
            && entry.state == State::Bound
        {
            self.changes
                .push(Change::Ended(lease(old, entry, self.now)));
        }
        let fixed_name = self
            .server
            .fixed(&self.client.port, self.request.chaddr)
            .filter(|s| s.address == address)
            .and_then(|s| s.host_name.clone());
        let entry = Entry {
            client: self.client.clone(),
            mac: self.request.chaddr,
            host_name: fixed_name.or_else(|| self.request.host_name.clone()),
            state,
            until,
        };
        let entered = self.server.table.put(address, entry);
        entered.then_some(())
    }

    pub(super) fn decline(&mut self) -> Option<Reply> {
        let (address, entry) = self.server.table.of(&self.client)?;
        if self.request.requested != Some(address) || entry.state == State::Past {
            return None;
        }
        if entry.state == State::Bound {
            self.changes
                .push(Change::Ended(lease(address, entry, self.now)));
        }
        let until = self.now.after(self.server.config.decline_time);
        let (addresses, _) = self.server.usage();
        // Declines can't eat the pool up.
        let most = (addresses / 8).clamp(1, 64);
        self.server.table.decline(address, until, most);
        self.server.stats.declines += 1;
        None
    }

    pub(super) fn release(&mut self) -> Option<Reply> {
        let (address, _) = self.server.table.of(&self.client)?;
        if self.request.ciaddr == address {
            self.server.end(address, self.now, self.changes);
        }
        None
    }

    pub(super) fn inform(&mut self) -> Option<Reply> {
        if self.request.ciaddr.is_unspecified() {
            self.server.stats.invalid += 1;
            return None;
        }
        let config = &self.server.config;
        reply::give(config, self.request, MessageType::Ack, None, None)
    }

    fn lease_time(&self) -> Duration {
        let most = self.server.config.lease_time;
        match self.request.lease_secs {
            Some(secs) => Duration::from_secs(secs.into()).clamp(SHORT_LEASE.min(most), most),
            None => most,
        }
    }

    /// Name told to the client: only one that was fixed for it.
    fn host_name(&self) -> Option<&str> {
        let fixed = self.server.fixed(&self.client.port, self.request.chaddr)?;
        fixed.host_name.as_deref()
    }
}
