//! What the host's kernel says of packets sent, as the ICMP errors that the container would have got.
//!
//! A router's or far end's message is in the error queue of the socket (IP_RECVERR), with its type, code, MTU and sender, and is passed on as
//! it is. What the kernel itself refuses is said in the gateway's name.

use super::Out;
use crate::reply::Cause;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use vswitch_core::frame::{Entry, Frame, GsoType};
use vswitch_core::sys::datagram::{self, Cut, QueuedError};
use vswitch_core::wire::L3;

/// Errors told before others have their turn.
const AT_ONCE: usize = 8;
/// A TTL below this is set at the socket: somebody traces a route. Above, the host's own serves.
const LOW_TTL: u8 = 32;
/// The longest packet whose "don't fragment" means the way outside: Ethernet's. Longer ones show no more than that the link to us takes
/// them, and the host cuts them as it would an own process's.
const ETHERNET: usize = 1500;

/// What an error of connecting or sending is to a container.
pub(super) fn cause_of(e: &io::Error) -> Cause {
    match e.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Cause::PortUnreachable,
        ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown | ErrorKind::AddrNotAvailable => {
            Cause::NetUnreachable
        }
        ErrorKind::PermissionDenied => Cause::Prohibited,
        _ => Cause::HostUnreachable,
    }
}

/// What the error queue says.
pub(super) fn cause(e: &QueuedError, v6: bool) -> Cause {
    match (e.icmp, v6) {
        (Some((3, 4)), false) | (Some((2, _)), true) => Cause::TooBig(e.info),
        // RFC 792: unreachable, time exceeded, parameter problem; RFC 4443 the same.
        (Some((ty @ (3 | 11 | 12), code)), false) | (Some((ty @ (1 | 3 | 4), code)), true) => {
            Cause::Told(ty, code)
        }
        _ if is_too_long(&io::Error::from_raw_os_error(e.errno)) => Cause::TooBig(e.info),
        _ => cause_of(&io::Error::from_raw_os_error(e.errno)),
    }
}

/// Whether the kernel refused a packet for its length; the error queue has the MTU.
pub(super) fn is_too_long(e: &io::Error) -> bool {
    e.raw_os_error() == Some(datagram::TOO_LONG)
}

/// Reads what a socket's error queue has; true if there may be more. `quote` makes the packet of the container that an error is about, of
/// what the error quotes.
pub(super) fn errors(
    fd: BorrowedFd<'_>,
    v6: bool,
    out: &mut Vec<Out>,
    quote: &dyn Fn(&[u8]) -> Option<Frame>,
) -> bool {
    for _ in 0..AT_ONCE {
        let Ok(e) = datagram::next_error(fd) else {
            return false;
        };
        out.extend(quote(&e.quote).map(|f| Out::Error(f, cause(&e, v6), sender(&e))));
    }
    true
}

/// Why, and who says so.
pub(super) type Told = (Cause, Option<IpAddr>);

/// Why a connection couldn't be made, if ICMP says more than the errno does, and who sent it.
pub(super) fn why(fd: BorrowedFd<'_>, v6: bool) -> Option<Told> {
    let e = datagram::next_error(fd).ok().filter(|e| e.icmp.is_some())?;
    Some((cause(&e, v6), sender(&e)))
}

/// Who sent the ICMP message.
pub(super) fn sender(e: &QueuedError) -> Option<IpAddr> {
    e.from
        .filter(|a| !a.is_loopback() && !a.is_unspecified() && !a.is_multicast())
}

/// How a packet wants to travel, as far as a socket can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Travel {
    pub(super) ttl: Option<u8>,
    pub(super) cut: Cut,
}

/// That of a socket that nothing was said to.
pub(super) const OWN: Travel = Travel {
    ttl: None,
    cut: Cut::Host,
};

impl Travel {
    /// That of a packet; `pieced`: it came in fragments.
    pub(super) fn of(e: &Entry, pieced: bool) -> Travel {
        let (head, l3) = (e.frame.head(), usize::from(e.meta.l3_off));
        let v4 = e.meta.l3 == L3::V4;
        let len = match (e.frame.vnet.gso, e.frame.vnet.gso_size) {
            (GsoType::None, _) => e.frame.len().saturating_sub(l3),
            (_, size) => usize::from(size) + usize::from(e.meta.l4_off).saturating_sub(l3) + 8,
        };
        let whole = !v4 || head.get(l3 + 6).is_some_and(|b| b & 0x40 != 0);
        let cut = match (pieced, v4) {
            (true, false) => Cut::Host,
            (true, true) => Cut::Anyone,
            _ if !whole => Cut::Anyone,
            _ if len > ETHERNET => Cut::Host,
            _ => Cut::Never,
        };
        Travel {
            ttl: low_ttl(e),
            cut,
        }
    }

    /// Tells a socket that was last told `is`. A kernel that refuses goes on as it did.
    pub(super) fn tell(self, fd: BorrowedFd<'_>, v6: bool, is: &mut Travel) {
        if self.ttl != is.ttl {
            let _ = datagram::set_ttl(fd, v6, self.ttl);
        }
        if self.cut != is.cut {
            let _ = datagram::set_cut(fd, v6, self.cut);
        }
        *is = self;
    }
}

/// That of a packet, if it is so low that somebody traces a route.
pub(super) fn low_ttl(e: &Entry) -> Option<u8> {
    Some(ttl_of(e)).filter(|ttl| *ttl < LOW_TTL)
}

/// TTL or hop limit of a packet.
pub(super) fn ttl_of(e: &Entry) -> u8 {
    let at = usize::from(e.meta.l3_off) + if e.meta.l3 == L3::V4 { 8 } else { 7 };
    e.frame.head().get(at).copied().unwrap_or(u8::MAX)
}
