//! The pool against a naive model, and its rules one by one.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

const NOW: Nanos = Nanos(1);

fn outside(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, n))
}

fn remote(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, n))
}

fn inside(proto: u8, host: u8, port: u16) -> Internal {
    Internal {
        zone: 0,
        proto,
        end: Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), port),
    }
}

fn pool(addresses: u8, change: impl FnOnce(&mut PoolConfig)) -> PortPool {
    let mut config = PoolConfig::new((1..=addresses).map(outside).collect());
    change(&mut config);
    PortPool::new(config)
}

/// A fixed sequence of numbers.
fn random(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn port_of(p: &mut PortPool, i: Internal, r: u64) -> u16 {
    let (_lease, e) = p
        .lease(NOW, i, remote(1), random(r))
        .expect("a port is free");
    e.port
}

#[test]
fn one_mapping_whatever_the_destination_until_the_last_flow_ends() {
    let mut p = pool(2, |_| {});
    let i = inside(17, 1, 5000);
    let (a, first) = p.lease(NOW, i, remote(1), 1).unwrap();
    let (b, second) = p.lease(NOW, i, remote(2), 2).unwrap();
    assert_eq!((first, first.port), (second, 5000));
    assert_eq!((p.leases(), p.mappings()), (2, 1));
    p.release(NOW, a, remote(1));
    assert_eq!(p.external_of(&i), Some(first));
    p.release(NOW, b, remote(2));
    assert_eq!((p.external_of(&i), p.leases()), (None, 0));
    let other = inside(17, 2, 5000);
    assert_eq!(port_of(&mut p, other, 3), 5000, "the port is free again");
}

#[test]
fn range_and_parity_are_kept() {
    let mut p = pool(1, |_| {});
    for r in 0..200 {
        let host = (r % 250) as u8;
        let low = port_of(&mut p, inside(17, host, 123), r);
        assert!((1..1024).contains(&low) && low % 2 == 1, "{low}");
        let high = port_of(&mut p, inside(17, host, 5000), r);
        assert!(high >= 1024 && high.is_multiple_of(2), "{high}");
    }
    let odd = (0..100).filter(|r| port_of(&mut p, inside(6, *r as u8, 5000), *r) % 2 == 1);
    assert!(odd.count() > 10, "TCP ports have any parity");
}

#[test]
fn an_identifier_may_be_any() {
    let mut p = pool(1, |c| c.ports = 40_000..=40_001);
    assert_eq!(port_of(&mut p, inside(1, 1, 0), 1), 0);
    assert_ne!(port_of(&mut p, inside(1, 2, 0), 1), 0);
    let all: BTreeSet<u16> = (3..=250)
        .map(|h| port_of(&mut p, inside(1, h, 0), h.into()))
        .collect();
    assert_eq!(all.len(), 248);
}

#[test]
fn choice_is_not_guessable() {
    let ports: BTreeSet<u16> = (0..100)
        .map(|r| {
            let mut p = pool(1, |_| {});
            port_of(&mut p, inside(6, 1, 5000), 0);
            port_of(&mut p, inside(6, 2, 5000), r)
        })
        .collect();
    assert!(ports.len() > 90, "{ports:?}");
}

#[test]
fn a_host_keeps_its_address() {
    let mut p = pool(8, |_| {});
    for host in 1..50 {
        let addresses: BTreeSet<IpAddr> = (0..20)
            .map(|n| {
                let i = inside(if n % 2 == 0 { 6 } else { 17 }, host, 2000 + n);
                p.lease(
                    NOW,
                    i,
                    remote(1),
                    random(u64::from(host) * 100 + u64::from(n)),
                )
                .unwrap()
                .1
                .addr
            })
            .collect();
        assert_eq!(addresses.len(), 1);
    }
    let used: BTreeSet<u16> = p.hosts.values().map(|h| h.address).collect();
    assert!(used.len() > 4, "hosts spread over the pool: {used:?}");
}

#[test]
fn exhaustion_is_told_and_ends() {
    for (pooling, fit) in [(Pooling::Paired, 10), (Pooling::Arbitrary, 20)] {
        let mut p = pool(2, |c| {
            c.ports = 2000..=2009;
            c.pooling = pooling;
        });
        let mut leases: Vec<PortLease> = (0..fit)
            .map(|n| {
                p.lease(NOW, inside(6, 1, 3000 + n), remote(1), random(n.into()))
                    .unwrap()
                    .0
            })
            .collect();
        let more = inside(6, 1, 4000);
        for _ in 0..3 {
            assert_eq!(
                p.lease(NOW, more, remote(1), 5).unwrap_err(),
                LeaseError::Exhausted
            );
        }
        assert_eq!((p.stats().exhausted, p.stats().made), (3, fit.into()));
        port_of(&mut p, inside(17, 1, 4000), 1);
        p.release(NOW, leases.pop().unwrap(), remote(1));
        port_of(&mut p, more, 1);
    }
}

#[test]
fn low_ports_may_get_high_ones_but_not_the_other_way() {
    let mut p = pool(1, |c| c.ports = 1023..=1024);
    let mut got: Vec<u16> = (1..=2)
        .map(|h| port_of(&mut p, inside(6, h, 53), 1))
        .collect();
    got.sort_unstable();
    assert_eq!(got, [1023, 1024]);
    let mut p = pool(1, |c| c.ports = 1023..=1024);
    assert_eq!(port_of(&mut p, inside(6, 1, 5000), 1), 1024);
    let second = p.lease(NOW, inside(6, 2, 5000), remote(1), 1);
    assert_eq!(second.unwrap_err(), LeaseError::Exhausted);
}

#[test]
fn limits_and_families() {
    let mut p = pool(1, |c| {
        c.per_host = 2;
        c.mappings = 3;
    });
    port_of(&mut p, inside(6, 1, 1), 1);
    port_of(&mut p, inside(6, 1, 2), 1);
    let e = p.lease(NOW, inside(6, 1, 3), remote(1), 1).unwrap_err();
    assert_eq!(e, LeaseError::HostLimit);
    port_of(&mut p, inside(6, 2, 3), 1);
    let e = p.lease(NOW, inside(6, 3, 3), remote(1), 1).unwrap_err();
    assert_eq!(e, LeaseError::PoolLimit);
    let six = Endpoint::new("2001:db8::1".parse().unwrap(), 1);
    let e = pool(1, |_| {}).lease(
        NOW,
        Internal {
            end: six,
            ..inside(6, 1, 1)
        },
        six.addr,
        1,
    );
    assert_eq!(e.unwrap_err(), LeaseError::Family);
    let e = pool(0, |_| {}).lease(NOW, inside(6, 1, 1), remote(1), 1);
    assert_eq!(e.unwrap_err(), LeaseError::Family);
}

#[test]
fn reserved_ports_are_not_given_out() {
    let mut p = pool(1, |c| c.ports = 2000..=2001);
    let published = Endpoint::new(outside(1), 2000);
    assert!(p.reserve(6, published));
    assert_eq!(port_of(&mut p, inside(6, 1, 2000), 1), 2001);
    let e = p.lease(NOW, inside(6, 2, 2000), remote(1), 1).unwrap_err();
    assert_eq!(e, LeaseError::Exhausted);
    p.unreserve(6, published);
    let (lease, e) = p.lease(NOW, inside(6, 2, 2000), remote(1), 1).unwrap();
    assert_eq!(e.port, 2000);
    assert!(!p.reserve(6, published), "a mapping has it");
    p.release(NOW, lease, remote(1));
    assert!(
        p.lease(NOW, inside(6, 3, 2000), remote(1), 1).is_err(),
        "it stays reserved"
    );
    assert!(!p.reserve(6, Endpoint::new(outside(9), 1)));
}

#[test]
fn filtering() {
    use Filtering::*;
    for (filtering, same, other) in [
        (EndpointIndependent, true, true),
        (AddressDependent, true, false),
        (AddressAndPortDependent, false, false),
    ] {
        let mut p = pool(1, |c| c.filtering = filtering);
        let i = inside(17, 1, 5000);
        let (lease, e) = p.lease(NOW, i, remote(1), 1).unwrap();
        let verdict = |passes| {
            if passes {
                Inbound::To(i)
            } else {
                Inbound::Filtered
            }
        };
        assert_eq!(p.inbound(17, e, remote(1)), verdict(same), "{filtering:?}");
        assert_eq!(p.inbound(17, e, remote(2)), verdict(other), "{filtering:?}");
        assert_eq!(p.inbound(6, e, remote(1)), Inbound::Unmapped);
        let inbound = p.lease_inbound(17, e, remote(1));
        assert_eq!(inbound.is_some(), same);
        p.release(NOW, lease, remote(1));
        assert_eq!(p.inbound(17, e, remote(1)) == Inbound::Unmapped, !same);
        if let Some((lease, to)) = inbound {
            assert_eq!(to, i);
            p.release(NOW, lease, remote(1));
        }
        assert_eq!(p.inbound(17, e, remote(1)), Inbound::Unmapped);
        assert!(p.remotes.is_empty() && p.hosts.is_empty() && p.leases() == 0);
    }
}

#[test]
fn a_port_rests_before_it_is_given_out_again() {
    let mut p = pool(1, |c| {
        c.ports = 2000..=2000;
        c.reuse_delay = Duration::from_secs(60);
    });
    let (lease, _) = p.lease(NOW, inside(6, 1, 2000), remote(1), 1).unwrap();
    p.release(NOW, lease, remote(1));
    let later = |secs| NOW.after(Duration::from_secs(secs));
    let e = p
        .lease(later(59), inside(6, 2, 2000), remote(1), 1)
        .unwrap_err();
    assert_eq!(e, LeaseError::Exhausted);
    assert!(p.lease(later(60), inside(6, 2, 2000), remote(1), 1).is_ok());
}

#[test]
fn a_lease_is_small() {
    assert_eq!(size_of::<PortLease>(), 8);
}

#[derive(Clone, Debug)]
enum Act {
    Lease {
        proto: u8,
        host: u8,
        port: u16,
        remote: u8,
        random: u64,
    },
    Release(prop::sample::Index),
    Reserve {
        proto: u8,
        address: u8,
        port: u16,
        on: bool,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let proto = || prop::sample::select(vec![1u8, 6, 17]);
    let port = || prop_oneof![1018..1030u16, Just(0)];
    prop_oneof![
        6 => (proto(), 1..4u8, port(), 1..3u8, any::<u64>()).prop_map(
            |(proto, host, port, remote, random)| Act::Lease { proto, host, port, remote, random }),
        4 => any::<prop::sample::Index>().prop_map(Act::Release),
        1 => (proto(), 1..3u8, port(), any::<bool>()).prop_map(
            |(proto, address, port, on)| Act::Reserve { proto, address, port, on }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// The model knows who has which port and which could be given; it doesn't say which of them is chosen.
    #[test]
    fn does_what_the_model_allows(acts in prop::collection::vec(act(), 1..150)) {
        let allowed = 1020..=1027u16;
        let mut p = pool(2, |c| {
            c.ports = allowed.clone();
            c.pooling = Pooling::Arbitrary;
            c.filtering = Filtering::AddressDependent;
        });
        let mut flows: Vec<(PortLease, Internal, Endpoint, IpAddr)> = vec![];
        let mut reserved = BTreeSet::new();
        for act in acts {
            match act {
                Act::Lease { proto, host, port, remote: r, random } => {
                    let i = inside(proto, host, port);
                    let known = flows.iter().find(|f| f.1 == i).map(|f| f.2);
                    let taken: BTreeSet<Endpoint> =
                        flows.iter().filter(|f| f.1.proto == proto).map(|f| f.2).collect();
                    let free = |e: &Endpoint| {
                        !taken.contains(e) && !reserved.contains(&(proto, *e))
                            && (proto == 1 || (allowed.contains(&e.port) && (port < 1024 || e.port >= 1024)))
                    };
                    let range = if proto == 1 { 0..=u16::MAX } else { allowed.clone() };
                    let candidates = || (1..=2).flat_map(|a| range.clone().map(move |p| Endpoint::new(outside(a), p)));
                    match p.lease(NOW, i, remote(r), random) {
                        Ok((lease, e)) => {
                            match known {
                                Some(k) => prop_assert_eq!(e, k),
                                None => {
                                    prop_assert!(free(&e), "{:?} is not free", e);
                                    let own = Endpoint::new(e.addr, port);
                                    prop_assert!(e == own || !free(&own), "{:?} was free", own);
                                }
                            }
                            flows.push((lease, i, e, remote(r)));
                        }
                        Err(LeaseError::Exhausted) => {
                            prop_assert!(known.is_none() && !candidates().any(|e| free(&e)));
                        }
                        Err(e) => prop_assert!(false, "{}", e),
                    }
                }
                Act::Release(at) if !flows.is_empty() => {
                    let (lease, _, _, remote) = flows.swap_remove(at.index(flows.len()));
                    p.release(NOW, lease, remote);
                }
                Act::Release(_) => {}
                Act::Reserve { proto, address, port, on } => {
                    let e = Endpoint::new(outside(address), port);
                    if on {
                        p.reserve(proto, e);
                        reserved.insert((proto, e));
                    } else {
                        p.unreserve(proto, e);
                        reserved.remove(&(proto, e));
                    }
                }
            }
            prop_assert_eq!(p.leases(), flows.len());
            let mappings: BTreeMap<_, _> = flows.iter().map(|f| ((f.1.proto, f.2), f.1)).collect();
            prop_assert_eq!(p.mappings(), mappings.len(), "no external endpoint is shared");
            for ((proto, e), i) in &mappings {
                prop_assert_eq!(p.external_of(i), Some(*e));
                for r in 1..3 {
                    let has_flow = flows.iter().any(|f| f.1 == *i && f.3 == remote(r));
                    let expected = if has_flow { Inbound::To(*i) } else { Inbound::Filtered };
                    prop_assert_eq!(p.inbound(*proto, *e, remote(r)), expected);
                }
            }
        }
    }
}
