//! A daemon as the host, a container behind it, and a machine outside that knows the host only.

use std::time::Duration;
use vswitch_tests::{Background, Daemon, Lab, Mtu, Node};

pub(crate) const PEER: &str = include_str!("peer.py");
pub(crate) const FAR: [&str; 2] = ["198.51.100.254", "2001:db8:2::254"];
/// The host, as it is known outside.
pub(crate) const HOST: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];

pub(crate) struct Site {
    pub(crate) d: Daemon,
    pub(crate) a: Node,
    pub(crate) outside: Node,
}

/// Inside 192.0.2.0/24 and 2001:db8:1::/64, the host 198.51.100.1 and 2001:db8:2::1, outside 198.51.100.254 and 2001:db8:2::254.
pub(crate) fn site(lab: &Lab, mtu: &str) -> Site {
    site_of(lab, mtu, |_| {})
}

/// The same, with something done to the daemon before it has a host uplink.
pub(crate) fn site_of(lab: &Lab, mtu: &str, first: impl FnOnce(&Daemon)) -> Site {
    let outside = lab.host("outside");
    let d = lab.daemon();
    first(&d);
    lab.link(d.host(), "out0", &outside, "eth0", Mtu(1500));
    for (node, interface, last) in [(d.host(), "out0", "1"), (&outside, "eth0", "254")] {
        node.addr(interface, &format!("198.51.100.{last}/24"));
        node.addr(interface, &format!("2001:db8:2::{last}/64"));
    }
    d.ctl(&["network", "add", "lan"]);
    d.ctl(&[
        "gateway",
        "set",
        "lan",
        "--mtu",
        mtu,
        "--host-uplink",
        "on",
        "--addresses",
        "192.0.2.1/24,2001:db8:1::1/64",
    ]);
    let a = lab.container("a");
    let pid = a.pid().to_string();
    d.ctl(&[
        "attach",
        "--pid",
        &pid,
        "--ip",
        "192.0.2.10/24,2001:db8:1::10/64",
        "--gw",
        "192.0.2.1,2001:db8:1::1",
        "--mtu",
        mtu,
        "--name",
        "a",
        "lan",
    ]);
    Site { d, a, outside }
}

/// Starts a server of peer.py.
pub(crate) fn serve(node: &Node, what: &str, port: &str) -> Background {
    let mut server = node.spawn(&["/usr/bin/python3", "-c", PEER, what, port]);
    server.wait_for("serving");
    server
}

/// Runs peer.py to its end; what it printed.
pub(crate) fn peer(node: &Node, args: &[&str]) -> String {
    let argv = [&["/usr/bin/python3", "-c", PEER][..], args].concat();
    let out = node.run_for(&argv, Duration::from_secs(120));
    out.expect_ok().trim().to_owned()
}
