//! TCP: every byte, both ways, and every way to begin and to end.

use crate::rig::{FAR, Site, peer, serve, site, site_of};
use vswitch_tests::tap_lab;

/// More than any buffer or window holds, and more than 2^30.
const BYTES: &str = "1073741825";

fn bytes_arrive_as_sent(mtu: &str) {
    let lab = tap_lab!("slirp-bytes");
    let Site { d, a, outside } = site(&lab, mtu);
    let mut server = serve(&outside, "serve", "7000");
    for (far, bytes) in [(FAR[0], BYTES), (FAR[1], "150000000")] {
        for way in ["upload", "download"] {
            let since = std::time::Instant::now();
            assert_eq!(peer(&a, &[way, far, "7000", bytes]), "same", "{far}");
            println!("{way} of {bytes} at {mtu}: {:?}", since.elapsed());
        }
    }
    let said = peer(&a, &["both", FAR[0], "7000", BYTES]);
    let digest = said.strip_prefix("same ").expect("what came was sent");
    server.wait_for(&format!("both {digest}"));
    // It is the host that they come from.
    assert_eq!(peer(&a, &["peer", FAR[0], "7000"]), "::ffff:198.51.100.1");
    assert_eq!(peer(&a, &["peer", FAR[1], "7000"]), "2001:db8:2::1");
    a.assert_no_checksum_errors();
    let stats = d.ctl_json(&["stats"]);
    let ports = stats["ports"].as_array().expect("a list");
    let host = ports.iter().find(|p| p["name"] == "@host").expect("shown");
    let bytes = |dir: &str| host[dir].as_u64().expect("a number");
    assert!(bytes("tx_bytes") > 2_297_000_000, "{host}");
    assert!(bytes("rx_bytes") > 2_297_000_000, "{host}");
    d.assert_ledger();
}

#[test]
fn bytes_arrive_as_sent_at_mtu_1500() {
    bytes_arrive_as_sent("1500");
}

#[test]
fn bytes_arrive_as_sent_at_mtu_65520() {
    bytes_arrive_as_sent("65520");
}

#[test]
fn slow_readers_shut_the_window_and_open_it() {
    let lab = tap_lab!("slirp-slow");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    // Outside nothing is read for two seconds, long after every buffer is full.
    let said = peer(&a, &["upload", FAR[0], "7000", "40000000", "slow 2"]);
    assert_eq!(said, "same");
    // Inside nothing is, by a reader with little room, which then reads in small pieces.
    let args = ["download", FAR[0], "7000", "40000000", "2", "65536"];
    assert_eq!(peer(&a, &args), "same");
    d.assert_ledger();
}

#[test]
fn lost_segments_are_sent_again() {
    let lab = tap_lab!("slirp-loss");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    // Of what enters and what leaves the container one segment of 200 is lost; nothing is joined or cut on the way.
    a.offload("eth0", "tso", false);
    a.offload("eth0", "gso", false);
    a.ok_with_input(
        &["nft", "-f", "-"],
        b"table inet loss {
            chain in { type filter hook input priority 0; tcp sport 7000 numgen random mod 200 == 0 drop; }
            chain out { type filter hook output priority 0; tcp dport 7000 numgen random mod 200 == 0 drop; }
        }",
    );
    for way in ["upload", "download"] {
        let said = peer(&a, &[way, FAR[0], "7000", "3000000"]);
        assert_eq!(said, "same", "{way}");
    }
    d.assert_ledger();
}

#[test]
fn connections_end_as_their_peer_ends_them() {
    let lab = tap_lab!("slirp-ends");
    let Site { d, a, outside } = site(&lab, "1500");
    let mut server = serve(&outside, "serve", "7000");
    // The container's half is closed first; the answer still comes.
    assert_eq!(peer(&a, &["echo", FAR[0], "7000", "hello"]), "5");
    // A reset from outside, and one from inside.
    for far in FAR {
        assert_eq!(peer(&a, &["was_reset", far, "7000"]), "reset", "{far}");
    }
    assert_eq!(peer(&a, &["resets", FAR[0], "7000"]), "done");
    server.wait_for("reset");
    d.assert_ledger();
}

#[test]
fn connections_that_cant_be_made_fail_as_on_the_host() {
    let lab = tap_lab!("slirp-fails");
    let Site { d, a, outside } = site(&lab, "1500");
    for far in FAR {
        let said = peer(&a, &["attempt", far, "7999"]);
        assert_eq!(said, "ConnectionRefusedError 111", "{far}");
    }
    // The host has no route: the container is told so, at once.
    let said = peer(&a, &["attempt", "203.0.113.9", "80"]);
    assert_eq!(said, "OSError 101");
    // A router on the way says that there is nobody.
    d.host().route("203.0.113.0/24", "198.51.100.254");
    outside.ok(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    outside.ok(&["ip", "route", "add", "unreachable", "203.0.113.0/24"]);
    let said = peer(&a, &["attempt", "203.0.113.9", "80"]);
    assert_eq!(said, "OSError 113");
    d.assert_ledger();
}

#[test]
fn thousands_of_connections_come_and_go_and_many_stay() {
    let lab = tap_lab!("slirp-many");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    let fds = || {
        let dir = format!("/proc/{}/fd", d.pid());
        std::fs::read_dir(dir).expect("our daemon").count()
    };
    let before = fds();
    assert_eq!(
        peer(&a, &["many", FAR[0], "7000", "4000"]),
        "done 4000 failed 0 []"
    );
    assert_eq!(peer(&a, &["hold", FAR[0], "7000", "900"]), "held 900");
    // Every socket goes with its connection.
    vswitch_tests::wait_until("the sockets to be closed", || fds() <= before + 2);
    d.assert_ledger();
}

#[test]
fn datagrams_make_room_for_connections_when_descriptors_run_out() {
    let lab = tap_lab!("slirp-limit");
    let Site { d, a, outside } = site_of(&lab, "1500", |d| {
        let pid = d.pid().to_string();
        d.host().ok(&["prlimit", "--pid", &pid, "--nofile=160:160"]);
    });
    let _server = serve(&outside, "serve", "7000");
    let _datagrams = serve(&outside, "datagrams", "7100");
    // 120 descriptors for flows: far fewer than there are datagrams' endpoints, which all get their answer, while connections stay.
    let said = peer(&a, &["crowd", FAR[0], "7000", "80", "7100", "400"]);
    assert_eq!(said, "held 80 answered 400");
    d.assert_ledger();
}

#[test]
fn the_hosts_loopback_is_reached_only_if_that_is_allowed() {
    let lab = tap_lab!("slirp-loopback");
    let Site {
        d,
        a,
        outside: _outside,
    } = site(&lab, "1500");
    let _server = serve(d.host(), "serve", "7000");
    let own = ["192.0.2.1", "2001:db8:1::1"];
    for gateway in own {
        let said = peer(&a, &["attempt", gateway, "7000"]);
        assert_eq!(said, "ConnectionRefusedError 111", "{gateway}");
    }
    d.ctl(&["gateway", "set", "lan", "--host-loopback", "on"]);
    assert_eq!(peer(&a, &["peer", own[0], "7000"]), "::ffff:127.0.0.1");
    assert_eq!(peer(&a, &["peer", own[1], "7000"]), "::1");
    // By no other way: the container has no route of its own to it.
    a.ok(&[
        "ip",
        "-6",
        "route",
        "add",
        "::ffff:127.0.0.1",
        "via",
        own[1],
    ]);
    let said = peer(&a, &["attempt", "192.0.2.1", "7001"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.ctl(&["gateway", "set", "lan", "--host-loopback", "off"]);
    let said = peer(&a, &["attempt", own[0], "7000"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

#[test]
fn policy_holds_for_what_leaves_by_the_host() {
    let lab = tap_lab!("slirp-policy");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    assert_eq!(peer(&a, &["echo", FAR[0], "7000", "hello"]), "5");
    let shown = d.ctl(&["conntrack", "show", "--protocol", "tcp"]);
    assert!(shown.contains("198.51.100.254:7000"), "{shown}");
    // What a policy forbids is forbidden here too, also where the rules name ports.
    let rule = "accept to 198.51.100.254 proto tcp ports 7000";
    d.ctl(&[
        "policy",
        "add",
        "out",
        "--from",
        "port:a",
        "--default",
        "reject",
        "--rule",
        rule,
    ]);
    assert_eq!(peer(&a, &["echo", FAR[0], "7000", "hello"]), "5");
    let said = peer(&a, &["attempt", FAR[1], "7000"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.ctl(&["policy", "del", "out"]);
    // Asked about only, no socket is opened.
    let connections = d.ctl_json(&["conntrack", "count"])["connections"].clone();
    let args = ["--from", "a", "--src-ip", "192.0.2.10", "--dst-ip", FAR[0]];
    let told = d.ctl(&[&["trace"], &args[..], &["--dport", "7000"]].concat());
    assert!(told.contains("by a socket of the host"), "{told}");
    let now = d.ctl_json(&["conntrack", "count"])["connections"].clone();
    assert_eq!(now, connections);
    let shown = d.ctl(&["gateway", "show"]);
    assert!(shown.contains("host-uplink"), "{shown}");
    d.ctl(&["gateway", "set", "lan", "--host-uplink", "off"]);
    let said = peer(&a, &["attempt", FAR[0], "7000"]);
    assert_eq!(said, "OSError 101", "no route is left");
    let err = d.ctl_fails(&[
        "gateway",
        "set",
        "lan",
        "--uplink",
        "on",
        "--host-uplink",
        "on",
    ]);
    assert!(err.contains("host_uplink"), "{err}");
    d.assert_ledger();
}

#[test]
fn urgent_data_comes_in_its_place() {
    let lab = tap_lab!("slirp-urgent");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    for far in FAR {
        let said = peer(&a, &["urgent", far, "7000"]);
        assert_eq!(said, "abc!def?ghi\nxy!z", "{far}");
    }
    d.assert_ledger();
}
