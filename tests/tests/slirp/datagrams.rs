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
        // In fragments, as the container sends it; those of IPv6 aren't made for it yet.
        if far.contains('.') {
            let said = peer(&a, &["datagram", far, "7100", "9000", "5"]);
            assert_eq!(said, "same 5", "{far}");
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
            run.received_bytes > 3_000_000,
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
