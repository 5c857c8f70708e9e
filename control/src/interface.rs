//! Interfaces by netlink (rtnetlink(7)): what `ip link`, `ip address` and `ip route` do, in the calling thread's namespace.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use vswitch_core::wire::MacAddr;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{act} {thing}: {source}")]
pub(crate) struct InterfaceError {
    act: &'static str,
    thing: String,
    source: io::Error,
}

type Done = Result<(), InterfaceError>;

/// How an interface is to be.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) name: &'a str,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) addresses: &'a [(IpAddr, u8)],
    pub(crate) gateways: &'a [IpAddr],
    /// Gateways needn't be in a prefix of the addresses.
    pub(crate) onlink: bool,
}

/// Sends one request and waits for the kernel's verdict.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    header.sequence_number = 1;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|e| io::Error::other(e.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        _ => Ok(()),
    }
}

/// Asks for a list.
pub(crate) fn dump(message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header.sequence_number = 1;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut list = Vec::new();
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = answers.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::other(e.to_string()))?;
            // Messages are aligned to four bytes (NLMSG_ALIGN).
            let len = (answer.header.length as usize).next_multiple_of(4);
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(list),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(m) => list.push(m),
                _ => {}
            }
            rest = rest.get(len.max(16)..).unwrap_or_default();
        }
    }
}

fn index(name: &str) -> Result<u32, InterfaceError> {
    nix::net::if_::if_nametoindex(name).map_err(|e| InterfaceError {
        act: "finding interface",
        thing: name.to_owned(),
        source: e.into(),
    })
}

/// Sets MTU, MAC, addresses and routes, and brings it up.
pub(crate) fn configure(setup: &Setup<'_>) -> Done {
    let index = index(setup.name)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::Mtu(setup.mtu));
    if let Some(mac) = setup.mac {
        link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    let fail =
        |act: &'static str, thing: String| move |source| InterfaceError { act, thing, source };
    ask(RouteNetlinkMessage::SetLink(link), 0)
        .map_err(fail("setting MTU and MAC of", setup.name.to_owned()))?;
    for (ip, len) in setup.addresses {
        add_address(index, *ip, *len).map_err(fail(
            "adding address",
            format!("{ip}/{len} to {}", setup.name),
        ))?;
    }
    up(index).map_err(fail("bringing up", setup.name.to_owned()))?;
    for gateway in setup.gateways {
        add_default_route(index, *gateway, setup.onlink)
            .map_err(fail("adding the default route by", gateway.to_string()))?;
    }
    Ok(())
}

/// The MAC address of an interface of this namespace; none if the namespace is the daemon's own. To be called within a namespace.
pub(crate) fn address_abroad(name: &str) -> Option<MacAddr> {
    let inode = |path: &str| std::fs::metadata(path).map(|m| m.ino()).ok();
    if inode("/proc/thread-self/ns/net")? == inode("/proc/self/ns/net")? {
        return None;
    }
    let links = dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).ok()?;
    let ours = |m: RouteNetlinkMessage| match m {
        RouteNetlinkMessage::NewLink(l) => {
            let named = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(n) if n == name);
            l.attributes.iter().any(named).then_some(l)
        }
        _ => None,
    };
    let link = links.into_iter().find_map(ours)?;
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(mac) => mac.first_chunk().map(|m| MacAddr(*m)),
        _ => None,
    })
}

fn up(index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(link), 0)
}

/// Gives loopback one more address.
pub(crate) fn loopback_alias(ip: IpAddr) -> Done {
    let len = if ip.is_ipv4() { 32 } else { 128 };
    add_address(index("lo")?, ip, len).map_err(|source| InterfaceError {
        act: "adding address",
        thing: format!("{ip}/{len} to lo"),
        source,
    })
}

/// Brings loopback up.
pub(crate) fn loopback_up() -> Done {
    up(index("lo")?).map_err(|source| InterfaceError {
        act: "bringing up",
        thing: "lo".to_owned(),
        source,
    })
}

/// Moves an interface to another namespace, under another name there.
pub(crate) fn hand_over(name: &str, netns: BorrowedFd<'_>, there: &str) -> Done {
    let mut link = LinkMessage::default();
    link.header.index = index(name)?;
    link.attributes
        .push(LinkAttribute::IfName(there.to_owned()));
    link.attributes
        .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    ask(RouteNetlinkMessage::SetLink(link), 0).map_err(|source| InterfaceError {
        act: "making interface",
        thing: there.to_owned(),
        source,
    })
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn add_address(index: u32, ip: IpAddr, len: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = len;
    message.header.index = index;
    // Who hands out addresses sees to it that they are unique: usable at once, without a second of duplicate detection.
    if ip.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    ask(RouteNetlinkMessage::NewAddress(message), flags)
}

fn add_default_route(index: u32, gateway: IpAddr, onlink: bool) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let by = match gateway {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    };
    message.attributes.push(RouteAttribute::Gateway(by));
    message.attributes.push(RouteAttribute::Oif(index));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    ask(RouteNetlinkMessage::NewRoute(message), flags)
}

/// The near end of a veth pair of ours; the pair goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Veth {
    index: u32,
}

impl Veth {
    /// Makes a pair: `near` here, `far` in the namespace of `netns`.
    pub(crate) fn new(
        near: &str,
        far: &str,
        netns: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<Veth, InterfaceError> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(far.to_owned()));
        peer.attributes.push(LinkAttribute::Mtu(mtu));
        peer.attributes
            .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(near.to_owned()));
        link.attributes.push(LinkAttribute::Mtu(mtu));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let fail = |source| InterfaceError {
            act: "making veth pair",
            thing: format!("{near} - {far}"),
            source,
        };
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        ask(RouteNetlinkMessage::NewLink(link), flags).map_err(fail)?;
        let veth = Veth {
            index: index(near)?,
        };
        mute(veth.index);
        up(veth.index).map_err(fail)?;
        Ok(veth)
    }
}

/// Keeps our own IP stack off a near end: it would take an IPv6 address and answer ARP, beside the switch.
fn mute(index: u32) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Noarp;
    link.header.change_mask = LinkFlags::Noarp;
    let _ = ask(RouteNetlinkMessage::SetLink(link.clone()), 0);
    link.header.change_mask = LinkFlags::empty();
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![mode],
        )]));
    // A kernel without IPv6 refuses, and needs it not.
    let _ = ask(RouteNetlinkMessage::SetLink(link), 0);
}

/// Removes an interface if there is one of this name.
pub(crate) fn remove(name: &str) {
    if let Ok(index) = index(name) {
        drop(Veth { index });
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let mut link = LinkMessage::default();
        link.header.index = self.index;
        // It may have gone with its container.
        let _ = ask(RouteNetlinkMessage::DelLink(link), 0);
    }
}
