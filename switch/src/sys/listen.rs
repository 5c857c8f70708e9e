//! Listening sockets of the host: streams are accepted, datagrams are received with the address that they were sent to, and
//! answered from it.
//!
//! Nothing here blocks. A socket is of one family: one for `::` leaves IPv4 alone, whatever `net.ipv6.bindv6only` says.

use super::datagram::joined;
use super::sock::{Kind, of_family};
use nix::cmsg_space;
use nix::sys::socket::sockopt::{
    BindToDevice, Ipv4PacketInfo, Ipv6RecvPacketInfo, KeepAlive, OobInline, ReuseAddr, TcpNoDelay,
};
use nix::sys::socket::{
    Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockaddrStorage, accept4,
    bind, getpeername, listen, recvmsg, sendmsg, setsockopt,
};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Connections that the kernel keeps for us until they are accepted (`net.core.somaxconn` may make it fewer).
pub const BACKLOG: i32 = 1024;

/// The errors of bind(2) that people can do something about.
pub const IN_USE: i32 = libc::EADDRINUSE;
/// A privileged port.
pub const NOT_ALLOWED: i32 = libc::EACCES;
/// No address of this host.
pub const NO_ADDRESS: i32 = libc::EADDRNOTAVAIL;
/// The host has no such family.
pub const NO_FAMILY: i32 = libc::EAFNOSUPPORT;
/// The host has no such interface.
pub const NO_INTERFACE: i32 = libc::ENODEV;
/// Binding to an interface takes a privilege, before Linux 5.7.
pub const NO_RIGHT: i32 = libc::EPERM;

/// The name of an interface: 1 to 15 bytes without `/`, white space and control characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface([u8; libc::IFNAMSIZ]);

impl Interface {
    /// `None`: no interface can be named so.
    #[must_use]
    pub fn new(name: &str) -> Option<Interface> {
        let mut bytes = [0; libc::IFNAMSIZ];
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        // The kernel wants a zero behind it.
        let fits = !name.is_empty() && name.len() < bytes.len() && !name.contains(odd);
        bytes
            .get_mut(..name.len())
            .filter(|_| fits)?
            .copy_from_slice(name.as_bytes());
        Some(Interface(bytes))
    }

    /// As text.
    #[must_use]
    pub fn name(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(0);
        std::str::from_utf8(self.0.get(..end).unwrap_or_default()).unwrap_or_default()
    }
}

impl fmt::Debug for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As the standard library has it.
pub(super) fn address(a: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = a.as_sockaddr_in().map(|a| (a.ip(), a.port()).into());
    v4.or_else(|| {
        let a = a.as_sockaddr_in6()?;
        Some(SocketAddrV6::new(a.ip(), a.port(), 0, a.scope_id()).into())
    })
}

/// Opens a stream that listens, or a socket for datagrams, at an address and port; port 0 is one that the kernel picks. Errors: as
/// socket(2), bind(2) and listen(2).
pub fn open(kind: Kind, at: SocketAddr) -> io::Result<OwnedFd> {
    open_on(kind, at, None)
}

/// The same, of what comes by an interface alone. Errors besides: ENODEV; EPERM before Linux 5.7 without CAP_NET_RAW.
pub fn open_on(kind: Kind, at: SocketAddr, on: Option<Interface>) -> io::Result<OwnedFd> {
    if kind == Kind::Ping {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let fd = of_family(kind, at)?;
    if kind == Kind::Tcp {
        // Connections of before may be waiting in TIME-WAIT.
        setsockopt(&fd, ReuseAddr, &true)?;
    } else if at.is_ipv4() {
        setsockopt(&fd, Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&fd, Ipv6RecvPacketInfo, &true)?;
    }
    if let Some(on) = on {
        setsockopt(&fd, BindToDevice, &OsString::from(on.name()))?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    if kind == Kind::Tcp {
        let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
        listen(&fd, backlog)?;
    }
    Ok(fd)
}

/// Accepts a connection; whose it is. Errors: EAGAIN, EMFILE and others of accept(2).
pub fn accept(fd: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = accept4(fd.as_fd(), flags)?;
    let _ = setsockopt(&fd, TcpNoDelay, &true);
    let _ = setsockopt(&fd, KeepAlive, &true);
    // Urgent data in its place, as at those that we connect.
    let _ = setsockopt(&fd, OobInline, &true);
    let peer: SockaddrStorage = getpeername(fd.as_raw_fd())?;
    let peer = address(&peer).ok_or(io::ErrorKind::InvalidData)?;
    Ok((fd, peer))
}

/// One datagram, or several of one size joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in all.
    pub bytes: usize,
    /// Bytes of each, if there are several.
    pub size: Option<u16>,
    /// Who sent it.
    pub from: SocketAddr,
    /// The address of ours that it was sent to, unless it is the socket's own.
    pub to: Option<IpAddr>,
}

/// Receives. Errors: EAGAIN and others of recvmsg(2).
pub fn receive(fd: impl AsFd, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<Received> {
    let mut space = cmsg_space!(libc::c_int, libc::in6_pktinfo);
    let raw = fd.as_fd().as_raw_fd();
    let got = recvmsg::<SockaddrStorage>(raw, into, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let (mut size, mut to) = (None, None);
    for m in got.cmsgs().map_err(io::Error::from)? {
        match m {
            ControlMessageOwned::UdpGroSegments(n) => {
                size = joined(n);
            }
            // Not where it was sent to but where an answer comes from: another if it was broadcast.
            ControlMessageOwned::Ipv4PacketInfo(i) => {
                let own = Ipv4Addr::from(i.ipi_spec_dst.s_addr.to_ne_bytes());
                to = Some(own.into());
            }
            ControlMessageOwned::Ipv6PacketInfo(i) => to = Some(IpAddr::from(i.ipi6_addr.s6_addr)),
            _ => {}
        }
    }
    let from = got.address.as_ref().and_then(address);
    Ok(Received {
        bytes: got.bytes,
        size: size.filter(|s| usize::from(*s) < got.bytes),
        from: from.ok_or(io::ErrorKind::InvalidData)?,
        to,
    })
}

/// Sends a datagram, or several of `size` bytes each, to `to` from an address of ours. Errors: as sendmsg(2); EIO and EINVAL where
/// the way out or the kernel has no segmentation.
pub fn send(
    fd: impl AsFd,
    parts: [&[u8]; 2],
    size: Option<u16>,
    from: IpAddr,
    to: SocketAddr,
) -> io::Result<usize> {
    let v4;
    let v6;
    let own = match from {
        IpAddr::V4(from) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(from.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(from) => {
            let scope = match to {
                SocketAddr::V6(to) => to.scope_id(),
                SocketAddr::V4(_) => 0,
            };
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                ipi6_ifindex: scope,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let segments = size.unwrap_or(0);
    let control = [own, ControlMessage::UdpGsoSegments(&segments)];
    let control = control.get(..if size.is_some() { 2 } else { 1 });
    let iov = [IoSlice::new(parts[0]), IoSlice::new(parts[1])];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let raw = fd.as_fd().as_raw_fd();
    let to = SockaddrStorage::from(to);
    let control = control.unwrap_or_default();
    Ok(sendmsg(raw, &iov, control, flags, Some(&to))?)
}

#[cfg(test)]
mod tests {
    use super::super::sock;
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpStream, UdpSocket};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn wait<T>(mut f: impl FnMut() -> io::Result<T>) -> T {
        loop {
            match f() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                r => return r.unwrap(),
            }
        }
    }

    #[test]
    fn a_port_is_picked_and_taken_and_its_connections_are_accepted() {
        let fd = open(Kind::Tcp, at("127.0.0.1:0")).unwrap();
        let own = sock::local(&fd).unwrap();
        assert_ne!(own.port(), 0);
        let taken = open(Kind::Tcp, own).unwrap_err();
        assert_eq!(taken.raw_os_error(), Some(IN_USE));
        let gone = open(Kind::Tcp, at("203.0.113.1:0")).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(NO_ADDRESS));
        let none = accept(&fd).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        let mut far = TcpStream::connect(own).unwrap();
        let (near, peer) = wait(|| accept(&fd));
        assert_eq!(peer, far.local_addr().unwrap());
        assert_eq!(sock::local(&near).unwrap(), own);
        sock::send(&near, [b"ab", b"c"]).unwrap();
        drop(near);
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abc");
        assert!(far.write(b"").is_ok());
    }

    #[test]
    fn what_comes_by_an_interface_alone() {
        for odd in ["", "a b", "a/b", "sixteen-letters-x"] {
            assert_eq!(Interface::new(odd), None, "{odd}");
        }
        let lo = Interface::new("lo").unwrap();
        assert_eq!(lo.name(), "lo");
        let fd = open_on(Kind::Tcp, at("0.0.0.0:0"), Some(lo)).unwrap();
        let port = sock::local(&fd).unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        let none = Interface::new("no-such-one");
        let gone = open_on(Kind::Udp, at("0.0.0.0:0"), none).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(NO_INTERFACE));
    }

    #[test]
    fn datagrams_are_answered_from_the_address_they_were_sent_to() {
        let fd = open(Kind::Udp, at("0.0.0.0:0")).unwrap();
        let port = sock::local(&fd).unwrap().port();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = SocketAddr::from(([127, 9, 9, 9], port));
        far.send_to(b"hello", to).unwrap();
        let (mut a, mut b) = ([0; 3], [0; 100]);
        let got = wait(|| receive(&fd, &mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]));
        assert_eq!((got.bytes, got.size), (5, None));
        assert_eq!(
            (got.from, got.to),
            (far.local_addr().unwrap(), Some(to.ip()))
        );
        let bytes = [7; 2500];
        let parts: [&[u8]; 2] = [&bytes[..100], &bytes[100..]];
        send(&fd, parts, Some(1000), to.ip(), got.from).unwrap();
        let mut buf = [0; 4000];
        let sizes = [(); 3].map(|()| far.recv_from(&mut buf).unwrap());
        assert_eq!(sizes, [(1000, to), (1000, to), (500, to)]);
    }

    #[test]
    fn families_are_kept_apart() {
        let Ok(six) = open(Kind::Tcp, at("[::]:0")) else {
            println!("skipped: the host has no IPv6");
            return;
        };
        let port = sock::local(&six).unwrap().port();
        open(Kind::Tcp, SocketAddr::from(([0, 0, 0, 0], port))).unwrap();
    }
}
