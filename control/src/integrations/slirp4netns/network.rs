//! The container's network as slirp4netns has it: which addresses there are, and what stands behind them.

use super::super::attach::Wish;
use super::super::inside::{Configured, Inside};
use super::options::{Options, Outbound};
use crate::model::{
    Advertise, AdvertisedPrefix, Dhcp, Dns, Gateway, HostUplink, Network, Port, PortKind, Range,
    Topology,
};
use crate::netns;
use crate::plane::{Begin, Given};
use crate::units::{Cidr, Mac};
use std::net::{IpAddr, Ipv6Addr};
use vswitch_core::wire::MacAddr;

/// The port's name in the topology, and the network's.
pub(super) const PORT: &str = "container";
pub(super) const NETWORK: &str = "slirp";

/// Numbers of the gateway, of DNS and of the container in the network.
const GATEWAY: u32 = 2;
const DNS: u32 = 3;
pub(super) const CONTAINER: u32 = 100;
/// Numbers that DHCP gives.
const POOL: (u32, u32) = (15, 99);

/// The IPv6 address of this number.
fn six(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number)
}

const SIX: u8 = 64;

/// The interface in the container.
pub(super) fn inside(o: &Options) -> Inside {
    let mut addresses: Vec<(IpAddr, u8)> = vec![(o.cidr.host(CONTAINER).into(), o.cidr.len)];
    let mut gateways: Vec<IpAddr> = vec![o.cidr.host(GATEWAY).into()];
    if o.enable_ipv6 {
        // Beside the one that it makes of the advertised prefix, which takes a second or two.
        addresses.push((six(0x100).into(), SIX));
        gateways.push(six(2).into());
    }
    Inside {
        name: o.tap.clone(),
        apart: o.exit_fd.is_none(),
        loopback: false,
        listen: Vec::new(),
        stays: false,
        setup: o.configure.then(|| Configured {
            mtu: o.mtu,
            mac: o.macaddress.as_ref().map(|m| m.0),
            addresses,
            gateways,
            onlink: false,
            alias: None,
        }),
    }
}

/// What is asked of the user's switch. Who sets the interface up itself gives it the address that it has without that switch.
pub(super) fn begin(o: &Options, wish: &Wish) -> Begin {
    let (pid, path) = o.named();
    let own: IpAddr = o.cidr.host(CONTAINER).into();
    let mut begin = wish.begin("slirp4netns", wish.name(pid, path), o.mtu);
    begin.netns = pid.map(|p| format!("pid:{p}"));
    let spec = begin.netns.as_deref().or(path);
    begin.namespace = spec.and_then(|s| netns::identity(&netns::path_of(s)));
    begin.mac = o.macaddress.clone();
    begin.families = (true, o.enable_ipv6);
    if o.configure {
        begin.avoid.push(own);
    } else {
        begin.addresses.push(own);
        begin.families = (true, false);
    }
    begin
}

/// The interface of a container at the user's switch.
pub(super) fn attached(o: &Options, given: &Given) -> Inside {
    let mut inside = inside(o);
    if let Some(setup) = &mut inside.setup {
        setup.mac = Some(given.mac.0);
        setup.addresses = given.addresses.iter().map(|c| c.0).collect();
        setup.gateways.clone_from(&given.gateways);
        setup.alias = Some(o.cidr.host(CONTAINER).into());
    }
    inside
}

/// Where the engine has the container look for DNS, unless that is told not to be.
pub(super) fn resolver(o: &Options) -> Option<IpAddr> {
    (!o.disable_dns).then(|| o.cidr.host(DNS).into())
}

/// The switch.
pub(super) fn topology(o: &Options) -> Topology {
    let mut port = Port::new(NETWORK);
    port.kind = PortKind::Fd;
    port.mtu = o.mtu;
    port.loop_guard = false;
    let mut topology = Topology::default();
    let network = Network {
        gateway: Some(gateway(o)),
        ..Network::default()
    };
    topology.networks.insert(NETWORK.to_owned(), network);
    topology.ports.insert(PORT.to_owned(), port);
    topology
}

fn host_uplink(o: &Options) -> HostUplink {
    let mut uplink = HostUplink {
        loopback: !o.disable_host_loopback,
        // Not DNS's own address.
        addresses: vec![o.cidr.host(GATEWAY).into(), six(2).into()],
        ..HostUplink::default()
    };
    match &o.outbound_addr {
        Some(Outbound::Address(ip)) => uplink.outbound_addr = Some(*ip),
        Some(Outbound::Interface(name)) => uplink.outbound_interface = Some(name.clone()),
        None => {}
    }
    match &o.outbound_addr6 {
        Some(Outbound::Address(ip)) => uplink.outbound_addr6 = Some(*ip),
        Some(Outbound::Interface(name)) => uplink.outbound_interface = Some(name.clone()),
        None => {}
    }
    uplink
}

fn gateway(o: &Options) -> Gateway {
    let own = o.cidr.host(GATEWAY);
    // A prefix of DNS's own would be a second one to advertise.
    let mut addresses = vec![Cidr((own.into(), o.cidr.len))];
    let mut dns: Vec<(IpAddr, u8)> = vec![(o.cidr.host(DNS).into(), 32)];
    if o.enable_ipv6 {
        addresses.push(Cidr((six(2).into(), SIX)));
        dns.push((six(3).into(), 128));
    }
    let serves_dns = !o.disable_dns;
    if serves_dns {
        addresses.extend(dns.iter().map(|a| Cidr(*a)));
    }
    let [a, b, c, d] = own.octets();
    Gateway {
        addresses,
        hosts: Vec::new(),
        // That of libslirp.
        mac: Some(Mac(MacAddr([0x52, 0x55, a, b, c, d]))),
        vlan: None,
        mtu: o.mtu,
        uplink: false,
        host_uplink: Some(host_uplink(o)),
        nat: None,
        nptv6: Vec::new(),
        routes: Vec::new(),
        dhcp: Some(Dhcp {
            pools: vec![Range(o.cidr.host(POOL.0), o.cidr.host(POOL.1))],
            ..Dhcp::default()
        }),
        ra: o.enable_ipv6.then(|| Advertise {
            prefixes: vec![AdvertisedPrefix {
                prefix: Cidr((six(0).into(), SIX)),
                on_link: true,
                autonomous: true,
                valid: None,
                preferred: None,
            }],
            ..Advertise::default()
        }),
        dns: serves_dns.then(|| Dns {
            at: dns.iter().map(|a| a.0).collect(),
            ..Dns::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn topologies_are_sound() {
        for args in [
            "-c 42",
            "-c -6 42 eth0",
            "--cidr=192.0.2.0/25 -6 --disable-dns 42",
            "--cidr=10.0.0.0/8 -m 65520 --disable-host-loopback 42",
        ] {
            let args = std::iter::once("slirp4netns").chain(args.split_whitespace());
            let options = Options::parse_from(args);
            assert_eq!(topology(&options).check(), Ok(()), "{options:?}");
        }
    }
}
