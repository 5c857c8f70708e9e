//! A gateway of two networks with an uplink, and datagrams of connections through it.

use std::net::{IpAddr, Ipv4Addr};
use vswitch_core::bridge::{NetworkConfig, NetworkId, PortConfig};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Batch, Frame, Verdict};
use vswitch_core::port::PortId;
use vswitch_core::wire::{self, MacAddr, csum};
use vswitch_core::worker::{Cx, Stage};
use vswitch_nat::Pipeline;
use vswitch_nat::conntrack::Config;
use vswitch_nat::gateway::{GatewayConfig, InterfaceConfig, Route, SnatConfig};
use vswitch_nat::portalloc::Filtering;

/// Most connections.
pub(crate) const MILLION: u32 = 1_000_000;
const LAN: NetworkId = NetworkId(0);
const WAN: NetworkId = NetworkId(1);
const GATEWAYS: [MacAddr; 2] = [
    MacAddr([2, 0, 0, 0, 0, 0xfe]),
    MacAddr([2, 0, 0, 0, 1, 0xfe]),
];
const OWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1)];
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// Hosts inside, and ports each of them uses.
const HOSTS: u32 = 50;
const PORTS: u32 = 1000;

/// An end: address, and MAC of the host or of the router that it is behind.
type End = (Ipv4Addr, MacAddr);

fn inside(n: u32) -> (End, u16) {
    let host = n % HOSTS;
    let mac = MacAddr([2, 0, 0, 0, 0, 10 + host as u8]);
    // No two hosts use the same port, so each is preserved.
    let port = 1024 + host * PORTS + n / HOSTS % PORTS;
    (
        (Ipv4Addr::new(192, 0, 2, 10 + host as u8), mac),
        port as u16,
    )
}

fn outside(n: u32) -> End {
    let host = n / HOSTS / PORTS;
    let mac = MacAddr([2, 0, 0, 0, 1, 1]);
    (Ipv4Addr::new(203, 0, 113, 1 + host as u8), mac)
}

fn datagram(dst: MacAddr, src: MacAddr, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    let mut b = [0u8; 14 + 20 + 8 + 64];
    b[..6].copy_from_slice(&dst.0);
    b[6..12].copy_from_slice(&src.0);
    b[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    b[16..18].copy_from_slice(&92u16.to_be_bytes());
    b[22..24].copy_from_slice(&[64, 17]);
    b[26..30].copy_from_slice(&from.0.octets());
    b[30..34].copy_from_slice(&to.0.octets());
    let sum = csum::finish(csum::add(0, &b[14..34]));
    b[24..26].copy_from_slice(&sum.to_be_bytes());
    b[34..36].copy_from_slice(&from.1.to_be_bytes());
    b[36..38].copy_from_slice(&to.1.to_be_bytes());
    b[38..40].copy_from_slice(&72u16.to_be_bytes());
    Frame::from_bytes(&b).expect("fits")
}

/// A datagram of connection n.
pub(crate) fn of(n: u32, back: bool) -> Frame {
    let ((host, mac), port) = inside(n);
    let (far, router) = outside(n);
    if back {
        datagram(GATEWAYS[1], router, (far, 53), (OWN[1], port))
    } else {
        datagram(GATEWAYS[0], mac, (host, port), (far, 53))
    }
}

/// Who has `gateway`, asked by a host: so it is known.
fn question(own: Ipv4Addr, (host, mac): End) -> Frame {
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &mac.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac.0,
        &host.octets(),
        &[0; 6],
        &own.octets(),
        &[0; 18],
    ];
    Frame::from_bytes(&parts.concat()).expect("fits")
}

/// A batch that came by a port.
pub(crate) fn batch(port: PortId, frames: impl Iterator<Item = Frame>) -> Batch {
    let mut b = Batch::new(port);
    for frame in frames {
        b.push(frame).expect("room");
    }
    for e in &mut b.entries {
        e.meta = wire::parse(e.frame.head(), e.frame.len()).expect("whole header");
    }
    b
}

/// A gateway of two networks that knows its neighbours.
pub(crate) fn gateway(cx: &mut Cx) -> Pipeline {
    let mut p = Pipeline::default();
    for network in [LAN, WAN] {
        p.bridge.set_network(network, NetworkConfig::default());
        let mut port = PortConfig::new(network);
        port.loop_guard = false;
        p.bridge.set_port(PortId(network.0), port);
    }
    let interface = |network: NetworkId, snat: Option<SnatConfig>| {
        let i = usize::from(network.0);
        InterfaceConfig {
            hosts: vec![],
            host: None,
            network,
            vid: 0,
            mac: GATEWAYS[i],
            addresses: vec![(OWN[i].into(), 24)],
            mtu: 1500,
            uplink: snat.is_some(),
            nptv6: vec![],
            snat,
        }
    };
    let snat = SnatConfig {
        addresses: vec![],
        ports: (1, 65_535),
        filtering: Filtering::default(),
    };
    let config = GatewayConfig {
        interfaces: vec![interface(LAN, None), interface(WAN, Some(snat))],
        routes: vec![Route {
            to: (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            via: Some(ROUTER.into()),
            network: WAN,
        }],
        conntrack: Config {
            max_entries: MILLION,
            per_source: None,
            seed: 0x5eed,
            ..Config::default()
        },
        ..GatewayConfig::default()
    };
    p.gateway.configure(cx, &mut p.bridge, &config);
    let hosts = (0..HOSTS).map(|n| inside(n).0);
    for host in hosts {
        let mut b = batch(PortId(0), std::iter::once(question(OWN[0], host)));
        p.run(cx, &mut b);
    }
    let router = question(OWN[1], (ROUTER, outside(0).1));
    p.run(cx, &mut batch(PortId(1), std::iter::once(router)));
    p
}

/// Frames that go on.
pub(crate) fn forwarded(b: &Batch) -> usize {
    let on = |e: &&vswitch_core::frame::Entry| matches!(e.verdict, Verdict::Forward(_));
    b.entries.iter().filter(on).count()
}

/// An hour after the start.
pub(crate) fn clock() -> Cx {
    let mut cx = Cx::default();
    cx.now = Nanos(3_600_000_000_000);
    cx
}
