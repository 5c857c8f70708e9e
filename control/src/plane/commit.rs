//! Telling the workers: the part of a transaction that can't fail but for a dead worker.

use super::fast::FastLink;
use super::{LivePort, Plane, Prepared, Watch};
use crate::model::{Port, Topology};
use crate::open::Opened;
use crate::refusal::{Kind, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;
use vswitch_core::accel::FastPort;
use vswitch_core::bridge::{MirrorId, NetworkId};
use vswitch_core::port::PortId;
use vswitch_core::worker::{Gone, PortSetup, Worker, hold_port, start_ports};
use vswitch_nat::Pipeline;
use vswitch_nat::policy::Compiled;

pub(super) fn dead(gone: Gone) -> Refusal {
    Refusal::new(
        Kind::Failed,
        "configuring",
        "the data path",
        gone.to_string(),
        "restart vswitchd: it restores what was saved",
    )
}

/// The lowest number not taken.
fn free(taken: impl Iterator<Item = u16>) -> u16 {
    let taken: BTreeSet<u16> = taken.collect();
    (0..u16::MAX).find(|n| !taken.contains(n)).unwrap_or(0)
}

impl Plane {
    /// Has every worker run `f`.
    pub(super) fn each(
        &self,
        f: impl Fn(&mut Worker<Pipeline>) + Clone + Send + 'static,
    ) -> Result<(), Refusal> {
        for w in &self.workers {
            let f = f.clone();
            w.call(move |w| f(w)).map_err(dead)?;
        }
        Ok(())
    }

    /// Carries out a topology whose new ports are open. Nothing is received from these until all else is as it should be.
    pub(super) fn commit(&mut self, wanted: Topology, opened: Prepared) -> Result<(), Refusal> {
        let mut held = Vec::new();
        let done = self.commit_held(wanted, opened, &mut held);
        start_ports(&self.workers, &held).map_err(dead).and(done)
    }

    fn commit_held(
        &mut self,
        wanted: Topology,
        mut opened: Prepared,
        held: &mut Vec<PortId>,
    ) -> Result<(), Refusal> {
        let gone: Vec<String> = self.missing(&self.mirrors, &wanted.mirrors);
        for name in gone {
            if let Some(id) = self.mirrors.remove(&name) {
                self.each(move |w| {
                    w.stage.bridge.remove_mirror(id);
                })?;
            }
        }
        let gone: Vec<String> = self.missing(&self.ports, &wanted.ports);
        for name in gone {
            self.close(&name);
            self.ports.remove(&name);
        }
        self.commit_networks(&wanted)?;
        for (name, port) in &wanted.ports {
            if let Some(result) = opened.remove(name) {
                self.close(name);
                self.desired.ports.insert(name.clone(), port.clone());
                held.extend(self.hold(name, port, result));
            } else if self.desired.ports.get(name) != Some(port) {
                self.change_port(name, port)?;
            }
        }
        self.commit_gateways(&wanted)?;
        self.close_host(&wanted);
        self.commit_services(&wanted)?;
        self.commit_static(&wanted)?;
        for (name, mirror) in &wanted.mirrors {
            let id = match self.mirrors.get(name) {
                Some(id) => *id,
                None => MirrorId(free(self.mirrors.values().map(|m| m.0))),
            };
            let config = mirror.to_bridge(
                |p| self.ports.get(p).map(|l| l.id),
                |n| self.networks.get(n).copied(),
            );
            if let Some(config) = config {
                self.mirrors.insert(name.clone(), id);
                self.each(move |w| w.stage.bridge.set_mirror(id, config.clone()))?;
            }
        }
        self.desired = wanted;
        self.follow_captures()
    }

    fn missing<A, B>(&self, have: &BTreeMap<String, A>, want: &BTreeMap<String, B>) -> Vec<String> {
        have.keys()
            .filter(|n| !want.contains_key(*n))
            .cloned()
            .collect()
    }

    fn commit_networks(&mut self, wanted: &Topology) -> Result<(), Refusal> {
        for (name, network) in &wanted.networks {
            let known = self.networks.get(name).copied();
            if known.is_some() && self.desired.networks.get(name) == Some(network) {
                continue;
            }
            let id = known.unwrap_or_else(|| NetworkId(free(self.networks.values().map(|n| n.0))));
            self.networks.insert(name.clone(), id);
            let config = network.to_bridge();
            self.each(move |w| w.stage.bridge.set_network(id, config.clone()))?;
        }
        // Ports move out of a network before it goes.
        for (name, port) in &wanted.ports {
            let was = self.desired.ports.get(name);
            if was.is_some_and(|w| w.network != port.network) && self.ports.contains_key(name) {
                self.change_port(name, port)?;
            }
        }
        let gone: Vec<String> = self.missing(&self.networks, &wanted.networks);
        for name in gone {
            if let Some(id) = self.networks.remove(&name) {
                self.each(move |w| w.stage.bridge.remove_network(id))?;
            }
        }
        Ok(())
    }

    /// The router, where anything about gateways or networks changes.
    pub(super) fn commit_gateways(&mut self, wanted: &Topology) -> Result<(), Refusal> {
        let any = |t: &Topology| t.networks.values().any(|n| n.gateway.is_some());
        let part = |t: &Topology| (t.networks.clone(), t.conntrack.clone());
        let policy = self.compile(wanted)?;
        let whole = self.with_found(wanted);
        let same = part(&self.desired) == part(wanted) && self.published == whole.publish
            || !any(&self.desired) && !any(wanted);
        if same && policy == self.policy {
            return Ok(());
        }
        let judged = policy.is_some() && policy != self.policy;
        self.policy.clone_from(&policy);
        let mut config = whole.to_gateway(|n| self.networks.get(n).copied());
        config.policy = policy;
        self.published = whole.publish;
        self.each(move |w| {
            let stage = &mut w.stage;
            stage.gateway.configure(&w.cx, &mut stage.bridge, &config);
        })?;
        match self.workers.first() {
            Some(first) if judged => first
                .call(|w| {
                    let stage = &mut w.stage;
                    stage.gateway.judge_spliced(&mut w.cx, &mut stage.bridge);
                })
                .map_err(dead),
            _ => Ok(()),
        }
    }

    /// The firewall: the one in force if nothing about it changes.
    fn compile(&mut self, wanted: &Topology) -> Result<Option<Arc<Compiled>>, Refusal> {
        if wanted.policies.is_empty() {
            return Ok(None);
        }
        let config = wanted.to_policy(&|p| self.ports.get(p).map(|l| l.id), &|n| {
            self.networks.get(n).copied()
        });
        if let Some(old) = self.policy.as_ref().filter(|p| *p.config() == config) {
            return Ok(Some(old.clone()));
        }
        self.policy_epoch += 1;
        let compiled = Compiled::new(self.policy_epoch, config, self.policy.as_deref());
        compiled.map(|c| Some(Arc::new(c))).map_err(|e| {
            let remedy = "use fewer or simpler rules";
            Refusal::new(
                Kind::Invalid,
                "applying",
                "the policies",
                e.to_string(),
                remedy,
            )
        })
    }

    fn change_port(&self, name: &str, port: &Port) -> Result<(), Refusal> {
        let (Some(live), Some(network)) = (self.ports.get(name), self.networks.get(&port.network))
        else {
            return Ok(());
        };
        if !live.open {
            return Ok(());
        }
        let (id, config) = (live.id, port.to_bridge(*network));
        let (mtu, up) = (port.mtu, port.up);
        let fast = live.fast.as_ref().map(|f| FastPort { mtu, ..f.port });
        self.each(move |w| {
            w.stage.bridge.set_port(id, config.clone());
            w.set_mtu(id, mtu);
            w.set_admin(id, up);
            w.stage.bridge.set_fast(id, fast);
        })
    }

    /// Static entries: those that are gone first, then all, for those of a reopened port went with it.
    fn commit_static(&self, wanted: &Topology) -> Result<(), Refusal> {
        for (name, network) in &wanted.networks {
            let Some(id) = self.networks.get(name).copied() else {
                continue;
            };
            let old = self.desired.networks.get(name);
            for e in old.map_or(&[][..], |n| &n.fdb) {
                if !network
                    .fdb
                    .iter()
                    .any(|n| n.mac == e.mac && n.vlan == e.vlan)
                {
                    let (vid, mac) = (e.vlan, e.mac.0);
                    self.each(move |w| {
                        w.stage.bridge.remove_entry(id, vid, mac);
                    })?;
                }
            }
            let entries: Vec<_> = network
                .fdb
                .iter()
                .filter_map(|e| {
                    let live = self.ports.get(&e.port).filter(|l| l.open)?;
                    Some((e.vlan, e.mac.0, live.id))
                })
                .collect();
            if !entries.is_empty() {
                self.each(move |w| {
                    for (vid, mac, port) in &entries {
                        w.stage.bridge.add_static(id, *vid, *mac, *port);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Puts an opened port into the switch, or notes why it couldn't be opened.
    pub(super) fn take_in(&mut self, name: &str, port: &Port, opened: Result<Opened, Refusal>) {
        let held = self.hold(name, port, opened);
        // Where workers have ended, that is known by then.
        let _ = start_ports(&self.workers, held.as_slice());
    }

    /// The same, but nothing is received yet. Returns the port that is to be started then.
    fn hold(&mut self, name: &str, port: &Port, opened: Result<Opened, Refusal>) -> Option<PortId> {
        let id = match self.ports.get(name) {
            Some(l) => l.id,
            None => PortId(free(self.ports.values().map(|l| l.id.0))),
        };
        let network = self.networks.get(&port.network).copied();
        let result = match (opened, network) {
            (Ok(o), Some(network)) => self.enter(name, id, port, network, o),
            (Ok(_), None) => Err("its network is gone".to_owned()),
            (Err(e), _) => Err(e.reason),
        };
        let live = result.unwrap_or_else(|fault| {
            tracing::warn!(port = name, reason = fault, "port stays down");
            LivePort {
                id,
                counters: Vec::new(),
                device: port.device_name(name).to_owned(),
                fault: Some(fault),
                looped: None,
                open: false,
                _watch: None,
                fast: None,
                _veth: None,
            }
        });
        let held = live.open.then_some(id);
        self.ports.insert(name.to_owned(), live);
        held
    }

    fn enter(
        &self,
        name: &str,
        id: PortId,
        port: &Port,
        network: NetworkId,
        opened: Opened,
    ) -> Result<LivePort, String> {
        let n = self.workers.len();
        let one = opened.queues.len() < n;
        let owner = if self.shared {
            0
        } else {
            (usize::from(id.0) % n.max(1)) as u16
        };
        let fast = self.accelerator().zip(opened.fast);
        let fast = fast.map(|(with, (port, link))| FastLink::new(with, id, port, link));
        let part = fast.as_ref().map(|f| f.port);
        let mut queues = opened.queues.into_iter();
        let counters: Vec<_> = self.workers.iter().map(|_| Arc::default()).collect();
        let setups = counters.iter().enumerate().map(|(i, mine)| PortSetup {
            io: if one && i != usize::from(owner) {
                None
            } else {
                queues.next()
            },
            owner: if one { owner } else { i as u16 },
            mtu: port.mtu,
            tx_limit: port.queue as usize,
            admin_up: port.up,
            counters: Arc::clone(mine),
        });
        let config = port.to_bridge(network);
        hold_port(&self.workers, id, setups, move |stage: &mut Pipeline| {
            stage.bridge.set_port(id, config.clone());
            stage.bridge.set_fast(id, part);
        })
        .map_err(|g| g.to_string())?;
        let watch = opened.process.map(|(pid, fd)| {
            let (alive, ended) = oneshot::channel();
            let _ = self.watches.send(Watch {
                port: name.to_owned(),
                id,
                pid,
                fd,
                ended,
            });
            alive
        });
        Ok(LivePort {
            id,
            counters,
            device: opened.device,
            fault: None,
            looped: None,
            open: true,
            _watch: watch,
            fast,
            _veth: opened.veth,
        })
    }

    /// Takes a port out of the workers; its counters go into the totals. It stays known, as closed.
    pub(super) fn close(&mut self, name: &str) {
        let Some(live) = self.ports.get_mut(name) else {
            return;
        };
        live.open = false;
        live._watch = None;
        let (id, counters) = (live.id, std::mem::take(&mut live.counters));
        if counters.is_empty() {
            return;
        }
        // Dead workers have closed it already.
        let _ = self.each(move |w| {
            w.remove_port(id);
            w.stage.bridge.remove_port(id);
        });
        self.retired.add_counters(&counters);
        if let Some(live) = self.ports.get_mut(name) {
            self.retired.add_fast(live.fast_counts());
            live.fast = None;
            live._veth = None;
        }
    }
}
