//! The container's network as pasta has it: the container has the host's own address and router, and all else is behind the switch.

use super::super::attach::{Wish, add_named};
use super::super::inside::{Configured, Inside};
use super::host::Host;
use super::options::{Maybe, Options, v4, v6};
use super::ports::{self, Forward};
use crate::model::{
    Dns, Gateway, HostUplink, Network, Port, PortKind, Protocol, PublishedPort, Topology,
};
use crate::netns;
use crate::plane::{Begin, Given};
use crate::units::{Cidr, Mac};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use vswitch_core::wire::MacAddr;

/// The port's name in the topology, and the network's.
pub(super) const PORT: &str = "container";
const NETWORK: &str = "pasta";
/// An address of ours where nothing gives one (RFC 7600).
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// The same of IPv6: of a prefix that is nobody's (RFC 6666).
const DUMMY6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8);
/// The router's MAC address, that of pasta.
const MAC: MacAddr = MacAddr([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
/// Where the host has no address: those of slirp4netns.
const ALONE: (Ipv4Addr, u8, Ipv4Addr) =
    (Ipv4Addr::new(10, 0, 2, 100), 24, Ipv4Addr::new(10, 0, 2, 2));

/// Addresses as they are going to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    interface: String,
    /// Of the container.
    addresses: Vec<(IpAddr, u8)>,
    routers: Vec<IpAddr>,
    dns: Vec<IpAddr>,
    mac: Mac,
}

/// The link-local address that a gateway makes of its MAC address (RFC 4291 appendix A).
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    let id = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
    Ipv6Addr::new(0xfe80, 0, 0, 0, id[0], id[1], id[2], id[3])
}

/// The length that goes with an address by itself (RFC 791 3.2, as pasta has it).
fn class(ip: Ipv4Addr) -> u8 {
    match ip.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

impl Plan {
    pub(super) fn new(o: &Options, host: &Host) -> Plan {
        let mac = o.mac_addr.clone().unwrap_or(Mac(MAC));
        let own = |is: fn(&IpAddr) -> bool| o.address.iter().find(move |a| is(&a.0));
        let (mut addresses, mut routers) = (Vec::new(), Vec::new());
        if !o.ipv6_only {
            let host_len = host.v4.address.map(|a| a.1);
            let given = own(IpAddr::is_ipv4).and_then(|a| Some((v4(&a.0)?, a.1)));
            let given = given.map(|(ip, len)| (ip, o.netmask.or(len).unwrap_or(class(ip))));
            let copied = host
                .v4
                .address
                .map(|(ip, len)| (ip, o.netmask.unwrap_or(len)));
            let (ip, len) = given
                .or(copied)
                .unwrap_or((ALONE.0, host_len.unwrap_or(ALONE.1)));
            let alone = host.v4.address.is_none().then_some(ALONE.2);
            let router = o.router(v4).or(host.v4.router).or(alone);
            addresses.push((ip.into(), len));
            // Where the host knows no router, any address leads to us.
            routers.push(router.unwrap_or(DUMMY).into());
        }
        let given = own(IpAddr::is_ipv6).map(|a| (a.0, a.1.unwrap_or(64)));
        let copied = host.v6.address.map(|(ip, len)| (ip.into(), len));
        if let Some((ip, len)) = given.or(copied).filter(|_| !o.ipv4_only) {
            addresses.push((ip, len));
            let global = |ip: &Ipv6Addr| !ip.is_unicast_link_local();
            let router = o.router(v6).or(host.v6.router.filter(global));
            routers.push(router.unwrap_or_else(|| link_local(mac.0)).into());
        }
        let name = o.ns_ifname.clone().or(host.interface.clone());
        let mut plan = Plan {
            interface: name.unwrap_or_else(|| "tap0".to_owned()),
            addresses,
            routers,
            dns: Vec::new(),
            mac,
        };
        plan.dns = o
            .dns_forward
            .iter()
            .copied()
            .filter(|ip| plan.has(ip))
            .collect();
        plan
    }

    /// Whether the container has this family.
    fn has(&self, ip: &IpAddr) -> bool {
        self.addresses.iter().any(|a| a.0.is_ipv4() == ip.is_ipv4())
    }

    /// What stands for the host, and where it is left from.
    fn host_uplink(&self, o: &Options) -> HostUplink {
        let of_ours = |list: Vec<IpAddr>| list.into_iter().filter(|ip| self.has(ip)).collect();
        let mut addresses: Vec<IpAddr> = of_ours(Maybe::all(&o.map_host_loopback));
        if o.map_host_loopback.is_empty() && !o.no_map_gw {
            addresses.extend(self.routers.iter().filter(|ip| **ip != IpAddr::from(DUMMY)));
        }
        let mut uplink = HostUplink {
            loopback: !addresses.is_empty(),
            addresses,
            own_addresses: of_ours(Maybe::all(&o.map_guest_addr)),
            ..HostUplink::default()
        };
        for from in &o.outbound {
            match from.parse() {
                Ok(IpAddr::V4(ip)) => uplink.outbound_addr = Some(ip),
                Ok(IpAddr::V6(ip)) => uplink.outbound_addr6 = Some(ip),
                Err(_) => uplink.outbound_interface = Some(from.clone()),
            }
        }
        uplink
    }

    /// Addresses of the container.
    pub(super) fn container(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.0).collect()
    }

    /// The interface in the container.
    pub(super) fn inside(&self, o: &Options) -> Inside {
        Inside {
            name: self.interface.clone(),
            apart: true,
            loopback: true,
            listen: o.to_host().iter().map(|lead| lead.from).collect(),
            stays: !o.to_host().is_empty() || !o.followed_to_host().is_empty(),
            setup: o.config_net.then(|| Configured {
                mtu: o.mtu,
                mac: o.ns_mac_addr.as_ref().map(|m| m.0),
                addresses: self.addresses.clone(),
                gateways: self.routers.clone(),
                onlink: true,
                alias: None,
            }),
        }
    }

    /// What is asked of the user's switch. Who sets the interface up inside has given its address by --address.
    pub(super) fn begin(&self, o: &Options, wish: &Wish) -> Begin {
        let name = wish.name(o.process(), o.netns());
        let mut begin = wish.begin("pasta", name, o.mtu);
        begin.netns = o.process().map(|p| format!("pid:{p}"));
        let spec = begin.netns.as_deref().or(o.netns());
        begin.namespace = spec.and_then(|s| netns::identity(&netns::path_of(s)));
        begin.mac = o.ns_mac_addr.clone();
        begin.families = (!o.ipv6_only, !o.ipv4_only);
        if !o.config_net {
            begin.addresses = self.container();
            let has = |v4| begin.addresses.iter().any(|ip| ip.is_ipv4() == v4);
            begin.families = (has(true), has(false));
        }
        begin
    }

    /// The plan with the addresses that the user's switch gives.
    pub(super) fn attached(mut self, o: &mut Options, given: &Given) -> Plan {
        self.addresses = given.addresses.iter().map(|c| c.0).collect();
        self.routers.clone_from(&given.gateways);
        o.ns_mac_addr = Some(given.mac.clone());
        self
    }

    /// Where the container has been told to ask for names.
    pub(super) fn resolvers(&self) -> &[IpAddr] {
        &self.dns
    }

    /// The switch.
    pub(super) fn topology(&self, o: &Options) -> Topology {
        let mut port = Port::new(NETWORK);
        port.kind = PortKind::Fd;
        port.mtu = o.mtu;
        port.loop_guard = false;
        let mut topology = Topology::default();
        let network = Network {
            gateway: Some(self.gateway(o)),
            ..Network::default()
        };
        topology.networks.insert(NETWORK.to_owned(), network);
        topology.ports.insert(PORT.to_owned(), port);
        topology.publish = self.publish(o);
        topology
    }

    /// Ports of the host that lead to the container.
    pub(super) fn publish(&self, o: &Options) -> BTreeMap<String, PublishedPort> {
        let mut publish = BTreeMap::new();
        for (protocol, forwards) in [Protocol::Tcp, Protocol::Udp].into_iter().zip(o.forwards()) {
            let mut list = Vec::new();
            for f in &forwards {
                match (f, o.process()) {
                    (Forward::Listed(l), _) => {
                        list.extend(l.iter().map(|l| l.published(protocol, &self.container())));
                    }
                    (Forward::Followed(at, ranges), Some(pid)) => {
                        let inside = self.container();
                        let one = |r: &(u16, u16)| ports::followed(protocol, pid, at, *r, &inside);
                        list.extend(ranges.iter().map(one));
                    }
                    _ => {}
                }
            }
            for p in list {
                add_named(&mut publish, p);
            }
        }
        publish
    }

    fn gateway(&self, o: &Options) -> Gateway {
        let mut own = self.dns.clone();
        own.sort_unstable();
        own.dedup();
        // It stands for clients that the container couldn't answer: on the host itself, or with its own address.
        for dummy in [IpAddr::from(DUMMY), DUMMY6.into()] {
            let lacks = !own.iter().any(|ip| ip.is_ipv4() == dummy.is_ipv4());
            if lacks && self.has(&dummy) {
                own.push(dummy);
            }
        }
        let host = |ip: IpAddr| Cidr((ip, if ip.is_ipv4() { 32 } else { 128 }));
        Gateway {
            addresses: own.into_iter().map(host).collect(),
            hosts: self.container(),
            mac: Some(self.mac.clone()),
            vlan: None,
            mtu: o.mtu,
            uplink: false,
            host_uplink: Some(self.host_uplink(o)),
            nat: None,
            nptv6: Vec::new(),
            routes: Vec::new(),
            dhcp: None,
            ra: None,
            dns: (!self.dns.is_empty()).then(|| Dns {
                at: self.dns.clone(),
                ..Dns::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::Family;
    use super::*;
    use clap::Parser;

    fn plan(args: &str, host: &Host) -> (Plan, Topology) {
        let args = std::iter::once("pasta").chain(args.split_whitespace());
        let options = Options::parse_from(args);
        let plan = Plan::new(&options, host);
        let topology = plan.topology(&options);
        assert_eq!(topology.check(), Ok(()), "{topology:?}");
        (plan, topology)
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn the_host_is_copied() {
        let host = Host {
            interface: Some("eth0".into()),
            v4: Family {
                address: Some((Ipv4Addr::new(198, 51, 100, 7), 24)),
                router: Some(Ipv4Addr::new(198, 51, 100, 1)),
            },
            v6: Family {
                address: Some(("2001:db8::7".parse().unwrap(), 64)),
                router: "fe80::1".parse().ok(),
            },
        };
        let podman = "--config-net -t 127.0.0.1/8085:80 -u none --dns-forward 169.254.1.1 --no-map-gw --netns /n --map-guest-addr 169.254.1.2";
        let (p, t) = plan(podman, &host);
        assert_eq!(
            p.addresses,
            [(ip("198.51.100.7"), 24), (ip("2001:db8::7"), 64)]
        );
        assert_eq!(
            p.routers,
            [ip("198.51.100.1"), ip("fe80::9855:9aff:fe55:9a55")]
        );
        assert_eq!((p.interface.as_str(), t.publish.len()), ("eth0", 1));
        let uplink = |t: &Topology| {
            let gateway = t.networks.values().next().and_then(|n| n.gateway.clone());
            gateway.and_then(|g| g.host_uplink).unwrap()
        };
        assert!(!uplink(&t).loopback);
        assert_eq!(uplink(&t).own_addresses, [ip("169.254.1.2")]);
        // The router stands for the host's loopback.
        let (_, t) = plan(
            "--ipv4-only -t none -u none -o 198.51.100.7 -o eth0 42",
            &host,
        );
        assert_eq!(uplink(&t).addresses, [ip("198.51.100.1")]);
        assert_eq!(uplink(&t).outbound_addr, "198.51.100.7".parse().ok());
        assert_eq!(uplink(&t).outbound_interface.as_deref(), Some("eth0"));
        let (p, _) = plan("-a 10.0.2.100 -g 10.0.2.2 -n 24 -4 --no-map-gw 42", &host);
        assert_eq!(p.addresses, [(ip("10.0.2.100"), 24)]);
        let (p, _) = plan("-6 -t 80 42", &host);
        assert_eq!(p.container(), [ip("2001:db8::7")]);
    }

    #[test]
    fn a_host_without_any_network() {
        let (p, _) = plan(
            "--dns-forward 169.254.1.1 --map-guest-addr 169.254.1.2 42",
            &Host::default(),
        );
        assert_eq!(p.addresses, [(ip("10.0.2.100"), 24)]);
        assert_eq!(
            (p.routers[0], p.interface.as_str()),
            (ip("10.0.2.2"), "tap0")
        );
    }
}
