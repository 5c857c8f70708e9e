//! Prefix translation (NPTv6, RFC 6296), with kernels at both ends that check every checksum.

use vswitch_tests::{Background, tap_lab, wait_until};

use crate::nat::{Site, site};
use crate::policy::{DATAGRAM, connect, serve};

/// The container `a`, 2001:db8:1::10, as it is seen outside by prefixes of 48 and of 64 bits: 1 - 15 is fff1 in one's complement.
const OUTSIDE_48: &str = "2001:db8:f:fff1::10";
const OUTSIDE_64: &str = "2001:db8:f:0:fff1::10";
const FAR: &str = "2001:db8:2::254";

/// A connection that is kept: what is typed is sent, what comes is printed, as is who is there.
const TALK: &str = "\
import socket, sys, threading
if len(sys.argv) > 2: c = socket.create_connection((sys.argv[1], 7000), timeout=10); c.settimeout(None)
else:
    s = socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('::', 7000)); s.listen(); print('ready', flush=True); c, _ = s.accept()
print('peer', c.getpeername()[0], flush=True)
n = 0
while True:
    line = c.recv(100).decode() if len(sys.argv) > 2 else None
    if line is None:
        import time, os
        while not os.path.exists(sys.argv[1] + str(n)): time.sleep(0.02)
        c.sendall(b'said%d' % n); n += 1
    elif not line: break
    else: print(line, flush=True)
";

fn pair(site: &Site, len: &str) {
    let pair = format!("2001:db8:1::/{len}=2001:db8:f::/{len}");
    site.d.ctl(&["gateway", "set", "wan", "--nptv6", &pair]);
    site.outside
        .route(&format!("2001:db8:f::/{len}"), "2001:db8:2::1");
}

/// From outside it takes a rule, as without translation.
fn let_in(site: &Site) {
    let rule = "accept name in from network:wan";
    let args = ["--from", "network:wan", "--default", "drop", "--rule", rule];
    site.d
        .ctl(&[&["policy", "add", "incoming"][..], &args].concat());
}

fn both_ways(len: &str, seen_as: &str) {
    let lab = tap_lab!("nptv6");
    let s = site(&lab, &[]);
    pair(&s, len);
    let Site { d, a, b, outside } = &s;
    // Inside out.
    let seen = outside.capture("eth0", "icmp6");
    a.assert_ping(FAR);
    let sources = seen.fields("icmpv6.type == 128", &["ipv6.src"]);
    assert!(
        !sources.is_empty() && sources.iter().all(|s| s == seen_as),
        "{sources:?}"
    );
    let _server = outside.iperf3_server();
    for args in [
        &["-n", "50M"][..],
        &["-n", "50M", "-R"],
        &["-u", "-b", "20M", "-t", "1"],
    ] {
        let run = a.iperf3(FAR, args);
        let end = &run.report["end"];
        assert!(run.received_bytes > 1_000_000, "{args:?} {end:?}");
    }
    // IPv4 is masqueraded as before, and no port was taken for IPv6.
    a.assert_ping("203.0.113.7");
    let shown = d.ctl(&["conntrack", "show", "--protocol", "tcp"]);
    assert!(
        shown.contains(seen_as) && !shown.contains("2001:db8:2::1]"),
        "{shown}"
    );
    // Outside in: translation alone lets nobody in.
    outside.assert_no_ping(seen_as);
    let_in(&s);
    outside.assert_ping(seen_as);
    let _web = serve(a, "8080");
    assert_eq!(connect(outside, seen_as, "8080"), "open");
    let _server = a.iperf3_server();
    let run = outside.iperf3(seen_as, &["-n", "50M"]);
    assert!(run.received_bytes > 40_000_000, "{:?}", run.report["end"]);
    // In fragments.
    for (node, to) in [(a, FAR), (outside, seen_as)] {
        let ping = node.ping_with(to, &["-c", "3", "-W", "5", "-s", "4000"]);
        assert!(ping.success(), "{ping}");
    }
    // A neighbour by the external address.
    b.assert_ping(seen_as);
    assert_eq!(connect(b, seen_as, "8080"), "open");
    for node in [a, b, outside] {
        node.assert_no_checksum_errors();
    }
    d.assert_ledger();
}

#[test]
fn a_prefix_of_48_bits_is_translated_both_ways() {
    both_ways("48", OUTSIDE_48);
}

#[test]
fn a_prefix_of_64_bits_is_translated_both_ways() {
    both_ways("64", OUTSIDE_64);
}

#[test]
fn icmp_errors_about_translated_prefixes_are_understood() {
    let lab = tap_lab!("nptv6-errors");
    let s = site(&lab, &[]);
    pair(&s, "48");
    let_in(&s);
    let Site { d, a, outside, .. } = &s;
    // A path that is narrower further on: its router says so to the external address.
    outside.ok(&["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"]);
    let veth = ["type", "veth", "peer", "name", "narrow1"];
    outside.ok(&[&["ip", "link", "add", "narrow", "mtu", "1300"][..], &veth].concat());
    outside.ok(&["ip", "link", "set", "narrow1", "up"]);
    outside.addr("narrow", "2001:db8:7::1/64");
    let mtu = || a.ok(&["ip", "-6", "route", "get", "2001:db8:7::7"]);
    assert!(!mtu().contains("mtu 1300"), "{}", mtu());
    wait_until("the path's MTU is known inside", || {
        a.ping_with(
            "2001:db8:7::7",
            &["-c", "1", "-W", "1", "-M", "do", "-s", "1400"],
        );
        mtu().contains("mtu 1300")
    });
    // The other way: a port that is closed inside, told to who asked outside.
    let said = outside.ok(&["python3", "-c", DATAGRAM, OUTSIDE_48, "9"]);
    assert_eq!(said.trim(), "ECONNREFUSED");
    // The gateway's own errors to outside and inside.
    let short = outside.ping_with(OUTSIDE_48, &["-c", "1", "-W", "2", "-t", "1"]);
    assert!(short.stdout.contains("Time exceeded"), "{short}");
    let short = a.ping_with(FAR, &["-c", "1", "-W", "2", "-t", "1"]);
    assert!(short.stdout.contains("Time exceeded"), "{short}");
    // Nobody is there: the error comes from an address that outside knows.
    let nobody = "2001:db8:f:fff1::77";
    let lost = outside.capture("eth0", "icmp6");
    wait_until("nobody is told to be there", || {
        let ping = outside.ping_with(nobody, &["-c", "1", "-W", "4"]);
        ping.stdout.contains("Address unreachable")
    });
    let from = lost.fields("icmpv6.type == 1", &["ipv6.src"]);
    assert!(!from.is_empty(), "no error was seen");
    assert!(from.iter().all(|f| !f.contains("2001:db8:1:")), "{from:?}");
    // No address inside is this one.
    let none = outside.ping_with("2001:db8:f:ffff::10", &["-c", "1", "-W", "2"]);
    assert!(none.stdout.contains("No route"), "{none}");
    for node in [a, outside] {
        node.assert_no_checksum_errors();
    }
    d.assert_ledger();
}

#[test]
fn a_connection_outlives_what_the_gateway_knew_of_it() {
    let lab = tap_lab!("nptv6-stateless");
    let s = site(&lab, &[]);
    pair(&s, "48");
    let_in(&s);
    let Site { d, a, outside, .. } = &s;
    let file = |n: usize| lab.dir().join(format!("say{n}"));
    let stem = lab.dir().join("say").display().to_string();
    let mut server: Background = outside.spawn(&["python3", "-c", TALK, &stem]);
    server.wait_for("ready");
    let mut client = a.spawn(&["python3", "-c", TALK, FAR, "client"]);
    server.wait_for(&format!("peer {OUTSIDE_48}"));
    std::fs::write(file(0), "").expect("write a file");
    client.wait_for("said0");
    let flushed = d.ctl_json(&["conntrack", "flush"]);
    assert!(flushed["removed"].as_u64() > Some(0), "{flushed}");
    // The first segment comes from outside, and nothing knows the connection.
    std::fs::write(file(1), "").expect("write a file");
    client.wait_for("said1");
    // Other prefixes end what went by the old ones.
    d.ctl(&[
        "gateway",
        "set",
        "wan",
        "--nptv6",
        "2001:db8:1::/48=2001:db8:e::/48",
    ]);
    let shown = d.ctl(&["conntrack", "show"]);
    assert!(!shown.contains("2001:db8:f:"), "{shown}");
    d.ctl(&["gateway", "set", "wan", "--nptv6", "none"]);
    let seen = outside.capture("eth0", "icmp6");
    a.assert_ping(FAR);
    let sources = seen.fields("icmpv6.type == 128", &["ipv6.src"]);
    assert_eq!(sources.first().map(String::as_str), Some("2001:db8:2::1"));
    d.assert_ledger();
}

#[test]
fn pairs_that_make_no_sense_are_refused() {
    let lab = tap_lab!("nptv6-refused");
    let Site { d, .. } = &site(&lab, &[]);
    for (pairs, told) in [
        ("2001:db8:1::/48=2001:db8:f::/56", "different lengths"),
        ("2001:db8:1::/96=2001:db8:f::/96", "1 to 64 bits"),
        ("2001:db8:1::1/48=2001:db8:f::/48", "bits behind the prefix"),
        ("192.0.2.0/24=198.51.100.0/24", "aren't IPv6"),
        (
            "2001:db8:1::/48=2001:db8:2::/48",
            "overlaps with 2001:db8:2::1/64 of network `wan`",
        ),
        (
            "2001:db8:1::/48=2001:db8:f::/48,2001:db8:1:2::/64=2001:db8:e::/64",
            "overlaps",
        ),
        ("2001:db8:1::/48", "write it like"),
    ] {
        let refused = d.ctl_fails(&["gateway", "set", "wan", "--nptv6", pairs]);
        assert!(refused.contains(told), "{pairs}: {refused}");
    }
}
