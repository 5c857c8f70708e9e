//! What routers and hosts outside say of packets, as real clients inside hear it.

use crate::rig::{FAR, Site, peer, serve, site};
use vswitch_tests::{Lab, Mtu, Node, tap_lab};

/// Behind the router.
const BEYOND: [&str; 2] = ["203.0.113.9", "2001:db8:3::9"];
const ROUTER: [&str; 2] = FAR;

/// A site whose `outside` is a router to a far host, by a link of this MTU.
fn routed(lab: &Lab, mtu: u32) -> (Site, Node) {
    let site = site(lab, "1500");
    let far = lab.host("far");
    let (router, host) = (&site.outside, site.d.host());
    lab.link(router, "eth1", &far, "eth0", Mtu(mtu));
    for (node, interface, last) in [(router, "eth1", "1"), (&far, "eth0", "9")] {
        node.addr(interface, &format!("203.0.113.{last}/24"));
        node.addr(interface, &format!("2001:db8:3::{last}/64"));
    }
    for (to, via) in [
        ("203.0.113.0/24", ROUTER[0]),
        ("2001:db8:3::/64", ROUTER[1]),
    ] {
        host.route(to, via);
    }
    far.route("198.51.100.0/24", "203.0.113.1");
    far.route("2001:db8:2::/64", "2001:db8:3::1");
    for value in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        router.ok(&["sysctl", "-qw", value]);
    }
    // All that is asked for is told.
    for value in ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"] {
        router.ok(&["sysctl", "-qw", value]);
        far.ok(&["sysctl", "-qw", value]);
    }
    host.ok(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 1000"]);
    (site, far)
}

#[test]
fn each_error_arrives_with_its_type_code_and_sender() {
    let lab = tap_lab!("slirp-errors");
    let (Site { d, a, outside }, far) = routed(&lab, 1500);
    let _server = serve(&far, "datagrams", "7100");
    for far in BEYOND {
        assert_eq!(peer(&a, &["told", far, "7100", "50"]), "answered 50");
    }
    let reject = |v6: bool, name: &str| {
        let (family, ip) = if v6 {
            ("icmpv6", "ip6")
        } else {
            ("icmp", "ip")
        };
        let to = BEYOND[usize::from(v6)];
        let rules = format!(
            "table inet told\ndelete table inet told\ntable inet told {{\nchain forward {{\ntype filter hook forward \
             priority 0;\n{ip} daddr {to} reject with {family} type {name}\n}}\n}}\n"
        );
        outside.ok_with_input(&["nft", "-f", "-"], rules.as_bytes());
    };
    let names = [
        (false, "net-unreachable", "3 0", "OSError 101"),
        (false, "host-unreachable", "3 1", "OSError 113"),
        (false, "prot-unreachable", "3 2", "OSError 92"),
        (
            false,
            "port-unreachable",
            "3 3",
            "ConnectionRefusedError 111",
        ),
        (false, "net-prohibited", "3 9", "OSError 101"),
        (false, "host-prohibited", "3 10", "OSError 113"),
        (false, "admin-prohibited", "3 13", "OSError 113"),
        (true, "no-route", "1 0", "OSError 101"),
        (true, "admin-prohibited", "1 1", "PermissionError 13"),
        (true, "addr-unreachable", "1 3", "OSError 113"),
        (
            true,
            "port-unreachable",
            "1 4",
            "ConnectionRefusedError 111",
        ),
    ];
    for (v6, name, code, errno) in names {
        reject(v6, name);
        let (to, from) = (BEYOND[usize::from(v6)], ROUTER[usize::from(v6)]);
        let said = peer(&a, &["told", to, "7100", "50"]);
        assert_eq!(said, format!("{code} {from} 0 quoted"), "{name}");
        let said = peer(&a, &["attempt", to, "7000"]);
        assert_eq!(said, errno, "connecting: {name}");
        let ping = a.ping_with(to, &["-c", "1", "-W", "3"]);
        assert!(
            ping.stdout.contains(&format!("From {from}")),
            "{name}: {ping}"
        );
    }
    d.assert_ledger();
}

#[test]
fn the_mtu_of_the_path_is_known_inside() {
    let lab = tap_lab!("slirp-pmtu");
    let (
        Site {
            d,
            a,
            outside: _router,
        },
        far,
    ) = routed(&lab, 1300);
    let _server = serve(&far, "datagrams", "7100");
    let _streams = serve(&far, "serve", "7000");
    let forget = || {
        a.ok(&["ip", "route", "flush", "cache"]);
        a.ok(&["ip", "-6", "route", "flush", "cache"]);
    };
    for (i, to) in BEYOND.into_iter().enumerate() {
        let (ty, own) = if i == 0 {
            ("3 4", "192.0.2.1")
        } else {
            ("2 0", "2001:db8:1::1")
        };
        // The router says so first, then the host knows; it says so for each flow that asks.
        let said = peer(&a, &["told", to, "7100", "1400", "2"]);
        assert_eq!(said, format!("{ty} {} 1300 quoted", ROUTER[i]));
        for _ in 0..2 {
            forget();
            let said = peer(&a, &["told", to, "7100", "1400", "2"]);
            assert_eq!(said, format!("{ty} {own} 1300 not quoted"), "{to}");
        }
        // Who knows it sends in fragments, which are joined and cut anew.
        assert_eq!(
            peer(&a, &["told", to, "7100", "1400", "1"]),
            "answered 1400"
        );
        let said = peer(&a, &["datagram", to, "7100", "5000", "5"]);
        assert_eq!(said, "same 5", "{to}");
        forget();
        // Who forbids nothing is never told.
        if i == 0 {
            assert_eq!(
                peer(&a, &["told", to, "7100", "1400", "0"]),
                "answered 1400"
            );
        }
        let long = ["-c", "1", "-W", "3", "-M", "do", "-s", "1400"];
        let ping = a.ping_with(to, &long);
        let told = ["mtu = 1300", "mtu=1300"];
        let text = format!("{}{}", ping.stdout, ping.stderr);
        assert!(told.iter().any(|t| text.contains(t)), "{ping}");
        forget();
        let path = a.ok(&["tracepath", "-n", to]);
        assert!(
            path.contains("pmtu 1300") && path.contains("reached"),
            "{path}"
        );
        // A connection's segments are the host's own matter.
        for way in ["upload", "download"] {
            assert_eq!(peer(&a, &[way, to, "7000", "3000000"]), "same");
        }
    }
    d.assert_ledger();
}

#[test]
fn routes_are_traced_through_the_host() {
    let lab = tap_lab!("slirp-trace");
    let (
        Site {
            d,
            a,
            outside: _router,
        },
        far,
    ) = routed(&lab, 1500);
    let _server = serve(&far, "serve", "80");
    for (i, to) in BEYOND.into_iter().enumerate() {
        let own = ["192.0.2.1", "2001:db8:1::1"][i];
        // All neighbours on the way know each other, or the first probes may be lost.
        a.assert_ping(to);
        for how in ["-U", "-I", "-T"] {
            let said = a.ok(&["traceroute", "-n", "-q", "2", "-w", "3", how, to]);
            let hops: Vec<&str> = said
                .lines()
                .skip(1)
                .filter_map(|l| l.split_whitespace().nth(1))
                .collect();
            assert_eq!(hops, [own, ROUTER[i], to], "{how}: {said}");
        }
    }
    d.assert_ledger();
}
