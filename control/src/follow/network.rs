//! Changes of links, addresses and routes in the daemon's network namespace, by rtnetlink(7).
//!
//! Only that something has changed counts, and of what kind; what it is now is asked of the kernel where it is needed. So messages that
//! were lost because the socket's buffer was full (ENOBUFS) are one more change, and nothing is missed.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::fmt;
use std::io::{self, ErrorKind};
use tokio::io::unix::AsyncFd;

/// Groups of rtnetlink (include/uapi/linux/rtnetlink.h, `enum rtnetlink_groups`): links, addresses, routes and rules of both families.
const GROUPS: [u32; 7] = [
    1,  // RTNLGRP_LINK
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
];
/// Messages read at once; who changes faster is told of again.
const AT_ONCE: usize = 1024;

/// What has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    links: bool,
    addresses: bool,
    routes: bool,
}

impl Changes {
    const ALL: Changes = Changes {
        links: true,
        addresses: true,
        routes: true,
    };

    fn any(self) -> bool {
        self != Changes::default()
    }

    fn add(&mut self, other: Changes) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
    }

    /// Of what a datagram of the kernel's tells.
    fn read(mut bytes: &[u8]) -> Changes {
        let mut all = Changes::default();
        // What can't be read may be anything.
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            all.add(Changes::of(&message.payload));
            // Messages follow each other at multiples of four (NLMSG_ALIGNTO).
            let len = (message.header.length as usize).next_multiple_of(4);
            match bytes.get(len..) {
                Some(rest) if len > 0 && !rest.is_empty() => bytes = rest,
                _ => return all,
            }
        }
        Changes::ALL
    }

    fn of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Changes {
        use RouteNetlinkMessage as M;
        let mut one = Changes::default();
        match payload {
            NetlinkPayload::InnerMessage(m) => match m {
                M::NewLink(_) | M::DelLink(_) => one.links = true,
                M::NewAddress(_) | M::DelAddress(_) => one.addresses = true,
                _ => one.routes = true,
            },
            NetlinkPayload::Overrun(_) => one = Changes::ALL,
            _ => {}
        }
        one
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("links", self.links),
            ("addresses", self.addresses),
            ("routes", self.routes),
        ];
        let names = all.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}

/// Tells of changes.
#[derive(Debug)]
pub(super) struct Follower(AsyncFd<Socket>);

impl Follower {
    pub(super) fn open() -> io::Result<Follower> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the descriptor is owned by what is given away"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Follower(socket))
    }

    /// Waits until something has changed, and takes all that has.
    pub(super) async fn changed(&mut self) -> io::Result<Changes> {
        loop {
            let mut ready = self.0.readable().await?;
            match read(ready.get_inner())? {
                Some(changes) if changes.any() => return Ok(changes),
                Some(_) => {}
                None => ready.clear_ready(),
            }
        }
    }
}

/// Reads what is there; `None` if there is nothing.
fn read(socket: &Socket) -> io::Result<Option<Changes>> {
    let mut all = None;
    for _ in 0..AT_ONCE {
        let one = match socket.recv_from_full() {
            Ok((bytes, from)) if from.port_number() == 0 => Changes::read(&bytes),
            // Not the kernel's.
            Ok(_) => Changes::default(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Changes::ALL,
            Err(e) => return Err(e),
        };
        all.get_or_insert(Changes::default()).add(one);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::address::AddressMessage;
    use netlink_packet_route::route::RouteMessage;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let payload = NetlinkPayload::from(message);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn several_messages_of_a_datagram_are_read() {
        let address = bytes(RouteNetlinkMessage::DelAddress(AddressMessage::default()));
        let route = bytes(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
        assert_eq!(Changes::read(&address).to_string(), "addresses");
        let both = [address, route].concat();
        assert_eq!(Changes::read(&both).to_string(), "addresses, routes");
        assert_eq!(Changes::read(&both[..both.len() - 3]), Changes::ALL);
        assert_eq!(Changes::read(&[]), Changes::ALL);
    }
}
