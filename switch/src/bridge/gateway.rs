//! The bridge's side of a network's gateway: a virtual port with a MAC address.
//!
//! The address is pinned in the FDB to [`PortId::GATEWAY`], so frames to it are found by the look-up that every frame takes,
//! and a container that uses it as its own source is refused like any other that takes a pinned address.

use super::{Bridge, NetworkId};
use crate::frame::{DropReason, Frame, Verdict};
use crate::port::PortId;
use crate::wire::{self, MacAddr};
use crate::worker::{Cx, Origin, Stage};

impl Bridge {
    /// Gives a network a gateway (VLAN, 0 if the network isn't VLAN aware, and MAC), changes or removes it. False when there is no such network
    /// or its table is full.
    pub fn set_gateway(&mut self, id: NetworkId, gateway: Option<(u16, MacAddr)>) -> bool {
        let Some(Some(net)) = self.networks.get_mut(usize::from(id.0)) else {
            return false;
        };
        if let Some((vid, mac)) = net.gateway.take() {
            net.fdb.remove(vid, mac);
        }
        let Some((vid, mac)) = gateway else {
            return true;
        };
        if !net.fdb.add_static(vid, mac, PortId::GATEWAY) {
            return false;
        }
        net.gateway = gateway;
        true
    }

    /// The way of a frame that the gateway sends to `dst` in VLAN `vid` of a network: to the port where it was learned, else to all
    /// ports of the VLAN. A flood set is valid until the batch is dispatched.
    pub fn deliver(&self, cx: &mut Cx, id: NetworkId, vid: u16, dst: MacAddr) -> Verdict {
        let Some(Some(net)) = self.networks.get(usize::from(id.0)) else {
            return Verdict::Next;
        };
        match net.fdb.lookup(vid, dst) {
            Some(PortId::GATEWAY) => Verdict::Gateway,
            Some(to) => Verdict::Forward(to),
            None => Verdict::Flood(cx.flood_set(net.all(&self.ports, vid))),
        }
    }

    /// The network of a port.
    #[must_use]
    pub fn network_of(&self, port: PortId) -> Option<NetworkId> {
        self.ports
            .get(port.index())?
            .as_ref()
            .map(|p| p.config.network)
    }

    /// Sends a frame of the gateway, made by it ([`Origin::Switch`]) or held ([`Origin::Held`]), into a network, finished for each port
    /// as any other frame. Errors: why it could be sent by no port.
    pub fn originate(
        &mut self,
        cx: &mut Cx,
        id: NetworkId,
        vid: u16,
        frame: Frame,
        origin: Origin,
    ) -> Result<(), DropReason> {
        let mut meta = wire::parse(frame.head(), frame.len()).ok_or(DropReason::Runt)?;
        meta.vid = vid;
        let net = self.networks.get(usize::from(id.0));
        let net = net
            .and_then(Option::as_ref)
            .ok_or(DropReason::NoDestination)?;
        let to = match net.fdb.lookup(vid, meta.dst) {
            Some(PortId::GATEWAY) => return Err(DropReason::NoDestination),
            Some(port) => vec![port],
            None => net.all(&self.ports, vid).collect(),
        };
        let (last, others) = to.split_last().ok_or(DropReason::NoDestination)?;
        for port in others {
            let mut copy = frame.duplicate();
            let passes = self.egress(cx, PortId::GATEWAY, *port, &mut copy, &meta);
            if passes.is_ok() {
                let origin = match origin {
                    Origin::Held => Origin::Copy,
                    other => other,
                };
                cx.emit(*port, copy, origin);
            }
        }
        let mut frame = frame;
        self.egress(cx, PortId::GATEWAY, *last, &mut frame, &meta)?;
        cx.emit(*last, frame, origin);
        Ok(())
    }
}
