//! Where sockets of the host leave from: an address, an interface.
//!
//! A socket is bound before it connects. What is towards the host's own loopback is left as it is: no interface leads there, and who
//! listens there expects to be asked from there. Binding to an interface takes no privilege from Linux 5.7 on. There is no other means before:
//! IP_UNICAST_IF is for datagrams that are sent unconnected, and connect(2) of streams doesn't look at it in any version.

use nix::errno::Errno;
use nix::sys::socket::sockopt::{BindToDevice, IpBindAddressNoPort};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// Where sockets leave from; by default where the host's routes say.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Source address of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Source address of IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Name of the interface.
    pub interface: Option<String>,
}

impl Source {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.v4.is_none() && self.v6.is_none() && self.interface.is_none()
    }

    /// The address to be bound to towards `to`.
    #[must_use]
    pub fn towards(&self, to: IpAddr) -> Option<IpAddr> {
        match to {
            _ if to.is_loopback() => None,
            IpAddr::V4(_) => self.v4.map(IpAddr::from),
            IpAddr::V6(_) => self.v6.map(IpAddr::from),
        }
    }

    /// Binds a socket to the interface, before it connects to `to`. Errors: EPERM before Linux 5.7 without CAP_NET_RAW, ENODEV.
    pub fn bind_interface(&self, fd: impl AsFd, to: IpAddr) -> io::Result<()> {
        match &self.interface {
            Some(name) if !to.is_loopback() => {
                Ok(setsockopt(&fd.as_fd(), BindToDevice, &name.into())?)
            }
            _ => Ok(()),
        }
    }

    /// The address that a socket towards `to` is bound to by the host's routes as they are. Errors: as [`Source::bind`] and connect(2);
    /// ENETUNREACH where no route leads.
    pub fn chosen(&self, to: SocketAddr) -> io::Result<IpAddr> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        // Connecting a datagram socket sends nothing.
        let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        self.bind(&fd, to.ip())?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        super::sock::local(&fd).map(|a| a.ip())
    }

    /// Binds a socket to both, before it connects to `to`. Errors: as [`Source::bind_interface`] and bind(2).
    pub fn bind(&self, fd: impl AsFd, to: IpAddr) -> io::Result<()> {
        let fd = fd.as_fd();
        self.bind_interface(fd, to)?;
        let Some(from) = self.towards(to) else {
            return Ok(());
        };
        // The port is chosen by connecting, so that it need only be free towards that destination.
        match setsockopt(&fd, IpBindAddressNoPort, &true) {
            Ok(()) | Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
        let from = SockaddrStorage::from(SocketAddr::new(from, 0));
        Ok(bind(fd.as_raw_fd(), &from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::sock::{self, Kind};
    use std::net::{TcpListener, UdpSocket};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_chosen_by_the_family_and_not_towards_loopback() {
        let source = Source {
            v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            ..Source::default()
        };
        assert!(!source.is_any() && Source::default().is_any());
        let towards = |a: &str| source.towards(a.parse().unwrap());
        assert_eq!(
            towards("198.51.100.1"),
            Some(Ipv4Addr::new(192, 0, 2, 1).into())
        );
        assert_eq!(towards("127.0.0.53"), None);
        assert_eq!(towards("2001:db8::1"), None);
        // So what is at loopback is reached whatever is said.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let named = Source {
            interface: Some("no-such-one".into()),
            ..source
        };
        let to = listener.local_addr().unwrap();
        sock::open(Kind::Tcp, to, Some(&named)).unwrap();
        listener.accept().unwrap();
        assert_eq!(named.chosen(to).unwrap(), Ipv4Addr::LOCALHOST);
        assert!(named.chosen(at("198.51.100.1:9")).is_err());
    }

    #[test]
    fn what_the_host_does_not_have_is_an_error() {
        let address = Source {
            v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            ..Source::default()
        };
        let e = sock::open(Kind::Udp, at("198.51.100.1:9"), Some(&address)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AddrNotAvailable);
        let interface = Source {
            interface: Some("no-such-one".into()),
            ..Source::default()
        };
        let far = at("198.51.100.1:9").ip();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(interface.bind_interface(&socket, far).is_err());
    }
}
