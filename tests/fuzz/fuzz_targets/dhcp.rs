#![no_main]
//! Hostile clients of the DHCPv4 server, of the stateless DHCPv6 server and of the router: nothing panics, no address is leased
//! twice or outside the pool, and answers stay within what a client takes.
//!
//! The input is a series of messages, each with a byte that says to whom and from which port, a byte of seconds that pass
//! before it, and its length in two.

use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::MacAddr;
use vswitch_nat::service::{dhcp4, dhcp6, ra};

const POOL: std::ops::RangeInclusive<u8> = 100..=105;

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn server() -> dhcp4::Server {
    let mut config = dhcp4::Config::new(ip(1), 24);
    config.pools = vec![(ip(*POOL.start()), ip(*POOL.end()))];
    config.search = vec!["net1.example".into(), "example".into()];
    config.rapid_commit = true;
    config.lease_time = Duration::from_secs(300);
    config.max_per_port = 4;
    dhcp4::Server::new(config).expect("a good configuration")
}

fuzz_target!(|input: &[u8]| {
    let mut now = Nanos(3_600_000_000_000);
    let mut v4 = server();
    let v6_config = dhcp6::Config {
        dns: vec![Ipv6Addr::LOCALHOST],
        search: vec!["net1.example".into()],
        refresh: Duration::ZERO,
    };
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let v6 = dhcp6::Server::new(&v6_config, mac).expect("a good configuration");
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let mut router = ra::Advertiser::new(ra::Config::default(), mac, link_local, now)
        .expect("a good configuration");
    let mut held: HashMap<Ipv4Addr, MacAddr> = HashMap::new();
    let mut rest = input;
    while let [to, secs, a, b, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*a, *b])).min(tail.len());
        let (message, after) = tail.split_at(len);
        rest = after;
        now = now.after(Duration::from_secs((*secs).into()));
        match to % 4 {
            0 | 1 => {
                let chaddr = message.get(28..34).and_then(|m| m.try_into().ok());
                let src = MacAddr(chaddr.unwrap_or_default());
                let port = format!("p{}", to >> 5);
                let cx = dhcp4::Context {
                    port: &port,
                    src,
                    now,
                };
                let outcome = v4.handle(message, &cx, &mut |a| a == ip(101));
                for change in outcome.changes {
                    match change {
                        dhcp4::Change::Bound(l) => {
                            assert!(POOL.map(ip).any(|a| a == l.address), "{l:?}");
                            held.insert(l.address, l.mac);
                        }
                        dhcp4::Change::Ended(l) => {
                            held.remove(&l.address).expect("it was bound");
                        }
                    }
                }
                if let Some(reply) = outcome.reply {
                    assert!((300..=1472).contains(&reply.payload.len()));
                }
                let leases = v4.leases(now);
                assert_eq!(leases.len(), held.len());
                assert!(leases.iter().all(|l| held.contains_key(&l.address)));
            }
            2 => {
                if let Some(reply) = v6.handle(message) {
                    assert_eq!(reply[0], 7);
                }
            }
            _ => {
                let from = Ipv6Addr::from(u128::from(*to >> 2));
                let random = u32::from(*secs) << 24;
                router.solicited(from, 255, message, now, random);
                if let Some(m) = router.poll(now, random) {
                    assert_eq!(m.payload.len() % 8, 0);
                }
            }
        }
    }
});
