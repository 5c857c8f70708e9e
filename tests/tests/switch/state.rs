//! What is configured stays: over restarts with real traffic, and in transactions that fail half-way.

use vswitch_tests::tap_lab;

use crate::rig::{attach, container, port, switch, wait_state};

#[test]
fn a_restart_brings_containers_back() {
    let lab = tap_lab!("sw-restart");
    let mut d = switch(&lab, &["--snooping", "on"]);
    let a = container(
        &d,
        &lab,
        "a",
        "192.0.2.1/24",
        &["--mac", "02:00:00:00:00:0a"],
    );
    let b = lab.container("b");
    let options = ["--type", "veth", "--isolated", "on"];
    attach(&d, &b, "192.0.2.2/24", &options);
    a.assert_ping("192.0.2.2");
    let before = d.ctl(&["export"]);
    // An address nobody chose stays too, so that neighbours needn't ask anew.
    let mac = b.mac("eth0");
    d.assert_ledger();
    d.kill();
    d.restart();
    assert_eq!(d.ctl(&["export"]), before);
    for name in ["a", "b"] {
        assert_eq!(wait_state(&d, name, "up"), "");
    }
    assert_eq!(a.mac("eth0"), "02:00:00:00:00:0a");
    assert_eq!(b.mac("eth0"), mac);
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}

#[test]
fn a_topology_that_is_half_wrong_changes_nothing() {
    let lab = tap_lab!("sw-half");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let _b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    a.assert_ping("192.0.2.2");
    let before = d.ctl(&["export"]);
    let file = lab.dir().join("t.toml");
    let apply = |text: &str| {
        std::fs::write(&file, text).expect("write the topology");
        d.ctl_fails(&["apply", file.to_str().expect("UTF-8")])
    };
    // The first ports are good and some of them new; the last one can't be had.
    let good = before.replace(
        "[ports.b]",
        "[ports.c]\nnetwork = \"lan\"\n\n[ports.b]\nisolated = true",
    );
    assert_ne!(good, before);
    let error = apply(&format!(
        "{good}\n[ports.z]\nnetwork = \"lan\"\nkind = \"packet\"\ndevice = \"none0\"\n"
    ));
    assert!(error.contains("`z`") && error.contains("none0"), "{error}");
    assert_eq!(d.ctl(&["export"]), before);
    assert_eq!(port(&d, "b")["config"]["isolated"], false);
    let links = d.host().ok(&["ip", "-o", "link"]);
    assert!(!links.contains(" c:"), "what was opened is closed: {links}");
    a.assert_ping("192.0.2.2");
    // Wrong by itself: nothing is even opened.
    let error = apply(&good.replace("network = \"lan\"", "network = \"lna\""));
    assert!(error.contains("did you mean `lan`"), "{error}");
    assert_eq!(d.ctl(&["export"]), before);
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
}
