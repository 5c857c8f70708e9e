//! What can be set.

use super::timeouts::{Class, Timeouts};

/// How strict tracking of TCP is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Connections may be taken up in the middle, or seen one way only (after a restart, or on asymmetric routes).
    pub pickup: bool,
    /// Segments out of the window are passed on. Resets are checked all the same.
    pub liberal: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        TcpOptions {
            pickup: true,
            liberal: false,
        }
    }
}

/// Configuration of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most connections; fixed, since the table never grows while it works. At most 2^28.
    pub max_entries: u32,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Most connections of one source: an IPv4 address, or an IPv6 /64.
    pub per_source: Option<u32>,
    /// TCP.
    pub tcp: TcpOptions,
    /// Datagrams from outside keep a connection alive as those from inside do (RFC 4787 REQ-6). For who tracks, who knows where
    /// outside is: [`super::Packet::refreshes`].
    pub inbound_refresh: bool,
    /// When the table is full, connections up to this class give way to new ones.
    pub evict: Class,
    /// Seed of the hashes: random, and secret.
    pub seed: u64,
    /// Most events kept for [`super::Conntrack::take_event`]; 0 for none.
    pub events: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_entries: 262_144,
            timeouts: Timeouts::default(),
            per_source: Some(65_536),
            tcp: TcpOptions::default(),
            inbound_refresh: true,
            evict: Class::Replied,
            seed: 0,
            events: 0,
        }
    }
}
