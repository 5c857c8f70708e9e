//! Services of the gateways as they run: telling the workers, resolvers, leases shown, saved and restored.
//!
//! DNS questions that leave go by a forwarder, one for all networks that ask the same resolvers; its sockets are in the daemon's
//! network namespace. Leases are kept in a file beside the state, written at most once a second and at shutdown, with the
//! wall clock's time of their end.

use super::Plane;
use crate::events::Record;
use crate::follow::{self, Changes, RESOLV_CONF};
use crate::model::{HostUplink, Topology};
use crate::refusal::{Kind, Refusal};
use crate::state;
use crate::units::Mac;
use nix::ifaddrs::InterfaceAddress;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_core::worker::WorkerHandle;
use vswitch_nat::gateway::ServicesConfig;
use vswitch_nat::service::dhcp4::{Change, Lease};
use vswitch_nat::service::dns::{
    Forwarder, ForwarderConfig, ResolvConf, os_random, parse_resolv_conf,
};
use vswitch_nat::{HostAddresses, Source};

/// Resolvers asked (none: the daemon's), addresses that are our own, and where to ask from.
type Asked = (Vec<SocketAddr>, Vec<IpAddr>, Source);

/// What the plane keeps for services.
#[derive(Debug, Default)]
pub(super) struct Serving {
    config: ServicesConfig,
    forwarders: BTreeMap<Asked, Arc<Forwarder>>,
    /// The daemon's list, as it was read last.
    resolv: String,
    unsaved: bool,
    /// A worker has leases that changed.
    untaken: bool,
    /// Told when the gateways' services or leases change.
    changed: Arc<Notify>,
}

/// A DHCP lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseView {
    /// Network.
    pub network: String,
    /// Address.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// MAC address of the client.
    pub mac: Mac,
    /// Port it is at.
    pub port: String,
    /// Host name it claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its identifier, in hexadecimal.
    pub client_id: String,
    /// End, in seconds since 1970-01-01 UTC.
    pub ends: u64,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Saved {
    format: u32,
    leases: Vec<LeaseView>,
}

const FORMAT: u32 = 1;

fn since_epoch() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |i: usize| u8::from_str_radix(text.get(i..i + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

/// Addresses of the host, with their interfaces; none if the kernel doesn't say.
fn host_addresses() -> HostAddresses {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let one = |i: InterfaceAddress| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let ip = v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))?;
        Some((ip, i.interface_name))
    };
    all.filter_map(one).collect()
}

fn is_scoped(server: &SocketAddr) -> bool {
    matches!(server, SocketAddr::V6(a) if a.scope_id() != 0)
}

/// A resolver list of these, or of the daemon's file.
fn list(given: &[SocketAddr], file: &str) -> ResolvConf {
    let scope = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    let mut conf = parse_resolv_conf(file, scope);
    if !given.is_empty() {
        conf.servers = given.to_vec();
    }
    conf
}

impl Plane {
    /// Tells the workers what gateways serve, if it has changed.
    pub(super) fn commit_services(&mut self, wanted: &Topology) -> Result<(), Refusal> {
        let asked = self.forwarders(wanted)?;
        let network = |n: &str| self.networks.get(n).copied();
        let mut config = wanted.to_services(network, |p| self.ports.get(p).map(|l| l.id));
        let host = list(&[], &self.serving.resolv);
        wanted.add_search(&mut config, network, &host.search);
        let same = config == self.serving.config;
        if !same {
            self.serving.config = config.clone();
            self.serving.changed.notify_one();
            self.each(move |w| w.stage.gateway.configure_services(&mut w.cx, &config))?;
        }
        if let Some(worker) = self.workers.first() {
            let told = worker.cast(move |w| w.stage.gateway.set_forwarders(asked));
            told.map_err(super::commit::dead)?;
        }
        Ok(())
    }

    /// The forwarders of networks that serve DNS, started where they aren't; those that nobody asks any more end.
    fn forwarders(
        &mut self,
        wanted: &Topology,
    ) -> Result<Vec<(NetworkId, Arc<Forwarder>)>, Refusal> {
        let gateways = wanted.networks.iter();
        let gateways: Vec<_> = gateways
            .filter_map(|(n, c)| Some((*self.networks.get(n)?, c.gateway.as_ref()?)))
            .collect();
        let own = gateways.iter().flat_map(|(_, g)| &g.addresses);
        let own: Vec<IpAddr> = own.map(|c| c.0.0).collect();
        let (mut kept, mut asked) = (BTreeMap::new(), Vec::new());
        for (id, gateway) in gateways.iter().filter(|(_, g)| g.dns.is_some()) {
            let host = gateway.host_uplink.as_ref();
            let source = host.map(HostUplink::source).unwrap_or_default();
            let key: Asked = (gateway.resolvers(), own.clone(), source);
            let known = kept.get(&key).or_else(|| self.serving.forwarders.get(&key));
            let forwarder = match known.cloned() {
                Some(forwarder) => forwarder,
                None => Arc::new(self.forwarder(&key)?),
            };
            kept.insert(key, forwarder.clone());
            asked.push((*id, forwarder));
        }
        self.serving.forwarders = kept;
        Ok(asked)
    }

    fn forwarder(&mut self, (given, own, source): &Asked) -> Result<Forwarder, Refusal> {
        let failed = |reason: String| {
            let remedy = "raise the limits of open files and processes";
            Refusal::new(
                Kind::Failed,
                "starting",
                "the DNS forwarder",
                reason,
                remedy,
            )
        };
        let Some(worker) = self.workers.first().map(WorkerHandle::another) else {
            return Err(failed("no worker runs".into()));
        };
        if self.serving.forwarders.is_empty() {
            self.serving.resolv = follow::resolv_conf().unwrap_or_default();
        } else {
            self.take_resolvers();
        }
        let config = ForwarderConfig {
            own: own.clone(),
            source: source.clone(),
            ..ForwarderConfig::default()
        };
        let random = os_random().map_err(|e| failed(format!("/dev/urandom: {e}")))?;
        // Many responses are fetched at one go.
        let told = Arc::new(AtomicBool::new(false));
        let wake = move || {
            if told.swap(true, Ordering::AcqRel) {
                return;
            }
            let told = told.clone();
            // A worker that is gone needs no answers.
            let _ = worker.cast(move |w| {
                told.store(false, Ordering::Release);
                let stage = &mut w.stage;
                stage.gateway.take_responses(&mut w.cx, &mut stage.bridge);
            });
        };
        let conf = list(given, &self.serving.resolv);
        let spawned = Forwarder::spawn(&config, &conf, random, Arc::new(wake));
        spawned.map_err(|e| failed(e.to_string()))
    }

    /// Leases as they are.
    pub fn leases(&self) -> Vec<LeaseView> {
        let Some(worker) = self.workers.first() else {
            return Vec::new();
        };
        let found = worker.call(|w| w.stage.gateway.leases(w.cx.now));
        let now = since_epoch();
        let view = |(network, l): (NetworkId, Lease)| LeaseView {
            network: self.network_name(network.0),
            address: l.address,
            mac: Mac(l.mac),
            port: l.port,
            name: l.host_name,
            client_id: l.client_id.iter().map(|b| format!("{b:02x}")).collect(),
            ends: now.saturating_add(l.remaining.as_secs()),
        };
        let mut all: Vec<LeaseView> = found.unwrap_or_default().into_iter().map(view).collect();
        all.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
        all
    }

    /// Tells of leases that changed and saves them, and follows the daemon's resolvers. Returns what tells when this is due again, and
    /// whether it is due now and then besides: nothing tells of a list of resolvers that is mounted over.
    pub(crate) fn tend_services(&mut self) -> (Arc<Notify>, bool) {
        if std::mem::take(&mut self.serving.untaken) {
            self.take_lease_changes();
        }
        if self.serving.unsaved {
            self.save_leases();
        }
        self.follow_resolvers();
        let besides = !self.serving.config.networks.is_empty() || self.serving.unsaved;
        (self.serving.changed.clone(), besides)
    }

    /// A worker has leases that changed, which [`Plane::tend_services`] takes.
    pub(crate) fn leases_changed(&mut self) {
        self.serving.untaken = true;
        self.serving.changed.notify_one();
    }

    fn take_lease_changes(&mut self) {
        let Some(worker) = self.workers.first() else {
            return;
        };
        let changes = worker.call(|w| w.stage.gateway.take_lease_changes());
        for (network, change) in changes.unwrap_or_default() {
            self.serving.unsaved = true;
            let (lease, what) = match change {
                Change::Bound(l) => (l, "bound"),
                Change::Ended(l) => (l, "ended"),
            };
            let mut record = Record::now("lease");
            record.network = Some(self.network_name(network.0));
            record.port = Some(lease.port);
            record.mac = Some(lease.mac.to_string());
            record.reason = Some(format!("{} {what}", lease.address));
            self.bus.tell(record);
        }
    }

    /// The host's addresses or routes have changed.
    pub(crate) fn host_changed(&mut self, changes: Changes) {
        for ((given, ..), forwarder) in &self.serving.forwarders {
            // Interfaces may have other numbers by now.
            let conf = list(given, &self.serving.resolv);
            if conf.servers.iter().any(is_scoped) {
                forwarder.set_resolvers(&conf);
            }
            forwarder.network_changed();
        }
        let gateways = self.desired.networks.values();
        let mut gateways = gateways.filter_map(|n| n.gateway.as_ref());
        if !gateways.any(|g| g.host_uplink.is_some() || g.dns.is_some()) {
            return;
        }
        tracing::debug!("the host's network has changed: {changes}");
        let mut record = Record::now("host_changed");
        record.reason = Some(changes.to_string());
        self.bus.tell(record);
        let addresses = Arc::new(host_addresses());
        if let Some(worker) = self.workers.first() {
            // A worker that is gone has no sockets.
            let _ = worker.cast(move |w| {
                let stage = &mut w.stage;
                let gateway = &mut stage.gateway;
                gateway.host_changed(&mut w.cx, &mut stage.bridge, addresses);
            });
        }
    }

    /// Takes up the daemon's list of resolvers if it has changed.
    pub(crate) fn follow_resolvers(&mut self) {
        if !self.take_resolvers() {
            return;
        }
        // The search list that clients are told of. Refused, it is as before.
        let wanted = self.desired.clone();
        if let Err(e) = self.commit_services(&wanted) {
            tracing::warn!("taking up the search list of {RESOLV_CONF}: {e}");
        }
    }

    /// Has the resolvers of the daemon's list asked; whether it has changed.
    fn take_resolvers(&mut self) -> bool {
        if self.serving.forwarders.is_empty() {
            return false;
        }
        // A file that is being replaced is read the next time.
        let read = follow::resolv_conf();
        let Some(text) = read.ok().filter(|text| *text != self.serving.resolv) else {
            return false;
        };
        tracing::info!("{RESOLV_CONF} has changed");
        for ((given, ..), forwarder) in &self.serving.forwarders {
            forwarder.set_resolvers(&list(given, &text));
        }
        self.serving.resolv = text;
        if let Some(worker) = self.workers.first() {
            let _ = worker.cast(|w| w.stage.gateway.clear_dns_caches());
        }
        true
    }

    fn lease_path(&self) -> Option<PathBuf> {
        Some(self.state_path()?.with_extension("leases.json"))
    }

    /// Writes the leases down.
    pub(super) fn save_leases(&mut self) {
        let Some(path) = self.lease_path() else {
            self.serving.unsaved = false;
            return;
        };
        let saved = Saved {
            format: FORMAT,
            leases: self.leases(),
        };
        match state::write_private(&path, &saved) {
            Ok(()) => self.serving.unsaved = false,
            Err(e) => tracing::error!("writing leases {}: {e}", path.display()),
        }
    }

    /// Takes up the leases of the last run. A file that can't be read costs the leases, not the start.
    pub(crate) fn restore_leases(&mut self) {
        let Some(path) = self.lease_path() else {
            return;
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => return tracing::error!("reading leases {}: {e}", path.display()),
        };
        let saved: Saved = match serde_json::from_slice::<Saved>(&bytes) {
            Ok(saved) if saved.format == FORMAT => saved,
            Ok(s) => return tracing::error!("leases {}: format {}", path.display(), s.format),
            Err(e) => return tracing::error!("reading leases {}: {e}", path.display()),
        };
        let now = since_epoch();
        let mut by_network: BTreeMap<String, Vec<Lease>> = BTreeMap::new();
        for l in saved.leases {
            let Some(client_id) = unhex(&l.client_id) else {
                continue;
            };
            by_network.entry(l.network).or_default().push(Lease {
                address: l.address,
                mac: l.mac.0,
                port: l.port,
                client_id,
                host_name: l.name,
                remaining: Duration::from_secs(l.ends.saturating_sub(now)),
            });
        }
        for (network, leases) in by_network {
            if let (Some(id), Some(worker)) =
                (self.networks.get(&network).copied(), self.workers.first())
            {
                let _ = worker.call(move |w| {
                    let now = w.cx.now;
                    w.stage.gateway.restore_leases(id, &leases, now);
                });
            }
        }
    }

    /// Before the workers stop.
    pub(super) fn end_services(&mut self) {
        if !self.workers.is_empty() && !self.serving.config.networks.is_empty() {
            self.save_leases();
        }
    }

    /// After the workers have stopped: who asked resolvers for them.
    pub(super) fn end_forwarders(&mut self) {
        self.serving.forwarders.clear();
    }
}
