//! ARP, ND and echo of the gateway's addresses; routing between networks.

use vswitch_tests::{Daemon, Lab, Node, tap_lab};

/// Two networks with a container each, joined by the gateway.
fn two_networks(lab: &Lab, args: &[&str]) -> (Daemon, Node, Node) {
    let d = lab.daemon_with().args(args).start();
    for (network, addresses) in [
        ("red", "192.0.2.1/24,2001:db8:1::1/64"),
        ("blue", "198.51.100.1/24,2001:db8:2::1/64"),
    ] {
        d.ctl(&["network", "add", network]);
        d.ctl(&["gateway", "set", network, "--addresses", addresses]);
    }
    let (a, b) = (lab.container("a"), lab.container("b"));
    let ips = "192.0.2.10/24,2001:db8:1::10/64";
    d.attach(&a, "red", ips, &["--gw", "192.0.2.1,2001:db8:1::1"]);
    let ips = "198.51.100.10/24,2001:db8:2::10/64";
    d.attach(&b, "blue", ips, &["--gw", "198.51.100.1,2001:db8:2::1"]);
    (d, a, b)
}

fn answers_and_routes(workers: &str) {
    let lab = tap_lab!("gateway");
    let (d, a, b) = two_networks(&lab, &["--workers", workers]);
    for own in ["192.0.2.1", "2001:db8:1::1", "198.51.100.1"] {
        a.assert_ping(own);
    }
    for far in ["198.51.100.10", "2001:db8:2::10"] {
        a.assert_ping(far);
        let big = a.ping_with(far, &["-c", "1", "-W", "2", "-s", "1452"]);
        // The reply's TTL has been taken down once.
        assert!(big.stdout.contains("ttl=63"), "{big}");
    }
    let _server = b.iperf3_server();
    for far in ["198.51.100.10", "2001:db8:2::10"] {
        let run = a.iperf3(far, &["-n", "50M"]);
        assert!(run.received_bytes > 40_000_000, "{:?}", run.report["end"]);
    }
    a.assert_no_checksum_errors();
    b.assert_no_checksum_errors();
    let neighbours = d.ctl(&["gateway", "neighbours"]);
    assert!(neighbours.contains("198.51.100.10"), "{neighbours}");
    let fdb = d.ctl(&["fdb", "show", "red"]);
    assert!(fdb.contains("@gateway"), "{fdb}");
    d.assert_ledger();
}

#[test]
fn the_gateway_answers_and_routes() {
    answers_and_routes("1");
}

#[test]
fn one_of_two_workers_has_the_gateway() {
    answers_and_routes("2");
}

#[test]
fn a_host_that_is_not_there_is_given_up() {
    let lab = tap_lab!("gateway-nobody");
    let (d, a, _b) = two_networks(&lab, &[]);
    a.assert_no_ping("198.51.100.77");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let neighbours = d.ctl_json(&["gateway", "neighbours"]);
    let silent = neighbours.as_array().unwrap().iter();
    let silent: Vec<_> = silent.filter(|n| n["mac"].is_null()).collect();
    assert_eq!(silent.len(), 1, "{neighbours}");
    let drops = d.ctl_json(&["stats"]);
    assert!(drops.to_string().contains("no_neighbour"), "{drops}");
    d.assert_ledger();
}

#[test]
fn a_gateway_is_taken_away_and_its_address_protected() {
    let lab = tap_lab!("gateway-del");
    let (d, a, _b) = two_networks(&lab, &[]);
    let mac = d.ctl_json(&["gateway", "show"]);
    assert_eq!(mac.as_array().unwrap().len(), 2);
    let err = d.ctl_fails(&["gateway", "set", "red", "--addresses", "198.51.100.9/24"]);
    assert!(err.contains("overlaps"), "{err}");
    let err = d.ctl_fails(&["gateway", "set", "red", "--route", "0.0.0.0/0=203.0.113.9"]);
    assert!(err.contains("203.0.113.9"), "{err}");
    a.assert_ping("192.0.2.1");
    d.ctl(&["gateway", "del", "red"]);
    a.assert_no_ping("192.0.2.1");
    d.assert_ledger();
}
