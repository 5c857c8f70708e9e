//! The same frames through the gateway and through the kernel's masquerade (nftables), and what comes out compared.
//!
//! # Theory of operation
//! There are two paths from an inside to an outside with the same addresses: one through vswitchd, one through a namespace that
//! routes and masquerades. The ends' kernels are kept quiet (they answer ARP and ND and drop the rest), so that nothing but the
//! test's own frames is under way. `against_nftables.py` sends each frame into both paths and waits for both results. They have to be
//! the same byte for byte behind the Ethernet header; where the two may differ (a port that couldn't be kept and the checksums over
//! it, the identification of IPv6 fragments, which the kernel makes anew), the other fields have to be. That something was
//! translated at all, and that checksums are right, is checked beside.

use std::time::Duration;

use vswitch_tests::{Lab, Mtu, Node, tap_lab};

use crate::nat::site;

const SOCKETS: &str = include_str!("sockets.py");
const SCRIPT: &str = include_str!("against_nftables.py");

const MASQUERADE: &str = "\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"out\" masquerade
    }
}
table ip6 nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"out\" masquerade
    }
}
";

/// Drops what an end's kernel would answer, but for neighbour discovery.
const QUIET: &str = "\
table inet quiet {
    chain input {
        type filter hook input priority filter; policy drop;
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    }
}
";

fn nft(node: &Node, rules: &str) {
    node.ok_with_input(&["nft", "-f", "-"], rules.as_bytes());
}

/// The kernel's path: inside, router, outside.
fn kernel(lab: &Lab) -> [Node; 3] {
    let nodes = ["kernel-inside", "router", "kernel-outside"].map(|n| lab.host(n));
    let [inside, router, outside] = &nodes;
    lab.link(router, "in", inside, "eth0", Mtu(1500));
    lab.link(router, "out", outside, "eth0", Mtu(1500));
    router.ok(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    router.ok(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]);
    for (node, device, addresses) in [
        (router, "in", ["192.0.2.1/24", "2001:db8:1::1/64"]),
        (router, "out", ["198.51.100.1/24", "2001:db8:2::1/64"]),
        (inside, "eth0", ["192.0.2.10/24", "2001:db8:1::10/64"]),
        (inside, "eth0", ["192.0.2.11/24", "2001:db8:1::11/64"]),
        (outside, "eth0", ["198.51.100.254/24", "2001:db8:2::254/64"]),
    ] {
        for address in addresses {
            node.addr(device, address);
        }
    }
    router.route("default", "198.51.100.254");
    router.ok(&[
        "ip",
        "-6",
        "route",
        "add",
        "default",
        "via",
        "2001:db8:2::254",
    ]);
    nft(router, MASQUERADE);
    nodes
}

#[test]
fn frames_leave_as_from_the_kernels_masquerade() {
    let lab = tap_lab!("against-nftables");
    let s = site(&lab, &[]);
    let [inside, router, outside] = kernel(&lab);
    for (node, gateway) in [
        (&s.a, "192.0.2.1"),
        (&s.b, "192.0.2.1"),
        (&s.outside, "198.51.100.1"),
        (&inside, "192.0.2.1"),
        (&outside, "198.51.100.1"),
    ] {
        node.assert_ping(gateway);
        nft(node, QUIET);
    }
    let mac = |node: &Node, gateway: &str| {
        let shown = node.ok(&["ip", "neigh", "show", gateway]);
        let mac = shown.split_whitespace().skip_while(|w| *w != "lladdr");
        mac.skip(1).map(str::to_owned).next().unwrap()
    };
    let (lan, wan) = (mac(&s.a, "192.0.2.1"), mac(&s.outside, "198.51.100.1"));
    let script = format!(
        "{SOCKETS}\nKERNEL_LAN, KERNEL_WAN = '{}', '{}'\n{SCRIPT}",
        router.mac("in"),
        router.mac("out")
    );
    let nodes = [
        ("outside", &s.outside),
        ("a", &s.a),
        ("b", &s.b),
        ("kernel-inside", &inside),
        ("kernel-outside", &outside),
    ];
    let nodes = nodes.map(|(name, node)| format!("{name}={}", node.pid()));
    let mut argv = vec!["/usr/bin/python3", "-c", &script, &wan, &lan];
    argv.extend(nodes.iter().map(String::as_str));
    let out = s.outside.run_for(&argv, Duration::from_secs(120));
    assert!(out.success(), "{}\n{}", out.stdout, out.stderr);
    // The program names each comparison it has made.
    assert!(out.stdout.contains("all compared"), "{}", out.stdout);
    println!("{}", out.stdout);
    s.d.assert_ledger();
}
