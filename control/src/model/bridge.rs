//! The model in the bridge's terms.

use super::{Mirror, Network, Port};
use crate::units::{BitRate, FrameRate};
use vswitch_core::bridge::{
    LoopGuard, MirrorConfig, MirrorSource, NetworkConfig, NetworkId, PortConfig, Rate, StormLimits,
    VlanSet,
};
use vswitch_core::port::PortId;

impl Network {
    /// As the bridge knows it.
    #[must_use]
    pub fn to_bridge(&self) -> NetworkConfig {
        NetworkConfig {
            ageing: self.ageing.0,
            fdb_limit: self.fdb_limit as usize,
            vlan_aware: self.vlan_aware,
            snooping: self.snooping,
            fast_leave: self.fast_leave,
            querier: self.querier,
            membership: self.membership.0,
            mdb_limit: self.mdb_limit as usize,
            loop_guard: LoopGuard {
                interval: self.loop_interval.0,
                hold: self.loop_hold.0,
            },
        }
    }
}

fn bytes(rate: Option<&BitRate>) -> Option<Rate> {
    rate.map(|r| Rate::bytes(r.0 / 8))
}

fn frames(rate: Option<&FrameRate>) -> Option<Rate> {
    rate.map(|r| Rate::frames(r.0))
}

impl Port {
    /// As the bridge knows it.
    #[must_use]
    pub fn to_bridge(&self, network: NetworkId) -> PortConfig {
        let pvid = (self.pvid != 0).then_some(self.pvid);
        PortConfig {
            network,
            pvid,
            untagged: match &self.untagged {
                Some(v) => v.0.clone(),
                None => VlanSet::from_iter(pvid),
            },
            tagged: self.tagged.0.clone(),
            isolated: self.isolated,
            hairpin: self.hairpin,
            learning: self.learning,
            mac_limit: self.mac_limit,
            allowed_macs: self.allowed_macs.iter().map(|m| m.0).collect(),
            allowed_ips: self.allowed_ips.iter().map(|c| c.0).collect(),
            arp_inspection: self.arp_inspection,
            multicast_router: self.multicast_router,
            storm: StormLimits {
                broadcast: frames(self.storm.broadcast.as_ref()),
                multicast: frames(self.storm.multicast.as_ref()),
                unknown: frames(self.storm.unknown.as_ref()),
            },
            ingress_rate: bytes(self.ingress_rate.as_ref()),
            egress_rate: bytes(self.egress_rate.as_ref()),
            loop_guard: self.loop_guard,
        }
    }
}

impl Mirror {
    /// As the bridge knows it; `None` if a name in it is unknown.
    pub(crate) fn to_bridge(
        &self,
        port: impl Fn(&str) -> Option<PortId>,
        network: impl Fn(&str) -> Option<NetworkId>,
    ) -> Option<MirrorConfig> {
        let mut sources = Vec::new();
        for name in self.ingress.iter().chain(&self.egress) {
            let source = MirrorSource::Port {
                port: port(name)?,
                ingress: self.ingress.contains(name),
                egress: self.egress.contains(name),
            };
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        for v in &self.vlans {
            let network = network(&v.network)?;
            sources.push(MirrorSource::Vlan {
                network,
                vid: v.vlan,
            });
        }
        Some(MirrorConfig {
            sources,
            target: port(&self.target)?,
            truncate: self.truncate,
            target_floods: self.target_floods,
        })
    }
}
