//! Containers that are attached for as long as the program runs that has handed over their TAP queue.
//!
//! # Theory of operation
//!
//! A session belongs to a connection of the hand-over socket. [`Plane::begin_session`] finds a name and addresses that are free in the
//! network and keeps them; [`Plane::attach`] adds the port once its queue is there, [`Plane::publish_for`] says which ports are
//! published for it, and [`Plane::end_session`] takes all of it away when the connection ends, however it does. A session whose port somebody
//! deletes is over. None of it is saved or
//! exported, and a topology that is applied leaves it alone: it isn't configuration. What configuration names (a policy, a mirror) stays, as
//! a port that is down, and is taken up again by the next session of that name.

use super::Plane;
use super::address::made_of;
use crate::api;
use crate::model::{Gateway, Port, PortKind, PublishedPort, Topology};
use crate::refusal::{Kind, Refusal};
use crate::units::{Cidr, Mac};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::Notify;

/// Most addresses of a prefix that are tried.
const TRIES: u32 = 65_536;
/// How to make a network that takes containers.
const EXAMPLE: &str = "give it one, as with `vswitchctl gateway set NETWORK --addresses 10.0.2.2/24,10.0.2.3/32 --dns on --dns-at 10.0.2.3 --host-uplink on`";

/// What a program asks for that attaches a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    /// Network.
    pub(crate) network: String,
    /// Name of the port, and in DNS.
    pub(crate) name: String,
    /// Labels of the port.
    #[serde(default)]
    pub(crate) labels: Vec<String>,
    /// MTU.
    pub(crate) mtu: u32,
    /// Where the container is, as far as it is named by a process.
    #[serde(default)]
    pub(crate) netns: Option<String>,
    /// The container's network namespace, by device and inode.
    #[serde(default)]
    pub(crate) namespace: Option<(u64, u64)>,
    /// MAC address of the interface; one that stays the same by default.
    #[serde(default)]
    pub(crate) mac: Option<Mac>,
    /// Which addresses; free ones where none of a family is named.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    /// Addresses that aren't given.
    #[serde(default)]
    pub(crate) avoid: Vec<IpAddr>,
    /// Whether it has IPv4, and IPv6.
    pub(crate) families: (bool, bool),
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    pub(crate) addresses: Vec<Cidr>,
    pub(crate) gateways: Vec<IpAddr>,
    /// Where DNS is served.
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) mac: Mac,
}

/// The gateway's address with the length of its prefix, and one of a container in it.
type Beside = ((IpAddr, u8), IpAddr);

/// A session.
#[derive(Debug)]
struct Held {
    id: u64,
    port: Port,
    namespace: Option<(u64, u64)>,
    publish: BTreeSet<String>,
    /// Whether its port has been added.
    attached: bool,
    /// Told when that is deleted.
    deleted: Arc<Notify>,
}

/// All there are, by the name of their port.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    held: BTreeMap<String, Held>,
    last: u64,
}

fn refused(
    kind: Kind,
    name: &str,
    reason: impl Into<String>,
    remedy: impl Into<String>,
) -> Refusal {
    Refusal::new(
        kind,
        "attaching",
        format!("container `{name}`"),
        reason,
        remedy,
    )
}

/// The address of this number in a prefix, if it can be a host's.
fn host(prefix: (IpAddr, u8), number: u32) -> Option<IpAddr> {
    match prefix {
        (IpAddr::V4(ip), len) => {
            let bits = 32_u8.checked_sub(len).filter(|b| (2..32).contains(b))?;
            let mask = (1_u32 << bits) - 1;
            let number = number & mask;
            let is_host = number != 0 && number != mask;
            is_host.then(|| Ipv4Addr::from_bits(ip.to_bits() & !mask | number).into())
        }
        (IpAddr::V6(ip), len) => {
            let bits = 128_u8.checked_sub(len).filter(|b| (2..128).contains(b))?;
            let mask = (1_u128 << bits) - 1;
            let number = u128::from(number) & mask;
            (number != 0).then(|| Ipv6Addr::from_bits(ip.to_bits() & !mask | number).into())
        }
    }
}

impl Plane {
    /// Finds a place for a container; its number is the session's. The last tells when somebody deletes the session's port.
    pub(crate) fn begin_session(
        &mut self,
        b: &Begin,
    ) -> Result<(u64, Given, Arc<Notify>), Refusal> {
        let Some(network) = self.desired.networks.get(&b.network) else {
            let networks = self.desired.networks.keys();
            return Err(Refusal::missing(
                &format!("attaching container `{}` to", b.name),
                "network",
                &b.network,
                networks,
            ));
        };
        let is_down = |name| self.ports.get(name).is_some_and(|l| !l.open);
        let known = self.desired.ports.get(&b.name);
        if self.sessions.held.contains_key(&b.name)
            || known.is_some_and(|p| p.kind != PortKind::Fd || !is_down(&b.name))
        {
            return Err(api::exists("attaching", "port", &b.name));
        }
        let gateway = network.gateway.as_ref();
        let gateway = gateway.ok_or_else(|| {
            let reason = format!("network `{}` has no gateway", b.network);
            refused(Kind::Conflict, &b.name, reason, EXAMPLE)
        })?;
        let mut given = Given {
            addresses: Vec::new(),
            gateways: Vec::new(),
            dns: gateway.dns.as_ref().map_or_else(Vec::new, |d| d.at.clone()),
            mac: b.mac.clone().unwrap_or_else(|| {
                let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
                let parts = [&machine, b.network.as_bytes(), b.name.as_bytes()];
                Mac(made_of(&parts))
            }),
        };
        for (is_v4, has) in [(true, b.families.0), (false, b.families.1)] {
            if let Some((own, at)) = has
                .then(|| self.place_in(b, gateway, is_v4))
                .transpose()?
                .flatten()
            {
                given.addresses.push(Cidr((at, own.1)));
                given.gateways.push(own.0);
                if gateway.dns.as_ref().is_some_and(|d| d.at.is_empty()) {
                    given.dns.push(own.0);
                }
            }
        }
        if given.addresses.is_empty() {
            let reason = format!(
                "the gateway of network `{}` has no prefix with room for it",
                b.network
            );
            return Err(refused(Kind::Conflict, &b.name, reason, EXAMPLE));
        }
        let mut port = Port::new(&b.network);
        port.kind = PortKind::Fd;
        port.mtu = b.mtu;
        port.labels.clone_from(&b.labels);
        port.netns.clone_from(&b.netns);
        port.addresses.clone_from(&given.addresses);
        port.mac = Some(given.mac.clone());
        port.loop_guard = false;
        self.sessions.last += 1;
        let held = Held {
            id: self.sessions.last,
            port,
            namespace: b.namespace,
            publish: BTreeSet::new(),
            attached: false,
            deleted: Arc::default(),
        };
        let deleted = held.deleted.clone();
        self.sessions.held.insert(b.name.clone(), held);
        Ok((self.sessions.last, given, deleted))
    }

    /// An address of a family, and that of the gateway beside it with the length of their prefix; none if the gateway has none.
    fn place_in(
        &self,
        b: &Begin,
        gateway: &Gateway,
        is_v4: bool,
    ) -> Result<Option<Beside>, Refusal> {
        let mut prefixes = gateway.addresses.iter().map(|c| c.0);
        let roomy = |p: &(IpAddr, u8)| p.0.is_ipv4() == is_v4 && host(*p, 1).is_some();
        if let Some(wanted) = b.addresses.iter().find(|ip| ip.is_ipv4() == is_v4) {
            let own = prefixes.find(|p| roomy(p) && vswitch_nat::gateway::contains(*p, *wanted));
            let own = own.ok_or_else(|| {
                let reason = format!(
                    "its address {wanted} is in no prefix of the gateway of network `{}`",
                    b.network
                );
                let remedy = format!(
                    "add one, as with `vswitchctl gateway set {} --addresses`, or give the container another",
                    b.network
                );
                refused(Kind::Conflict, &b.name, reason, remedy)
            })?;
            if self.is_taken(*wanted, b) {
                let reason = format!("its address {wanted} is taken in network `{}`", b.network);
                let remedy = "give it another, such as by --cidr or --address";
                return Err(refused(Kind::Conflict, &b.name, reason, remedy));
            }
            return Ok(Some((own, *wanted)));
        }
        let Some(own) = prefixes.find(roomy) else {
            return Ok(None);
        };
        // The same as before where that is free.
        let first = crate::fnv::hash(b.name.bytes());
        let first = (first ^ first >> 32) as u32;
        let numbers = (0..TRIES).map(|i| first.wrapping_add(i));
        let mut free = numbers
            .filter_map(|n| host(own, n))
            .filter(|ip| !self.is_taken(*ip, b));
        let found = free.find(|ip| !b.avoid.contains(ip)).ok_or_else(|| {
            let reason = format!("no address of {}/{} is free", own.0, own.1);
            let remedy = "end containers, or give the gateway a shorter prefix";
            refused(Kind::Conflict, &b.name, reason, remedy)
        });
        found.map(|at| Some((own, at)))
    }

    /// Whether somebody else has an address, or may get it by DHCP.
    fn is_taken(&self, ip: IpAddr, b: &Begin) -> bool {
        let ports = self.desired.ports.iter().filter(|(n, _)| **n != b.name);
        let held = self.sessions.held.iter().map(|(n, h)| (n, &h.port));
        let mut others = ports.chain(held).flat_map(|(_, p)| &p.addresses);
        if others.any(|c| c.0.0 == ip) {
            return true;
        }
        let mut gateways = self
            .desired
            .networks
            .values()
            .filter_map(|n| n.gateway.as_ref());
        gateways.any(|g| {
            let by_dhcp = g.dhcp.as_ref().is_some_and(|d| match ip {
                IpAddr::V4(ip) => {
                    d.pools.iter().any(|r| (r.0..=r.1).contains(&ip))
                        || d.fixed.iter().any(|f| f.address == ip)
                }
                IpAddr::V6(_) => false,
            });
            by_dhcp || g.addresses.iter().any(|c| c.0.0 == ip) || g.hosts.contains(&ip)
        })
    }

    /// The port of a session's container, by its namespace.
    pub(super) fn session_in(&self, namespace: (u64, u64)) -> Option<&str> {
        let mut all = self.sessions.held.iter();
        let found = all.find(|(_, h)| h.namespace == Some(namespace));
        found.map(|(name, _)| name.as_str())
    }

    fn held(&mut self, name: &str, id: u64) -> Result<&mut Held, Refusal> {
        let held = self.sessions.held.get_mut(name).filter(|h| h.id == id);
        held.ok_or_else(|| {
            let remedy = "begin again";
            refused(Kind::NotFound, name, "its session has ended", remedy)
        })
    }

    /// Adds the port of a session, with its queue.
    pub(crate) fn attach(&mut self, name: &str, id: u64, queue: OwnedFd) -> Result<(), Refusal> {
        let port = self.held(name, id)?.port.clone();
        let mut wanted = self.desired.clone();
        wanted.ports.insert(name.to_owned(), port);
        self.apply_with(wanted, &BTreeMap::from([(name.to_owned(), queue)]))?;
        self.held(name, id)?.attached = true;
        Ok(())
    }

    /// Tells the sessions whose port isn't there any more.
    pub(super) fn tell_deleted(&self) {
        let held = self.sessions.held.iter();
        let gone = held.filter(|(name, h)| h.attached && !self.desired.ports.contains_key(*name));
        for (_, held) in gone {
            held.deleted.notify_one();
        }
    }

    /// Has these ports be published for a session, and no others; they are named after it.
    pub(crate) fn publish_for(
        &mut self,
        name: &str,
        id: u64,
        list: BTreeMap<String, PublishedPort>,
    ) -> Result<(), Refusal> {
        let before = self.held(name, id)?.publish.clone();
        let mut wanted = self.desired.clone();
        wanted.publish.retain(|n, _| !before.contains(n));
        let mut now = BTreeSet::new();
        for (key, p) in list {
            let full = format!("{name}-{key}");
            if wanted.publish.insert(full.clone(), p).is_some() {
                return Err(api::exists("publishing", "published port", &full));
            }
            now.insert(full);
        }
        // What was published as well as what will be isn't to be saved meanwhile.
        self.held(name, id)?.publish = before.union(&now).cloned().collect();
        let done = self.apply(wanted);
        self.held(name, id)?.publish = if done.is_ok() { now } else { before };
        done.map(drop)
    }

    /// Takes away all that a session has brought.
    pub(crate) fn end_session(&mut self, name: &str, id: u64) {
        let Ok(held) = self.held(name, id) else {
            return;
        };
        let publish = held.publish.clone();
        let mut wanted = self.desired.clone();
        wanted.publish.retain(|n, _| !publish.contains(n));
        let without = without_ports(&wanted, &[name]);
        let stays = without.ports.contains_key(name);
        if let Err(e) = self.apply(without) {
            tracing::error!("a container is gone, and its port can't be removed: {e}");
        }
        self.sessions.held.remove(name);
        if stays {
            self.close(name);
            if let Some(live) = self.ports.get_mut(name) {
                live.fault = Some("its container has gone".to_owned());
            }
        }
    }

    /// What is configured, without what sessions have brought.
    pub(crate) fn lasting(&self) -> Topology {
        let names: Vec<&str> = self.sessions.held.keys().map(String::as_str).collect();
        if names.is_empty() {
            return self.desired.clone();
        }
        let mut all = self.desired.clone();
        let published = |n: &String| self.sessions.held.values().any(|h| h.publish.contains(n));
        all.publish.retain(|n, _| !published(n));
        without_ports(&all, &names)
    }

    /// A configuration with what sessions have brought, where it doesn't have that itself.
    pub(crate) fn with_attached(&self, mut wanted: Topology) -> Topology {
        for (name, held) in &self.sessions.held {
            if let Some(port) = self.desired.ports.get(name) {
                let here = wanted.ports.entry(name.clone());
                here.or_insert_with(|| port.clone());
            }
            for n in &held.publish {
                if let Some(p) = self.desired.publish.get(n) {
                    wanted.publish.entry(n.clone()).or_insert_with(|| p.clone());
                }
            }
        }
        wanted
    }
}

/// Without these ports, but for those that configuration names.
fn without_ports(all: &Topology, names: &[&str]) -> Topology {
    let mut without = all.clone();
    without.ports.retain(|n, _| !names.contains(&n.as_str()));
    if names.len() <= 1 || without.check().is_ok() {
        let named = without.check().is_err();
        return if named { all.clone() } else { without };
    }
    names
        .iter()
        .fold(all.clone(), |all, name| without_ports(&all, &[name]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_prefix() {
        let of = |text: &str, n| host(text.parse::<Cidr>().unwrap().0, n).map(|ip| ip.to_string());
        assert_eq!(of("10.0.2.2/24", 7).unwrap(), "10.0.2.7");
        assert_eq!(of("10.0.2.2/24", 0x0107).unwrap(), "10.0.2.7");
        assert_eq!(of("10.0.2.2/24", 0x0100), None);
        assert_eq!(of("10.0.2.2/24", 255), None);
        assert_eq!(of("10.0.2.3/32", 1), None);
        assert_eq!(of("0.0.0.1/0", 1), None);
        assert_eq!(of("2001:db8::1/64", 0x1_0002).unwrap(), "2001:db8::1:2");
        assert_eq!(of("2001:db8::1/128", 1), None);
    }
}
