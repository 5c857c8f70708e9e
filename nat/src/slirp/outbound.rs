//! Where flows leave the host from: by whose gateway the container stands behind.

use super::Key;
use crate::gateway::contains;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use vswitch_core::sys::sock::{self, Kind};
use vswitch_core::sys::source::Source;

/// The address that the host goes outside by. Asking the kernel opens a socket for a moment, which sends nothing.
pub(crate) fn own_address(source: &Source, v4: bool) -> Option<IpAddr> {
    // What only a default route leads to (RFC 5737, RFC 3849).
    let outside: IpAddr = match v4 {
        true => Ipv4Addr::new(192, 0, 2, 1).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let found = source.chosen((outside, 9).into()).ok()?;
    (!found.is_loopback() && !found.is_unspecified()).then_some(found)
}

/// Sources by the prefix that a container's address is in.
#[derive(Debug, Default)]
pub(crate) struct Outbound(Vec<((IpAddr, u8), Source)>);

impl Outbound {
    /// The longest prefix counts, of equal ones the first.
    pub(crate) fn new(mut by_prefix: Vec<((IpAddr, u8), Source)>) -> Outbound {
        by_prefix.sort_by_key(|(to, _)| std::cmp::Reverse(to.1));
        Outbound(by_prefix)
    }

    fn of(&self, inside: IpAddr) -> Option<&Source> {
        let found = self.0.iter().find(|(prefix, _)| contains(*prefix, inside));
        found.map(|(_, source)| source)
    }

    /// The address that a flow's socket would be bound to now.
    pub(super) fn chosen(&self, key: &Key) -> io::Result<IpAddr> {
        match self.of(key.inside.ip()) {
            Some(source) => source.chosen(key.outside),
            None => Source::default().chosen(key.outside),
        }
    }

    /// The host's own address, for a flow to one that stands for it. Errors: it has none.
    pub(super) fn own_address(&self, key: &Key) -> io::Result<IpAddr> {
        let any = Source::default();
        let source = self.of(key.inside.ip()).unwrap_or(&any);
        let found = own_address(source, key.outside.is_ipv4());
        found.ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
    }

    /// Opens the socket of a flow, which sends with this TTL if one is given.
    pub(super) fn open(&self, kind: Kind, key: Key, ttl: Option<u8>) -> io::Result<OwnedFd> {
        sock::open_with(kind, key.outside, self.of(key.inside.ip()), ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_says_where_from() {
        let ip = |a: &str| a.parse::<IpAddr>().expect("an address");
        let by = |name: &str| Source {
            interface: Some(name.into()),
            ..Source::default()
        };
        let all = Outbound::new(vec![
            ((ip("192.0.2.1"), 24), by("a")),
            ((ip("192.0.2.129"), 25), by("b")),
            ((ip("2001:db8::1"), 64), by("c")),
        ]);
        let of = |a: &str| all.of(ip(a)).and_then(|s| s.interface.clone());
        assert_eq!(of("192.0.2.7").as_deref(), Some("a"));
        assert_eq!(of("192.0.2.130").as_deref(), Some("b"));
        assert_eq!(of("2001:db8::7").as_deref(), Some("c"));
        assert_eq!(of("203.0.113.1"), None);
    }
}
