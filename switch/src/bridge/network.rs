//! One network: its table, its members, its multicast state.

use super::NetworkConfig;
use super::fdb::{Fdb, FlushFilter};
use super::mirror::Tap;
use super::port::BridgePort;
use super::snoop::{Rules, Snoop};
use crate::clock::Nanos;
use crate::port::PortId;
use crate::wire::MacAddr;

/// A port as flooding sees it: a few bytes, so that a thousand are walked in no time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) port: PortId,
    pub(super) isolated: bool,
    /// Down, or a mirror target.
    pub(super) silent: bool,
    pub(super) down: bool,
}

/// Which worker probes a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// The one whose share it is: all workers were told.
    Own,
    /// This one.
    Any,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) config: NetworkConfig,
    pub(super) fdb: Fdb,
    pub(super) members: Vec<Member>,
    pub(super) snoop: Snoop,
    pub(super) rules: Rules,
    /// Mirror sessions that watch a VLAN.
    pub(super) taps: Vec<(u16, Tap)>,
    /// Ageing time in seconds, 0 for never.
    pub(super) ageing: u32,
    /// When the next round of probes begins; zero until it is planned.
    pub(super) next_probe: Nanos,
    pub(super) next_query: Nanos,
    /// Where the round of queries goes on: VLAN by VLAN, port by port.
    pub(super) query_at: usize,
    /// Ports to probe at the next tick: they have come up, or addresses moved between them.
    pub(super) fresh: Vec<(PortId, Share)>,
    /// Ports of a loop that was cut, and when what is learned there is forgotten once more.
    pub(super) looped: Option<(Nanos, [PortId; 2])>,
    /// Member the probing goes on at.
    pub(super) probe_at: usize,
    pub(super) next_expiry: u32,
    /// VLAN and MAC of the gateway's virtual port.
    pub(super) gateway: Option<(u16, MacAddr)>,
}

impl Network {
    pub(super) fn new(config: NetworkConfig) -> Network {
        Network {
            fdb: Fdb::new(config.fdb_limit),
            members: Vec::new(),
            snoop: Snoop::default(),
            rules: rules(&config),
            taps: Vec::new(),
            ageing: secs(config.ageing),
            next_probe: Nanos(0),
            next_query: Nanos(0),
            query_at: 0,
            fresh: Vec::new(),
            looped: None,
            probe_at: 0,
            next_expiry: u32::MAX,
            gateway: None,
            config,
        }
    }

    pub(super) fn configure(&mut self, config: NetworkConfig) {
        self.fdb.set_limit(config.fdb_limit);
        self.ageing = secs(config.ageing);
        self.fdb.rearm();
        self.rules = rules(&config);
        if !config.snooping || config.vlan_aware != self.config.vlan_aware {
            self.snoop = Snoop::default();
        }
        if config.vlan_aware != self.config.vlan_aware {
            // Learned in VLANs that don't exist any more.
            self.fdb.flush(FlushFilter::default());
        }
        self.next_probe = Nanos(0);
        self.next_query = Nanos(0);
        self.next_expiry = 0;
        self.config = config;
    }

    /// Forgets the addresses learned at a port; static entries stay.
    pub(super) fn unlearn(&mut self, port: PortId) {
        self.fdb.flush(FlushFilter {
            port: Some(port),
            ..FlushFilter::default()
        });
    }

    /// Has the port probed at the next tick.
    pub(super) fn probe_soon(&mut self, port: PortId, share: Share) {
        if !self.fresh.contains(&(port, share)) {
            self.fresh.push((port, share));
        }
        // No round is planned if no port was guarded so far; zero has one planned.
        if self.next_probe == Nanos::MAX {
            self.next_probe = Nanos(0);
        }
    }

    /// The ports a frame in `vid` from `from` may be sent to when its destination is all of them.
    pub(super) fn everybody<'a>(
        &'a self,
        from: PortId,
        port: &'a BridgePort,
        ports: &'a [Option<BridgePort>],
        vid: u16,
    ) -> impl Iterator<Item = PortId> + 'a {
        let (isolated, hairpin) = (port.config.isolated, port.config.hairpin);
        let aware = self.config.vlan_aware;
        self.members
            .iter()
            .filter(move |m| !(m.silent || isolated && m.isolated) && (hairpin || m.port != from))
            .map(|m| m.port)
            .filter(move |p| !aware || carries(ports, *p, vid))
    }

    /// The ports that a frame of the gateway in `vid` may be sent to when its destination is all of them.
    pub(super) fn all<'a>(
        &'a self,
        ports: &'a [Option<BridgePort>],
        vid: u16,
    ) -> impl Iterator<Item = PortId> + 'a {
        let aware = self.config.vlan_aware;
        self.members
            .iter()
            .filter(|m| !m.silent)
            .map(|m| m.port)
            .filter(move |p| !aware || carries(ports, *p, vid))
    }

    /// Those of `wanted` and of the static router ports that the frame may be sent to.
    pub(super) fn some<'a>(
        &'a self,
        from: PortId,
        port: &'a BridgePort,
        ports: &'a [Option<BridgePort>],
        vid: u16,
        wanted: &'a [PortId],
    ) -> impl Iterator<Item = PortId> + 'a {
        self.everybody(from, port, ports, vid).filter(move |p| {
            wanted.binary_search(p).is_ok()
                || ports
                    .get(p.index())
                    .and_then(Option::as_ref)
                    .is_some_and(|p| p.config.multicast_router)
        })
    }
}

/// Whether the port sends frames of the VLAN.
fn carries(ports: &[Option<BridgePort>], port: PortId, vid: u16) -> bool {
    ports
        .get(port.index())
        .and_then(Option::as_ref)
        .is_some_and(|p| p.config.untagged.contains(vid) || p.config.tagged.contains(vid))
}

/// In whole seconds, rounded up.
fn secs(d: std::time::Duration) -> u32 {
    let up = d.as_secs() + u64::from(d.subsec_nanos() > 0);
    u32::try_from(up).unwrap_or(u32::MAX)
}

fn rules(config: &NetworkConfig) -> Rules {
    Rules {
        membership: secs(config.membership).max(1),
        fast_leave: config.fast_leave,
        querier: config.querier,
        limit: config.mdb_limit,
    }
}
