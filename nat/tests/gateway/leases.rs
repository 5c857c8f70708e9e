//! Changes of leases are told of each time, whatever else happens in that turn, so that none waits for ever to be taken.

use crate::rig::*;
use std::time::Duration;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::port::PortId;
use vswitch_core::wire::MacAddr;
use vswitch_core::worker::{Cx, Event};
use vswitch_nat::gateway::{NetworkServices, ServicesConfig};
use vswitch_nat::service::dhcp4::{Change, Config, Lease};

const NETWORK: NetworkId = NetworkId(0);

/// Leases of the network inside, served to the first so many ports.
fn served(ports: u16) -> ServicesConfig {
    let mut dhcp = Config::new(OWN[0], 24);
    dhcp.pools = vec![([192, 0, 2, 100].into(), [192, 0, 2, 199].into())];
    ServicesConfig {
        networks: vec![NetworkServices {
            network: NETWORK,
            mac: GATEWAYS[0],
            dhcp: Some(dhcp),
            ra: None,
            dhcp6: None,
            dns: None,
            dns_at: vec![],
            hosts: vec![],
        }],
        ports: (0..ports).map(|n| (PortId(n), format!("p{n}"))).collect(),
    }
}

fn lease(n: u16) -> Lease {
    Lease {
        address: [192, 0, 2, 100 + n as u8].into(),
        mac: MacAddr([2, 0, 0, 0, 2, n as u8]),
        port: format!("p{n}"),
        client_id: vec![1, n as u8],
        host_name: None,
        remaining: Duration::from_secs(600),
    }
}

/// What is told in a turn of its own in which the ports beyond these lose their leases, after so many other events.
fn turn(rig: &mut Rig, ports: u16, others: usize) -> usize {
    rig.cx = Cx::default();
    rig.cx.now = Nanos(3_600_000_000_000);
    for _ in 0..others {
        rig.cx.event(Event::PortUp { port: OUTSIDE });
    }
    rig.p
        .gateway
        .configure_services(&mut rig.cx, &served(ports));
    let told = rig.cx.events().iter();
    told.filter(|e| **e == Event::LeasesChanged).count()
}

#[test]
fn changes_of_leases_are_told_each_time() {
    let mut rig = Rig::new();
    assert_eq!(turn(&mut rig, 6, 0), 0, "nothing has changed");
    let leases: Vec<Lease> = (0..6).map(lease).collect();
    let now = rig.cx.now;
    rig.p.gateway.restore_leases(NETWORK, &leases, now);
    assert_eq!(turn(&mut rig, 5, 0), 1);
    assert_eq!(turn(&mut rig, 4, 0), 1, "the one before isn't taken yet");
    assert_eq!(turn(&mut rig, 3, 1000), 1, "other events leave no room");
    assert_eq!(turn(&mut rig, 1, 0), 1, "two at once");
    let taken = rig.p.gateway.take_lease_changes();
    let ended = |c: &(NetworkId, Change)| matches!(c, (NETWORK, Change::Ended(_)));
    assert_eq!(taken.iter().filter(|c| ended(c)).count(), 5);
    assert_eq!(turn(&mut rig, 1, 0), 0, "all is taken and nothing changes");
}
