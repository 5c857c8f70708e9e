//! An address and a port.

use std::fmt;
use std::net::IpAddr;

/// An address and a port. An ICMP query's identifier is the port of the side that asks (source of the request,
/// destination of the reply); the other side's port is 0, as are both of protocols without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub addr: IpAddr,
    /// Port in host byte order.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint.
    #[must_use]
    pub fn new(addr: IpAddr, port: u16) -> Endpoint {
        Endpoint { addr, port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            IpAddr::V4(a) => write!(f, "{a}:{}", self.port),
            IpAddr::V6(a) => write!(f, "[{a}]:{}", self.port),
        }
    }
}
