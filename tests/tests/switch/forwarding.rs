//! Where frames go: static entries, moves, hairpin, mirrors, link-local groups, MTUs, networks, uplinks.

use vswitch_tests::{Mtu, tap_lab, wait_until};

use crate::rig::{
    at, attach, bare, container, dropped, events, frame, octets, switch, told, wait_dropped,
};

#[test]
fn static_entries_pin_addresses() {
    let lab = tap_lab!("sw-static");
    let mut d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let c = container(&d, &lab, "c", "192.0.2.3/24", &[]);
    let pinned = "02:00:00:00:00:77";
    d.ctl(&["fdb", "add", "lan", pinned, "b"]);
    // Nobody has spoken from it, and yet it isn't flooded.
    let (at_b, at_c) = (
        b.capture("eth0", "ether proto 0x88b6"),
        c.capture("eth0", "ether proto 0x88b6"),
    );
    let to = frame(octets(pinned), octets(&a.mac("eth0")));
    a.send_frames("eth0", &vec![to; 5]);
    a.assert_ping("192.0.2.2");
    a.assert_ping("192.0.2.3");
    assert_eq!(at_b.count(), 5);
    assert_eq!(at_c.count(), 0);
    // Nobody else may speak from it.
    c.send_frames("eth0", &vec![frame([0xff; 6], octets(pinned)); 5]);
    wait_dropped(&d, "c", "static_mac", 5);
    d.ctl(&["fdb", "flush", "lan"]);
    let entry = at(&d, pinned).expect("flushing leaves it");
    assert_eq!(
        (&entry["port"], &entry["static"]),
        (&"b".into(), &true.into())
    );
    d.assert_ledger();
    // It outlives the daemon.
    d.restart();
    assert_eq!(at(&d, pinned).expect("restored")["static"], true);
    d.ctl(&["fdb", "del", "lan", pinned]);
    c.send_frames("eth0", &[frame([0xff; 6], octets(pinned))]);
    wait_until("the address to be learned", || {
        at(&d, pinned).is_some_and(|e| e["port"] == "c" && e["static"] == false)
    });
}

#[test]
fn an_address_that_moves_is_followed_and_told() {
    let lab = tap_lab!("sw-move");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let listener = events(&d);
    let moving = [2, 0, 0, 0, 0, 0x55];
    let mac = "02:00:00:00:00:55";
    a.send_frames("eth0", &[frame([0xff; 6], moving)]);
    wait_until("it to be learned", || {
        told(&listener, "mac_learned", &[("mac", mac), ("port", "a")])
    });
    b.send_frames("eth0", &[frame([0xff; 6], moving)]);
    wait_until("it to move", || {
        let fields = [
            ("mac", mac),
            ("port", "b"),
            ("other", "a"),
            ("network", "lan"),
        ];
        told(&listener, "mac_moved", &fields)
    });
    assert_eq!(at(&d, mac).expect("learned")["port"], "b");
    d.assert_ledger();
}

/// Two hosts behind one port by macvlan interfaces in VEPA mode, which leaves switching between them to the switch.
#[test]
fn a_hairpin_port_sends_back() {
    let lab = tap_lab!("sw-hairpin");
    let d = switch(&lab, &[]);
    let (one, two) = (lab.host("one"), lab.host("two"));
    bare(&d, &one, "one", "eth0", &[]);
    for name in ["m1", "m2"] {
        one.ok(&[
            "ip", "link", "add", name, "link", "eth0", "type", "macvlan", "mode", "vepa",
        ]);
    }
    one.ok(&["ip", "link", "set", "m2", "netns", &two.pid().to_string()]);
    one.addr("m1", "192.0.2.1/24");
    two.addr("m2", "192.0.2.2/24");
    one.assert_no_ping("192.0.2.2");
    d.ctl(&["port", "set", "one", "--hairpin", "on"]);
    one.assert_ping("192.0.2.2");
    two.assert_ping("192.0.2.1");
    d.ctl(&["port", "set", "one", "--hairpin", "off"]);
    let before = dropped(&d, "one", "same_port");
    one.assert_no_ping("192.0.2.2");
    assert!(dropped(&d, "one", "same_port") > before);
    d.assert_ledger();
}

#[test]
fn mirrors_copy_ports_and_vlans() {
    let lab = tap_lab!("sw-mirror");
    let d = switch(&lab, &["--vlan-aware", "on"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &["--vlan", "10"]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &["--vlan", "10"]);
    let c = container(&d, &lab, "c", "192.0.2.3/24", &["--vlan", "20"]);
    let probe = lab.container("probe");
    bare(&d, &probe, "probe", "eth0", &[]);
    let mirror = ["mirror", "add", "m", "--target", "probe"];
    d.ctl(&[&mirror[..], &["--ingress", "a", "--egress", "a"]].concat());
    let seen = probe.capture("eth0", "icmp");
    a.assert_ping("192.0.2.2");
    let lines = seen.fields("", &["ip.src", "icmp.type", "icmp.checksum.status"]);
    let pair = ["192.0.2.1\t8\t1", "192.0.2.2\t0\t1"];
    assert_eq!(lines, pair.repeat(3));
    d.ctl(&["mirror", "del", "m"]);
    // What a VLAN receives, cut short.
    let argv = [&mirror[..], &["--vlan", "lan/10", "--truncate", "60"]].concat();
    d.ctl(&argv);
    let seen = probe.capture("eth0", "icmp or arp");
    b.assert_ping("192.0.2.1");
    c.run(&["arping", "-c", "1", "-w", "1", "-I", "eth0", "192.0.2.77"]);
    let lines = seen.fields("", &["frame.len", "frame.protocols", "arp.dst.proto_ipv4"]);
    let icmp = lines.iter().filter(|l| l.contains(":ip:icmp")).count();
    assert!(icmp >= 6, "{lines:?}");
    assert!(!lines.iter().any(|l| l.contains("192.0.2.77")), "{lines:?}");
    let lengths = lines.iter().map(|l| l.split('\t').next().unwrap_or(""));
    assert!(
        lengths
            .clone()
            .all(|l| l.parse::<u32>().is_ok_and(|n| n <= 60)),
        "{lines:?}"
    );
    let shown = d.ctl(&["mirror", "show"]);
    assert!(shown.contains("lan/10"), "{shown}");
    d.ctl(&["mirror", "del", "m"]);
    let seen = probe.capture("eth0", "icmp");
    a.assert_ping("192.0.2.2");
    assert_eq!(seen.count(), 0);
    d.assert_ledger();
}

/// 01:80:c2:00:00:00 to 0f: spanning tree, LACP, LLDP and so on (IEEE 802.1D 7.12.6).
#[test]
fn link_local_groups_stay_on_their_link() {
    let lab = tap_lab!("sw-bpdu");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    a.assert_ping("192.0.2.2");
    let seen = b.capture("eth0", "ether[0:4] == 0x0180c200");
    let to = |last: u8| frame([1, 0x80, 0xc2, 0, 0, last], [2, 0, 0, 0, 0, 1]);
    a.send_frames("eth0", &(0..=0x10).map(to).collect::<Vec<_>>());
    wait_dropped(&d, "a", "link_local", 16);
    // A kernel's bridge with spanning tree on sends BPDUs of its own.
    let bridge = lab.container("bridge");
    bare(&d, &bridge, "bridge", "eth0", &[]);
    for argv in [
        &[
            "ip",
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "1",
            "hello_time",
            "100",
        ][..],
        &["ip", "link", "set", "eth0", "master", "br0"],
        &["ip", "link", "set", "br0", "up"],
    ] {
        bridge.ok(argv);
    }
    wait_dropped(&d, "bridge", "link_local", 2);
    a.assert_ping("192.0.2.2");
    let lines = seen.fields("", &["eth.dst"]);
    assert_eq!(lines, ["01:80:c2:00:00:10"], "a group beyond is forwarded");
    d.assert_ledger();
}

#[test]
fn what_is_too_long_for_a_port_is_dropped_and_counted() {
    let lab = tap_lab!("sw-mtu");
    let d = switch(&lab, &[]);
    let large = container(&d, &lab, "large", "192.0.2.1/24", &["--mtu", "9000"]);
    let other = lab.container("other");
    attach(&d, &other, "192.0.2.2/24", &["--mtu", "9000"]);
    let small = container(&d, &lab, "small", "192.0.2.3/24", &[]);
    let jumbo = ["-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", "8000"];
    assert!(large.ping_with("192.0.2.2", &jumbo).success());
    large.assert_ping("192.0.2.3");
    assert!(!large.ping_with("192.0.2.3", &jumbo).success());
    assert_eq!(dropped(&d, "small", "mtu"), 3);
    // TCP agrees on what fits, so segmentation offload works from the one to the other.
    let _servers = [small.iperf3_server(), other.iperf3_server()];
    for to in ["192.0.2.2", "192.0.2.3"] {
        for way in [&["-n", "24M"][..], &["-n", "24M", "-R"]] {
            let got = large.iperf3(to, way).received_bytes;
            assert!(got >= 8 << 20, "{to} {way:?}: {got} bytes");
        }
    }
    assert_eq!(dropped(&d, "small", "mtu"), 3, "no segment was too long");
    d.assert_ledger();
}

/// The same addresses twice, one switch: nothing of one network is seen in the other.
#[test]
fn networks_of_one_daemon_are_apart() {
    let lab = tap_lab!("sw-networks");
    let d = switch(&lab, &[]);
    d.ctl(&["network", "add", "wan"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let c = container(&d, &lab, "c", "192.0.2.2/24", &[]);
    d.ctl(&["port", "set", "c", "--network", "wan"]);
    let seen = c.capture("eth0", "icmp or arp");
    a.assert_ping("192.0.2.2");
    assert_eq!(seen.count(), 0);
    let same = a.ok(&["ip", "neigh", "show", "192.0.2.2"]);
    assert!(same.contains(&b.mac("eth0")), "{same}");
    // A port that moves takes its traffic along.
    for (port, network) in [("c", "lan"), ("b", "wan")] {
        d.ctl(&["port", "set", port, "--network", network]);
    }
    a.ok(&["ip", "neigh", "flush", "dev", "eth0"]);
    a.assert_ping("192.0.2.2");
    let other = a.ok(&["ip", "neigh", "show", "192.0.2.2"]);
    assert!(other.contains(&c.mac("eth0")), "{other}");
    d.ctl_fails(&["network", "del", "wan"]);
    d.ctl(&["network", "del", "wan", "--force"]);
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}

#[test]
fn an_uplink_reaches_hosts_outside() {
    let lab = tap_lab!("sw-uplink");
    let d = switch(&lab, &[]);
    let outside = lab.host("outside");
    lab.link(d.host(), "up0", &outside, "eth0", Mtu(1500));
    outside.addr("eth0", "192.0.2.254/24");
    let argv = ["port", "add", "up0", "--network", "lan", "--kind", "packet"];
    d.ctl(&argv);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    a.assert_ping("192.0.2.254");
    outside.assert_ping("192.0.2.1");
    let _server = outside.iperf3_server();
    for way in [&["-n", "24M"][..], &["-n", "24M", "-R"]] {
        let got = a.iperf3("192.0.2.254", way).received_bytes;
        assert!(got >= 8 << 20, "{way:?}: {got} bytes");
    }
    for node in [&a, &outside] {
        node.assert_no_checksum_errors();
    }
    d.assert_ledger();
    // Promiscuous only while attached; the interface isn't ours, so it stays.
    let promiscuous = || d.host().ok(&["ip", "-d", "link", "show", "up0"]);
    // Once for each worker's socket.
    assert!(
        !promiscuous().contains("promiscuity 0"),
        "{}",
        promiscuous()
    );
    d.ctl(&["port", "del", "up0"]);
    assert!(promiscuous().contains("promiscuity 0"), "{}", promiscuous());
}
