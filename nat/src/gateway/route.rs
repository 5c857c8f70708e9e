//! Routes: longest prefix match (RFC 1812 5.2.4.3) over connected and configured prefixes.
//!
//! A flow's way is looked up once and kept with the flow, so a list in order of prefix length serves.

use std::net::IpAddr;
use vswitch_core::bridge::NetworkId;

/// Most configured routes.
pub const MAX_ROUTES: usize = 4096;

/// Where a prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Prefix: address and length.
    pub to: (IpAddr, u8),
    /// Router to send to; `None` is a connected prefix.
    pub via: Option<IpAddr>,
    /// Network it is reached through.
    pub network: NetworkId,
}

/// All routes, the longest prefixes first.
#[derive(Debug, Default)]
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    pub(crate) fn new(mut routes: Vec<Route>) -> Routes {
        // Stable: of equal prefixes the first configured wins.
        routes.sort_by_key(|r| std::cmp::Reverse(r.to.1));
        Routes(routes)
    }

    /// The best route, and the next hop: the router, or the destination itself.
    pub(crate) fn find(&self, to: IpAddr) -> Option<(&Route, IpAddr)> {
        let route = self.0.iter().find(|r| contains(r.to, to))?;
        Some((route, route.via.unwrap_or(to)))
    }
}

/// Whether the prefix holds the address.
#[must_use]
pub fn contains((prefix, len): (IpAddr, u8), address: IpAddr) -> bool {
    match (prefix, address) {
        (IpAddr::V4(p), IpAddr::V4(a)) => {
            (u32::from(p) ^ u32::from(a))
                .checked_shr(32 - u32::from(len.min(32)))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(p), IpAddr::V6(a)) => {
            (u128::from(p) ^ u128::from(a))
                .checked_shr(128 - u32::from(len.min(128)))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("an address")
    }

    #[test]
    fn the_longest_prefix_wins() {
        let route = |to: &str, len, via: Option<&str>, n| Route {
            to: (ip(to), len),
            via: via.map(ip),
            network: NetworkId(n),
        };
        let r = Routes::new(vec![
            route("0.0.0.0", 0, Some("198.51.100.1"), 0),
            route("192.0.2.0", 24, None, 1),
            route("192.0.2.128", 25, Some("198.51.100.2"), 0),
            route("2001:db8::", 64, None, 1),
        ]);
        let find = |to: &str| r.find(ip(to)).map(|(r, hop)| (r.network.0, hop));
        assert_eq!(find("192.0.2.1"), Some((1, ip("192.0.2.1"))));
        assert_eq!(find("192.0.2.200"), Some((0, ip("198.51.100.2"))));
        assert_eq!(find("203.0.113.1"), Some((0, ip("198.51.100.1"))));
        assert_eq!(find("2001:db8::7"), Some((1, ip("2001:db8::7"))));
        assert_eq!(find("2001:db9::7"), None);
    }

    #[test]
    fn prefixes_of_all_lengths() {
        assert!(contains((ip("0.0.0.0"), 0), ip("255.255.255.255")));
        assert!(contains((ip("192.0.2.1"), 32), ip("192.0.2.1")));
        assert!(!contains((ip("192.0.2.1"), 32), ip("192.0.2.0")));
        assert!(contains((ip("::"), 0), ip("ffff::")));
        assert!(!contains((ip("::"), 0), ip("0.0.0.0")));
    }
}
