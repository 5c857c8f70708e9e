//! The server against messages encoded by `dhcproto`, and against hostile ones.

use super::*;
use dhcproto::v4::{self, DhcpOption, Flags, Message, MessageType as T, OptionCode};
use dhcproto::{Decodable, Encodable};
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

const START: Nanos = Nanos(3_600_000_000_000);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn config() -> Config {
    Config {
        pools: vec![(ip(100), ip(109))],
        domain: Some("net1.example".into()),
        search: vec!["net1.example".into(), "example".into()],
        mtu: Some(1400),
        ..Config::new(SERVER, 24)
    }
}

fn message(kind: T, n: u8, set: impl FnOnce(&mut Message)) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut m = Message::new_with_id(u32::from(n) << 8, none, none, none, none, &mac(n).0);
    m.opts_mut().insert(DhcpOption::MessageType(kind));
    set(&mut m);
    m
}

fn answer(reply: &Reply) -> Message {
    assert!(reply.payload.len() >= 300);
    let m = Message::decode(&mut v4::Decoder::new(&reply.payload)).expect("dhcproto reads it");
    assert_eq!(m.opcode(), v4::Opcode::BootReply);
    let server = m.opts().get(OptionCode::ServerIdentifier);
    assert_eq!(server, Some(&DhcpOption::ServerIdentifier(SERVER)));
    m
}

struct Rig {
    server: Server,
    now: Nanos,
    in_use: Vec<Ipv4Addr>,
}

impl Rig {
    fn new(config: Config) -> Rig {
        Rig {
            server: Server::new(config).expect("a good configuration"),
            now: START,
            in_use: vec![],
        }
    }

    fn outcome(&mut self, port: &str, m: &Message) -> Outcome {
        let bytes = m.to_vec().expect("encodes");
        let src = MacAddr(m.chaddr().try_into().expect("six bytes"));
        let now = self.now;
        let cx = Context { port, src, now };
        let in_use = &self.in_use;
        self.server
            .handle(&bytes, &cx, &mut |a| in_use.contains(&a))
    }

    fn say(&mut self, port: &str, m: &Message) -> Option<Message> {
        self.outcome(port, m).reply.as_ref().map(answer)
    }

    fn offer(&mut self, n: u8) -> Option<Ipv4Addr> {
        let port = format!("p{n}");
        let m = self.say(&port, &message(T::Discover, n, |_| ()))?;
        assert_eq!(m.opts().msg_type(), Some(T::Offer));
        Some(m.yiaddr())
    }

    fn select(&mut self, n: u8, address: Ipv4Addr) -> Option<Message> {
        self.say(&format!("p{n}"), &selecting(n, address))
    }

    fn lease(&mut self, n: u8) -> Ipv4Addr {
        let address = self.offer(n).expect("an offer");
        let m = self.select(n, address).expect("an answer");
        assert_eq!(m.opts().msg_type(), Some(T::Ack));
        assert_eq!(m.yiaddr(), address);
        address
    }
}

fn selecting(n: u8, address: Ipv4Addr) -> Message {
    message(T::Request, n, |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        m.opts_mut().insert(DhcpOption::ServerIdentifier(SERVER));
    })
}

fn renewing(n: u8, address: Ipv4Addr) -> Message {
    message(T::Request, n, |m| {
        m.set_ciaddr(address);
    })
}

fn kind(m: Option<Message>) -> Option<T> {
    m?.opts().msg_type()
}

#[test]
fn four_messages_make_a_lease() {
    let mut rig = Rig::new(config());
    let offered = rig.offer(1).expect("an offer");
    assert_eq!(rig.server.leases(rig.now), []);
    let request = selecting(1, offered);
    let outcome = rig.outcome("p1", &request);
    let reply = outcome.reply.expect("an answer");
    assert_eq!((reply.mac, reply.ip), (mac(1), offered));
    let m = answer(&reply);
    let opts: Vec<_> = m.opts().iter().map(|(_, o)| o.clone()).collect();
    for expected in [
        DhcpOption::MessageType(T::Ack),
        DhcpOption::AddressLeaseTime(3600),
        DhcpOption::Renewal(1800),
        DhcpOption::Rebinding(3150),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::BroadcastAddr(ip(255)),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainNameServer(vec![SERVER]),
        DhcpOption::DomainName("net1.example".into()),
        DhcpOption::InterfaceMtu(1400),
    ] {
        assert!(opts.contains(&expected), "{expected:?} in {opts:?}");
    }
    let Some(DhcpOption::DomainSearch(search)) = m.opts().get(OptionCode::DomainSearch) else {
        panic!("no search list");
    };
    assert_eq!(search.len(), 2);
    let leases = rig.server.leases(rig.now);
    assert_eq!(outcome.changes, [Change::Bound(leases[0].clone())]);
    assert_eq!((leases[0].address, leases[0].mac), (offered, mac(1)));
    // Renewing by unicast.
    rig.now = rig.now.after(Duration::from_secs(1800));
    let reply = rig.outcome("p1", &renewing(1, offered)).reply.unwrap();
    assert_eq!((reply.mac, reply.ip), (mac(1), offered));
    assert_eq!(
        rig.server.leases(rig.now)[0].remaining,
        Duration::from_secs(3600)
    );
    // And it ends.
    rig.now = rig.now.after(Duration::from_secs(3601));
    assert!(matches!(&rig.server.tick(rig.now)[..], [Change::Ended(l)] if l.address == offered));
    // The client that comes back gets the same.
    assert_eq!(rig.offer(1), Some(offered));
}

#[test]
fn only_what_was_asked_for() {
    let mut rig = Rig::new(config());
    let m = message(T::Discover, 1, |m| {
        m.set_flags(Flags::default().set_broadcast());
        let list = vec![OptionCode::Router];
        m.opts_mut().insert(DhcpOption::ParameterRequestList(list));
        m.opts_mut().insert(DhcpOption::AddressLeaseTime(120));
    });
    let reply = rig.outcome("p1", &m).reply.expect("an offer");
    assert_eq!(
        (reply.mac, reply.ip),
        (MacAddr::BROADCAST, Ipv4Addr::BROADCAST)
    );
    let m = answer(&reply);
    assert!(m.opts().get(OptionCode::Router).is_some());
    assert!(m.opts().get(OptionCode::DomainName).is_none());
    let time = m.opts().get(OptionCode::AddressLeaseTime);
    assert_eq!(time, Some(&DhcpOption::AddressLeaseTime(120)));
}

#[test]
fn the_pool_is_given_once_and_comes_back() {
    let mut rig = Rig::new(config());
    let mut all: Vec<_> = (1..=10).map(|n| rig.lease(n)).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (100..=109).map(ip).collect::<Vec<_>>());
    assert_eq!(rig.offer(11), None);
    assert_eq!(rig.server.stats().exhausted, 1);
    let given = rig.server.leases(rig.now)[3].clone();
    let n = given.mac.0[5];
    let release = message(T::Release, n, |m| {
        m.set_ciaddr(given.address);
    });
    // Nobody else can release it.
    assert_eq!(rig.outcome("p99", &release).changes, []);
    let changes = rig.outcome(&format!("p{n}"), &release).changes;
    assert!(matches!(&changes[..], [Change::Ended(l)] if l.address == given.address));
    assert_eq!(rig.lease(11), given.address);
    // Offers lapse.
    let mut rig = Rig::new(config());
    for n in 1..=10 {
        rig.offer(n).expect("an offer");
    }
    assert_eq!(rig.offer(11), None);
    rig.now = rig.now.after(Duration::from_secs(31));
    assert!(rig.offer(11).is_some());
}

#[test]
fn refused_and_recovered() {
    let mut rig = Rig::new(config());
    let mine = rig.lease(1);
    // Another one's, one outside the pool, the gateway's, another network's.
    for address in [mine, ip(50), SERVER, Ipv4Addr::new(198, 51, 100, 7)] {
        assert_eq!(kind(rig.say("p2", &renewing(2, address))), Some(T::Nak));
        let reboot = message(T::Request, 2, |m| {
            m.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        });
        let reply = rig.outcome("p2", &reboot).reply.expect("an answer");
        assert_eq!(reply.mac, MacAddr::BROADCAST);
        assert_eq!(kind(Some(answer(&reply))), Some(T::Nak));
    }
    // A lease from before the server lost its memory.
    let free = (100..=109).map(ip).find(|a| *a != mine).unwrap();
    assert_eq!(kind(rig.say("p2", &renewing(2, free))), Some(T::Ack));
    // Another server's offer was taken: silence, and ours is void.
    let offered = rig.offer(3).expect("an offer");
    let other = message(T::Request, 3, |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(200)));
        m.opts_mut().insert(DhcpOption::ServerIdentifier(ip(2)));
    });
    assert_eq!(rig.say("p3", &other), None);
    let ask = message(T::Discover, 4, |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(offered));
    });
    assert_eq!(rig.say("p4", &ask).map(|m| m.yiaddr()), Some(offered));
}

#[test]
fn static_leases_by_port_and_mac() {
    let fixed = |to, address, name: Option<&str>| StaticLease {
        to,
        address,
        host_name: name.map(Into::into),
    };
    let statics = vec![
        fixed(StaticFor::Port("web".into()), ip(10), Some("www")),
        fixed(StaticFor::Mac(mac(2)), ip(100), None),
    ];
    let mut rig = Rig::new(Config {
        statics,
        ..config()
    });
    let m = rig.say("web", &message(T::Discover, 1, |_| ())).unwrap();
    assert_eq!(m.yiaddr(), ip(10));
    assert_eq!(
        m.opts().get(OptionCode::Hostname),
        Some(&DhcpOption::Hostname("www".into()))
    );
    assert_eq!(kind(rig.say("web", &selecting(1, ip(10)))), Some(T::Ack));
    assert_eq!(
        rig.server.leases(rig.now)[0].host_name.as_deref(),
        Some("www")
    );
    // A second interface at that port has to take one of the pool.
    let second = rig.say("web", &message(T::Discover, 9, |_| ())).unwrap();
    assert!((101..=109).map(ip).any(|a| a == second.yiaddr()));
    assert_eq!(rig.lease(2), ip(100));
    // A fixed address is never given to others, asked for or not.
    for n in 20..29 {
        let ask = message(T::Discover, n, |m| {
            m.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(100)));
        });
        let offered = rig.say(&format!("p{n}"), &ask).map(|m| m.yiaddr());
        assert_ne!(offered, Some(ip(100)));
    }
    // After release it is the same again.
    let release = message(T::Release, 2, |m| {
        m.set_ciaddr(ip(100));
    });
    rig.outcome("p2", &release);
    assert_ne!(rig.offer(30), Some(ip(100)));
    assert_eq!(rig.lease(2), ip(100));
}

#[test]
fn addresses_in_use_are_avoided_and_declined_ones_rest() {
    let mut rig = Rig::new(config());
    rig.in_use = (100..=108).map(ip).collect();
    assert_eq!(rig.lease(1), ip(109));
    let ask = message(T::Discover, 2, |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(100)));
    });
    assert_eq!(rig.say("p2", &ask), None);
    rig.in_use.clear();
    let declined = message(T::Decline, 1, |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(109)));
    });
    let changes = rig.outcome("p1", &declined).changes;
    assert!(matches!(&changes[..], [Change::Ended(_)]));
    let next = rig.lease(1);
    assert_ne!(next, ip(109));
    // A client that declines everything can't keep the pool from others.
    let mut at = next;
    for _ in 0..50 {
        let m = message(T::Decline, 1, |m| {
            m.opts_mut().insert(DhcpOption::RequestedIpAddress(at));
        });
        rig.outcome("p1", &m);
        at = rig.lease(1);
    }
    assert!((2..=9).all(|n| rig.offer(n).is_some()));
    rig.now = rig.now.after(Duration::from_secs(601));
    rig.server.tick(rig.now);
    assert_eq!(rig.server.usage(), (10, 1));
}

#[test]
fn client_identifiers_are_honoured_at_their_port() {
    let mut rig = Rig::new(config());
    let with_id = |n, kind| {
        message(kind, n, |m| {
            let id = DhcpOption::ClientIdentifier(b"\0box".to_vec());
            m.opts_mut().insert(id);
        })
    };
    let m = rig.say("a", &with_id(1, T::Discover)).unwrap();
    assert_eq!(
        m.opts().get(OptionCode::ClientIdentifier),
        Some(&DhcpOption::ClientIdentifier(b"\0box".to_vec()))
    );
    let mut request = with_id(1, T::Request);
    request.set_ciaddr(m.yiaddr());
    assert_eq!(kind(rig.say("a", &request)), Some(T::Ack));
    // The same identifier with a new MAC at the same port is the same client, at another port it isn't.
    let same = rig.say("a", &with_id(2, T::Discover)).unwrap();
    assert_eq!(same.yiaddr(), m.yiaddr());
    let other = rig.say("b", &with_id(3, T::Discover)).unwrap();
    assert_ne!(other.yiaddr(), m.yiaddr());
}

#[test]
fn a_port_has_its_share_and_no_more() {
    let mut rig = Rig::new(Config {
        max_per_port: 3,
        ..config()
    });
    let offers = (1..=9).filter(|n| {
        let m = message(T::Discover, *n, |_| ());
        rig.say("greedy", &m).is_some()
    });
    assert_eq!(offers.count(), 3);
    rig.lease(20);
    let gone = rig.server.port_gone("p20", rig.now);
    assert!(matches!(&gone[..], [Change::Ended(_)]));
    // A table full of leases gives no more, one full of memories does.
    let mut rig = Rig::new(Config {
        max_leases: 2,
        ..config()
    });
    rig.lease(1);
    rig.lease(2);
    assert_eq!(rig.offer(3), None);
    rig.now = rig.now.after(Duration::from_secs(4000));
    rig.lease(3);
}

#[test]
fn host_names_are_unique() {
    let mut rig = Rig::new(config());
    let named = |n: u8, name: &str| {
        let offered = message(T::Discover, n, |m| {
            m.opts_mut().insert(DhcpOption::RapidCommit);
            m.opts_mut().insert(DhcpOption::Hostname(name.into()));
        });
        (format!("p{n}"), offered)
    };
    rig.server.config.rapid_commit = true;
    for (n, name, expected) in [
        (1, "Web", Some("web")),
        (2, "web", None),
        (3, "no good", None),
        (4, "db.example", Some("db")),
    ] {
        let (port, m) = named(n, name);
        let outcome = rig.outcome(&port, &m);
        assert_eq!(kind(outcome.reply.as_ref().map(answer)), Some(T::Ack));
        let [Change::Bound(lease)] = &outcome.changes[..] else {
            panic!("{:?}", outcome.changes);
        };
        assert_eq!(lease.host_name.as_deref(), expected, "{name}");
    }
    // A renewal keeps the name.
    let (port, m) = named(1, "web");
    let outcome = rig.outcome(&port, &m);
    assert!(matches!(&outcome.changes[..], [Change::Bound(l)] if l.host_name.is_some()));
}

#[test]
fn inform_gives_options_only() {
    let mut rig = Rig::new(config());
    let m = message(T::Inform, 1, |m| {
        m.set_ciaddr(ip(7));
    });
    let reply = rig.outcome("p1", &m).reply.expect("an answer");
    assert_eq!((reply.mac, reply.ip), (mac(1), ip(7)));
    let m = answer(&reply);
    assert_eq!(m.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(m.opts().get(OptionCode::AddressLeaseTime).is_none());
    assert!(m.opts().get(OptionCode::DomainNameServer).is_some());
    assert_eq!(rig.server.leases(rig.now), []);
}

#[test]
fn saved_leases_come_back() {
    let mut rig = Rig::new(config());
    let addresses: Vec<_> = (1..=3).map(|n| rig.lease(n)).collect();
    rig.now = rig.now.after(Duration::from_secs(600));
    let saved = rig.server.leases(rig.now);
    assert_eq!(saved.len(), 3);
    let mut later = Rig::new(config());
    later.now = Nanos(5);
    assert_eq!(later.server.restore(&saved, later.now), 3);
    assert_eq!(later.server.leases(later.now), saved);
    for (n, address) in (1u8..).zip(addresses) {
        assert_eq!(later.offer(n), Some(address));
    }
    // What the new configuration doesn't allow is left out.
    let mut other = Rig::new(Config {
        pools: vec![(ip(10), ip(20))],
        ..config()
    });
    assert_eq!(other.server.restore(&saved, other.now), 0);
}

#[test]
fn foreign_and_relayed_messages_are_ignored() {
    let mut rig = Rig::new(config());
    let m = message(T::Discover, 1, |_| ());
    let bytes = m.to_vec().unwrap();
    let mut ask = |bytes: &[u8], src| {
        let cx = Context {
            port: "p",
            src,
            now: START,
        };
        rig.server.handle(bytes, &cx, &mut |_| false).reply
    };
    assert!(ask(&bytes, mac(1)).is_some());
    assert_eq!(ask(&bytes, mac(2)), None);
    for (at, value) in [(0, 2), (1, 6), (2, 16), (24, 1), (236, 0)] {
        let mut bad = bytes.clone();
        bad[at] = value;
        assert_eq!(ask(&bad, mac(1)), None, "byte {at}");
    }
    for len in 0..bytes.len() {
        ask(&bytes[..len], mac(1));
    }
}

#[test]
fn options_go_on_in_the_fixed_fields() {
    let mut rig = Rig::new(config());
    let mut bytes = message(T::Discover, 1, |_| ()).to_vec().unwrap();
    bytes.truncate(240);
    bytes.extend([53, 1, 1, 52, 1, 3, 255]);
    bytes[108..114].copy_from_slice(&[50, 2, 192, 0, 255, 0]);
    bytes[44..49].copy_from_slice(&[50, 2, 2, 105, 255]);
    let cx = Context {
        port: "p",
        src: mac(1),
        now: START,
    };
    let reply = rig.server.handle(&bytes, &cx, &mut |_| false).reply;
    assert_eq!(answer(&reply.unwrap()).yiaddr(), ip(105));
}

#[test]
fn configurations_that_cannot_be_served() {
    let bad = |change: fn(&mut Config)| {
        let mut c = config();
        change(&mut c);
        Server::new(c).expect_err("an error").to_string()
    };
    assert!(bad(|c| c.prefix_len = 0).contains("prefix length"));
    assert!(bad(|c| c.pools = vec![(ip(9), ip(8))]).contains("pools"));
    assert!(bad(|c| c.pools = vec![(ip(9), Ipv4Addr::new(192, 0, 3, 9))]).contains("192.0.3.9"));
    assert!(bad(|c| c.pools = vec![(ip(0), ip(8))]).contains("192.0.2.0"));
    assert!(bad(|c| c.domain = Some("a b".into())).contains("a b"));
    let with = |a: Ipv4Addr| StaticLease {
        to: StaticFor::Port("x".into()),
        address: a,
        host_name: None,
    };
    let statics = |list: Vec<StaticLease>| {
        let c = Config {
            statics: list,
            ..config()
        };
        Server::new(c).err()
    };
    assert_eq!(statics(vec![with(SERVER)]), Some(ConfigError::Own(SERVER)));
    assert_eq!(
        statics(vec![with(ip(5)), with(ip(5))]),
        Some(ConfigError::Twice(ip(5)))
    );
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let mut rig = Rig::new(config());
        let mut framed = message(T::Discover, 1, |_| ()).to_vec().unwrap();
        framed.truncate(240);
        framed.extend(&bytes);
        for b in [bytes, framed] {
            let cx = Context { port: "p", src: mac(1), now: START };
            rig.server.handle(&b, &cx, &mut |_| false);
        }
    }

    /// Against a model of who holds what: at no time two clients hold one address, and none lies outside the pool.
    #[test]
    fn leases_are_unique(
        steps in prop::collection::vec((0u8..5, 1u8..16, 98u8..112, 0u64..400), 1..200),
    ) {
        let mut rig = Rig::new(config());
        let mut held: HashMap<Ipv4Addr, (u8, Nanos)> = HashMap::new();
        for (what, n, last, secs) in steps {
            rig.now = rig.now.after(Duration::from_secs(secs));
            let port = format!("p{n}");
            let address = ip(last);
            let m = match what {
                0 | 1 => message(T::Discover, n, |m| {
                    m.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
                }),
                2 => selecting(n, address),
                3 => renewing(n, address),
                _ => message(T::Release, n, |m| { m.set_ciaddr(address); }),
            };
            let outcome = rig.outcome(&port, &m);
            for change in &outcome.changes {
                match change {
                    Change::Bound(l) => {
                        held.insert(l.address, (l.mac.0[5], rig.now.after(l.remaining)));
                    }
                    Change::Ended(l) => { held.remove(&l.address); }
                }
            }
            let Some(m) = outcome.reply.as_ref().map(answer) else { continue };
            if m.opts().msg_type() == Some(T::Nak) {
                continue;
            }
            let given = m.yiaddr();
            prop_assert!((100..=109).map(ip).any(|a| a == given));
            if let Some((owner, until)) = held.get(&given) {
                prop_assert!(*owner == n || *until <= rig.now, "{given} of {owner} given to {n}");
            }
            let leases = rig.server.leases(rig.now);
            let mut unique: Vec<_> = leases.iter().map(|l| l.address).collect();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), leases.len());
            prop_assert_eq!(leases.len(), held.len());
        }
    }
}
