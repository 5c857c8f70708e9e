//! A network without a prefix: a container with the host's own address and router, all else behind the gateway.

use crate::rig::{FAR, peer, serve};
use vswitch_tests::{Mtu, tap_lab};

#[test]
fn a_container_has_the_hosts_own_address() {
    let lab = tap_lab!("slirp-hosts");
    let (outside, d) = (lab.host("outside"), lab.daemon());
    lab.link(d.host(), "out0", &outside, "eth0", Mtu(1500));
    for (node, interface, last) in [(d.host(), "out0", "1"), (&outside, "eth0", "254")] {
        node.addr(interface, &format!("198.51.100.{last}/24"));
        node.addr(interface, &format!("2001:db8:2::{last}/64"));
    }
    d.host().route("default", FAR[0]);
    d.ctl(&["network", "add", "lan"]);
    d.ctl(&[
        "gateway",
        "set",
        "lan",
        "--addresses",
        "192.0.0.8/32,192.0.0.9/32",
        "--hosts",
        "198.51.100.1,2001:db8:2::1",
        "--dns",
        "on",
        "--dns-at",
        "192.0.0.9",
        "--dns-record",
        "www=192.0.2.80",
        "--host-uplink",
        "on",
        "--host-own-address",
        "192.0.0.10",
    ]);
    let a = lab.container("a");
    let pid = a.pid().to_string();
    let addresses = "198.51.100.1/24,2001:db8:2::1/64";
    let gateways = "198.51.100.254,2001:db8:2::254";
    d.ctl(&[
        "attach", "--pid", &pid, "--ip", addresses, "--gw", gateways, "--name", "a", "lan",
    ]);
    let _server = serve(&outside, "serve", "7000");
    let _own = serve(d.host(), "serve", "7002");
    // The neighbour on the link is behind the gateway as well.
    for (far, as_host) in FAR.iter().zip(["198.51.100.1", "2001:db8:2::1"]) {
        assert_eq!(peer(&a, &["download", far, "7000", "20000000"]), "same");
        assert_eq!(peer(&a, &["upload", far, "7000", "20000000"]), "same");
        assert!(peer(&a, &["peer", far, "7000"]).ends_with(as_host));
    }
    // The host itself, though the container has its address.
    assert_eq!(peer(&a, &["echo", "192.0.0.10", "7002", "hello"]), "5");
    let dig = |at: &str| {
        a.run(&[
            "dig",
            "+short",
            "+time=1",
            "+tries=1",
            at,
            "www.lan.internal",
        ])
    };
    assert_eq!(dig("@192.0.0.9").expect_ok().trim(), "192.0.2.80");
    assert!(!dig("@192.0.0.8").success());
    // Nobody answers for an address that the container probes, or it couldn't have one.
    let probe = [
        "arping",
        "-D",
        "-I",
        "eth0",
        "-c",
        "2",
        "-w",
        "2",
        "198.51.100.7",
    ];
    a.ok(&probe);
    d.assert_ledger();
}
