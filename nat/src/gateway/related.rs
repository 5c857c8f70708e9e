//! ICMP errors: they belong to the connection of the packet they quote, and are translated with it.
//!
//! RFC 5508 REQ-3 to REQ-6: an error whose quote is of no connection, or not of what is under way, is dropped; inner addresses and
//! ports become those its receiver knows; its source is translated only if it is the connection's own end.

use super::Gateway;
use super::flows::ZONE;
use super::forward::Outcome;
use super::prefix::Mapped;
use crate::Endpoint;
use crate::conntrack::{Dir, Tuple};
use crate::hop::{self, Ttl};
use crate::icmp_error::{QuotedError, Translated};
use std::net::SocketAddr;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::frame::{DropReason, Entry};
use vswitch_core::worker::Cx;

/// The tuple of the packet that an error quotes.
fn tuple(error: &QuotedError, zone: u16) -> Tuple {
    let q = &error.quoted;
    let at = |end: Endpoint| SocketAddr::new(end.addr, end.port);
    if q.icmp_type.is_some_and(|t| t == 0 || t == 129) {
        // The identifier of an answer stands at its destination.
        Tuple::new(zone, q.proto, at(q.dst), at(q.src)).reversed()
    } else {
        Tuple::new(zone, q.proto, at(q.src), at(q.dst))
    }
}

/// The tuple of the packet that an ICMP error quotes, if the frame is one and quotes that much.
pub(super) fn quoted(e: &Entry, zone: u16) -> Option<Tuple> {
    let error = QuotedError::parse(&e.frame, &e.meta).ok()?;
    (!error.quoted.is_later_fragment()).then(|| tuple(&error, zone))
}

impl Gateway {
    /// An ICMP message that is no query: an error about one of our connections, or nothing of ours.
    pub(super) fn related(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        let error = QuotedError::parse(&e.frame, &e.meta).map_err(|_| DropReason::BadPacket)?;
        let q = &error.quoted;
        if q.is_later_fragment() {
            return Err(DropReason::InvalidState);
        }
        let quoted = tuple(&error, ZONE);
        let tracking = self.tracking.as_deref().ok_or(DropReason::NoRoute)?;
        let (id, dir) = tracking
            .conns
            .lookup_inner(&quoted)
            .ok_or(DropReason::InvalidState)?;
        let conn = tracking.conns.get(id).ok_or(DropReason::InvalidState)?;
        // The packet quoted went the other way; as its sender knows it, it has that direction's own tuple.
        let sent = *conn.tuple(dir.flip());
        let back = *conn.tuple(dir);
        let (outer_src, _) = e
            .meta
            .addresses(e.frame.head())
            .ok_or(DropReason::BadPacket)?;
        let translated = sent.dst() != back.src();
        // The end itself, or a router behind a published port, is known outside by the connection's address only.
        let hidden = outer_src == back.src() || translated && dir == Dir::Reply;
        let (way, _) = self.way(id, dir)?;
        let outer_src = match self.outside_of(way.network, outer_src) {
            // A router inside has an address outside too.
            Mapped::To(outside, _) if way.network != network => outside,
            _ if hidden => sent.dst(),
            _ => outer_src,
        };
        let to = Translated {
            outer: (outer_src, sent.src()),
            quoted: (
                Endpoint::new(sent.src(), sent.src_port),
                Endpoint::new(sent.dst(), sent.dst_port),
            ),
            mtu: self.way(id, dir.flip()).ok().and_then(|(way, _)| {
                let out = self.interface(way.network)?;
                Some(out.config.mtu)
            }),
        };
        self.may_pass(cx, bridge, network, e, way.network)?;
        error
            .rewrite(&mut e.frame, &to)
            .map_err(|_| DropReason::BadPacket)?;
        if hop::decrement_ttl(&mut e.frame, &e.meta) == Ttl::Expired {
            return Err(DropReason::TtlExceeded);
        }
        self.transmit(cx, bridge, way, e)
    }
}
