//! IGMP and MLD.

use super::*;
use crate::wire::csum;

const GROUP: [u8; 4] = [239, 1, 2, 3];
const OTHER: [u8; 4] = [239, 1, 2, 4];
const GROUP6: [u8; 16] = [0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
const LL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn snooping() -> NetworkConfig {
    NetworkConfig {
        snooping: true,
        ..NetworkConfig::default()
    }
}

fn put_csum(bytes: &mut [u8], at: usize, sum: u64) {
    let sum = csum::finish(csum::add(sum, bytes)).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

fn v4(src: [u8; 4], dst: [u8; 4], proto: u8, body: &[u8]) -> Vec<u8> {
    let [_, b, c, d] = dst;
    let mut f = vec![0x01, 0, 0x5e, b & 0x7f, c, d, 2, 0, 0, 0, 0, src[3], 8, 0];
    let mut ip = vec![
        0x45,
        0,
        0,
        20 + body.len() as u8,
        0,
        0,
        0,
        0,
        1,
        proto,
        0,
        0,
    ];
    ip.extend(src);
    ip.extend(dst);
    put_csum(&mut ip, 10, 0);
    f.extend(ip);
    f.extend(body);
    f
}

fn igmp(src: [u8; 4], dst: [u8; 4], ty: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![ty, 0, 0, 0];
    body.extend(rest);
    put_csum(&mut body, 2, 0);
    v4(src, dst, 2, &body)
}

fn host(n: u8) -> [u8; 4] {
    [192, 0, 2, n]
}

fn join(n: u8, group: [u8; 4]) -> Vec<u8> {
    igmp(host(n), group, 0x16, &group)
}

fn leave(n: u8, group: [u8; 4]) -> Vec<u8> {
    igmp(host(n), [224, 0, 0, 2], 0x17, &group)
}

fn v3(n: u8, records: &[(u8, [u8; 4], u16)]) -> Vec<u8> {
    let mut rest = vec![0, 0];
    rest.extend((records.len() as u16).to_be_bytes());
    for (ty, group, sources) in records {
        rest.extend([*ty, 0]);
        rest.extend(sources.to_be_bytes());
        rest.extend(group);
        rest.extend(vec![7; usize::from(*sources) * 4]);
    }
    igmp(host(n), [224, 0, 0, 22], 0x22, &rest)
}

fn query(src: [u8; 4]) -> Vec<u8> {
    igmp(src, [224, 0, 0, 1], 0x11, &[0; 4])
}

fn data(group: [u8; 4]) -> Vec<u8> {
    v4(host(99), group, 17, &[0, 1, 0, 2, 0, 8, 0, 0])
}

fn v6(dst: [u8; 16], next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let mut f = vec![0x33, 0x33];
    f.extend(&dst[12..]);
    f.extend([2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
    f.extend([0x60, 0, 0, 0, 0, body.len() as u8, next, hops]);
    f.extend(LL);
    f.extend(dst);
    f.extend(body);
    f
}

fn mld(dst: [u8; 16], ty: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![ty, 0, 0, 0];
    body.extend(rest);
    let sum = csum::add(csum::add(body.len() as u64 + 58, &LL), &dst);
    put_csum(&mut body, 2, sum);
    let mut with_alert = vec![58, 0, 5, 2, 0, 0, 1, 0];
    with_alert.extend(body);
    v6(dst, 0, 1, &with_alert)
}

fn group_message(ty: u8) -> Vec<u8> {
    mld(GROUP6, ty, &[&[0; 4][..], &GROUP6].concat())
}

fn data6(group: [u8; 16]) -> Vec<u8> {
    v6(group, 17, 9, &[0, 1, 0, 2, 0, 8, 0, 0])
}

/// Four ports; a router that queries is at port 3.
fn rig() -> Rig {
    let mut r = Rig::new(snooping(), 4);
    assert_eq!(r.send(3, &query(host(254))).ports(), [0, 1, 2]);
    r
}

#[test]
fn without_a_querier_everything_is_flooded() {
    let mut r = Rig::new(snooping(), 4);
    assert_eq!(r.send(0, &join(1, GROUP)).ports(), [1, 2, 3]);
    assert_eq!(r.send(3, &data(GROUP)).ports(), [0, 1, 2]);
    // A querier without address is another snooping switch, not a router to report to.
    r.send(3, &query([0; 4]));
    assert_eq!(r.send(0, &data(OTHER)).ports(), [1, 2, 3]);
}

#[test]
fn data_goes_to_members_and_routers() {
    let mut r = rig();
    assert_eq!(
        r.send(0, &join(1, GROUP)).ports(),
        [3],
        "reports to routers"
    );
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0, 3]);
    assert_eq!(r.send(3, &data(GROUP)).ports(), [0]);
    assert_eq!(r.send(1, &data(OTHER)).ports(), [3], "unknown group");
    assert_eq!(r.send(1, &data([224, 0, 0, 5])).ports(), [0, 2, 3], "local");
    assert_eq!(r.send(1, &join(1, [224, 0, 0, 5])).ports(), [3]);
    r.port(2, |c| c.multicast_router = true);
    assert_eq!(r.send(1, &data(OTHER)).ports(), [2, 3], "configured router");
    let mdb = r.bridge.mdb(NET, r.cx.now);
    assert_eq!(mdb.len(), 2);
    assert!(
        mdb.iter()
            .any(|e| e.group == Some(GROUP.into()) && e.port == PortId(0))
    );
}

#[test]
fn memberships_and_routers_age() {
    let mut r = rig();
    r.send(0, &join(1, GROUP));
    r.secs(200);
    r.send(3, &query(host(254)));
    r.secs(70);
    assert_eq!(r.send(1, &data(GROUP)).ports(), [3]);
    r.secs(200);
    assert_eq!(
        r.send(1, &data(GROUP)).ports(),
        [0, 2, 3],
        "the querier is gone"
    );
    assert_eq!(
        r.bridge.tick(&mut r.cx),
        Nanos::MAX.min(r.bridge.tick(&mut r.cx))
    );
    assert!(r.bridge.mdb(NET, r.cx.now).is_empty());
}

#[test]
fn leaving_takes_the_time_to_object_or_none() {
    let mut r = rig();
    r.send(0, &join(1, GROUP));
    r.send(0, &leave(1, GROUP));
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0, 3]);
    r.send(0, &join(2, GROUP));
    r.secs(10);
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0, 3], "another objected");
    r.send(0, &leave(2, GROUP));
    r.secs(5);
    assert_eq!(r.send(1, &data(GROUP)).ports(), [3]);
    r.bridge.set_network(
        NET,
        NetworkConfig {
            fast_leave: true,
            ..snooping()
        },
    );
    r.send(0, &join(1, GROUP));
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0, 3]);
    r.send(0, &leave(1, GROUP));
    assert_eq!(r.send(1, &data(GROUP)).ports(), [3]);
}

#[test]
fn version_3_records_join_and_leave() {
    let mut r = rig();
    r.bridge.set_network(
        NET,
        NetworkConfig {
            fast_leave: true,
            ..snooping()
        },
    );
    // Exclude nothing; allow a source.
    r.send(0, &v3(1, &[(4, GROUP, 0), (5, OTHER, 1)]));
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0, 3]);
    assert_eq!(r.send(1, &data(OTHER)).ports(), [0, 3]);
    // Include nothing; block a source.
    r.send(0, &v3(1, &[(3, GROUP, 0), (6, OTHER, 1)]));
    assert_eq!(r.send(1, &data(GROUP)).ports(), [3]);
    assert_eq!(r.send(1, &data(OTHER)).ports(), [0, 3]);
}

#[test]
fn mld_does_the_same() {
    let mut r = Rig::new(snooping(), 4);
    let all: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(r.send(3, &mld(all, 130, &[0; 20])).ports(), [0, 1, 2]);
    assert_eq!(r.send(0, &group_message(131)).ports(), [3]);
    assert_eq!(r.send(1, &data6(GROUP6)).ports(), [0, 3]);
    assert_eq!(r.send(1, &data6(all)).ports(), [0, 2, 3], "ff02::1");
    let reports: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    let record = [&[0, 0, 0, 1, 4, 0, 0, 0][..], &GROUP6].concat();
    assert_eq!(r.send(2, &mld(reports, 143, &record)).ports(), [3]);
    assert_eq!(r.send(1, &data6(GROUP6)).ports(), [0, 2, 3]);
    r.send(0, &group_message(132));
    r.secs(5);
    assert_eq!(r.send(1, &data6(GROUP6)).ports(), [2, 3]);
    assert_eq!(
        r.send(1, &data(GROUP)).ports(),
        [0, 2, 3],
        "IPv4 has no querier"
    );
}

#[test]
fn hostile_messages_are_dropped_and_believed_nothing() {
    let mut r = rig();
    let bad = [DropReason::BadMulticast];
    let mut sum = join(1, GROUP);
    sum[36] ^= 1;
    assert_eq!(r.send(0, &sum).drops, bad, "checksum");
    let mut lies = v3(1, &[(4, GROUP, 0), (4, OTHER, 0)]);
    lies[41] = 9;
    put_csum_at(&mut lies);
    assert_eq!(r.send(0, &lies).drops, bad, "more records than there are");
    let many = v3(1, &[(4, GROUP, 0), (4, [10, 0, 0, 1], 0)]);
    assert_eq!(r.send(0, &many).drops, bad, "no group");
    let mut far = group_message(131);
    far[21] = 64;
    assert_eq!(r.send(0, &far).drops, bad, "hop limit");
    assert_eq!(r.send(1, &data(GROUP)).ports(), [3]);
    for whole in [v3(1, &[(4, GROUP, 1)]), group_message(131)] {
        for n in 14..whole.len() {
            r.send(0, &whole[..n]);
        }
    }
    assert!(
        r.bridge
            .mdb(NET, r.cx.now)
            .iter()
            .all(|e| e.group.is_none())
    );
}

fn put_csum_at(frame: &mut [u8]) {
    frame[36..38].fill(0);
    put_csum(&mut frame[34..], 2, 0);
}

#[test]
fn a_greedy_port_cannot_take_every_place() {
    let mut r = Rig::new(
        NetworkConfig {
            mdb_limit: 20,
            ..snooping()
        },
        4,
    );
    r.send(3, &query(host(254)));
    for n in 0..100 {
        r.send(0, &join(1, [239, 9, 9, n]));
    }
    assert!(matches!(r.events.last(), Some(Event::LimitReached { .. })));
    for n in 0..8 {
        r.send(1, &join(2, [239, 8, 8, n]));
        assert_eq!(r.send(2, &data([239, 8, 8, n])).ports(), [1, 3]);
    }
    assert_eq!(r.bridge.mdb(NET, r.cx.now).len(), 20 + 1);
}

#[test]
fn vlans_have_groups_of_their_own() {
    let mut r = Rig::new(
        NetworkConfig {
            vlan_aware: true,
            ..snooping()
        },
        4,
    );
    r.port(3, |c| c.tagged = VlanSet::from_iter([10]));
    for p in [0, 1] {
        r.port(p, |c| {
            c.pvid = Some(10);
            c.untagged = VlanSet::from_iter([10]);
        });
    }
    let mut q = query(host(254));
    q.splice(12..12, [0x81, 0, 0, 10]);
    assert_eq!(r.send(3, &q).ports(), [0, 1]);
    r.send(0, &join(1, GROUP));
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0, 3]);
    assert_eq!(
        r.send(2, &data(GROUP)).ports(),
        [3],
        "VLAN 1 has no querier: flooded"
    );
}

#[test]
fn the_querier_asks_and_makes_snooping_work() {
    let mut r = Rig::new(
        NetworkConfig {
            querier: true,
            ..snooping()
        },
        2,
    );
    let asked = r.secs(1);
    assert_eq!(asked.len(), 4, "both families at both ports");
    for (_, bytes, _) in &asked {
        // Our own query is a sound one to another bridge.
        let mut other = Rig::new(snooping(), 2);
        assert_eq!(other.send(0, bytes).ports(), [1]);
    }
    assert_eq!(r.send(0, &join(1, GROUP)).drops, [DropReason::Consumed]);
    assert_eq!(r.send(1, &data(GROUP)).ports(), [0]);
    assert_eq!(r.send(1, &data(OTHER)).drops, []);
    assert!(r.send(1, &data(OTHER)).ports().is_empty());
    assert_eq!(r.secs(126).len(), 4);
}

#[test]
fn the_querier_asks_who_is_left() {
    let mut r = Rig::new(
        NetworkConfig {
            querier: true,
            ..snooping()
        },
        2,
    );
    for (join, leave, group, at) in [
        (join(1, GROUP), leave(1, GROUP), &GROUP[..], 42),
        (group_message(131), group_message(132), &GROUP6[..], 70),
    ] {
        assert_eq!(r.send(0, &leave).emitted, [], "no member, no question");
        r.send(0, &join);
        let asked = r.send(0, &leave).emitted;
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].0, &asked[0].2), (0, &Origin::Switch));
        assert_eq!(asked[0].1[at..at + group.len()], *group);
        let mut other = Rig::new(snooping(), 2);
        assert_eq!(other.send(0, &asked[0].1).ports(), [1], "it is sound");
    }
}

#[test]
fn the_querier_asks_on_trunks_in_the_vlans_in_use() {
    let mut r = Rig::new(
        NetworkConfig {
            vlan_aware: true,
            querier: true,
            ..snooping()
        },
        1,
    );
    r.port(1, |c| {
        c.pvid = None;
        c.untagged = VlanSet::EMPTY;
        c.tagged = (1..4000).collect();
    });
    let mut in_300 = join(1, GROUP);
    in_300.splice(12..12, [0x81, 0, 1, 44]);
    r.send(1, &in_300);
    let mut vids: Vec<_> = r
        .secs(1)
        .iter()
        .filter(|(p, f, _)| *p == 1 && f[12..14] == [0x81, 0])
        .map(|(_, f, _)| u16::from_be_bytes([f[14], f[15]]))
        .collect();
    vids.dedup();
    assert_eq!(vids, [1, 300]);
}
