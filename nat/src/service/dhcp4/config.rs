//! What the server gives, and the checks on it.

use super::MAX_ADDRESSES;
use crate::service::name::InvalidName;
use std::net::Ipv4Addr;
use std::time::Duration;
use vswitch_core::wire::MacAddr;

/// Who gets a fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaticFor {
    /// Whoever asks at the port.
    Port(String),
    /// The interface with the MAC, wherever it is.
    Mac(MacAddr),
}

/// A fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticLease {
    /// Who gets it. A port counts more than a MAC.
    pub to: StaticFor,
    /// The address; in a pool or not.
    pub address: Ipv4Addr,
    /// Name told to the client, instead of the one it claims.
    pub host_name: Option<String>,
}

/// What the server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The server's own address: the gateway's.
    pub server: Ipv4Addr,
    /// Prefix length of the network.
    pub prefix_len: u8,
    /// First and last addresses of the ranges to give from.
    pub pools: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Fixed addresses.
    pub statics: Vec<StaticLease>,
    /// Lease time; a client may ask for less. `u32::MAX` seconds is for ever.
    pub lease_time: Duration,
    /// How long an offered address is kept for its client.
    pub offer_time: Duration,
    /// How long an address rests that a client found in use.
    pub decline_time: Duration,
    /// Default router told to clients.
    pub router: Option<Ipv4Addr>,
    /// DNS servers told to clients.
    pub dns: Vec<Ipv4Addr>,
    /// Domain told to clients.
    pub domain: Option<String>,
    /// Search list told to clients that ask for one (RFC 3397).
    pub search: Vec<String>,
    /// MTU told to clients.
    pub mtu: Option<u16>,
    /// Whether DISCOVER may be answered by ACK at once (RFC 4039).
    pub rapid_commit: bool,
    /// Most leases, offers and remembered clients together.
    pub max_leases: usize,
    /// Most leases and offers of one port.
    pub max_per_port: usize,
}

impl Config {
    /// Usual values for the network of `server`; it has no pool yet.
    #[must_use]
    pub fn new(server: Ipv4Addr, prefix_len: u8) -> Config {
        Config {
            server,
            prefix_len,
            pools: vec![],
            statics: vec![],
            lease_time: Duration::from_secs(3600),
            offer_time: Duration::from_secs(30),
            decline_time: Duration::from_secs(600),
            router: Some(server),
            dns: vec![server],
            domain: None,
            search: vec![],
            mtu: None,
            rapid_commit: false,
            max_leases: 65_536,
            max_per_port: 64,
        }
    }

    pub(super) fn mask(&self) -> Ipv4Addr {
        let host = u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
        Ipv4Addr::from(!host)
    }

    pub(super) fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.server) | !u32::from(self.mask()))
    }

    /// Whether a host may have the address here.
    pub(super) fn on_link(&self, address: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        let host = u32::from(address) & !mask;
        u32::from(address) & mask == u32::from(self.server) & mask
            && (self.prefix_len >= 31 || (host != 0 && host != !mask))
    }
}

/// A configuration that can't be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("DHCP: the prefix length is {0}; use 1 to 32")]
    PrefixLen(u8),
    #[error(
        "DHCP: the pools overlap, are reversed or hold more than {MAX_ADDRESSES} addresses; write first-last, lower address first"
    )]
    Pools,
    #[error("DHCP: {0} isn't an address of the network {1}/{2}; use one of its host addresses")]
    OffLink(Ipv4Addr, Ipv4Addr, u8),
    #[error("DHCP: {0} is the gateway's own address; give the static lease another one")]
    Own(Ipv4Addr),
    #[error("DHCP: {0} is fixed twice; give each static lease an address of its own")]
    Twice(Ipv4Addr),
    #[error("DHCP domain: {0}")]
    Domain(#[from] InvalidName),
}
