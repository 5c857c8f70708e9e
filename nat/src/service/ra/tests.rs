//! Advertisements read by `smoltcp`, the pace, and what is no solicitation.

use super::*;
use proptest::prelude::*;
use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, NdiscRepr};

const START: Nanos = Nanos(3_600_000_000_000);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const HOST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const NET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0);
const RS: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];

fn config() -> Config {
    Config {
        prefixes: vec![Prefix::new(NET, 64)],
        other: true,
        mtu: Some(1400),
        dns: vec![NET],
        search: vec!["net1.example".into(), "example".into()],
        ..Config::default()
    }
}

fn advertiser(config: Config) -> Advertiser {
    Advertiser::new(config, MacAddr([2, 0, 0, 0, 0, 1]), LINK_LOCAL, START).expect("valid")
}

fn after(ms: u64) -> Nanos {
    START.after(Duration::from_millis(ms))
}

/// smoltcp checks the checksum and reads the options it knows.
fn read(m: &Message) -> NdiscRepr<'_> {
    let packet = Icmpv6Packet::new_checked(&m.payload[..]).expect("whole");
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&LINK_LOCAL, &m.to, &packet, &caps).expect("good checksum") {
        Icmpv6Repr::Ndisc(repr) => repr,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_independent_reader_agrees() {
    let m = advertiser(config()).poll(START, 0).expect("due at once");
    let NdiscRepr::RouterAdvert {
        hop_limit,
        flags,
        router_lifetime,
        lladdr,
        mtu,
        prefix_info,
        ..
    } = read(&m)
    else {
        panic!("no advertisement");
    };
    assert_eq!((m.to, hop_limit, mtu), (ALL_NODES, 64, Some(1400)));
    assert_eq!(router_lifetime.secs(), 1800);
    assert_eq!(flags.bits(), 0x40);
    assert!(lladdr.is_some());
    let prefix = prefix_info.expect("a prefix");
    assert_eq!((prefix.prefix, prefix.prefix_len), (NET, 64));
    assert_eq!(prefix.valid_lifetime.secs(), 2_592_000);
    assert_eq!(m.payload.len() % 8, 0);
    // RDNSS, then DNSSL.
    let rdnss = [&[25, 3, 0, 0, 0, 0, 7, 8][..], &NET.octets()].concat();
    assert!(m.payload.windows(24).any(|w| w == rdnss));
    let names = b"\x04net1\x07example\0\x07example\0";
    let dnssl = [&[31, 4, 0, 0, 0, 0, 7, 8][..], names, &[0]].concat();
    assert!(m.payload.ends_with(&dnssl), "{:?}", m.payload);
}

#[test]
fn the_pace() {
    let mut a = advertiser(config());
    let mut times = vec![];
    for n in 0..8u32 {
        let now = a.next();
        assert_eq!(a.poll(Nanos(now.0 - 1), 0), None);
        times.push(now);
        a.poll(now, n.wrapping_mul(0x3333_3333)).expect("due");
    }
    let gaps: Vec<_> = times.windows(2).map(|w| w[1].since(w[0])).collect();
    assert!(gaps[..3].iter().all(|g| *g == INITIAL_INTERVAL), "{gaps:?}");
    let random = Duration::from_secs(200)..=Duration::from_secs(600);
    assert!(gaps[3..].iter().all(|g| random.contains(g)), "{gaps:?}");
    assert_ne!(gaps[4], gaps[5]);
}

#[test]
fn solicitations() {
    let mut a = advertiser(config());
    a.poll(START, 0);
    let m = a.solicited(HOST, 255, &RS, after(1), 0).expect("unicast");
    assert_eq!(m.to, HOST);
    read(&m);
    // Without an address: the multicast comes earlier, but not within 3 s.
    let nobody = Ipv6Addr::UNSPECIFIED;
    assert_eq!(a.solicited(nobody, 255, &RS, after(2), 7), None);
    assert_eq!(a.next(), after(3000));
    a.poll(after(3000), 0).expect("due");
    assert_eq!(a.solicited(nobody, 255, &RS, after(9000), 499), None);
    assert_eq!(a.next(), after(9499));
    // A flood is answered at the bucket's rate.
    let sent = (0..10_000)
        .filter(|ms| a.solicited(HOST, 255, &RS, after(20_000 + ms), 0).is_some())
        .count();
    assert!((50..60).contains(&sent), "{sent}");
}

#[test]
fn what_is_no_solicitation() {
    let mut a = advertiser(config());
    let with = |options: &[u8]| [&RS, options].concat();
    let link_layer = with(&[1, 1, 2, 0, 0, 0, 0, 9]);
    let nobody = Ipv6Addr::UNSPECIFIED;
    assert!(a.solicited(HOST, 255, &link_layer, START, 0).is_some());
    for (from, hops, bytes) in [
        (HOST, 254, RS.to_vec()),
        (HOST, 255, RS[..7].to_vec()),
        (HOST, 255, with(&[1, 0, 2, 0, 0, 0, 0, 9])),
        (HOST, 255, with(&[1, 2, 2, 0, 0, 0, 0, 9])),
        (HOST, 255, with(&[1])),
        (HOST, 255, [&[134], &RS[1..]].concat()),
        (HOST, 255, [&[133, 1], &RS[2..]].concat()),
        (nobody, 255, link_layer.clone()),
    ] {
        a.due = Nanos::MAX;
        assert_eq!(a.solicited(from, hops, &bytes, START, 0), None);
        assert_eq!(a.next(), Nanos::MAX, "{bytes:?}");
    }
}

#[test]
fn withdrawal() {
    let mut a = advertiser(config());
    a.poll(START, 0);
    let NdiscRepr::RouterAdvert {
        router_lifetime,
        prefix_info,
        ..
    } = read(&a.goodbye())
    else {
        panic!("no advertisement");
    };
    assert_eq!(router_lifetime.secs(), 0);
    assert_eq!(prefix_info.expect("a prefix").preferred_lifetime.secs(), 0);
    // Another prefix: the old one is told to end three times.
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0);
    let config = Config {
        prefixes: vec![Prefix::new(other, 64)],
        ..config()
    };
    a.set_config(config, after(1)).expect("valid");
    let mut seen = vec![];
    for _ in 0..4 {
        let now = a.next();
        let m = a.poll(now, 0).expect("due");
        let old = [&[3, 4, 64, 0xc0][..], &[0; 12], &NET.octets()].concat();
        seen.push(m.payload.windows(32).any(|w| w == old));
    }
    assert_eq!(seen, [true, true, true, false]);
}

#[test]
fn configurations_that_cannot_be_advertised() {
    let bad = |change: fn(&mut Config)| {
        let mut c = config();
        change(&mut c);
        c.check().expect_err("an error")
    };
    use ConfigError as E;
    let secs = Duration::from_secs;
    assert!(matches!(
        bad(|c| c.min_interval = Duration::from_secs(2)),
        E::Interval(..)
    ));
    assert!(matches!(
        bad(|c| c.router_lifetime = Duration::from_secs(1)),
        E::Lifetime(..)
    ));
    assert!(matches!(bad(|c| c.prefixes[0].len = 0), E::Prefix(..)));
    assert!(matches!(
        bad(|c| c.prefixes[0].address = LINK_LOCAL),
        E::Prefix(..)
    ));
    assert!(matches!(
        bad(|c| c.prefixes[0].valid = Duration::ZERO),
        E::Preferred(..)
    ));
    assert!(matches!(bad(|c| c.dns = vec![NET; 9]), E::TooMany));
    assert!(matches!(bad(|c| c.mtu = Some(1279)), E::Mtu(1279)));
    assert!(matches!(bad(|c| c.search = vec!["".into()]), E::Search(_)));
    assert!(
        Config {
            router_lifetime: secs(0),
            ..config()
        }
        .check()
        .is_ok()
    );
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100), hops: u8) {
        let mut a = advertiser(config());
        a.solicited(HOST, hops, &bytes, START, 0);
        let framed = [&RS, &bytes[..]].concat();
        a.solicited(HOST, 255, &framed, START, 0);
    }
}
