//! The service against messages encoded and read by `hickory-proto`.

mod fetched;
mod local;
mod resolvers;

use super::*;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Ask, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType as T};
use std::net::{IpAddr, Ipv4Addr};

const START: Nanos = Nanos(3_600_000_000_000);

fn at(secs: u64) -> Nanos {
    START.after(Duration::from_secs(secs))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn v4(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n).into()
}

fn host(name: &str, addresses: &[IpAddr]) -> Host {
    Host {
        name: name.into(),
        addresses: addresses.to_vec(),
        ..Host::default()
    }
}

fn zone() -> Zone {
    let mut zone = Zone::new(ZoneConfig {
        domain: "Net1.example".into(),
        gateway: vec![v4(1)],
        pinned: vec![],
        subnets: vec![
            (v4(0), 24),
            ("2001:db8:0:1::".parse().expect("an address"), 64),
        ],
        ttl: 60,
        negative_ttl: 5,
    })
    .expect("a zone");
    let v6 = "2001:db8:0:1::10".parse().expect("an address");
    let web = Host {
        aliases: vec!["www".into(), "all".into()],
        services: vec![Service {
            service: "_http".into(),
            protocol: "_tcp".into(),
            port: 8080,
            priority: 1,
            weight: 2,
        }],
        ..host("web", &[v4(10), v6])
    };
    zone.register("c1", web).expect("registers");
    for n in [11, 12] {
        let h = Host {
            aliases: vec!["all".into()],
            ..host(&format!("app{n}"), &[v4(n)])
        };
        zone.register(&format!("c{n}"), h).expect("registers");
    }
    zone
}

fn dns() -> Dns {
    let config = Config {
        cache_entries: 100,
        ..Config::default()
    };
    Dns::new(config, zone())
}

fn client(n: u8) -> Client {
    Client {
        port: n.into(),
        address: (v4(n), 5353).into(),
        transport: Transport::Udp,
    }
}

fn over_tcp(n: u8) -> Client {
    Client {
        transport: Transport::Tcp(1),
        ..client(n)
    }
}

fn ask(text: &str, kind: T, set: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut m = Message::new(4242, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = true;
    m.add_query(Ask::query(name(text), kind));
    set(&mut m);
    m.to_vec().expect("encodes")
}

fn edns(size: u16) -> impl FnOnce(&mut Message) {
    move |m| {
        let mut e = Edns::new();
        e.set_max_payload(size);
        m.set_edns(e);
    }
}

fn read(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("hickory reads it")
}

fn answer(dns: &mut Dns, text: &str, kind: T) -> Message {
    let bytes = ask(text, kind, |_| ());
    match dns.query(client(7), &bytes, START) {
        Verdict::Answer(a) => {
            let m = read(&a);
            assert_eq!(m.id, 4242);
            assert_eq!(m.message_type, MessageType::Response);
            assert!(m.recursion_available && m.recursion_desired);
            assert_eq!(m.queries, [Ask::query(name(text), kind)]);
            m
        }
        other => panic!("{text} {kind}: {other:?}"),
    }
}

fn addresses(m: &Message) -> Vec<IpAddr> {
    m.answers.iter().filter_map(|r| r.data.ip_addr()).collect()
}

fn forwarded(dns: &mut Dns, client: Client, bytes: &[u8], now: Nanos) -> Upstream {
    match dns.query(client, bytes, now) {
        Verdict::Forward(u) => u,
        other => panic!("{other:?}"),
    }
}

/// A resolver's message to an upstream query.
fn resolved(query: &[u8], code: ResponseCode, fill: impl FnOnce(&mut Message, Name)) -> Vec<u8> {
    let q = read(query);
    let mut m = Message::response(q.id, OpCode::Query);
    m.metadata.response_code = code;
    m.metadata.recursion_available = true;
    m.add_queries(q.queries.clone());
    fill(&mut m, q.queries[0].name().clone());
    if q.edns.is_some() {
        m.set_edns(Edns::new());
    }
    m.to_vec().expect("encodes")
}

fn address(ttl: u32) -> impl FnOnce(&mut Message, Name) {
    move |m, n| {
        let data = RData::A(A::new(198, 51, 100, 1));
        m.add_answer(Record::from_rdata(n, ttl, data));
    }
}

fn soa(ttl: u32, minimum: u32) -> impl FnOnce(&mut Message, Name) {
    move |m, _| {
        let soa = SOA::new(name("example."), name("h.example."), 1, 2, 3, 4, minimum);
        let record = Record::from_rdata(name("example."), ttl, RData::SOA(soa));
        m.add_authority(record);
    }
}

fn respond(dns: &mut Dns, id: u64, message: Vec<u8>, now: Nanos) -> Vec<(Client, Message)> {
    let outcome = Ok(message);
    let answers = dns.respond(Response { id, outcome }, now);
    answers.iter().map(|(c, a)| (*c, read(a))).collect()
}
