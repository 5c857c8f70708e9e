//! Sockets of containers that are the host's own: what the switch says to each, see [`crate::switching`].

use super::Plane;
use crate::model::Gateway;
use crate::netns;
use crate::refusal::{Kind, Refusal};
use crate::switching::Shared;
use std::sync::Arc;
use vswitch_nat::gateway::{Ends, Permit, Unswitched, contains};

impl Plane {
    pub(crate) fn switching(&self) -> Arc<Shared> {
        self.switching.clone()
    }

    /// Something was configured.
    pub(super) fn follow_switched(&self) {
        self.switching
            .keep(|name| self.desired.ports.contains_key(name));
        self.switching.changed();
    }

    fn gateway_of(&self, port: &str) -> Option<&Gateway> {
        let port = self.desired.ports.get(port)?;
        self.desired.networks.get(&port.network)?.gateway.as_ref()
    }

    /// Whether a connection of a port's container that begins, or is under way, may be by a socket of the host; or why not.
    pub(crate) fn judge_switched(
        &self,
        name: &str,
        ends: Ends,
        begins: bool,
    ) -> Result<Permit, &'static str> {
        let (config, live) = (self.desired.ports.get(name), self.ports.get(name));
        let (config, live) = config.zip(live).ok_or("port")?;
        if !live.open || live.fault.is_some() || !config.up || live.looped.is_some() {
            return Err("port");
        }
        if begins {
            let host = self.gateway_of(name).and_then(|g| g.host_uplink.as_ref());
            if !host.is_some_and(|h| h.socket_switching) {
                return Err("setting");
            }
            if !self.leaves_alone(name) {
                return Err("port");
            }
        }
        let allowed = &config.allowed_ips;
        if !allowed.is_empty() && !allowed.iter().any(|c| contains(c.0, ends.from.ip())) {
            return Err("port");
        }
        let id = live.id;
        let worker = self.workers.first().ok_or("port")?;
        let judged = worker.call(move |w| {
            let stage = &mut w.stage;
            let gateway = &mut stage.gateway;
            gateway.judge_switched(&mut w.cx, &stage.bridge, id, ends, begins)
        });
        judged.map_err(|_| "port")?.map_err(|why| match why {
            Unswitched::NoUplink => "setting",
            Unswitched::Inside => "inside",
            Unswitched::Address => "address",
            Unswitched::Policy => "policy",
        })
    }

    /// Whether nothing of the port has to see every packet: rates, guards of MAC addresses, VLANs, mirrors, captures.
    fn leaves_alone(&self, name: &str) -> bool {
        let Some(port) = self.desired.ports.get(name) else {
            return false;
        };
        let network = self.desired.networks.get(&port.network);
        let named = |list: &[String]| list.iter().any(|p| p == name);
        let mut mirrors = self.desired.mirrors.values();
        port.ingress_rate.is_none()
            && port.egress_rate.is_none()
            && port.allowed_macs.is_empty()
            && network.is_some_and(|n| !n.vlan_aware)
            && !mirrors.any(|m| named(&m.ingress) || named(&m.egress))
            && !self.is_captured(name)
    }

    /// Whether a port may have a listener.
    pub(crate) fn may_listen(&self, name: &str) -> Result<(), Refusal> {
        const ACT: &str = "switching sockets of";
        if !self.desired.ports.contains_key(name) {
            return Err(Refusal::missing(
                ACT,
                "port",
                name,
                self.desired.ports.keys(),
            ));
        }
        let host = self.gateway_of(name).and_then(|g| g.host_uplink.as_ref());
        if host.is_some_and(|h| h.socket_switching) {
            return Ok(());
        }
        let network = self
            .desired
            .ports
            .get(name)
            .map_or("NETWORK", |p| &p.network);
        Err(Refusal::new(
            Kind::Denied,
            ACT,
            format!("port `{name}`"),
            format!("the gateway of network `{network}` doesn't allow it"),
            format!(
                "allow it with `vswitchctl gateway set {network} --host-uplink on --socket-switching on`"
            ),
        ))
    }

    /// The port of the container in a namespace, by device and inode.
    pub(crate) fn port_in(&self, namespace: (u64, u64)) -> Option<&str> {
        let is_it = |spec: &str| netns::identity(&netns::path_of(spec)) == Some(namespace);
        let mut ports = self.desired.ports.iter();
        let found = ports.find(|(_, p)| p.netns.as_deref().is_some_and(is_it));
        let found = found.map(|(name, _)| name.as_str());
        found.or_else(|| self.session_in(namespace))
    }
}
