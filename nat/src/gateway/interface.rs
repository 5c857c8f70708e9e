//! An interface of the gateway: its place in a network, with MAC and addresses.

use super::flows::SnatConfig;
use super::route::contains;
use crate::nptv6::Nptv6;
use crate::slirp::HostConfig;
use std::net::{IpAddr, Ipv6Addr};
use vswitch_core::bridge::NetworkId;
use vswitch_core::wire::MacAddr;

/// How the gateway stands in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// The network.
    pub network: NetworkId,
    /// Its VLAN; 0 in networks that aren't VLAN aware.
    pub vid: u16,
    /// MAC address.
    pub mac: MacAddr,
    /// Addresses with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Hosts of the network beside those of the prefixes. Where there are any, all else is behind the gateway: it answers ARP and ND for
    /// every other address (RFC 1027, RFC 4389).
    pub hosts: Vec<IpAddr>,
    /// Largest packet (L3 length, bytes).
    pub mtu: u32,
    /// The network leads outside: nothing comes in from it that wasn't asked for or published.
    pub uplink: bool,
    /// Sockets of the host take what no route leads to.
    pub host: Option<HostConfig>,
    /// Source translation of what leaves by it.
    pub snat: Option<SnatConfig>,
    /// Prefixes that are translated towards the network, instead of addresses (RFC 6296).
    pub nptv6: Vec<Nptv6>,
}

/// An interface as the data path uses it.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) config: InterfaceConfig,
    /// fe80::/64 address made of the MAC (RFC 4291 appendix A).
    pub(crate) link_local: Ipv6Addr,
}

impl Interface {
    pub(crate) fn new(config: InterfaceConfig) -> Interface {
        let [a, b, c, d, e, f] = config.mac.0;
        let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        let link_local = Ipv6Addr::from((0xfe80u128 << 112) | u128::from(u64::from_be_bytes(id)));
        Interface { config, link_local }
    }

    /// Whether the address is one of the interface's own.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        ip == IpAddr::V6(self.link_local) || self.config.addresses.iter().any(|(a, _)| *a == ip)
    }

    /// Whether the interface answers ARP and ND for the address: its own, or one that what leaves by it is translated to; for one that is
    /// behind the gateway only if it isn't `probed`, asked for by who would have it.
    pub(crate) fn speaks_for(&self, ip: IpAddr, probed: bool) -> bool {
        let pool = self.config.snat.as_ref().map(|s| &s.addresses);
        self.has(ip)
            || pool.is_some_and(|p| p.contains(&ip))
            || self.is_host(ip)
            || self.is_hosts_own(ip)
            || !probed && self.is_proxied(ip)
    }

    /// Whether the address is behind the gateway, as all are but those of the hosts.
    fn is_proxied(&self, ip: IpAddr) -> bool {
        let hosts = &self.config.hosts;
        let odd = match ip {
            IpAddr::V4(a) => a.is_broadcast(),
            IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
        };
        let odd = odd || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
        !hosts.is_empty() && !odd && !hosts.contains(&ip)
    }

    /// Whether the address stands for the host's own address outside.
    pub(crate) fn is_hosts_own(&self, ip: IpAddr) -> bool {
        let host = self.config.host.as_ref();
        host.is_some_and(|h| h.own_addresses.contains(&ip))
    }

    /// Whether the address stands for the host's loopback in this network.
    pub(crate) fn is_host(&self, ip: IpAddr) -> bool {
        let host = self.config.host.as_ref().filter(|h| h.loopback);
        host.is_some_and(|h| match &h.addresses[..] {
            [] => self.has(ip),
            all => all.contains(&ip),
        })
    }

    /// Whether the link-local address is reached from this network all the same.
    pub(crate) fn reaches_link_local(&self, ip: IpAddr) -> bool {
        let link_local = self.config.host.as_ref().is_some_and(|h| h.link_local);
        self.has(ip) || self.is_host(ip) || self.is_hosts_own(ip) || link_local && ip.is_ipv4()
    }

    /// Whether the address is in one of the interface's prefixes.
    pub(crate) fn on_link(&self, ip: IpAddr) -> bool {
        let link_local = matches!(ip, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80);
        link_local
            || self.config.addresses.iter().any(|p| contains(*p, ip))
            || self.config.hosts.contains(&ip)
    }

    /// The address to speak to `to` from: one of the same prefix, else the first of the family.
    pub(crate) fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        let own = &self.config.addresses;
        let same = own.iter().find(|p| contains(**p, to));
        if same.is_none()
            && let IpAddr::V6(a) = to
            && a.segments()[0] & 0xffc0 == 0xfe80
        {
            return Some(self.link_local.into());
        }
        same.or_else(|| own.iter().find(|(a, _)| a.is_ipv4() == to.is_ipv4()))
            .map(|(a, _)| *a)
            .or_else(|| to.is_ipv6().then_some(self.link_local.into()))
    }

    /// Whether the address is the broadcast or network address of one of the prefixes (RFC 1122 3.2.1.3).
    pub(crate) fn is_broadcast(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        ip.is_broadcast()
            || self.config.addresses.iter().any(|(a, len)| match a {
                IpAddr::V4(a) if *len < 31 => {
                    let host = u32::MAX >> len;
                    let bits = u32::from(ip) & host;
                    contains((IpAddr::V4(*a), *len), ip.into()) && (bits == host || bits == 0)
                }
                _ => false,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("an address")
    }

    #[test]
    fn addresses_of_an_interface() {
        let i = Interface::new(InterfaceConfig {
            network: NetworkId(0),
            vid: 0,
            mac: MacAddr([2, 0, 0, 0, 0, 0xfe]),
            addresses: vec![(ip("192.0.2.1"), 25), (ip("2001:db8::1"), 64)],
            hosts: vec![],
            mtu: 1500,
            uplink: false,
            host: None,
            snat: None,
            nptv6: vec![],
        });
        assert_eq!(IpAddr::V6(i.link_local), ip("fe80::ff:fe00:fe"));
        assert!(i.has(ip("fe80::ff:fe00:fe")) && i.has(ip("192.0.2.1")));
        assert!(i.on_link(ip("192.0.2.100")) && !i.on_link(ip("192.0.2.200")));
        assert!(i.is_broadcast(ip("192.0.2.127")) && i.is_broadcast(ip("192.0.2.0")));
        assert!(!i.is_broadcast(ip("192.0.2.255")) && i.is_broadcast(ip("255.255.255.255")));
        assert!(i.speaks_for(ip("192.0.2.1"), true) && !i.speaks_for(ip("192.0.2.9"), false));
        let proxy = Interface::new(InterfaceConfig {
            addresses: vec![(ip("192.0.2.1"), 32)],
            hosts: vec![ip("198.51.100.7")],
            ..i.config.clone()
        });
        assert!(proxy.on_link(ip("198.51.100.7")) && !proxy.on_link(ip("198.51.100.8")));
        let speaks = |a, probed| proxy.speaks_for(ip(a), probed);
        assert!(speaks("198.51.100.8", false) && speaks("2001:db8::9", false));
        assert!(!speaks("198.51.100.8", true) && !speaks("198.51.100.7", false));
        assert!(!speaks("fe80::9", false) && !speaks("255.255.255.255", false));
        assert_eq!(i.source_for(ip("203.0.113.1")), Some(ip("192.0.2.1")));
        assert_eq!(i.source_for(ip("fe80::9")), Some(ip("fe80::ff:fe00:fe")));
        assert_eq!(i.source_for(ip("2001:db8:1::9")), Some(ip("2001:db8::1")));
    }
}
