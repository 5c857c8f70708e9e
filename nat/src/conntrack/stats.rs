//! Counters, and the reasons behind them.

use super::timeouts::CLASSES;
use thiserror::Error;

/// Why a packet belongs to no connection and opens none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Invalid {
    /// TCP flags that make no sense together.
    Flags,
    /// TCP that doesn't begin with SYN, of no known connection.
    NotSyn,
    /// TCP sequence or acknowledgement number out of the window.
    Window,
    /// TCP reset at a sequence number that its receiver can't accept.
    Reset,
    /// The connection's state has no place for such a packet.
    State,
    /// An answer to an ICMP query nobody made.
    Unsolicited,
    /// SCTP verification tag of another association.
    Tag,
    /// SCTP that doesn't begin with INIT, of no known association.
    NotInit,
}

/// Number of [`Invalid`] reasons.
pub const INVALIDS: usize = 8;

impl Invalid {
    /// All of them.
    pub const ALL: [Invalid; INVALIDS] = [
        Invalid::Flags,
        Invalid::NotSyn,
        Invalid::Window,
        Invalid::Reset,
        Invalid::State,
        Invalid::Unsolicited,
        Invalid::Tag,
        Invalid::NotInit,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Invalid::Flags => "flags",
            Invalid::NotSyn => "not-syn",
            Invalid::Window => "window",
            Invalid::Reset => "reset",
            Invalid::State => "state",
            Invalid::Unsolicited => "unsolicited",
            Invalid::Tag => "tag",
            Invalid::NotInit => "not-init",
        }
    }
}

/// Why a connection couldn't be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum ConfirmError {
    /// No place, and nothing that may give way.
    #[error(
        "enter connection: the table is full of connections that may not be evicted; raise max-entries or shorten timeouts"
    )]
    Full,
    /// The source has as many connections as it may.
    #[error("enter connection: its source is at the limit of connections per source")]
    SourceLimit,
    /// One of the tuples is another connection's; NAT has to choose another reply tuple.
    #[error("enter connection: one of its tuples belongs to another connection")]
    Clash,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Idle for its timeout.
    Expired,
    /// Gave way to a new one in a full table.
    Evicted,
    /// Over, and its tuple used again.
    Reopened,
    /// Flushed by the operator.
    Flushed,
    /// Removed by the gateway.
    Removed,
}

/// Counters since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets of known connections.
    pub found: u64,
    /// Packets that could open one.
    pub new: u64,
    /// Connections entered.
    pub confirmed: u64,
    /// Packets refused, by [`Invalid`].
    pub invalid: [u64; INVALIDS],
    /// Connections not entered because the table was full.
    pub full: u64,
    /// Connections not entered because their source was at its limit.
    pub source_limited: u64,
    /// Connections not entered because of a clash of tuples.
    pub clashes: u64,
    /// Connections that expired.
    pub expired: u64,
    /// Connections evicted, by [`super::Class`].
    pub evicted: [u64; CLASSES],
    /// Connections whose tuple was used again.
    pub reopened: u64,
    /// Connections flushed or removed.
    pub flushed: u64,
    /// Events nobody took in time.
    pub events_lost: u64,
}
