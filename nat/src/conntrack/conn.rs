//! A connection as it lies in memory: three cache lines.
//!
//! The first has the original tuple and what every packet needs, the second the reply tuple and what is seldom needed, the third what
//! every packet writes. So a packet of the original direction touches two lines, one of the reply direction three.

use super::tcp_state::{Bits, Side};
use super::timeouts::{Class, Timeout};
use super::tuple::{Dir, Tuple};

/// Names a connection for as long as it lives; the place of a dead one is used again under another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// State of a connection as the middle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// TCP: the original side has sent SYN.
    SynSent,
    /// TCP: both have sent SYN (simultaneous open).
    SynSent2,
    /// TCP: one side has acknowledged the other's SYN.
    SynRecv,
    /// TCP: both SYNs are acknowledged. SCTP: the association is up.
    Established,
    /// TCP: one side has sent FIN.
    FinWait,
    /// TCP: that FIN is acknowledged; the other side may go on sending.
    CloseWait,
    /// TCP: both have sent FIN, not all is acknowledged (LAST-ACK, CLOSING).
    LastAck,
    /// TCP: both FINs are acknowledged.
    TimeWait,
    /// TCP: reset.
    Closed,
    /// SCTP: handshake under way.
    Opening,
    /// SCTP: shut down or aborted.
    Shutdown,
    /// Without handshake: seen one way.
    Unreplied,
    /// Without handshake: seen both ways.
    Replied,
    /// Without handshake: both ways for longer than a query takes.
    Stream,
}

/// What the gateway keeps with a connection and needs per packet. Opaque here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct User {
    /// The translation, e.g. an index into the gateway's own table.
    pub nat: u32,
    /// Epoch of the policy that judged it: older than the present one, it is judged anew.
    pub epoch: u32,
    /// The rule or verdict.
    pub rule: u32,
}

/// Nothing: end of a list, or no entry.
pub(super) const NIL: u32 = u32::MAX;

pub(super) const LIVE: u8 = 1;
pub(super) const REPLIED: u8 = 2;
/// A direction has a place on the fast path.
pub(super) const FAST: u8 = 4;
/// No place on the fast path.
pub(super) const SLOW: u16 = u16::MAX;

/// A connection.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Conn {
    pub(super) original: Tuple,
    pub(super) generation: u32,
    /// Second of the last packet.
    pub(super) seen: u32,
    pub(super) state: State,
    pub(super) flags: u8,
    pub(super) bits: Bits,
    pub(super) user: User,

    pub(super) reply: Tuple,
    pub(super) created: u32,
    /// Neighbours in its list of the wheel; `next` alone in the list of free places.
    pub(super) prev: u32,
    pub(super) next: u32,
    pub(super) mark: u32,
    /// Slot of the wheel.
    pub(super) slot: u16,
    pub(super) timeout: Timeout,
    /// Places of the directions on the fast path, or [`SLOW`].
    pub(super) fast: [u16; 2],

    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
    pub(super) sides: [Side; 2],
}

impl Conn {
    /// The tuple of a direction.
    #[must_use]
    pub fn tuple(&self, dir: Dir) -> &Tuple {
        match dir {
            Dir::Original => &self.original,
            Dir::Reply => &self.reply,
        }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether a packet has come back.
    #[must_use]
    pub fn replied(&self) -> bool {
        self.flags & REPLIED != 0
    }

    /// How readily it is evicted.
    #[must_use]
    pub fn class(&self) -> Class {
        self.timeout.class()
    }

    /// Whether it is an established, two-way exchange.
    #[must_use]
    pub fn assured(&self) -> bool {
        self.class() == Class::Assured
    }

    /// The timeout that holds now.
    #[must_use]
    pub fn timeout(&self) -> Timeout {
        self.timeout
    }

    /// Packets of a direction.
    #[must_use]
    pub fn packets(&self, dir: Dir) -> u64 {
        self.packets[dir as usize]
    }

    /// Bytes of a direction.
    #[must_use]
    pub fn bytes(&self, dir: Dir) -> u64 {
        self.bytes[dir as usize]
    }

    /// What the gateway keeps with it.
    #[must_use]
    pub fn user(&self) -> User {
        self.user
    }

    /// Place of a direction on the fast path.
    #[must_use]
    pub fn fast(&self, dir: Dir) -> Option<u16> {
        let place = self.fast[dir as usize];
        (place != SLOW).then_some(place)
    }

    /// Its mark.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.mark
    }

    pub(super) fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }
}

/// A connection for control: what `show` prints, what an event says, and what is written down to survive a restart. Times are
/// relative, for the next process has another clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Tuple of the first packet.
    pub original: Tuple,
    /// Tuple of what comes back, as NAT has chosen it.
    pub reply: Tuple,
    /// State.
    pub state: State,
    /// A packet has come back.
    pub replied: bool,
    /// Which timeout holds; it follows from the others and isn't read by `import`.
    pub timeout: Timeout,
    /// Seconds since the first packet.
    pub age: u32,
    /// Seconds since the last packet.
    pub idle: u32,
    /// Seconds until it expires; not read by `import`.
    pub left: u32,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Bytes by direction.
    pub bytes: [u64; 2],
    /// What the gateway keeps with it.
    pub user: User,
    /// Its mark.
    pub mark: u32,
    /// TCP window tracking by direction.
    pub sides: [Side; 2],
    /// TCP window scales and flags.
    pub bits: Bits,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn three_cache_lines() {
        println!("Conn: {} bytes", size_of::<Conn>());
        assert_eq!((size_of::<Conn>(), align_of::<Conn>()), (192, 64));
        assert_eq!(offset_of!(Conn, reply), 64);
        assert_eq!(offset_of!(Conn, packets), 128);
    }
}
