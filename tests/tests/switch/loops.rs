//! Loops: found, cut at one port with the reason, and over when the cable is pulled.

use vswitch_tests::{Daemon, Mtu, tap_lab, wait_until};

use crate::rig::{bare, container, dropped, events, port, switch, told, wait_state};

/// Probes often enough for a test.
const FAST: [&str; 4] = ["--loop-interval", "500ms", "--loop-hold", "1s"];

/// One of the two is shut, with the other as the reason; returns its name and the other's.
fn wait_shut<'a>(d: &Daemon, ports: [&'a str; 2]) -> (&'a str, &'a str) {
    let shut = || ports.iter().position(|p| port(d, p)["state"] == "shut");
    wait_until("the loop to be cut", || shut().is_some());
    let i = shut().expect("it stays shut while the loop is there");
    let (name, other) = (ports[i], ports[1 - i]);
    let shown = port(d, name);
    let reason = shown["reason"].as_str().expect("a reason");
    assert!(reason.contains(&format!("`{other}`")), "{reason}");
    assert_eq!(port(d, other)["state"], "up", "only one is shut");
    (name, other)
}

#[test]
fn a_bridge_in_a_container_that_joins_two_ports() {
    let lab = tap_lab!("sw-loop");
    let d = switch(&lab, &FAST);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let _b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let looped = lab.container("looped");
    bare(&d, &looped, "l0", "eth0", &[]);
    bare(&d, &looped, "l1", "eth1", &[]);
    a.assert_ping("192.0.2.2");
    let listener = events(&d);
    looped.ok(&["ip", "link", "add", "br0", "type", "bridge"]);
    looped.ok(&["ip", "link", "set", "br0", "up"]);
    looped.ok(&["ip", "link", "set", "eth0", "master", "br0"]);
    looped.ok(&["ip", "link", "set", "eth1", "master", "br0"]);
    let (shut, _) = wait_shut(&d, ["l0", "l1"]);
    assert!(told(&listener, "loop_detected", &[("port", shut)]));
    // The others are served, and longer than the hold time.
    for _ in 0..3 {
        a.assert_ping("192.0.2.2");
        assert_eq!(port(&d, shut)["state"], "shut");
    }
    assert!(d.ctl(&["port", "show"]).contains("a loop with port"));
    wait_until("frames to be kept off the shut port", || {
        a.run(&["arping", "-c", "1", "-w", "1", "-I", "eth0", "192.0.2.77"]);
        dropped(&d, shut, "loop_guard") > 0
    });
    looped.ok(&["ip", "link", "set", "eth1", "nomaster"]);
    assert_eq!(wait_state(&d, shut, "up"), "");
    wait_until("the end to be told", || {
        told(&listener, "loop_cleared", &[("port", shut)])
    });
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}

#[test]
fn a_cable_between_two_ports() {
    let lab = tap_lab!("sw-cable");
    let d = switch(&lab, &FAST);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let _b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    lab.link(d.host(), "p0", d.host(), "p1", Mtu(1500));
    for name in ["p0", "p1"] {
        let argv = ["port", "add", name, "--network", "lan", "--kind", "packet"];
        d.ctl(&argv);
    }
    let (shut, other) = wait_shut(&d, ["p0", "p1"]);
    a.assert_ping("192.0.2.2");
    // Pulled out at the other end: the port opens and says so.
    d.ctl(&["port", "del", other]);
    assert_eq!(wait_state(&d, shut, "up"), "");
    // With the loop guard off at both there is nobody to ask; the cable is gone by now.
    d.ctl(&["port", "set", shut, "--loop-guard", "off"]);
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}
