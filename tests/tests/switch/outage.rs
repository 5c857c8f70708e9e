//! A container that dies or whose device vanishes takes its own port down, and no other.

use vswitch_tests::{Daemon, Node, tap_lab, wait_until};

use crate::rig::{attach, container, events, port, switch, told, wait_state};

/// Traffic of others runs from before to after `event`, and none of it is lost for good.
#[track_caller]
fn while_others_talk(a: &Node, event: impl FnOnce()) {
    let client = a.spawn(&["iperf3", "--client", "192.0.2.2", "-t", "3", "-i", "0.1"]);
    wait_until("the transfer to run", || client.output().contains("/sec"));
    event();
    let done = client.finish(std::time::Duration::from_secs(30));
    assert!(done.success(), "{done}");
    a.assert_ping("192.0.2.2");
}

#[track_caller]
fn goes_down(d: &Daemon, name: &str, reasons: &[&str]) {
    let reason = wait_state(d, name, "down");
    assert!(
        reasons.iter().any(|r| reason.contains(r)),
        "{name}: {reason}"
    );
}

#[test]
fn one_that_is_killed_harms_no_other() {
    let lab = tap_lab!("sw-killed");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let mut tap = container(&d, &lab, "tap", "192.0.2.3/24", &[]);
    let mut veth = container(&d, &lab, "veth", "192.0.2.4/24", &["--type", "veth"]);
    a.assert_ping("192.0.2.3");
    a.assert_ping("192.0.2.4");
    let listener = events(&d);
    let _server = b.iperf3_server();
    while_others_talk(&a, || {
        tap.kill();
        goes_down(&d, "tap", &["ended", "deleted"]);
        veth.kill();
        goes_down(&d, "veth", &["ended", "deleted"]);
    });
    for name in ["tap", "veth"] {
        assert!(told(&listener, "port_down", &[("port", name)]), "{name}");
        assert_eq!(port(&d, name)["config"]["up"], true, "it stays configured");
    }
    // The container is started again and gets its port back under the same name, with the same address.
    let again = lab.container("tap");
    let netns = format!("pid:{}", again.pid());
    d.ctl(&["port", "set", "tap", "--netns", &netns]);
    wait_state(&d, "tap", "up");
    a.assert_ping("192.0.2.3");
    d.assert_ledger();
}

#[test]
fn a_device_that_is_deleted_harms_no_other() {
    let lab = tap_lab!("sw-deleted");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let tap = container(&d, &lab, "tap", "192.0.2.3/24", &[]);
    let veth = container(&d, &lab, "veth", "192.0.2.4/24", &["--type", "veth"]);
    a.assert_ping("192.0.2.3");
    a.assert_ping("192.0.2.4");
    let _server = b.iperf3_server();
    while_others_talk(&a, || {
        tap.ok(&["ip", "link", "del", "eth0"]);
        goes_down(&d, "tap", &["deleted", "gone"]);
        veth.ok(&["ip", "link", "del", "eth0"]);
        goes_down(&d, "veth", &["deleted", "gone"]);
    });
    // The next change of anything brings them back.
    d.ctl(&["port", "set", "tap", "--mtu", "1400"]);
    for (name, address) in [("tap", "192.0.2.3"), ("veth", "192.0.2.4")] {
        wait_state(&d, name, "up");
        a.assert_ping(address);
    }
    d.assert_ledger();
}

#[test]
fn a_link_set_down_and_up_is_told() {
    let lab = tap_lab!("sw-link");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = lab.container("b");
    attach(&d, &b, "192.0.2.2/24", &["--type", "veth"]);
    a.assert_ping("192.0.2.2");
    let listener = events(&d);
    d.host().ok(&["ip", "link", "set", "vs-b", "down"]);
    wait_state(&d, "b", "down");
    d.host().ok(&["ip", "link", "set", "vs-b", "up"]);
    wait_state(&d, "b", "up");
    for event in ["port_down", "port_up"] {
        assert!(told(&listener, event, &[("port", "b")]), "{event}");
    }
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}
