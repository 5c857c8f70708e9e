//! `vswitchctl attach`: a container with its interface, addresses and route by one command.

use vswitch_tests::tap_lab;

#[test]
fn containers_are_attached_by_tap_and_by_veth() {
    let lab = tap_lab!("ctl-attach");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    let pid = a.pid().to_string();
    d.ctl(&[
        "attach",
        "--pid",
        &pid,
        "--ip",
        "192.0.2.1/24,2001:db8::1/64",
        "--gw",
        "192.0.2.254",
        "--mac",
        "02:00:00:00:00:0a",
        "--mtu",
        "1400",
        "--name",
        "a",
        "lan",
    ]);
    let netns = b.netns_path();
    d.ctl(&[
        "attach",
        "--netns",
        netns.to_str().unwrap(),
        "--ip",
        "192.0.2.2/24",
        "--type",
        "veth",
        "--device",
        "net0",
        "--name",
        "a-port-with-a-long-name",
        "lan",
    ]);
    a.assert_ping("192.0.2.2");
    b.assert_ping("192.0.2.1");
    let link = a.ok(&["ip", "-o", "link", "show", "eth0"]);
    assert!(
        link.contains("02:00:00:00:00:0a") && link.contains("mtu 1400"),
        "{link}"
    );
    assert!(
        a.ok(&["ip", "-6", "address", "show", "eth0"])
            .contains("2001:db8::1/64")
    );
    assert!(
        a.ok(&["ip", "route"])
            .contains("default via 192.0.2.254 dev eth0")
    );
    let near = |d: &vswitch_tests::Daemon| d.host().ok(&["ip", "-o", "link"]).contains("vs-");
    assert!(near(&d), "the near end is the daemon's");
    d.assert_ledger();
    d.ctl(&["port", "del", "a-port-with-a-long-name"]);
    assert!(!near(&d), "the pair goes with its port");
    let missing = b.run(&["ip", "link", "show", "net0"]);
    assert_ne!(missing.code, Some(0), "{missing}");
}

#[test]
fn an_attachment_that_fails_leaves_nothing() {
    let lab = tap_lab!("ctl-attach-fails");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let a = lab.container("a");
    let pid = a.pid().to_string();
    for kind in ["tap", "veth"] {
        let err = d.ctl_fails(&[
            "attach",
            "--pid",
            &pid,
            "--ip",
            "192.0.2.1/24",
            "--gw",
            "203.0.113.1",
            "--type",
            kind,
            "lan",
        ]);
        assert!(err.contains("203.0.113.1"), "{err}");
        assert_ne!(
            a.run(&["ip", "link", "show", "eth0"]).code,
            Some(0),
            "{kind}"
        );
    }
    let err = d.ctl_fails(&[
        "attach",
        "--pid",
        "2147483647",
        "--ip",
        "192.0.2.1/24",
        "lan",
    ]);
    assert!(err.contains("process 2147483647"), "{err}");
    assert_eq!(d.ctl_json(&["port", "show"]), serde_json::json!([]));
}
