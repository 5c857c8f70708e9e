//! Ports of the host that stand for containers': opening their sockets, which can fail, and handing them to the data path.
//!
//! What listens already stays untouched by a change that doesn't concern it. Sockets are opened before anything is changed. One whose
//! port is taken by a socket of ours that is to go has that closed first, and opened again if the change is refused.

use super::Plane;
use super::commit::dead;
use super::splice::Splicing;
use super::view::PublishedView;
use crate::api::exists;
use crate::listening;
use crate::model::{Found, Protocol, PublishedPort, Topology};
use crate::refusal::{Kind, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::Notify;
use vswitch_core::sys::{listen, sock};
use vswitch_nat::gateway::HostListener;
use vswitch_nat::{HostPort, HostPortCounters};

/// Tries to find a port that is free for all addresses of a published one.
const PICKS: usize = 16;
/// From which port on nobody needs a privilege.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// A socket that listens.
#[derive(Debug)]
struct Open {
    name: String,
    counters: Arc<HostPortCounters>,
    /// Where its connections from loopback go, by the sockets of which namespace.
    spliced: Option<(SocketAddr, String)>,
}

/// All that listen, and why published ones don't.
#[derive(Debug, Default)]
pub(super) struct HostPorts {
    open: BTreeMap<HostPort, Open>,
    faults: BTreeMap<String, String>,
    /// What containers listen on, of those that are looked into.
    found: Found,
    /// Told when a container is to be looked into.
    changed: Arc<Notify>,
    pub(super) splicing: Splicing,
}

/// The name that one found was published under.
fn published_as(name: &str) -> &str {
    name.split_once('/').map_or(name, |(name, _)| name)
}

fn is_found(name: &str) -> bool {
    name.contains('/')
}

/// Sockets opened for a transaction.
#[derive(Debug, Default)]
pub(super) struct Listening {
    new: BTreeMap<HostPort, (String, OwnedFd)>,
    /// Whom those that stay or go belong to.
    names: BTreeMap<HostPort, String>,
    /// Of ours, that were in the way.
    closed: Vec<HostPort>,
    faults: BTreeMap<String, String>,
}

fn kind(port: HostPort) -> sock::Kind {
    match port.proto {
        17 => sock::Kind::Udp,
        _ => sock::Kind::Tcp,
    }
}

/// Opens its socket, with this number in the place of its own.
fn opened(port: HostPort, number: u16) -> io::Result<OwnedFd> {
    let at = SocketAddr::new(port.at.ip(), number);
    listen::open_on(kind(port), at, port.interface)
}

fn protocol(port: HostPort) -> &'static str {
    match port.proto {
        17 => "UDP",
        _ => "TCP",
    }
}

/// What a person is told of a socket that can't be opened.
fn refusal(name: &str, port: HostPort, e: &io::Error) -> Refusal {
    let place = format!("{} {} of the host", protocol(port), port.at);
    let (kind, reason, remedy) = match e.raw_os_error() {
        Some(listen::IN_USE) => {
            let flags = if port.proto == 17 { "-lunp" } else { "-ltnp" };
            let remedy =
                format!("publish another port, or end who has it (`ss {flags}` shows that)");
            (Kind::Conflict, format!("{place} is taken"), remedy)
        }
        Some(listen::NOT_ALLOWED) => {
            let first = std::fs::read_to_string(UNPRIVILEGED).unwrap_or_default();
            let first = first.trim().parse().unwrap_or(1024u16);
            let remedy = format!(
                "publish a port from {first} on, or allow lower ones with `sysctl \
                 net.ipv4.ip_unprivileged_port_start={}` or CAP_NET_BIND_SERVICE",
                port.at.port()
            );
            (Kind::Denied, format!("{place} is privileged"), remedy)
        }
        Some(listen::NO_ADDRESS) => {
            let reason = format!("the host has no address {}", port.at.ip());
            let remedy =
                "`ip address` shows those it has; leave the address out for all".to_owned();
            (Kind::Conflict, reason, remedy)
        }
        Some(listen::NO_INTERFACE) => {
            let name = port.interface.map(|i| i.name().to_owned());
            let reason = format!("the host has no interface {}", name.unwrap_or_default());
            let remedy = "`ip link` shows those it has; leave it out for all".to_owned();
            (Kind::Conflict, reason, remedy)
        }
        Some(listen::NO_RIGHT) if port.interface.is_some() => {
            let remedy = "name an address instead: it takes Linux 5.7, or CAP_NET_RAW".to_owned();
            let reason = format!("{place} may not be of one interface");
            (Kind::Denied, reason, remedy)
        }
        Some(sock::TOO_MANY) => {
            let remedy =
                "publish fewer ports, or raise the limit (LimitNOFILE, `ulimit -n`)".to_owned();
            (
                Kind::Failed,
                format!("{place}: no more files can be open"),
                remedy,
            )
        }
        _ => {
            let remedy = "publish another port, or at another address".to_owned();
            (Kind::Failed, format!("{place}: {e}"), remedy)
        }
    };
    Refusal::new(kind, "publishing", format!("port `{name}`"), reason, remedy)
}

/// Whether two sockets can't be at once.
fn clash(a: HostPort, b: HostPort) -> bool {
    let same = a.proto == b.proto && a.at.port() == b.at.port();
    let (x, y) = (a.at.ip(), b.at.ip());
    let apart = a.interface.is_some() && b.interface.is_some() && a.interface != b.interface;
    same && !apart
        && x.is_ipv4() == y.is_ipv4()
        && (x == y || x.is_unspecified() || y.is_unspecified())
}

/// What the containers listen on that are to be looked into.
fn look(wanted: &Topology) -> Found {
    let auto = wanted.publish.iter().filter(|(_, p)| p.auto);
    let found = auto.filter_map(|(name, p)| {
        let at: Vec<_> = p.to.iter().map(|b| b.0.address).collect();
        let udp = p.protocol == Protocol::Udp;
        let ports = listening::found(wanted.namespace_of(p)?, udp, &at);
        // Of the container, with the host's number.
        let first = p.to.first().and_then(|b| b.0.port);
        let by = p.ports.0.0.wrapping_sub(first.unwrap_or(p.ports.0.0));
        Some((
            name.clone(),
            ports.iter().map(|n| n.wrapping_add(by)).collect(),
        ))
    });
    found.collect()
}

/// Opens a port that the host picks, at all the addresses.
fn pick(ports: &[HostPort]) -> Result<Vec<(HostPort, OwnedFd)>, (HostPort, io::Error)> {
    let mut tries = 0;
    'again: loop {
        let mut done: Vec<(HostPort, OwnedFd)> = Vec::new();
        for p in ports {
            let chosen = done.first().map_or(0, |(d, _)| d.at.port());
            let at = SocketAddr::new(p.at.ip(), chosen);
            let opened = opened(*p, chosen).and_then(|fd| Ok((sock::local(&fd)?, fd)));
            match opened {
                Ok((own, fd)) => {
                    let at = SocketAddr::new(p.at.ip(), own.port());
                    done.push((HostPort { at, ..*p }, fd));
                }
                Err(e) if e.raw_os_error() == Some(listen::IN_USE) && tries < PICKS => {
                    tries += 1;
                    continue 'again;
                }
                Err(e) => return Err((HostPort { at, ..*p }, e)),
            }
        }
        return Ok(done);
    }
}

impl Plane {
    /// A topology with the ports that containers are found to listen on.
    pub(super) fn with_found(&self, wanted: &Topology) -> Topology {
        wanted.with_found(&self.host_ports.found)
    }

    /// Opens what is new of the host's ports. Ports left to the host are the same as before, or are chosen. On failure everything is as
    /// before.
    pub(super) fn prepare_host_ports(
        &mut self,
        wanted: &mut Topology,
        lenient: bool,
    ) -> Result<Listening, Refusal> {
        let mut listening = Listening::default();
        let done = self.open_host_ports(wanted, lenient, &mut listening);
        let done = done.and_then(|()| self.prepare_splices(wanted, lenient));
        match done {
            Ok(()) => Ok(listening),
            Err(refusal) => {
                self.take_back(listening);
                Err(refusal)
            }
        }
    }

    fn open_host_ports(
        &mut self,
        wanted: &mut Topology,
        lenient: bool,
        listening: &mut Listening,
    ) -> Result<(), Refusal> {
        for (name, p) in wanted.publish.iter_mut().filter(|(_, p)| p.ports.0.0 == 0) {
            let before = self.desired.publish.get(name);
            if let Some(before) = before {
                let same = PublishedPort {
                    ports: before.ports.clone(),
                    ..p.clone()
                };
                if same == *before {
                    p.ports = same.ports;
                }
            }
        }
        self.host_ports.found = look(wanted);
        let whole = wanted.with_found(&self.host_ports.found);
        let all: Vec<(String, HostPort)> = {
            let all = whole.host_ports().into_iter();
            all.map(|(name, p)| (name.to_owned(), p)).collect()
        };
        if all.is_empty() {
            return Ok(());
        }
        // The limit of descriptors is raised as far as that goes.
        let _ = sock::descriptors();
        let stays: BTreeSet<HostPort> = all.iter().map(|(_, p)| *p).collect();
        for (name, port) in all.iter().filter(|(_, p)| p.at.port() != 0) {
            listening.names.insert(*port, name.clone());
            if self.host_ports.open.contains_key(port) || listening.new.contains_key(port) {
                continue;
            }
            match self.open_host_port(*port, &stays, listening) {
                Ok(fd) => {
                    listening.new.insert(*port, (name.clone(), fd));
                }
                Err(_) if self.lacks_family(*port, whole.publish.get(name)) => {}
                // It is the host's own.
                Err(_) if is_found(name) => {}
                Err(e) => {
                    let refusal = self.blame(refusal(name, *port, &e), *port, &e, listening);
                    let known = self.host_ports.faults.contains_key(name);
                    let again = known && self.desired.publish.get(name) == wanted.publish.get(name);
                    if !lenient && !again {
                        return Err(refusal);
                    }
                    if self.host_ports.faults.get(name) != Some(&refusal.reason) {
                        tracing::warn!("{refusal}");
                    }
                    listening.faults.insert(name.clone(), refusal.reason);
                }
            }
        }
        let names: BTreeSet<&String> = {
            let open = all.iter().filter(|(_, p)| p.at.port() == 0);
            open.map(|(name, _)| name).collect()
        };
        for name in names {
            let of = all.iter().filter(|(n, _)| n == name);
            let ports: Vec<HostPort> = of.map(|(_, p)| *p).collect();
            let picked = pick(&ports).map_err(|(port, e)| refusal(name, port, &e))?;
            for (port, fd) in picked {
                if let Some(p) = wanted.publish.get_mut(name) {
                    p.ports.0 = (port.at.port(), port.at.port());
                }
                listening.names.insert(port, name.clone());
                listening.new.insert(port, (name.clone(), fd));
            }
        }
        wanted.check().map_err(|p| p.refusal("publishing"))
    }

    /// Whether a port for all addresses can't be at those of a family because the host has none of that.
    fn lacks_family(&self, port: HostPort, of: Option<&PublishedPort>) -> bool {
        let all = of.is_some_and(|p| p.address.is_none());
        let any = SocketAddr::new(port.at.ip(), 0);
        let lacks = |e: io::Error| {
            let e = e.raw_os_error();
            e == Some(listen::NO_FAMILY) || e == Some(listen::NO_ADDRESS)
        };
        all && port.at.is_ipv6() && listen::open(kind(port), any).is_err_and(lacks)
    }

    /// Says so if it is we who have the port.
    fn blame(
        &self,
        mut refusal: Refusal,
        port: HostPort,
        e: &io::Error,
        listening: &Listening,
    ) -> Refusal {
        if e.raw_os_error() == Some(listen::IN_USE) {
            let ours = self.host_ports.open.iter().map(|(p, o)| (p, &o.name));
            let mut ours = ours.chain(listening.new.iter().map(|(p, (name, _))| (p, name)));
            if let Some((at, name)) = ours.find(|(p, _)| clash(**p, port)) {
                refusal.reason = format!(
                    "{} {} of the host is taken by the published port `{name}` ({})",
                    protocol(port),
                    port.at,
                    at.at
                );
                refusal.remedy = "publish another port, or at another address".into();
            }
        }
        refusal
    }

    fn open_host_port(
        &mut self,
        port: HostPort,
        stays: &BTreeSet<HostPort>,
        listening: &mut Listening,
    ) -> io::Result<OwnedFd> {
        let first = opened(port, port.at.port());
        let Err(e) = &first else {
            return first;
        };
        let open = self.host_ports.open.keys();
        let mut in_the_way = open.filter(|p| clash(**p, port)).copied().peekable();
        if e.raw_os_error() != Some(listen::IN_USE) || in_the_way.peek().is_none() {
            return first;
        }
        let in_the_way: Vec<HostPort> = in_the_way.collect();
        if in_the_way.iter().any(|p| stays.contains(p)) {
            return first;
        }
        for p in &in_the_way {
            self.host_ports.open.remove(p);
        }
        listening.closed.extend(&in_the_way);
        let _ = self.tell_host_ports(in_the_way, Vec::new());
        opened(port, port.at.port())
    }

    /// Undoes what was prepared.
    pub(super) fn take_back(&mut self, listening: Listening) {
        drop(listening.new);
        let mut again = Vec::new();
        for port in listening.closed {
            let desired = self.desired.with_found(&self.host_ports.found);
            let mut all = desired.host_ports().into_iter();
            let Some((name, _)) = all.find(|(_, p)| *p == port) else {
                continue;
            };
            let name = name.to_owned();
            match opened(port, port.at.port()) {
                Ok(fd) => again.push(self.enter_host_port(name, port, fd)),
                Err(e) => {
                    let refusal = refusal(&name, port, &e);
                    tracing::warn!("{refusal}");
                    self.host_ports.faults.insert(name, refusal.reason);
                }
            }
        }
        // The refusal is the news, not that a worker is dead.
        let _ = self.tell_host_ports(Vec::new(), again);
    }

    /// Hands new sockets to the data path, and has it close what is no longer published.
    pub(super) fn commit_host_ports(&mut self, listening: Listening) -> Result<(), Refusal> {
        let mut gone = Vec::new();
        let names = &listening.names;
        self.host_ports
            .open
            .retain(|port, open| match names.get(port) {
                Some(name) => {
                    open.name.clone_from(name);
                    true
                }
                None => {
                    gone.push(*port);
                    false
                }
            });
        self.host_ports.faults = listening.faults;
        self.host_ports.changed.notify_one();
        let mut new = Vec::new();
        for (port, (name, fd)) in listening.new {
            new.push(self.enter_host_port(name, port, fd));
        }
        if !gone.is_empty() || !new.is_empty() {
            self.tell_host_ports(gone, new)?;
        }
        self.commit_splices()
    }

    /// Tells which ports' connections from loopback go where, as far as that has changed.
    fn commit_splices(&mut self) -> Result<(), Refusal> {
        let whole = self.desired.with_found(&self.host_ports.found);
        let HostPorts { open, splicing, .. } = &mut self.host_ports;
        let mut paths = Vec::new();
        for (port, o) in open.iter_mut() {
            let to = whole.publish.get(&o.name).filter(|p| p.splice);
            let to = to
                .and_then(|p| Some((p.target(port.at)?, self.desired.namespace_of(p)?.to_owned())));
            if to != o.spliced {
                let path = to
                    .as_ref()
                    .and_then(|(to, namespace)| splicing.path(*to, namespace));
                // One that can't be entered now is tried again with the next change.
                o.spliced = to.filter(|_| path.is_some());
                paths.push((*port, path));
            }
        }
        match self.workers.first() {
            Some(first) if !paths.is_empty() => first
                .call(move |w| w.stage.gateway.host_splice(paths))
                .map_err(dead),
            _ => Ok(()),
        }
    }

    fn enter_host_port(&mut self, name: String, port: HostPort, fd: OwnedFd) -> HostListener {
        let counters = Arc::new(HostPortCounters::default());
        let open = Open {
            name,
            counters: counters.clone(),
            spliced: None,
        };
        self.host_ports.open.insert(port, open);
        HostListener { port, fd, counters }
    }

    fn tell_host_ports(&self, gone: Vec<HostPort>, new: Vec<HostListener>) -> Result<(), Refusal> {
        let Some(first) = self.workers.first() else {
            return Ok(());
        };
        let told = first
            .call(move |w| w.stage.gateway.host_listen(&mut w.cx, &gone, new))
            .map_err(dead)?;
        if let Err(e) = told {
            tracing::error!("watching the host's ports: {e}");
        }
        Ok(())
    }

    /// Looks into the containers whose ports are published as they come and go; something to wait for, if there are none.
    pub(crate) fn follow_listening(&mut self) -> Option<Arc<Notify>> {
        if !self.desired.publish.values().any(|p| p.auto) {
            return Some(self.host_ports.changed.clone());
        }
        let mut same = self.desired.clone();
        // What isn't found isn't told.
        if let Ok(listening) = self.prepare_host_ports(&mut same, true) {
            let done = self.commit_gateways(&same);
            if let Err(e) = done.and_then(|()| self.commit_host_ports(listening)) {
                tracing::error!("{e}");
            }
        }
        None
    }

    /// Publishes a port under a name; what it has become, with the port that the host has picked if that was asked for.
    pub fn publish(&mut self, name: &str, port: PublishedPort) -> Result<PublishedView, Refusal> {
        let mut wanted = self.desired.clone();
        if wanted.publish.contains_key(name) {
            return Err(exists("adding", "published port", name));
        }
        if let Some((reason, remedy)) = wanted.lacks_namespace(&port) {
            let thing = format!("port `{name}`");
            return Err(Refusal::new(
                Kind::Invalid,
                "publishing",
                thing,
                reason,
                remedy,
            ));
        }
        wanted.publish.insert(name.to_owned(), port);
        self.apply(wanted)?;
        self.published_view(name)
            .ok_or_else(|| Refusal::missing("adding", "published port", name, []))
    }

    /// Publishes a port no longer; connections that exist go on.
    pub fn unpublish(&mut self, name: &str) -> Result<(), Refusal> {
        let mut wanted = self.desired.clone();
        if wanted.publish.remove(name).is_none() {
            let known = wanted.publish.keys();
            return Err(Refusal::missing("deleting", "published port", name, known));
        }
        self.apply(wanted).map(drop)
    }

    /// The ports of the host that sockets of ours are at, of TCP or (`udp`) of UDP.
    pub(crate) fn own_host_ports(&self, udp: bool) -> BTreeSet<u16> {
        let open = self.host_ports.open.keys();
        let of = open.filter(|p| (kind(**p) == sock::Kind::Udp) == udp);
        of.map(|p| p.at.port()).collect()
    }

    fn published_view(&self, name: &str) -> Option<PublishedView> {
        let config = self.desired.publish.get(name)?.clone();
        let open = self.host_ports.open.iter();
        let open = open.filter(|(_, o)| published_as(&o.name) == name);
        let host: BTreeSet<_> = open.clone().map(|(p, _)| p.at.ip()).collect();
        let sum =
            |of: fn(&HostPortCounters) -> u64| open.clone().map(|(_, o)| of(&o.counters)).sum();
        let lacks = self.desired.lacks_namespace(&config);
        let fault = self.host_ports.faults.get(name).cloned();
        Some(PublishedView {
            name: name.to_owned(),
            host: host.into_iter().collect(),
            found: match config.auto {
                true => open
                    .clone()
                    .map(|(p, _)| p.at.port())
                    .collect::<BTreeSet<_>>(),
                false => BTreeSet::new(),
            },
            warnings: self.published_warnings(name, &config),
            config,
            fault: fault.or_else(|| Some(lacks?.0.to_owned())),
            accepted: sum(|c| c.accepted.get()),
            spliced: sum(|c| c.spliced.get()),
            failed: sum(|c| c.failed.get() + c.unreached.get()),
        })
    }

    /// All published ports.
    #[must_use]
    pub fn published_views(&self) -> Vec<PublishedView> {
        let names = self.desired.publish.keys();
        names.filter_map(|n| self.published_view(n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::sys::listen::Interface;

    fn port(at: &str) -> HostPort {
        HostPort {
            proto: 6,
            at: at.parse().unwrap(),
            interface: None,
        }
    }

    #[test]
    fn what_is_refused_says_what_to_do() {
        let privileged = io::Error::from_raw_os_error(listen::NOT_ALLOWED);
        let said = refusal("web", port("127.0.0.1:80"), &privileged);
        assert_eq!(said.status(), 403);
        let text = said.to_string();
        assert!(
            text.starts_with("publishing port `web`: TCP 127.0.0.1:80 of the host is privileged")
        );
        assert!(
            text.contains("sysctl net.ipv4.ip_unprivileged_port_start=80"),
            "{text}"
        );
        let taken = io::Error::from_raw_os_error(listen::IN_USE);
        assert_eq!(refusal("web", port("[::]:80"), &taken).status(), 409);
    }

    #[test]
    fn sockets_of_one_port_clash_at_one_address() {
        let all = port("0.0.0.0:80");
        assert!(clash(all, port("127.0.0.1:80")) && clash(port("127.0.0.1:80"), all));
        assert!(!clash(all, port("[::]:80")) && !clash(all, port("0.0.0.0:81")));
        assert!(!clash(port("127.0.0.1:80"), port("127.0.0.2:80")));
        let by = |name| HostPort {
            interface: Interface::new(name),
            ..all
        };
        assert!(clash(all, by("eth0")) && !clash(by("eth0"), by("eth1")));
        let gone = io::Error::from_raw_os_error(listen::NO_INTERFACE);
        assert_eq!(
            refusal("web", by("eth0"), &gone).reason,
            "the host has no interface eth0"
        );
    }
}
