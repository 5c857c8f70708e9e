//! Published ports: an address and port of the gateway stand for a container's, or for one of several (DNAT).
//!
//! A back end is chosen by a hash of the connection, weighted, among those whose neighbour answers ARP or ND, which new connections
//! have asked again every few seconds; a connection stays with the one chosen. If none answers the choice is as if all did:
//! the error that follows is the honest answer.

use hashbrown::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use vswitch_core::bridge::NetworkId;

use crate::Endpoint;

/// Most back ends of a published port.
pub const MAX_BACKENDS: usize = 64;

/// Most published ports, ranges counted port by port.
pub const MAX_PORTS: usize = 65_536;

/// A published port or range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// IP protocol: TCP, UDP or SCTP.
    pub proto: u8,
    /// Address it is reached at; `None` is every address of the gateway of the back ends' family.
    pub address: Option<IpAddr>,
    /// Network it is reached from; `None` is any.
    pub network: Option<NetworkId>,
    /// Ports.
    pub ports: RangeInclusive<u16>,
    /// Where it leads.
    pub backends: Vec<Backend>,
}

/// A back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address and the port that stands for the first published one.
    pub to: Endpoint,
    /// Its share beside the others'; at least 1.
    pub weight: u16,
}

/// Published ports by protocol and port.
#[derive(Debug, Default)]
pub(crate) struct Published {
    list: Vec<Publish>,
    by_port: HashMap<(u8, u16), Vec<u32>, foldhash::fast::RandomState>,
}

impl Published {
    pub(crate) fn new(list: &[Publish]) -> Published {
        let mut by_port: HashMap<(u8, u16), Vec<u32>, _> =
            HashMap::with_hasher(foldhash::fast::RandomState::default());
        for (i, p) in list.iter().enumerate() {
            for port in p.ports.clone() {
                by_port.entry((p.proto, port)).or_default().push(i as u32);
            }
        }
        // What names an address comes before what takes any.
        for found in by_port.values_mut() {
            found.sort_by_key(|i| list.get(*i as usize).is_none_or(|p| p.address.is_none()));
        }
        Published {
            list: list.to_vec(),
            by_port,
        }
    }

    /// What is published at one of our addresses, for a connection from a network.
    pub(crate) fn find(&self, proto: u8, network: NetworkId, to: Endpoint) -> Option<&Publish> {
        let found = self.by_port.get(&(proto, to.port))?;
        let mut found = found.iter().filter_map(|i| self.list.get(*i as usize));
        found.find(|p| {
            p.address.is_none_or(|a| a == to.addr)
                && p.network.is_none_or(|n| n == network)
                && p.backends.iter().any(|b| of_family(b, to))
        })
    }

    /// A hash of a connection, to choose a back end by.
    pub(crate) fn hash(&self, from: Endpoint, to: Endpoint) -> u64 {
        self.by_port.hasher().hash_one((from, to))
    }
}

fn of_family(b: &Backend, to: Endpoint) -> bool {
    b.to.addr.is_ipv4() == to.addr.is_ipv4()
}

impl Publish {
    /// The back end for a connection to `to`, by its hash; `alive` has a bit for each back end.
    pub(crate) fn choose(&self, to: Endpoint, hash: u64, alive: u64) -> Option<Endpoint> {
        let offset = to.port.wrapping_sub(*self.ports.start());
        let draw = |alive: u64| {
            let all = || {
                let of_family =
                    |(i, b): &(usize, &Backend)| alive >> (i % 64) & 1 != 0 && of_family(b, to);
                self.backends.iter().enumerate().filter(of_family)
            };
            let total: u64 = all().map(|(_, b)| u64::from(b.weight.max(1))).sum();
            let mut left = hash.checked_rem(total)?;
            let chosen = all().find(|(_, b)| {
                let weight = u64::from(b.weight.max(1));
                let here = left < weight;
                left = left.saturating_sub(weight);
                here
            });
            chosen.map(|(_, b)| Endpoint::new(b.to.addr, b.to.port.wrapping_add(offset)))
        };
        draw(alive).or_else(|| draw(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(ip: &str, port: u16) -> Endpoint {
        Endpoint::new(ip.parse().expect("an address"), port)
    }

    fn publish(
        address: Option<&str>,
        ports: RangeInclusive<u16>,
        to: &[(&str, u16, u16)],
    ) -> Publish {
        Publish {
            proto: 6,
            address: address.map(|a| a.parse().expect("an address")),
            network: None,
            ports,
            backends: to
                .iter()
                .map(|(ip, port, weight)| Backend {
                    to: end(ip, *port),
                    weight: *weight,
                })
                .collect(),
        }
    }

    const CLIENT: NetworkId = NetworkId(9);

    #[test]
    fn ranges_keep_their_offset_and_addresses_come_first() {
        let p = Published::new(&[
            publish(None, 8000..=8010, &[("192.0.2.10", 80, 1)]),
            publish(Some("198.51.100.2"), 8005..=8005, &[("192.0.2.11", 443, 1)]),
            publish(None, 53..=53, &[("2001:db8::5", 53, 1)]),
        ]);
        let find = |proto, ip, port| {
            let to = end(ip, port);
            p.find(proto, CLIENT, to)?.choose(to, 7, u64::MAX)
        };
        assert_eq!(find(6, "198.51.100.1", 8003), Some(end("192.0.2.10", 83)));
        assert_eq!(find(6, "198.51.100.2", 8005), Some(end("192.0.2.11", 443)));
        assert_eq!(find(6, "198.51.100.1", 8005), Some(end("192.0.2.10", 85)));
        assert_eq!(find(17, "198.51.100.1", 8005), None);
        assert_eq!(find(6, "198.51.100.1", 53), None, "the other family");
        assert_eq!(find(6, "2001:db8::1", 53), Some(end("2001:db8::5", 53)));
    }

    #[test]
    fn back_ends_share_by_weight_and_the_dead_are_passed_over() {
        let p = Published::new(&[publish(
            None,
            80..=80,
            &[("192.0.2.1", 80, 1), ("192.0.2.2", 80, 3)],
        )]);
        let count = |alive: u64| {
            let mut n = [0; 2];
            for port in 1..4001u16 {
                let from = end("203.0.113.1", port);
                let to = end("198.51.100.1", 80);
                let publish = p.find(6, CLIENT, to).expect("published");
                let first = publish.choose(to, p.hash(from, to), alive);
                assert_eq!(
                    first,
                    publish.choose(to, p.hash(from, to), alive),
                    "it stays"
                );
                n[usize::from(first == Some(end("192.0.2.2", 80)))] += 1;
            }
            n
        };
        let [one, two] = count(u64::MAX);
        assert!(
            (800..1200).contains(&one) && one + two == 4000,
            "{one} {two}"
        );
        assert_eq!(count(1), [4000, 0]);
        assert_eq!(count(0), [one, two], "as if all answered");
    }
}
