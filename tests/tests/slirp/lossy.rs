//! A wire between container and switch that loses, doubles and reorders: every byte arrives all the same.
//!
//! The kernel here has no netem. So the container's link ends in a machine in between, where a relay does to its frames what a seed says.

use crate::rig::{FAR, ground, peer, serve};
use vswitch_tests::{Background, Daemon, Lab, Mtu, Node, tap_lab};

const RELAY: &str = include_str!("lossy.py");

struct Bad {
    d: Daemon,
    a: Node,
    outside: Node,
    between: Node,
}

fn site(lab: &Lab) -> Bad {
    let (d, outside) = ground(lab, "1500", |_| {});
    let (a, between) = (lab.container("a"), lab.host("between"));
    lab.link(&a, "eth0", &between, "c0", Mtu(1500));
    lab.link(d.host(), "sw0", &between, "s0", Mtu(1500));
    // Frames as a wire has them, one by one. What the switch sends is cut by the relay.
    for feature in ["tso", "gso"] {
        a.offload("eth0", feature, false);
    }
    a.addr("eth0", "192.0.2.10/24");
    a.addr("eth0", "2001:db8:1::10/64");
    a.route("default", "192.0.2.1");
    a.route("default", "2001:db8:1::1");
    d.ctl(&["port", "add", "sw0", "--network", "lan", "--kind", "packet"]);
    Bad {
        d,
        a,
        outside,
        between,
    }
}

impl Bad {
    fn wire(&self, percent: &str, seed: &str) -> Background {
        let argv = ["/usr/bin/python3", "-c", RELAY, "c0", "s0", percent, seed];
        let mut relay = self.between.spawn(&argv);
        relay.wait_for("relaying");
        relay
    }
}

fn transfers(percent: &str, seed: &str, bytes: &str) {
    let lab = tap_lab!("slirp-lossy");
    let site = site(&lab);
    let _server = serve(&site.outside, "serve", "7000");
    let relay = site.wire(percent, seed);
    for (way, far) in [
        ("upload", FAR[0]),
        ("download", FAR[0]),
        ("download", FAR[1]),
        ("upload", FAR[1]),
    ] {
        let said = peer(&site.a, &[way, far, "7000", bytes]);
        assert_eq!(said, "same", "{way} {far} at {percent} %");
    }
    let said = peer(&site.a, &["both", FAR[0], "7000", bytes]);
    assert!(said.starts_with("same"), "both at {percent} %: {said}");
    let said = relay.interrupt().stdout;
    println!("{percent} %: {said}");
    for count in ["'lost': 0", "'doubled': 0", "'late': 0", "not sent"] {
        assert!(!said.contains(count), "it did nothing: {said}");
    }
    site.d.assert_ledger();
}

#[test]
fn bytes_arrive_where_one_frame_in_a_thousand_is_lost() {
    transfers("0.1", "1", "67108864");
}

#[test]
fn bytes_arrive_where_one_frame_in_a_hundred_is_lost() {
    transfers("1", "2", "16777216");
}

#[test]
fn bytes_arrive_where_one_frame_in_twenty_is_lost() {
    transfers("5", "3", "4194304");
}
