#![no_main]
//! Hostile clients and hostile resolvers of the DNS service: nothing panics, every answer is one, goes to who asked, and is no longer
//! than the client takes; nothing is left over.
//!
//! The input is a series of messages, each with a byte that says whether a client or a resolver sends it, a byte of seconds that
//! pass before it, and its length in two.

use libfuzzer_sys::fuzz_target;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_nat::service::dns::{
    Client, Config, Dns, Framing, Host, Response, Service, Transport, Verdict, Zone, ZoneConfig,
    parse_resolv_conf,
};

fn zone() -> Zone {
    let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, 10));
    let mut zone = Zone::new(ZoneConfig {
        domain: "net1.example".into(),
        gateway: vec![],
        pinned: vec![],
        subnets: vec![(address, 24)],
        ttl: 60,
        negative_ttl: 5,
    })
    .expect("a zone");
    let web = Host {
        name: "web".into(),
        aliases: vec!["www".into()],
        addresses: vec![address],
        services: vec![Service {
            service: "_http".into(),
            protocol: "_tcp".into(),
            port: 80,
            priority: 0,
            weight: 0,
        }],
        claimed: false,
    };
    zone.register("c1", web).expect("registers");
    zone
}

fn check(client: Client, answer: &[u8]) {
    assert!(answer.len() >= 12 && answer[2] & 0x80 != 0);
    let udp = client.transport == Transport::Udp;
    assert!(answer.len() <= if udp { 1232 } else { 65_535 });
}

fuzz_target!(|input: &[u8]| {
    let mut now = Nanos(3_600_000_000_000);
    let config = Config {
        cache_entries: 8,
        cache_bytes: 4096,
        max_in_flight: 8,
        ..Config::default()
    };
    let mut dns = Dns::new(config, zone());
    let mut sent = VecDeque::new();
    let mut waiting = 0usize;
    let mut framing = Framing::default();
    let mut rest = input;
    while let [who, secs, a, b, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*a, *b])).min(tail.len());
        let (message, after) = tail.split_at(len);
        rest = after;
        now = now.after(Duration::from_secs((*secs).into()));
        match who % 4 {
            0 | 1 => {
                let port = u32::from(who >> 4);
                let transport = if who % 4 == 0 {
                    Transport::Udp
                } else {
                    Transport::Tcp(1)
                };
                let client = Client {
                    port,
                    address: (Ipv4Addr::new(192, 0, 2, 1), 1024 + u16::from(*who)).into(),
                    transport,
                };
                match dns.query(client, message, now) {
                    Verdict::Answer(a) => check(client, &a),
                    Verdict::Forward(up) => {
                        waiting += 1;
                        sent.push_back(up.id);
                    }
                    Verdict::Waiting => waiting += 1,
                    Verdict::Drop => {}
                }
            }
            2 => {
                let id = sent.pop_front().unwrap_or(9999);
                let outcome = Ok(message.to_vec());
                for (client, answer) in dns.respond(Response { id, outcome }, now) {
                    check(client, &answer);
                    waiting = waiting.checked_sub(1).expect("somebody waits");
                }
            }
            _ => {
                if framing.push(message).is_ok() {
                    while framing.next_message().is_some() {}
                }
                parse_resolv_conf(&String::from_utf8_lossy(message), |_| Some(1));
            }
        }
        let stats = dns.cache_stats();
        assert!(stats.entries <= 8 && stats.bytes <= 4096 && dns.in_flight() <= 8);
    }
    // Retransmissions count as waiting but are answered once.
    let answers = dns.tick(Nanos::MAX).len();
    assert!(answers <= waiting);
    assert_eq!(dns.in_flight(), 0);
});
