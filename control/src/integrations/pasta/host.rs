//! What the host looks like: the interface that leads outside, its addresses and routers, as the container's are to be.

use crate::interface;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One family of an interface: its address with the length of its prefix, and the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family<A> {
    pub(super) address: Option<(A, u8)>,
    pub(super) router: Option<A>,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Family {
            address: None,
            router: None,
        }
    }
}

/// The host, seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) interface: Option<String>,
    pub(super) v4: Family<Ipv4Addr>,
    pub(super) v6: Family<Ipv6Addr>,
}

/// A default route.
#[derive(Clone, Copy, Debug)]
struct Default4or6 {
    interface: u32,
    router: Option<IpAddr>,
    metric: u32,
}

fn default_route(m: &RouteMessage) -> Option<Default4or6> {
    let h = &m.header;
    let is_default = h.destination_prefix_length == 0
        && h.table == RouteHeader::RT_TABLE_MAIN
        && h.kind == RouteType::Unicast;
    let mut found = Default4or6 {
        interface: 0,
        router: None,
        metric: 0,
    };
    for a in &m.attributes {
        match a {
            RouteAttribute::Oif(i) => found.interface = *i,
            RouteAttribute::Priority(p) => found.metric = *p,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => found.router = Some((*ip).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => found.router = Some((*ip).into()),
            _ => {}
        }
    }
    (is_default && found.interface != 0).then_some(found)
}

/// The best default route of a family, by one interface if that is given.
fn leading_out(family: AddressFamily, by: Option<u32>) -> io::Result<Option<Default4or6>> {
    let mut ask = RouteMessage::default();
    ask.header.address_family = family;
    let list = interface::dump(RouteNetlinkMessage::GetRoute(ask))?;
    let routes = list.iter().filter_map(|m| match m {
        RouteNetlinkMessage::NewRoute(r) if r.header.address_family == family => default_route(r),
        _ => None,
    });
    let routes = routes.filter(|r| by.is_none_or(|i| i == r.interface));
    Ok(routes.min_by_key(|r| r.metric))
}

/// Global addresses that are good for new connections: interface, address, length of the prefix.
fn addresses() -> io::Result<Vec<(u32, IpAddr, u8)>> {
    let list = interface::dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let unfit = AddressHeaderFlags::Secondary
        | AddressHeaderFlags::Deprecated
        | AddressHeaderFlags::Tentative;
    let fit = |m: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewAddress(a) = m else {
            return None;
        };
        let h = &a.header;
        if h.scope != AddressScope::Universe || h.flags.intersects(unfit) {
            return None;
        }
        // On links between two points the local address is the one of its own.
        let mut found = None;
        for attribute in &a.attributes {
            match attribute {
                AddressAttribute::Local(ip) => found = Some(*ip),
                AddressAttribute::Address(ip) if found.is_none() => found = Some(*ip),
                _ => {}
            }
        }
        Some((h.index, found?, h.prefix_len))
    };
    Ok(list.iter().filter_map(fit).collect())
}

impl Host {
    /// Looks; `by` is the interface to look at instead of those that lead outside.
    pub(super) fn look(by: Option<&str>) -> io::Result<Host> {
        let by = by.map(nix::net::if_::if_nametoindex).transpose()?;
        let all = addresses()?;
        let (out4, out6) = (
            leading_out(AddressFamily::Inet, by)?,
            leading_out(AddressFamily::Inet6, by)?,
        );
        // A host without a route has its addresses all the same.
        let any = |v4: bool| all.iter().find(|a| a.1.is_ipv4() == v4).map(|a| a.0);
        let at4 = by.or(out4.map(|r| r.interface)).or_else(|| any(true));
        let at6 = by.or(out6.map(|r| r.interface)).or_else(|| any(false));
        let v4 = all.iter().find_map(|(i, ip, len)| match ip {
            IpAddr::V4(ip) if Some(*i) == at4 => Some((*ip, *len)),
            _ => None,
        });
        let v6 = all.iter().find_map(|(i, ip, len)| match ip {
            IpAddr::V6(ip) if Some(*i) == at6 => Some((*ip, *len)),
            _ => None,
        });
        let index = at4.filter(|_| v4.is_some()).or(at6);
        let names = nix::net::if_::if_nameindex()?;
        let named = names.iter().find(|n| Some(n.index()) == index);
        Ok(Host {
            interface: named.map(|n| n.name().to_string_lossy().into_owned()),
            v4: Family {
                address: v4,
                router: out4.and_then(|r| match r.router? {
                    IpAddr::V4(ip) => Some(ip),
                    IpAddr::V6(_) => None,
                }),
            },
            v6: Family {
                address: v6,
                router: out6.and_then(|r| match r.router? {
                    IpAddr::V6(ip) => Some(ip),
                    IpAddr::V4(_) => None,
                }),
            },
        })
    }
}
