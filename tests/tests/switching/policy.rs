//! What may be is the same for both ways.

use crate::rig::{FAR, serve, site};
use serde_json::json;
use vswitch_tests::{tap_lab, wait_until};

#[test]
fn policy_holds_for_those_that_begin_and_those_under_way() {
    let lab = tap_lab!("switching-policy");
    let s = site(&lab);
    let _servers = ["7000", "7001"].map(|p| serve(&s.outside, p));
    // The first that is about it has the say, by name.
    let add = |name: &str, rule: &str| {
        let about = ["--from", "network:lan", "--default", "accept"];
        s.d.ctl(&[&["policy", "add", name], &about[..], &["--rule", rule]].concat());
    };
    add("c", "reject to 198.51.100.254 proto tcp ports 7001");
    assert_eq!(s.peer(&["attempt", FAR[0], "7000"]), "connected");
    let said = s.peer(&["attempt", FAR[0], "7001"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    assert_eq!(
        (s.switched(), s.by_network("policy")),
        (1, 1),
        "{}",
        s.counts()
    );
    // One under way is shown, and reset when it may not be any more.
    let mut under_way = s.start_client(&["until_gone", FAR[0], "7000"]);
    under_way.wait_for("began");
    let shown = || {
        s.connections()
            .into_iter()
            .find(|c| c["state"] == "established")
    };
    wait_until("it is shown, with what it has sent", || {
        shown().is_some_and(|c| c["original"]["bytes"].as_u64() > Some(10))
    });
    let c = shown().expect("it is");
    assert_eq!(c["original"]["src"], "192.0.2.10", "{c}");
    assert_eq!(c["original"]["dst"], FAR[0]);
    assert_eq!(c["reply"]["dst"], "198.51.100.1");
    assert_eq!(c["original"]["src_port"], c["reply"]["dst_port"]);
    assert_eq!(s.counts()["connections"], 1);
    add("b", "drop to 198.51.100.254 proto tcp ports 7000");
    under_way.wait_for("ECONN");
    wait_until("nothing is left of it", || s.counts()["connections"] == 0);
    assert_eq!(s.counts()["reset"], 1);
    s.d.ctl(&["policy", "del", "b"]);
    // Flushed.
    let mut under_way = s.start_client(&["until_gone", FAR[1], "7000"]);
    under_way.wait_for("began");
    wait_until("it is there", || s.connections().len() == 1);
    s.d.ctl(&["conntrack", "flush", "--dst", "2001:db8:2::254/128"]);
    under_way.wait_for("ECONN");
    // A rule that asks for the port that a program leaves to the kernel has to see it.
    add("a", "drop proto tcp source-ports 1-1023");
    let switched = s.switched();
    assert_eq!(s.peer(&["attempt", FAR[0], "7000"]), "connected");
    assert_eq!(s.switched(), switched);
    s.d.assert_ledger();
}

#[test]
fn a_port_that_is_looked_at_or_limited_keeps_the_network() {
    let lab = tap_lab!("switching-guarded");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    let attempt = |wanted: u64| {
        assert_eq!(s.peer(&["attempt", FAR[0], "7000"]), "connected");
        assert_eq!(s.switched(), wanted, "{}", s.counts());
    };
    attempt(1);
    for (set, unset) in [
        (["--egress-rate", "1gbit"], "egress_rate"),
        (["--allowed-macs", &s.a.mac("eth0")], "allowed_macs"),
    ] {
        s.d.ctl(&[&["port", "set", "a"], &set[..]].concat());
        let before = s.switched();
        attempt(before);
        s.d.ctl(&["port", "set", "a", "--unset", unset]);
        attempt(before + 1);
    }
    // Another address than it may have.
    s.d.ctl(&["port", "set", "a", "--allowed-ips", "192.0.2.99/32"]);
    let before = s.switched();
    let said =
        s.d.http("PATCH", "/v1/ports/a", Some(&json!({"allowed_ips": null})));
    assert_eq!(said.status, 200);
    attempt(before + 1);
    // The gateway's word counts at once, and a launcher is told.
    s.d.ctl(&["gateway", "set", "lan", "--socket-switching", "off"]);
    let command = s.d.ctl_command();
    let run = [
        &command.each_ref().map(String::as_str)[..],
        &["run", "a", "--", "true"],
    ]
    .concat();
    let out = s.a.run(&run);
    assert_eq!(out.code, Some(1), "{out}");
    assert!(out.stderr.contains("--socket-switching on"), "{out}");
    let none = s.d.ctl_fails(&["run", "nobody", "--", "true"]);
    assert!(none.contains("nobody"), "{none}");
}
