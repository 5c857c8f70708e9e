//! A NAT's behaviour by the requirements of RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP).
//!
//! # Theory of operation
//! A test sets up a [`site`] and runs one Python program that has sockets in the namespaces of both containers and of the outside
//! host at once (`sockets.py`), so that every step is in order; frames no kernel sends are made with scapy. [`table`] names
//! each requirement, what the gateway does, and the test that shows it; the README has the same table.

mod icmp;
mod table;
mod tcp;
mod udp;

use crate::nat::{Site, site};
use std::time::Duration;
use vswitch_tests::{Lab, Node};

const SOCKETS: &str = include_str!("../sockets.py");

/// Runs a program with sockets in all namespaces of the site; its assertions are the test's.
#[track_caller]
pub(crate) fn program(s: &Site, script: &str) -> String {
    let mac = |node: &Node, gateway: &str| {
        node.ok(&["ping", "-c", "1", "-W", "5", gateway]);
        let shown = node.ok(&["ip", "neigh", "show", gateway]);
        let mac = shown.split_whitespace().skip_while(|w| *w != "lladdr");
        mac.skip(1).map(str::to_owned).next().unwrap()
    };
    let nodes = [("outside", &s.outside), ("a", &s.a), ("b", &s.b)];
    let nodes = nodes.map(|(name, node)| format!("{name}={}", node.pid()));
    let script = format!("{SOCKETS}\n{script}");
    let (wan, lan) = (mac(&s.outside, "198.51.100.1"), mac(&s.a, "192.0.2.1"));
    let mut argv = vec!["/usr/bin/python3", "-c", &script, &wan, &lan];
    argv.extend(nodes.iter().map(String::as_str));
    let out = s.outside.run_for(&argv, Duration::from_secs(60));
    assert!(out.success(), "{}\n{}", out.stdout, out.stderr);
    out.stdout
}

/// A site whose connection tracking has settings of its own (TOML below `[conntrack]`).
pub(crate) fn tracked_site(lab: &Lab, settings: &str, args: &[&str]) -> Site {
    let file = lab.dir().join("topology.toml");
    std::fs::write(&file, format!("[conntrack]\n{settings}\n")).unwrap();
    let file = file.to_str().unwrap();
    site(lab, &[&["--topology", file], args].concat())
}

/// A site with the defaults.
pub(crate) fn plain_site(lab: &Lab) -> Site {
    site(lab, &[])
}
