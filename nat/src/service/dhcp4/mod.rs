//! DHCPv4 server of a network (RFC 2131, 2132).
//!
//! # Theory of operation
//! The server is the only one on its network, so it answers with authority: a client that asks for an address it may not
//! have is refused at once, and one whose lease was lost (the daemon came back without its state) gets the address again if it
//! is free, where RFC 2131 4.3.2 would keep silent.
//!
//! A client is its identifier (option 61, or its hardware address) *at its port*; the source MAC has to be the hardware
//! address inside, so port security holds here too. The address is, in this order: the static one of the port or the MAC, the
//! one it has, the one it had, the one it asks for, and else the first free one from a place in the pool that is a hash of
//! its identifier, so that it tends to get the same address again without any memory. The caller's predicate `in_use`
//! (neighbour table, FDB) keeps addresses away that somebody took by hand.
//!
//! A port has a limit of leases, declined addresses have one, and the table has one: a hostile container can use up its own
//! share and nobody else's. Leases are exported as plain [`Lease`]s and come back by [`Server::restore`].

mod config;
mod pool;
mod reply;
mod request;
mod table;
mod turn;

#[cfg(test)]
mod tests;

pub use config::{Config, ConfigError, StaticFor, StaticLease};
pub use pool::MAX_ADDRESSES;
pub use table::Lease;

use super::name;
use pool::Pool;
use request::{Kind, Request};
use std::net::Ipv4Addr;
use table::{Client, Entry, State, Table, lease};
use turn::Turn;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::MacAddr;

/// UDP port of the server.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;
/// Entries ended per request and per tick.
const EXPIRE: usize = 64;
/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Name of the port.
    pub port: &'a str,
    /// Source MAC of the frame.
    pub src: MacAddr,
    /// The present time.
    pub now: Nanos,
}

/// An answer: UDP payload from port 67 to port 68.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// BOOTP message.
    pub payload: Vec<u8>,
    /// Destination MAC: the client has no neighbour entry yet.
    pub mac: MacAddr,
    /// Destination address.
    pub ip: Ipv4Addr,
}

/// What happened to a lease; for names, state on disk and events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Given or renewed.
    Bound(Lease),
    /// Given back, expired, declined or replaced.
    Ended(Lease),
}

/// What a request led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What to send.
    pub reply: Option<Reply>,
    /// What changed, in order.
    pub changes: Vec<Change>,
}

/// Counts of what the server did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages that made no sense or whose hardware address was not the sender's.
    pub invalid: u64,
    /// Offers sent.
    pub offers: u64,
    /// Addresses given or renewed.
    pub acks: u64,
    /// Refusals sent.
    pub naks: u64,
    /// Addresses that clients found in use.
    pub declines: u64,
    /// Requests without a free address, or beyond the port's share.
    pub exhausted: u64,
}

/// The caller's knowledge of addresses that somebody uses without a lease.
pub type InUse<'a> = &'a mut dyn FnMut(Ipv4Addr) -> bool;

/// DHCPv4 server of one network.
#[derive(Debug)]
pub struct Server {
    config: Config,
    table: Table,
    stats: Stats,
}

impl Server {
    /// Checks the configuration.
    ///
    /// # Errors
    /// With what can't be served.
    pub fn new(config: Config) -> Result<Server, ConfigError> {
        if !(1..=32).contains(&config.prefix_len) {
            return Err(ConfigError::PrefixLen(config.prefix_len));
        }
        let off_link = |a| ConfigError::OffLink(a, config.server, config.prefix_len);
        let pool = Pool::new(&config.pools).ok_or(ConfigError::Pools)?;
        for address in config.pools.iter().flat_map(|(a, b)| [*a, *b]) {
            if !config.on_link(address) {
                return Err(off_link(address));
            }
        }
        for (n, fixed) in config.statics.iter().enumerate() {
            let address = fixed.address;
            if !config.on_link(address) {
                return Err(off_link(address));
            }
            if address == config.server {
                return Err(ConfigError::Own(address));
            }
            if config.statics.iter().take(n).any(|s| s.address == address) {
                return Err(ConfigError::Twice(address));
            }
        }
        for text in config.domain.iter().chain(&config.search) {
            name::domain(text)?;
        }
        let reserved = config.statics.iter().map(|s| s.address);
        let reserved: Vec<_> = reserved.chain([config.server]).collect();
        let limit = config.max_leases;
        Ok(Server {
            config,
            table: Table::new(pool, limit, reserved),
            stats: Stats::default(),
        })
    }

    /// Serves a client's message.
    pub fn handle(&mut self, payload: &[u8], cx: &Context<'_>, in_use: InUse<'_>) -> Outcome {
        let mut outcome = Outcome {
            reply: None,
            changes: self.tick(cx.now),
        };
        let Some(request) = Request::parse(payload).filter(|r| r.chaddr == cx.src) else {
            self.stats.invalid += 1;
            return outcome;
        };
        let mut id = vec![1];
        id.extend(request.chaddr.0);
        let client = Client {
            port: cx.port.into(),
            id: request.client_id.clone().unwrap_or(id).into(),
        };
        let mut turn = Turn {
            server: self,
            request: &request,
            client,
            now: cx.now,
            changes: &mut outcome.changes,
        };
        outcome.reply = match request.kind {
            Kind::Discover => turn.discover(in_use),
            Kind::Request => turn.request(in_use),
            Kind::Decline => turn.decline(),
            Kind::Release => turn.release(),
            Kind::Inform => turn.inform(),
        };
        outcome
    }

    /// Ends what is over; the leases that ended. To be called at [`Server::next_deadline`] or later.
    pub fn tick(&mut self, now: Nanos) -> Vec<Change> {
        let ended = self.table.expire(now, EXPIRE);
        ended.into_iter().map(Change::Ended).collect()
    }

    /// When [`Server::tick`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Nanos {
        self.table.next_deadline()
    }

    /// Ends all leases of a port that is gone.
    pub fn port_gone(&mut self, port: &str, now: Nanos) -> Vec<Change> {
        let of_port: Vec<Ipv4Addr> = self
            .table
            .bound()
            .filter(|(_, e)| &*e.client.port == port)
            .map(|(a, _)| a)
            .collect();
        let mut changes = vec![];
        for address in of_port {
            self.end(address, now, &mut changes);
        }
        changes
    }

    /// The leases, by end.
    #[must_use]
    pub fn leases(&self, now: Nanos) -> Vec<Lease> {
        self.table.bound().map(|(a, e)| lease(a, e, now)).collect()
    }

    /// Takes saved leases that the configuration still allows; how many.
    pub fn restore(&mut self, leases: &[Lease], now: Nanos) -> usize {
        let mut taken = 0;
        for saved in leases {
            let client = Client {
                port: saved.port.as_str().into(),
                id: saved.client_id.clone().into(),
            };
            let allowed = match self.fixed(&saved.port, saved.mac) {
                Some(fixed) if fixed.address == saved.address => true,
                _ => self.table.dynamic(saved.address),
            };
            if saved.remaining.is_zero()
                || !allowed
                || !self.table.available(saved.address, &client)
            {
                continue;
            }
            let entry = Entry {
                client,
                mac: saved.mac,
                host_name: saved
                    .host_name
                    .as_ref()
                    .and_then(|n| super::host_label(n.as_bytes())),
                state: State::Bound,
                until: now.after(saved.remaining),
            };
            taken += usize::from(self.table.put(saved.address, entry));
        }
        taken
    }

    /// Addresses in the pools, and how many of them can't be given now.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        self.table.pool.usage()
    }

    /// What the server did.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn fixed(&self, port: &str, mac: MacAddr) -> Option<&StaticLease> {
        let by_port = |s: &&StaticLease| matches!(&s.to, StaticFor::Port(p) if p == port);
        let by_mac = |s: &&StaticLease| s.to == StaticFor::Mac(mac);
        let statics = &self.config.statics;
        statics
            .iter()
            .find(by_port)
            .or_else(|| statics.iter().find(by_mac))
    }

    fn end(&mut self, address: Ipv4Addr, now: Nanos, changes: &mut Vec<Change>) {
        changes.extend(self.table.lease(address, now).map(Change::Ended));
        self.table.release(address, now);
    }
}
