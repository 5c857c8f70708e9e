//! A gateway between a network inside and an uplink, and frames for it.

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

pub(crate) const INSIDE: PortId = PortId(0);
pub(crate) const OUTSIDE: PortId = PortId(1);
/// Addresses and MACs of the gateway, inside and outside.
pub(crate) const OWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1)];
pub(crate) const GATEWAYS: [MacAddr; 2] = [
    MacAddr([2, 0, 0, 0, 0, 0xfe]),
    MacAddr([2, 0, 0, 0, 1, 0xfe]),
];
pub(crate) const HOST: (Ipv4Addr, MacAddr) =
    (Ipv4Addr::new(192, 0, 2, 10), MacAddr([2, 0, 0, 0, 0, 10]));
/// Two routers outside; the first has the default route.
pub(crate) const ROUTERS: [(Ipv4Addr, MacAddr); 2] = [
    (
        Ipv4Addr::new(198, 51, 100, 254),
        MacAddr([2, 0, 0, 0, 1, 1]),
    ),
    (
        Ipv4Addr::new(198, 51, 100, 253),
        MacAddr([2, 0, 0, 0, 1, 2]),
    ),
];
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

pub(crate) struct Rig {
    pub(crate) cx: Cx,
    pub(crate) p: Pipeline,
}

/// The configuration with a default route by this router.
pub(crate) fn config(router: Ipv4Addr) -> GatewayConfig {
    let interface = |n: u16, snat: Option<SnatConfig>| InterfaceConfig {
        host: None,
        network: NetworkId(n),
        vid: 0,
        mac: GATEWAYS[usize::from(n)],
        hosts: vec![],
        addresses: vec![(OWN[usize::from(n)].into(), 24)],
        mtu: 1500,
        uplink: snat.is_some(),
        nptv6: vec![],
        snat,
    };
    let snat = SnatConfig {
        addresses: vec![],
        ports: (1, 65_535),
        filtering: Filtering::EndpointIndependent,
    };
    GatewayConfig {
        interfaces: vec![interface(0, None), interface(1, Some(snat))],
        routes: vec![Route {
            to: (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            via: Some(router.into()),
            network: NetworkId(1),
        }],
        conntrack: Config {
            max_entries: 10_000,
            per_source: None,
            seed: 7,
            ..Config::default()
        },
        ..GatewayConfig::default()
    }
}

impl Rig {
    /// A gateway that knows its neighbours.
    pub(crate) fn new() -> Rig {
        let mut cx = Cx::default();
        cx.now = Nanos(3_600_000_000_000);
        let mut p = Pipeline::default();
        for n in 0..2 {
            p.bridge.set_network(NetworkId(n), NetworkConfig::default());
            let mut port = PortConfig::new(NetworkId(n));
            port.loop_guard = false;
            p.bridge.set_port(PortId(n), port);
        }
        p.gateway
            .configure(&cx, &mut p.bridge, &config(ROUTERS[0].0));
        let mut rig = Rig { cx, p };
        rig.run(INSIDE, vec![question(OWN[0], HOST)]);
        for router in ROUTERS {
            rig.run(OUTSIDE, vec![question(OWN[1], router)]);
        }
        rig
    }

    /// One batch; each frame's verdict and what it is then.
    pub(crate) fn run(&mut self, port: PortId, frames: Vec<Frame>) -> Vec<(Verdict, Vec<u8>)> {
        let mut b = Batch::new(port);
        for frame in frames {
            b.push(frame).expect("room");
        }
        for e in &mut b.entries {
            e.meta = wire::parse(e.frame.head(), e.frame.len()).unwrap_or_default();
        }
        self.p.run(&mut self.cx, &mut b);
        let entries = b.entries.iter();
        entries
            .map(|e| (e.verdict, e.frame.head().to_vec()))
            .collect()
    }
}

/// ARP: who has `own`.
pub(crate) fn question(own: Ipv4Addr, (host, mac): (Ipv4Addr, MacAddr)) -> Frame {
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

/// A UDP datagram to the gateway's MAC, with this in IPv4's fragment field.
pub(crate) fn datagram(
    port: PortId,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    (ttl, fragment): (u8, u16),
) -> Frame {
    let macs = [HOST.1, ROUTERS[0].1];
    let n = usize::from(port.0);
    let mut b = [0u8; 14 + 20 + 8 + 24];
    b[..6].copy_from_slice(&GATEWAYS[n].0);
    b[6..12].copy_from_slice(&macs[n].0);
    b[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    b[16..18].copy_from_slice(&52u16.to_be_bytes());
    b[20..22].copy_from_slice(&fragment.to_be_bytes());
    b[22..24].copy_from_slice(&[ttl, 17]);
    b[26..30].copy_from_slice(&from.0.octets());
    b[30..34].copy_from_slice(&to.0.octets());
    let sum = csum::finish(csum::add(0, &b[14..34]));
    b[24..26].copy_from_slice(&sum.to_be_bytes());
    b[34..36].copy_from_slice(&from.1.to_be_bytes());
    b[36..38].copy_from_slice(&to.1.to_be_bytes());
    b[38..40].copy_from_slice(&32u16.to_be_bytes());
    Frame::from_bytes(&b).expect("fits")
}
