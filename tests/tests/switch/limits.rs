//! Storm control, rates, MAC limits, a bounded FDB.

use vswitch_tests::{Daemon, Node, tap_lab, wait_until};

use crate::rig::{container, counter, dropped, events, frame, macof, switch, told, wait_dropped};

#[test]
fn storms_of_each_sort_are_cut() {
    let lab = tap_lab!("sw-storm");
    let d = switch(&lab, &[]);
    let limits = [
        "--broadcast-limit",
        "50pps",
        "--multicast-limit",
        "50pps",
        "--unknown-limit",
        "50pps",
    ];
    let a = container(&d, &lab, "a", "192.0.2.1/24", &limits);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    a.assert_ping("192.0.2.2");
    let source = [2, 0, 0, 0, 0, 1];
    for destination in [[0xff; 6], [1, 0, 0x5e, 1, 2, 3], [2, 0, 0, 0, 0, 0x77]] {
        let before = dropped(&d, "a", "storm_control");
        let seen = b.capture("eth0", "ether proto 0x88b6");
        a.send_frames("eth0", &vec![frame(destination, source); 1000]);
        wait_dropped(&d, "a", "storm_control", before + 500);
        // Known unicast isn't limited.
        a.assert_ping("192.0.2.2");
        let passed = seen.count();
        // The burst of a second, and 50 for each second that it took; without a limit it's 1000.
        assert!((40..500).contains(&passed), "{passed} frames passed");
    }
    d.ctl(&["port", "set", "a", "--unset", "storm"]);
    let before = dropped(&d, "a", "storm_control");
    a.send_frames("eth0", &vec![frame([0xff; 6], source); 200]);
    a.assert_ping("192.0.2.2");
    assert_eq!(dropped(&d, "a", "storm_control"), before);
    d.assert_ledger();
}

/// The order of magnitude of a rate limit, for a port that sends or receives.
#[track_caller]
fn limited(d: &Daemon, a: &Node, port: &str, option: &str, field: &str, reason: &str) {
    d.ctl(&["port", "set", port, option, "50mbit"]);
    let mbit = a.iperf3("192.0.2.2", &["-t", "2"]).bits_per_second / 1e6;
    println!("{option} 50mbit: {mbit:.1} Mbit/s");
    // The burst of a fifth of a second counts on top.
    assert!((5.0..80.0).contains(&mbit), "{option}: {mbit} Mbit/s");
    assert!(dropped(d, port, reason) > 0);
    d.ctl(&["port", "set", port, "--unset", field]);
}

#[test]
fn tcp_keeps_to_the_rates_of_a_port() {
    let lab = tap_lab!("sw-rate");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let _server = b.iperf3_server();
    limited(
        &d,
        &a,
        "a",
        "--ingress-rate",
        "ingress_rate",
        "ingress_rate",
    );
    limited(&d, &a, "b", "--egress-rate", "egress_rate", "egress_rate");
    let free = a.iperf3("192.0.2.2", &["-t", "1"]).bits_per_second / 1e6;
    assert!(free > 100.0, "without a limit: {free} Mbit/s");
    d.assert_ledger();
}

#[test]
fn a_port_learns_as_many_addresses_as_it_may() {
    let lab = tap_lab!("sw-maclimit");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &["--mac-limit", "8"]);
    let _b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    a.assert_ping("192.0.2.2");
    let listener = events(&d);
    macof(&a, 300);
    wait_dropped(&d, "a", "mac_limit", 200);
    let learned = d.ctl_json(&["fdb", "show", "lan", "--port", "a"]);
    assert_eq!(learned.as_array().map(Vec::len), Some(8), "{learned}");
    wait_until("the limit to be told", || {
        told(&listener, "limit_reached", &[("port", "a")])
    });
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}

#[test]
fn the_fdb_is_bounded_and_ages() {
    let lab = tap_lab!("sw-fdb");
    let d = switch(&lab, &["--fdb-limit", "64"]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    macof(&a, 500);
    wait_until("the flood to arrive", || {
        counter(&d, "a", "rx_frames") > 400
    });
    let entries = || d.ctl_json(&["network", "show", "lan"])[0]["fdb_entries"].as_u64();
    assert!(
        (32..=64).contains(&entries().expect("a number")),
        "{:?}",
        entries()
    );
    // A full table floods: nobody is cut off.
    a.assert_ping("192.0.2.2");
    b.assert_ping("192.0.2.1");
    d.ctl(&["network", "set", "lan", "--ageing", "1s"]);
    let listener = events(&d);
    a.assert_ping("192.0.2.2");
    wait_until("all to be forgotten", || entries() == Some(0));
    wait_until("ageing to be told", || told(&listener, "mac_aged", &[]));
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}
