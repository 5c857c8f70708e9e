//! What the running switch shows.

use super::{AcceleratorView, LivePort, Plane, SwitchingView};
use crate::model::{Mirror, Network, Port, PublishedPort};
use crate::refusal::{Kind, Refusal};
use crate::units::Mac;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use utoipa::ToSchema;
use vswitch_core::accel::FastCounts;
use vswitch_core::bridge::NetworkId;
use vswitch_core::bridge::fdb::{Fdb, FdbCursor, FlushFilter};
use vswitch_core::frame::DropReason;
use vswitch_core::port::PortId;
use vswitch_core::stats::{Counter, PortCounters};

/// What stands for the gateway where ports are named; no port can have this name.
const GATEWAY: &str = "@gateway";
/// The same for the host's sockets.
const HOST: &str = "@host";

/// Buckets of an FDB looked at between two turns.
const DUMP_CHUNK: usize = 4096;

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Info {
    /// Always `vswitchd`.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Version of the API.
    pub api: String,
    /// Process id.
    pub pid: u32,
    /// Workers of the data path.
    pub workers: usize,
    /// Seconds since it started.
    pub uptime: u64,
    /// Captures that run.
    pub captures: usize,
    /// The fast path, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<AcceleratorView>,
}

/// A network as it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its name.
    pub name: String,
    /// Names of its ports.
    pub ports: Vec<String>,
    /// FDB entries of the first worker.
    pub fdb_entries: usize,
    /// What of its gateway does nothing as things stand, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Its configuration.
    pub config: Network,
}

/// A port as it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Its name.
    pub name: String,
    /// `up`, `down` by itself, `admin-down` by configuration, or `shut` by the loop guard.
    pub state: String,
    /// Why it is down or shut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The device's name.
    pub device: String,
    /// Whether it is on the kernel's fast path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fast: bool,
    /// Its container's sockets that are the host's own, where there is a filter for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switching: Option<SwitchingView>,
    /// Its configuration.
    pub config: Port,
}

/// A mirror session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MirrorView {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: Mirror,
}

/// A published port.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PublishedView {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: PublishedPort,
    /// The host's addresses that it listens at; none if it isn't a port of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub host: Vec<IpAddr>,
    /// Of ports that are looked for, those that the host listens on.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<u16>)]
    pub found: BTreeSet<u16>,
    /// Why it doesn't, as it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What else is to be known, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Connections that came to the host's port; of UDP, clients.
    #[serde(default)]
    pub accepted: u64,
    /// Of these, those that went straight into the container's namespace.
    #[serde(default)]
    pub spliced: u64,
    /// Of all, those that didn't reach the container.
    #[serde(default)]
    pub failed: u64,
}

/// An FDB entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbView {
    /// The address.
    pub mac: String,
    /// Its VLAN; 0 in networks that aren't VLAN aware.
    pub vlan: u16,
    /// The port it is at.
    pub port: String,
    /// Seconds since it was last seen; not for static entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<u32>,
    /// Entered by configuration.
    #[serde(rename = "static")]
    pub is_static: bool,
}

/// A multicast membership or router port.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MdbView {
    /// Its VLAN.
    pub vlan: u16,
    /// The group; none for a router port.
    pub group: Option<String>,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The port.
    pub port: String,
    /// Seconds until it is forgotten.
    pub remaining: u32,
}

/// A neighbour of a gateway.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NeighbourView {
    /// The network it is in.
    pub network: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its MAC address; none while or because it doesn't answer.
    pub mac: Option<String>,
    /// Seconds until it is asked for again.
    pub fresh_for: u64,
}

/// Frames of the whole switch since its start: received + copied + originated + split = sent + dropped + held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Received by ports.
    pub received: u64,
    /// Copies made by flooding and mirroring.
    pub copied: u64,
    /// Made by the switch itself.
    pub originated: u64,
    /// Made by software segmentation beyond the frame that came.
    pub split: u64,
    /// Sent by ports.
    pub sent: u64,
    /// Dropped with a reason.
    pub dropped: u64,
    /// Waiting in transmit queues.
    pub held: u64,
}

/// Counters of a port, summed over workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStats {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes, Ethernet header included, FCS not.
    pub rx_bytes: u64,
    /// Failed reads.
    pub rx_errors: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Of the frames received, those that the kernel's fast path carried.
    #[serde(default)]
    pub fast_rx_frames: u64,
    /// Their bytes.
    #[serde(default)]
    pub fast_rx_bytes: u64,
    /// Of the frames sent, those that the kernel's fast path carried.
    #[serde(default)]
    pub fast_tx_frames: u64,
    /// Their bytes.
    #[serde(default)]
    pub fast_tx_bytes: u64,
    /// Copies made for it.
    pub copied: u64,
    /// Frames the switch made for it.
    pub originated: u64,
    /// Further frames that software segmentation made for it.
    pub split: u64,
    /// Frames waiting to be sent.
    pub held: u64,
    /// Dropped frames by reason; reasons without drops are left out.
    pub drops: BTreeMap<String, u64>,
}

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// The ledger of the switch, deleted ports included.
    pub totals: Totals,
    /// Ports by name.
    pub ports: Vec<PortStats>,
    /// The fast path, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<AcceleratorView>,
}

/// Rates of a port per second, from two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Frames received.
    pub rx_frames: f64,
    /// Bits received.
    pub rx_bits: f64,
    /// Frames sent.
    pub tx_frames: f64,
    /// Bits sent.
    pub tx_bits: f64,
    /// Frames dropped.
    pub drops: f64,
}

impl PortStats {
    /// Dropped frames in all.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }

    /// Rates since an earlier reading, `seconds` ago.
    #[must_use]
    pub fn rates(&self, before: &PortStats, seconds: f64) -> Rates {
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds.max(1e-3);
        Rates {
            rx_frames: rate(self.rx_frames, before.rx_frames),
            rx_bits: rate(self.rx_bytes, before.rx_bytes) * 8.0,
            tx_frames: rate(self.tx_frames, before.tx_frames),
            tx_bits: rate(self.tx_bytes, before.tx_bytes) * 8.0,
            drops: rate(self.dropped(), before.dropped()),
        }
    }
}

impl Totals {
    /// What the fast path received it has sent.
    pub(super) fn add_fast(&mut self, counts: FastCounts) {
        self.received += counts.rx_frames;
        self.sent += counts.tx_frames;
    }

    pub(super) fn add_counters(&mut self, counters: &[Arc<PortCounters>]) {
        for c in counters {
            self.received += c.rx_frames.get();
            self.copied += c.copied.get();
            self.originated += c.originated.get();
            self.split += c.split.get();
            self.sent += c.tx_frames.get();
            self.held += c.held.get();
            self.dropped += DropReason::ALL.iter().map(|r| c.dropped(*r)).sum::<u64>();
        }
    }
}

impl Plane {
    /// The daemon.
    #[must_use]
    pub fn info(&self) -> Info {
        Info {
            name: "vswitchd".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            api: "v1".into(),
            pid: std::process::id(),
            workers: self.workers.len(),
            uptime: self.started.elapsed().as_secs(),
            captures: self.capture_count(),
            accelerator: self.accelerator_view(),
        }
    }

    /// The network's index, or the refusal of `act`.
    fn network_id(&self, act: &str, name: &str) -> Result<NetworkId, Refusal> {
        let id = self.networks.get(name).copied();
        id.ok_or_else(|| Refusal::missing(act, "network", name, self.networks.keys()))
    }

    /// A network.
    pub fn network(&self, name: &str) -> Result<NetworkView, Refusal> {
        let id = self.network_id("showing", name)?;
        let entries = match self.workers.first() {
            Some(w) => w.call(move |w| w.stage.bridge.fdb(id).map_or(0, Fdb::len)),
            None => Ok(0),
        };
        let in_it = |(n, p): (&String, &Port)| (p.network == name).then(|| n.clone());
        Ok(NetworkView {
            name: name.to_owned(),
            ports: self.desired.ports.iter().filter_map(in_it).collect(),
            fdb_entries: entries.unwrap_or(0),
            warnings: self.network_warnings(name),
            config: self.desired.networks.get(name).cloned().unwrap_or_default(),
        })
    }

    /// All networks.
    #[must_use]
    pub fn network_views(&self) -> Vec<NetworkView> {
        let names = self.desired.networks.keys();
        names.filter_map(|n| self.network(n).ok()).collect()
    }

    /// A port.
    pub fn port(&self, name: &str) -> Result<PortView, Refusal> {
        let (Some(config), Some(live)) = (self.desired.ports.get(name), self.ports.get(name))
        else {
            return Err(Refusal::missing("showing", "port", name, self.ports.keys()));
        };
        let mut reason = live.fault.clone();
        let state = match (config.up, &reason) {
            (false, _) => "admin-down",
            (true, Some(_)) => "down",
            (true, None) => {
                reason = self.shut(live);
                if reason.is_some() { "shut" } else { "up" }
            }
        };
        Ok(PortView {
            name: name.to_owned(),
            state: state.into(),
            reason,
            device: live.device.clone(),
            fast: live.fast.is_some(),
            switching: self.switching.of_port(name),
            config: config.clone(),
        })
    }

    /// Why the loop guard keeps a port shut, if it does.
    fn shut(&self, live: &LivePort) -> Option<String> {
        let (id, other) = (live.id, live.looped?);
        // The workers share the state, so the first knows.
        let left = self
            .workers
            .first()?
            .call(move |w| w.stage.bridge.loop_shut(id, w.cx.now))
            .ok()??;
        let over = if other == id {
            "beyond it".to_owned()
        } else {
            format!("with port `{}`", self.port_name(other))
        };
        let secs = left.as_secs();
        Some(format!(
            "a loop {over}: opens in {secs} s unless probes still come back"
        ))
    }

    /// All ports.
    #[must_use]
    pub fn port_views(&self) -> Vec<PortView> {
        let names = self.desired.ports.keys();
        names.filter_map(|n| self.port(n).ok()).collect()
    }

    /// Counters of all ports.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            totals: self.retired,
            ports: Vec::with_capacity(self.ports.len()),
            accelerator: self.accelerator_view(),
        };
        let fast = self.fast_ports();
        let ports = self.ports.iter().map(|(n, l)| (n.as_str(), &l.counters));
        let gateways = self.desired.networks.values().any(|n| n.gateway.is_some());
        let gateway = (GATEWAY, &self.gateway_counters);
        // What it has counted stays in the totals when it is turned off.
        let used = |c: &Arc<PortCounters>| c.tx_frames.get() > 0 || c.rx_frames.get() > 0;
        let by_host = self.host_counters.iter().any(used);
        let host = by_host.then_some((HOST, &self.host_counters));
        let ports = ports.chain(gateways.then_some(gateway)).chain(host);
        for (name, counters) in ports {
            stats.totals.add_counters(counters);
            let by_kernel = fast.get(name).copied().unwrap_or_default();
            stats.totals.add_fast(by_kernel);
            let network = self.desired.ports.get(name).map(|p| p.network.clone());
            let sum = |f: fn(&PortCounters) -> &Counter| -> u64 {
                counters.iter().map(|c| f(c).get()).sum()
            };
            let mut drops = BTreeMap::new();
            for r in DropReason::ALL {
                let n: u64 = counters.iter().map(|c| c.dropped(*r)).sum();
                if n > 0 {
                    drops.insert(r.as_str().to_owned(), n);
                }
            }
            stats.ports.push(PortStats {
                name: name.to_owned(),
                network: network.unwrap_or_default(),
                rx_frames: sum(|c| &c.rx_frames) + by_kernel.rx_frames,
                rx_bytes: sum(|c| &c.rx_bytes) + by_kernel.rx_bytes,
                rx_errors: sum(|c| &c.rx_errors),
                tx_frames: sum(|c| &c.tx_frames) + by_kernel.tx_frames,
                tx_bytes: sum(|c| &c.tx_bytes) + by_kernel.tx_bytes,
                fast_rx_frames: by_kernel.rx_frames,
                fast_rx_bytes: by_kernel.rx_bytes,
                fast_tx_frames: by_kernel.tx_frames,
                fast_tx_bytes: by_kernel.tx_bytes,
                copied: sum(|c| &c.copied),
                originated: sum(|c| &c.originated),
                split: sum(|c| &c.split),
                held: sum(|c| &c.held),
                drops,
            });
        }
        stats
    }

    /// The FDB of a network, of all workers, in order of VLAN and MAC. Taken in pieces, so that no turn is long.
    pub fn fdb(&self, name: &str) -> Result<Vec<FdbView>, Refusal> {
        let id = self.network_id("showing the FDB of", name)?;
        let names: BTreeMap<PortId, &String> = self.ports.iter().map(|(n, l)| (l.id, n)).collect();
        let mut found: BTreeMap<(u16, u64), FdbView> = BTreeMap::new();
        for worker in &self.workers {
            let mut next = Some(FdbCursor::default());
            while let Some(from) = next {
                let part = worker.call(move |w| {
                    let (some, next) = w.stage.bridge.dump(id, from, DUMP_CHUNK);
                    (some, next, w.cx.now.secs())
                });
                let Ok((some, then, now)) = part else { break };
                next = then;
                for e in some {
                    let age = (!e.is_static).then(|| now.saturating_sub(e.seen));
                    let view = FdbView {
                        mac: e.mac().to_string(),
                        vlan: e.vid(),
                        port: match names.get(&e.port) {
                            _ if e.port == PortId::GATEWAY => GATEWAY.to_owned(),
                            Some(name) => (*name).clone(),
                            None => e.port.to_string(),
                        },
                        age,
                        is_static: e.is_static,
                    };
                    let key = (e.vid(), e.mac().to_u64());
                    // The worker that hears the address knows best.
                    if !e.remote || !found.contains_key(&key) {
                        found.insert(key, view);
                    }
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// Neighbours of the gateways.
    #[must_use]
    pub fn neighbour_views(&self) -> Vec<NeighbourView> {
        let Some(worker) = self.workers.first() else {
            return Vec::new();
        };
        let found = worker.call(|w| w.stage.gateway.neighbours(w.cx.now));
        let mut found = found.unwrap_or_default();
        found.sort_by_key(|n| (n.network, n.ip));
        let view = |n: vswitch_nat::gateway::NeighbourEntry| NeighbourView {
            network: self.network_name(n.network.0),
            address: n.ip,
            mac: n.mac.map(|m| m.to_string()),
            fresh_for: n.fresh_for,
        };
        found.into_iter().map(view).collect()
    }

    /// Multicast memberships of a network.
    pub fn mdb(&self, name: &str) -> Result<Vec<MdbView>, Refusal> {
        let id = self.network_id("showing the multicast table of", name)?;
        let Some(worker) = self.workers.first() else {
            return Ok(Vec::new());
        };
        let entries = worker.call(move |w| w.stage.bridge.mdb(id, w.cx.now));
        let view = |e: vswitch_core::bridge::MdbEntry| MdbView {
            vlan: e.vid,
            group: e.group.map(|g| g.to_string()),
            family: if e.v6 { "ipv6" } else { "ipv4" }.into(),
            port: self.port_name(e.port),
            remaining: e.remaining,
        };
        Ok(entries.unwrap_or_default().into_iter().map(view).collect())
    }

    /// Removes learned entries; returns how many.
    pub fn flush(
        &self,
        name: &str,
        port: Option<&str>,
        vlan: Option<u16>,
        mac: Option<&Mac>,
    ) -> Result<usize, Refusal> {
        let id = self.network_id("flushing the FDB of", name)?;
        let port = match port {
            None => None,
            Some(p) => match self.ports.get(p) {
                Some(l) => Some(l.id),
                None => return Err(Refusal::missing("flushing", "port", p, self.ports.keys())),
            },
        };
        let filter = FlushFilter {
            port,
            vid: vlan,
            mac: mac.map(|m| m.0),
            statics: false,
        };
        let mut most = 0;
        for w in &self.workers {
            let n = w
                .call(move |w| w.stage.bridge.flush(id, filter))
                .map_err(|g| {
                    Refusal::new(
                        Kind::Failed,
                        "flushing",
                        name,
                        g.to_string(),
                        "restart vswitchd",
                    )
                })?;
            most = most.max(n);
        }
        Ok(most)
    }

    /// All mirror sessions.
    #[must_use]
    pub fn mirror_views(&self) -> Vec<MirrorView> {
        let view = |(name, config): (&String, &Mirror)| MirrorView {
            name: name.clone(),
            config: config.clone(),
        };
        self.desired.mirrors.iter().map(view).collect()
    }
}
