//! The routes of a container, asked of its kernel by a socket of its namespace (RTM_GETROUTE, rtnetlink(7)).

use crate::netns;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{self, MsgFlags, SockFlag, SockProtocol, SockType};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use vswitch_core::sys::{scm, twin};

/// Most bytes of an answer, and answers to older questions that are passed over.
const ANSWER: usize = 8 << 10;
const STALE: usize = 16;
/// A process that enters namespaces takes no longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where something leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The address that the container would have.
    pub(super) from: IpAddr,
    /// Its router.
    pub(super) via: IpAddr,
}

/// A socket that routes are asked by.
#[derive(Debug)]
pub(crate) struct Routes {
    fd: OwnedFd,
    namespace: u64,
    asked: AtomicU32,
}

/// Opens such a socket in the namespace of this thread.
pub(crate) fn open() -> io::Result<OwnedFd> {
    Ok(socket::socket(
        socket::AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?)
}

/// Opens one in the namespace of a process. Where it takes the rights of that one's user namespace, a process of its own gets them.
pub(super) fn open_at(pid: i32) -> Result<OwnedFd, String> {
    let spec = format!("pid:{pid}");
    match netns::within(&spec, open) {
        Ok(opened) => opened.map_err(|e| e.to_string()),
        Err(e) if e.is_forbidden() => by_process(pid).map_err(|why| format!("{e}: {why}")),
        Err(e) => Err(e.to_string()),
    }
}

/// Starts [`hand_out`].
fn by_process(pid: i32) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("vswitchd")
        .args(["routes-of", &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let got = scm::recv(&ours, &mut [0; 16]);
    let _ = child.kill();
    let _ = child.wait();
    let (_, mut fds) = got?;
    fds.pop()
        .ok_or_else(|| io::ErrorKind::PermissionDenied.into())
}

/// Opens one in the namespace of a process, and sends it by the standard output. This process stays there.
pub(crate) fn hand_out(pid: i32) -> ExitCode {
    let done = || -> io::Result<()> {
        let namespace = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
        let (user, net) = (namespace("user")?, namespace("net")?);
        let own = netns::identity(Path::new("/proc/self/ns/user"));
        if netns::identity(Path::new(&format!("/proc/{pid}/ns/user"))) != own {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(net, CloneFlags::CLONE_NEWNET)?;
        let fd = open()?;
        scm::send(io::stdout(), b"!", &[fd.as_fd()]).map(drop)
    };
    match done() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!(
                "vswitchd: entering the namespaces of process {pid}: {e}; run it as its user"
            );
            ExitCode::FAILURE
        }
    }
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

impl Routes {
    /// Of a socket that somebody has opened there. Errors: it is no such socket.
    pub(crate) fn of(fd: OwnedFd) -> io::Result<Routes> {
        let namespace = twin::namespace(&fd)?;
        // Only a netlink socket has such an address.
        socket::getsockname::<socket::NetlinkAddr>(fd.as_raw_fd())?;
        let routes = Routes {
            fd,
            namespace,
            asked: AtomicU32::new(0),
        };
        // Whether it answers at all; that no route leads there is an answer.
        match routes.towards(std::net::Ipv4Addr::LOCALHOST.into(), None) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(e),
            _ => Ok(routes),
        }
    }

    /// The namespace, as sockets tell it.
    pub(crate) fn namespace(&self) -> u64 {
        self.namespace
    }

    /// The way to an address by a router, from this address if one is chosen. `None`: it stays in the container or on its link.
    pub(super) fn towards(&self, to: IpAddr, from: Option<IpAddr>) -> io::Result<Option<Way>> {
        let number = self.asked.fetch_add(1, Relaxed).wrapping_add(1);
        let mut message = RouteMessage::default();
        let (family, len) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = len;
        let destination = RouteAttribute::Destination(route_address(to));
        message.attributes.push(destination);
        if let Some(from) = from {
            message.header.source_prefix_length = len;
            let source = RouteAttribute::Source(route_address(from));
            message.attributes.push(source);
        }
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = number;
        let message = RouteNetlinkMessage::GetRoute(message);
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket::send(self.fd.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT)?;
        let mut answer = [0; ANSWER];
        for _ in 0..STALE {
            // The kernel has answered by now.
            let n = socket::recv(self.fd.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
            let some = answer.get(..n).unwrap_or_default();
            let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(some)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            if read.header.sequence_number != number {
                continue;
            }
            return match read.payload {
                NetlinkPayload::Error(e) => Err(e.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(r)) => Ok(way(&r, from)),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn way(route: &RouteMessage, chosen: Option<IpAddr>) -> Option<Way> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut via, mut from) = (None, chosen);
    for a in &route.attributes {
        match a {
            RouteAttribute::Gateway(a) => via = ip_of(a),
            RouteAttribute::Via(RouteVia::Inet(a)) => via = Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => via = Some((*a).into()),
            RouteAttribute::PrefSource(a) => from = from.or_else(|| ip_of(a)),
            _ => {}
        }
    }
    Some(Way {
        from: from?,
        via: via?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_here_has_no_router() {
        let routes = Routes::of(open().unwrap()).unwrap();
        let own = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(routes.namespace(), twin::namespace(&own).unwrap());
        let here = routes.towards("127.0.0.1".parse().unwrap(), None);
        assert!(!matches!(here, Ok(Some(_))), "{here:?}");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Routes::of(null.into()).is_err());
        assert!(Routes::of(own.into()).is_err(), "a socket of another kind");
    }
}
