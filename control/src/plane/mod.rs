//! The switch as it runs: the desired state, the workers that carry it out, and the way from one to the other.
//!
//! # Theory of operation
//!
//! Every change of configuration is a new topology for [`Plane::apply`]: check it whole, open the devices of the ports that
//! are new (all that can fail), and only then tell the workers, which can't fail. If a device can't be opened the ones
//! opened before are closed again and nothing has changed. A port whose device must be replaced under the same name is
//! closed first, and opened again as it was if the transaction fails.
//!
//! A port that went down for good (its container ended), or that couldn't be restored, stays in the desired state, with the
//! reason; it is tried again at the next change.

mod address;
mod capture;
mod commit;
mod conntrack;
mod fast;
mod host;
mod policy;
mod publish;
mod services;
mod session;
mod splice;
mod switched;
mod trace;
mod view;
mod warnings;

pub(crate) use session::{Begin, Given};
pub(crate) use warnings::lacking;

pub use crate::switching::SwitchingView;
pub use capture::CaptureView;
pub(crate) use capture::{Begun, wall};
pub use conntrack::{ConnectionCount, ConnectionFilter, ConnectionView, Direction};
pub use fast::AcceleratorView;
pub use policy::{ConsideredView, ExplainQuery, ExplainView, PlaceView, PolicyView, RuleCounts};
pub use services::LeaseView;
pub use trace::{LeavingView, SentView, StepView, TraceRequest, TraceView};
pub use view::{
    FdbView, Info, MdbView, MirrorView, NeighbourView, NetworkView, PortStats, PortView,
    PublishedView, Rates, Stats, Totals,
};

use crate::events::{Bus, Record};
use crate::interface::Veth;
use crate::model::{Change, Port, PortKind, PublishedPort, Receive, Topology, diff};
use crate::open::{self, Opened, Workers};
use crate::refusal::{Kind, Refusal};
use crate::state::StateFile;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use vswitch_core::bridge::{MirrorId, NetworkId};
use vswitch_core::port::PortId;
use vswitch_core::stats::PortCounters;
use vswitch_core::worker::{Event, WorkerHandle};
use vswitch_nat::Pipeline;
use vswitch_nat::policy::Compiled;

/// A port of the running switch.
#[derive(Debug)]
struct LivePort {
    id: PortId,
    /// One per worker; empty while it isn't open.
    counters: Vec<Arc<PortCounters>>,
    device: String,
    /// Why it is down, if not by configuration.
    fault: Option<String>,
    /// The other end of the loop it was last shut for.
    looped: Option<PortId>,
    /// Whether the workers have it.
    open: bool,
    /// Ends the watch over the container's process when dropped.
    _watch: Option<oneshot::Sender<()>>,
    /// Its part in the fast path.
    fast: Option<fast::FastLink>,
    /// The veth pair made for it; goes when dropped.
    _veth: Option<Veth>,
}

/// A process to watch: when it ends, the port goes down.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) port: String,
    pub(crate) id: PortId,
    pub(crate) pid: i32,
    pub(crate) fd: OwnedFd,
    pub(crate) ended: oneshot::Receiver<()>,
}

/// The running switch; see the module's head.
#[derive(Debug)]
pub struct Plane {
    workers: Vec<WorkerHandle<Pipeline>>,
    /// Whether the first works alone until it is at its limit.
    shared: bool,
    desired: Topology,
    networks: BTreeMap<String, NetworkId>,
    ports: BTreeMap<String, LivePort>,
    mirrors: BTreeMap<String, MirrorId>,
    captures: BTreeMap<u32, capture::Watching>,
    last_capture: u32,
    /// What gateways hold and drop themselves, by worker.
    gateway_counters: Vec<Arc<PortCounters>>,
    /// What went to the host's sockets and came from them, by worker.
    host_counters: Vec<Arc<PortCounters>>,
    /// Counters of ports that are gone, so that totals never go back.
    retired: Totals,
    serving: services::Serving,
    host_ports: publish::HostPorts,
    /// Published ports as the gateways know them.
    published: BTreeMap<String, PublishedPort>,
    state: Option<StateFile>,
    /// The firewall in force, and the epoch given out last.
    policy: Option<Arc<Compiled>>,
    policy_epoch: u32,
    fast: fast::FastPath,
    bus: Bus,
    watches: mpsc::UnboundedSender<Watch>,
    sessions: session::Sessions,
    /// Sockets of containers that are the host's own.
    switching: Arc<crate::switching::Shared>,
    started: Instant,
}

/// Ports opened for a transaction.
type Prepared = BTreeMap<String, Result<Opened, Refusal>>;

impl Plane {
    pub(crate) fn new(
        workers: Vec<WorkerHandle<Pipeline>>,
        shared: bool,
        state: Option<StateFile>,
        bus: Bus,
        watches: mpsc::UnboundedSender<Watch>,
    ) -> Plane {
        let counters = |w: &WorkerHandle<Pipeline>| w.call(|w| w.stage.gateway.counters()).ok();
        let host = |w: &WorkerHandle<Pipeline>| w.call(|w| w.stage.gateway.host_counters()).ok();
        Plane {
            host_counters: workers.iter().filter_map(host).collect(),
            gateway_counters: workers.iter().filter_map(counters).collect(),
            workers,
            shared,
            desired: Topology::default(),
            networks: BTreeMap::new(),
            ports: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            captures: BTreeMap::new(),
            last_capture: 0,
            retired: Totals::default(),
            serving: services::Serving::default(),
            host_ports: publish::HostPorts::default(),
            published: BTreeMap::new(),
            state,
            policy: None,
            policy_epoch: 0,
            fast: fast::FastPath::default(),
            bus,
            watches,
            sessions: session::Sessions::default(),
            switching: Arc::default(),
            started: Instant::now(),
        }
    }

    /// What the switch is asked to be.
    #[must_use]
    pub fn desired(&self) -> &Topology {
        &self.desired
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Makes the switch be `wanted`, all of it or nothing; returns what changed.
    pub fn apply(&mut self, wanted: Topology) -> Result<Vec<Change>, Refusal> {
        self.transact(wanted, &BTreeMap::new(), false)
    }

    /// As [`Plane::apply`], with the queues handed over for ports of kind fd.
    pub(crate) fn apply_with(
        &mut self,
        wanted: Topology,
        handed: &BTreeMap<String, OwnedFd>,
    ) -> Result<Vec<Change>, Refusal> {
        self.transact(wanted, handed, false)
    }

    /// Takes up a saved state: ports that can't be opened are down with the reason.
    pub(crate) fn restore(&mut self, saved: Topology) -> Result<Vec<Change>, Refusal> {
        self.transact(saved, &BTreeMap::new(), true)
    }

    fn transact(
        &mut self,
        mut wanted: Topology,
        handed: &BTreeMap<String, OwnedFd>,
        lenient: bool,
    ) -> Result<Vec<Change>, Refusal> {
        wanted.check().map_err(|p| p.refusal("applying"))?;
        let listening = self.prepare_host_ports(&mut wanted, lenient)?;
        let changes = diff(&self.desired, &wanted);
        let opened = match self.prepare(&wanted, handed, lenient) {
            Ok(opened) => opened,
            Err(refusal) => {
                self.take_back(listening);
                return Err(refusal);
            }
        };
        let set = self.set_up_or_down(&wanted);
        self.commit(wanted, opened)?;
        self.commit_host_ports(listening)?;
        self.follow_switched();
        self.tell_deleted();
        for c in &changes {
            tracing::info!(act = %c.act, thing = %c.thing, name = %c.name, "configured");
            let mut record = Record::now("configured");
            match c.thing.as_str() {
                "network" => record.network = Some(c.name.clone()),
                "port" => record.port = Some(c.name.clone()),
                _ => record.other = Some(c.name.clone()),
            }
            record.reason = Some(format!("{} {}", c.act, c.thing));
            self.bus.tell(record);
        }
        for (name, up) in set {
            self.tell_set(name, up);
        }
        if !lenient && !changes.is_empty() {
            self.save()?;
        }
        Ok(changes)
    }

    /// Ports that stay and are set up or down by `wanted`.
    fn set_up_or_down(&self, wanted: &Topology) -> Vec<(String, bool)> {
        let turned = |(name, port): (&String, &Port)| {
            let new = wanted.ports.get(name)?;
            (new.up != port.up).then(|| (name.clone(), new.up))
        };
        self.desired.ports.iter().filter_map(turned).collect()
    }

    /// Tells that a port was set up or down; one that is broken doesn't come up by that.
    fn tell_set(&self, name: String, up: bool) {
        let live = self.ports.get(&name);
        if up && !live.is_some_and(|l| l.open && l.fault.is_none() && l.looped.is_none()) {
            return;
        }
        let mut record = Record::now(if up { "port_up" } else { "port_down" });
        record.reason = (!up).then(|| "set down".to_owned());
        record.port = Some(name);
        self.bus.tell(record);
    }

    fn state_path(&self) -> Option<&std::path::Path> {
        self.state.as_ref().map(|s| s.0.as_path())
    }

    fn save(&self) -> Result<(), Refusal> {
        let Some(state) = &self.state else {
            return Ok(());
        };
        state.save(&self.lasting()).map_err(|e| {
            tracing::error!("{e}");
            Refusal::new(
                Kind::Failed,
                "saving",
                "the state",
                format!("{e}"),
                "the change is active, but a restart will not restore it",
            )
        })
    }

    /// Opens what is new. On failure everything is as before.
    fn prepare(
        &mut self,
        wanted: &Topology,
        handed: &BTreeMap<String, OwnedFd>,
        lenient: bool,
    ) -> Result<Prepared, Refusal> {
        let workers = Workers {
            count: self.workers.len(),
            shared: self.shared,
            accelerator: self.accelerator(),
        };
        let mut opened = Prepared::new();
        let mut closed: Vec<String> = Vec::new();
        // First what stands beside everything there is, then what takes the place of an open port.
        let (beside, instead): (Vec<_>, Vec<_>) = wanted
            .ports
            .iter()
            .filter(|(name, port)| self.must_open(name, port))
            .partition(|(name, _)| !self.ports.contains_key(*name));
        let mut failed = None;
        for (name, port) in beside.into_iter().chain(instead) {
            let retry = self.desired.ports.get(name) == Some(port);
            if let Some(live) = self.ports.get(name)
                && live.open
            {
                self.close(name);
                closed.push(name.clone());
            }
            if lenient {
                open::clear_left_behind(name, port);
            }
            let port = address::addressed(self.state_path(), name, port);
            match open::open(name, &port, &workers, handed.get(name)) {
                Err(e) if !lenient && !retry => {
                    failed = Some(e);
                    break;
                }
                result => {
                    opened.insert(name.clone(), result);
                }
            }
        }
        let Some(refusal) = failed else {
            return Ok(opened);
        };
        drop(opened);
        for name in closed {
            let Some(port) = self.desired.ports.get(&name).cloned() else {
                continue;
            };
            let addressed = address::addressed(self.state_path(), &name, &port);
            let again = open::open(&name, &addressed, &workers, None);
            self.take_in(&name, &port, again);
        }
        // The refusal is the news, not that a worker is dead.
        let _ = self.follow_captures();
        Err(refusal)
    }

    /// Whether the port's device has to be opened.
    fn must_open(&self, name: &str, port: &Port) -> bool {
        match (self.desired.ports.get(name), self.ports.get(name)) {
            (Some(old), Some(live)) => !live.open || needs_reopen(old, port),
            _ => true,
        }
    }

    /// A port's process ended: it goes down with the reason.
    pub(crate) fn process_ended(&mut self, watch: &Watch) {
        let Some(live) = self.ports.get(&watch.port).filter(|l| l.id == watch.id) else {
            return;
        };
        let (id, reason) = (
            live.id,
            format!("the container's process {} ended", watch.pid),
        );
        for w in &self.workers {
            let fault = vswitch_core::port::PortFault::Gone(reason.clone());
            let _ = w.cast(move |w| w.fail_port(id, &fault));
        }
    }

    /// Takes notice of what a worker reports, and tells everybody by name.
    pub(crate) fn notice(&mut self, event: &Event, lost: u64) {
        if lost > 0 {
            let mut record = Record::now("lost");
            record.reason = Some(format!("{lost} events came faster than they could be told"));
            self.bus.tell(record);
        }
        let of_leases = matches!(event, Event::LeasesChanged);
        if lost > 0 || of_leases {
            self.leases_changed();
        }
        if of_leases {
            // They are told one by one.
            return;
        }
        let record = self.record(event);
        match event {
            Event::PortDown {
                port,
                reason,
                is_final,
            } => {
                tracing::warn!(port = record.port, reason, "port down");
                if let Some(live) = self.ports.values_mut().find(|l| l.id == *port) {
                    // Several workers may tell; the first knows best. That it is gone for good is news again.
                    let ended = *is_final && live.open;
                    if live.fault.is_some() && !ended {
                        return;
                    }
                    live.fault = Some(reason.clone());
                    live.open &= !is_final;
                }
            }
            Event::PortUp { port } => {
                tracing::info!(port = record.port, "port up");
                if let Some(live) = self.ports.values_mut().find(|l| l.id == *port) {
                    live.fault = None;
                }
            }
            Event::NatExhausted { .. } => {
                tracing::warn!(
                    network = record.network,
                    reason = record.reason,
                    "NAT pool exhausted"
                );
            }
            Event::LoopDetected { port, other } => {
                tracing::warn!(port = record.port, other = record.other, "loop: port shut");
                if let Some(live) = self.ports.values_mut().find(|l| l.id == *port) {
                    live.looped = Some(*other);
                }
            }
            Event::LoopCleared { port } => {
                tracing::info!(port = record.port, "loop over: port open");
                if let Some(live) = self.ports.values_mut().find(|l| l.id == *port) {
                    live.looped = None;
                }
            }
            _ => {}
        }
        self.bus.tell(record);
    }

    fn record(&self, event: &Event) -> Record {
        let port = |id: &PortId| Some(self.port_name(*id));
        let mut r = Record::now("");
        let mac = |r: &mut Record, network: &u16, vid: &u16, mac: &dyn ToString| {
            r.network = Some(self.network_name(*network));
            r.vlan = (*vid != 0).then_some(*vid);
            r.mac = Some(mac.to_string());
        };
        r.event = match event {
            Event::PortUp { port: p } => {
                r.port = port(p);
                "port_up"
            }
            Event::PortDown {
                port: p, reason, ..
            } => {
                r.port = port(p);
                r.reason = Some(reason.clone());
                "port_down"
            }
            Event::MacLearned {
                network,
                vid,
                mac: m,
                port: p,
            } => {
                mac(&mut r, network, vid, m);
                r.port = port(p);
                "mac_learned"
            }
            Event::MacMoved {
                network,
                vid,
                mac: m,
                from,
                to,
            } => {
                mac(&mut r, network, vid, m);
                (r.port, r.other) = (port(to), port(from));
                "mac_moved"
            }
            Event::MacAged {
                network,
                vid,
                mac: m,
                port: p,
            } => {
                mac(&mut r, network, vid, m);
                r.port = port(p);
                "mac_aged"
            }
            Event::LimitReached { port: p, limit } => {
                r.port = port(p);
                r.reason = Some((*limit).to_owned());
                "limit_reached"
            }
            Event::NatExhausted {
                network,
                proto,
                reason,
            } => {
                r.network = Some(self.network_name(*network));
                let proto = crate::units::Protocols(vec![*proto]);
                r.reason = Some(format!("{reason} ({proto})"));
                "nat_exhausted"
            }
            Event::LoopDetected { port: p, other } => {
                (r.port, r.other) = (port(p), port(other));
                "loop_detected"
            }
            Event::Policy {
                port: p,
                to,
                rule,
                action,
                packet,
            } => {
                (r.port, r.other) = (port(p), to.as_ref().and_then(port));
                r.reason = Some(format!("{action} by {rule}: {packet}"));
                "policy"
            }
            Event::LoopCleared { port: p } => {
                r.port = port(p);
                "loop_cleared"
            }
            Event::LeasesChanged => "leases_changed",
        }
        .to_owned();
        r
    }

    fn port_name(&self, id: PortId) -> String {
        let found = self.ports.iter().find(|(_, l)| l.id == id);
        found.map_or_else(|| id.to_string(), |(n, _)| n.clone())
    }

    fn network_name(&self, id: u16) -> String {
        let found = self.networks.iter().find(|(_, n)| n.0 == id);
        found.map_or_else(|| format!("#{id}"), |(n, _)| n.clone())
    }

    /// Stops the workers; ports are closed and devices made by us go with them.
    pub(crate) fn stop(&mut self) {
        self.end_services();
        for w in self.workers.drain(..) {
            w.stop();
        }
        self.end_forwarders();
        self.host_ports.splicing.end();
        self.ports.clear();
    }
}

/// Whether the difference concerns the device, not only the bridge.
fn needs_reopen(old: &Port, new: &Port) -> bool {
    if (old.kind, new.kind) == (PortKind::Fd, PortKind::Fd) && old.queue == new.queue {
        return false;
    }
    let device = |p: &Port| {
        (
            p.kind,
            p.device.clone(),
            p.netns.clone(),
            p.listen.clone(),
            p.connect.clone(),
            p.mac.clone(),
            p.addresses.clone(),
            p.gateways.clone(),
            p.queue,
            (p.receive == Receive::Ring).then_some(p.ring_kib),
        )
    };
    device(old) != device(new)
}
