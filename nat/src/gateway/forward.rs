//! The way of a packet through the router.

use super::neigh::Resolved;
use super::{Gateway, addresses, local};
use std::net::IpAddr;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::frame::{DropReason, Entry, Frame, Verdict, gso};
use vswitch_core::wire::{L3, MacAddr, Meta, csum};
use vswitch_core::worker::Cx;

/// Writes the Ethernet addresses of a frame the gateway sends.
pub(super) fn address(frame: &mut Frame, to: MacAddr, from: MacAddr) {
    if let Some(h) = frame.head_mut().first_chunk_mut::<12>() {
        h[..6].copy_from_slice(&to.0);
        h[6..].copy_from_slice(&from.0);
    }
}

/// Takes one off TTL or hop limit (RFC 1812 5.3.1). Errors: it would become zero.
fn decrement_ttl(frame: &mut Frame, meta: &Meta) -> Result<(), DropReason> {
    let at = usize::from(meta.l3_off);
    let ip = frame.head_mut().get_mut(at..);
    let ip = ip.ok_or(DropReason::BadPacket)?;
    let v4 = meta.l3 == L3::V4;
    let ttl = ip.get_mut(if v4 { 8 } else { 7 });
    let ttl = ttl.ok_or(DropReason::BadPacket)?;
    if *ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    *ttl -= 1;
    if v4 && let Some(sum) = ip.get_mut(10..).and_then(|b| b.first_chunk_mut::<2>()) {
        // RFC 1624: the word with the TTL went down by 0x0100.
        let new = csum::finish(u64::from(!u16::from_be_bytes(*sum)) + u64::from(!0x0100u16));
        *sum = new.to_be_bytes();
    }
    Ok(())
}

impl Gateway {
    /// A packet for the gateway's MAC: for one of our addresses, or to be routed.
    pub(super) fn packet(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Verdict, DropReason> {
        let (src, dst) = addresses(e.frame.head(), &e.meta).ok_or(DropReason::BadPacket)?;
        self.check(network, src, dst)?;
        if self.is_own(dst) {
            if self.overhear(cx, bridge, network, e) {
                return Err(DropReason::Consumed);
            }
            local::echo(e)?;
            return self.transmit(cx, bridge, network, src, e);
        }
        let (out, hop) = match self.routes.find(dst) {
            Some((route, hop)) => (route.network, hop),
            None => return Err(DropReason::NoRoute),
        };
        decrement_ttl(&mut e.frame, &e.meta)?;
        self.transmit(cx, bridge, out, hop, e)
    }

    /// Addresses that can't be forwarded (RFC 1812 5.3.7, RFC 4291 2.5, 2.7).
    fn check(&self, network: NetworkId, src: IpAddr, dst: IpAddr) -> Result<(), DropReason> {
        let scoped = |ip: IpAddr| match ip {
            IpAddr::V4(a) => a.is_loopback() || a.octets()[0] >= 240 || a.octets()[0] == 0,
            IpAddr::V6(a) => a.is_loopback() || a.is_unspecified(),
        };
        let link_local = |ip: IpAddr| match ip {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
        };
        let here = self.interface(network).ok_or(DropReason::NoRoute)?;
        let martian = scoped(src)
            || scoped(dst)
            || src.is_multicast()
            || dst.is_multicast()
            || self.is_own(src)
            || here.is_broadcast(src)
            || here.is_broadcast(dst)
            || (link_local(src) || link_local(dst)) && !here.has(dst)
            // A source of another interface's prefix can't come from here (RFC 2827).
            || !here.on_link(src)
                && self.interfaces.iter().flatten().any(|i| i.on_link(src) && !link_local(src));
        if martian {
            Err(DropReason::Martian)
        } else {
            Ok(())
        }
    }

    /// Sends a packet to a neighbour in `out`; holds it while the neighbour's MAC isn't known.
    pub(super) fn transmit(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        out: NetworkId,
        hop: IpAddr,
        e: &mut Entry,
    ) -> Result<Verdict, DropReason> {
        let own = self.interface(out).ok_or(DropReason::NoRoute)?;
        let (vid, mac, mtu) = (own.config.vid, own.config.mac, own.config.mtu);
        if !gso::fits(&e.frame, vswitch_core::frame::Offloads::ALL, mtu) {
            return Err(DropReason::Mtu);
        }
        match self.neighbours.resolve(cx.now, out, hop) {
            Resolved::Known { mac: to, ask } => {
                if ask {
                    self.ask(cx, bridge, out, hop, Some(to));
                    cx.tick_by(cx.now.after(std::time::Duration::from_secs(1)));
                }
                address(&mut e.frame, to, mac);
                (e.meta.dst, e.meta.src, e.meta.vid) = (to, mac, vid);
                Ok(bridge.deliver(cx, out, vid, to))
            }
            Resolved::Pending { ask } => {
                if ask {
                    self.ask(cx, bridge, out, hop, None);
                    cx.tick_by(cx.now.after(std::time::Duration::from_secs(1)));
                }
                let frame = std::mem::take(&mut e.frame);
                self.neighbours
                    .hold(out, hop, frame)
                    .map_err(|_| DropReason::NoNeighbour)?;
                self.held += 1;
                self.counters.held.set(self.held);
                Ok(Verdict::Held)
            }
            Resolved::Unreachable => Err(DropReason::NoNeighbour),
        }
    }

    /// A held frame whose next hop doesn't answer.
    pub(super) fn unreachable(
        &mut self,
        _cx: &mut Cx,
        _bridge: &mut Bridge,
        _network: NetworkId,
        _hop: IpAddr,
        frame: Frame,
    ) {
        drop(frame);
    }
}
