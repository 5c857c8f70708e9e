//! UDP and echo by the host's sockets.

use crate::rig::{FAR, Site, peer, serve, site};
use vswitch_tests::tap_lab;

#[test]
fn datagrams_of_all_sizes_cross_and_errors_come_back() {
    let lab = tap_lab!("slirp-udp");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "datagrams", "7100");
    for far in FAR {
        for size in ["0", "1", "1200", "1452"] {
            let said = peer(&a, &["datagram", far, "7100", size, "20"]);
            assert_eq!(said, "same 20", "{far} {size}");
        }
        // In fragments, both ways, up to the longest.
        for size in ["1453", "9000", "65000"] {
            let said = peer(&a, &["datagram", far, "7100", size, "5"]);
            assert_eq!(said, "same 5", "{far} {size}");
        }
        // Nobody listens: told by ICMP.
        let said = peer(&a, &["datagram", far, "7101", "10"]);
        assert_eq!(said, "ConnectionRefusedError 111", "{far}");
    }
    let _iperf = outside.iperf3_server();
    for args in [
        &["-u", "-b", "50M", "-t", "1"][..],
        &["-u", "-b", "50M", "-t", "1", "-R"],
    ] {
        let run = a.iperf3(FAR[0], args);
        assert!(
            run.received_bytes > 1_000_000,
            "{args:?} {:?}",
            run.report["end"]
        );
    }
    a.assert_no_checksum_errors();
    d.assert_ledger();
}

#[test]
fn names_are_resolved_by_a_server_outside_and_by_the_gateway() {
    let lab = tap_lab!("slirp-dns");
    let Site { d, a, outside } = site(&lab, "1500");
    let server = [
        "dnsmasq",
        "--no-daemon",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--log-facility=-",
        "--address=/www.example/203.0.113.80",
    ];
    let mut server = outside.spawn(&server);
    server.wait_for("started");
    d.ctl(&["gateway", "set", "lan", "--dns-upstream", FAR[0]]);
    for at in [FAR[0], "192.0.2.1"] {
        for how in ["+notcp", "+tcp"] {
            if (at, how) == ("192.0.2.1", "+tcp") {
                // The gateway itself answers datagrams only.
                continue;
            }
            let args = [
                "dig",
                "+short",
                how,
                "+tries=3",
                &format!("@{at}"),
                "www.example",
            ];
            assert_eq!(a.ok(&args).trim(), "203.0.113.80", "{at} {how}");
        }
    }
    d.assert_ledger();
}

#[test]
fn echo_crosses_where_the_host_allows_ping_sockets() {
    let lab = tap_lab!("slirp-ping");
    let Site {
        d,
        a,
        outside: _outside,
    } = site(&lab, "1500");
    let range = |text: &str| {
        let value = format!("net.ipv4.ping_group_range={text}");
        d.host().ok(&["sysctl", "-qw", &value]);
    };
    range("1 0");
    a.assert_no_ping(FAR[0]);
    let shown = d.ctl_json(&["stats"]);
    let dropped = |p: &serde_json::Value| p["drops"]["host_socket"].as_u64().unwrap_or(0);
    let ports = shown["ports"].as_array().expect("a list");
    assert!(ports.iter().map(dropped).sum::<u64>() >= 3, "{shown}");
    range("0 1000");
    for far in FAR {
        a.assert_ping(far);
        let sized = a.ping_with(far, &["-c", "2", "-i", "0.2", "-W", "3", "-s", "1400"]);
        assert_eq!(
            sized.stdout.matches("1408 bytes from").count(),
            2,
            "{sized}"
        );
    }
    let long = a.ping_with(FAR[0], &["-c", "2", "-i", "0.2", "-W", "3", "-s", "5000"]);
    assert_eq!(long.stdout.matches("5008 bytes from").count(), 2, "{long}");
    // The first hop is the gateway.
    let hop = a.ping_with(FAR[0], &["-c", "1", "-W", "3", "-t", "1"]);
    assert!(hop.stdout.contains("From 192.0.2.1"), "{hop}");
    d.assert_ledger();
}

#[test]
fn what_is_for_groups_stays_inside() {
    let lab = tap_lab!("slirp-groups");
    let Site { d, a, outside } = site(&lab, "1500");
    let b = lab.container("b");
    let pid = b.pid().to_string();
    let ip = "192.0.2.11/24,2001:db8:1::11/64";
    d.ctl(&["attach", "--pid", &pid, "--ip", ip, "--name", "b", "lan"]);
    let heard = b.capture("eth0", "udp");
    let leaked = outside.capture("eth0", "udp");
    // mDNS, SSDP, LLMNR, and everybody: on this network, on any, and on the host's.
    let groups = [
        ("224.0.0.251", "5353"),
        ("239.255.255.250", "1900"),
        ("ff02::fb", "5353"),
        ("ff05::c", "1900"),
        ("255.255.255.255", "5353"),
        ("192.0.2.255", "5353"),
        ("198.51.100.255", "5353"),
    ];
    a.assert_ping("192.0.2.1");
    for (group, port) in groups {
        let said = peer(&a, &["shout", group, port]);
        assert_eq!(said, "sent", "{group}");
    }
    // To the gateway's MAC, as no kernel sends it.
    let gateway = a.ok(&["ip", "neigh", "show", "192.0.2.1", "dev", "eth0"]);
    let mac = gateway
        .split_whitespace()
        .find(|w| w.contains(':'))
        .expect("asked for it")
        .to_owned();
    a.scapy(&format!(
        "sendp([Ether(dst='{mac}')/IP(src='192.0.2.10', dst=d)/UDP(dport=5353)/b'shout' for d in \
         ['224.0.0.251', '255.255.255.255', '192.0.2.255']], iface='eth0')"
    ));
    let dropped = |reason: &str| {
        let stats = d.ctl_json(&["stats"]);
        let ports = stats["ports"].as_array().expect("a list");
        let of = |p: &serde_json::Value| p["drops"][reason].as_u64().unwrap_or(0);
        ports.iter().map(of).sum::<u64>()
    };
    vswitch_tests::wait_until("three to be dropped as martians", || {
        dropped("martian") >= 3
    });
    // The broadcast of the host's network is no group to anybody but the host, which forbids it.
    vswitch_tests::wait_until("the host to forbid its broadcast", || {
        dropped("host_socket") >= 1
    });
    // After all that, something that does come out.
    let _server = serve(&outside, "datagrams", "7100");
    assert_eq!(peer(&a, &["datagram", FAR[0], "7100", "10", "1"]), "same 1");
    for line in leaked.fields("", &["ip.dst", "udp.dstport", "udp.srcport"]) {
        assert!(line.contains("\t7100"), "left the host: {line}");
    }
    // Neighbours hear those of their network.
    let heard = heard.fields("", &["ip.dst", "ipv6.dst"]).concat();
    for (group, _) in &groups[..6] {
        assert!(heard.contains(group), "{group} of {heard}");
    }
    d.assert_ledger();
}
