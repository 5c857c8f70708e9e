//! Every command, a typo in each, and the exit codes.

use vswitch_tests::lab;

#[test]
fn networks_are_added_changed_shown_and_deleted() {
    let lab = lab!("ctl-network");
    let d = lab.daemon();
    d.ctl(&[
        "network",
        "add",
        "lan",
        "--ageing",
        "60s",
        "--vlan-aware",
        "on",
    ]);
    let networks = d.ctl_json(&["network", "show"]);
    assert_eq!(networks[0]["name"], "lan");
    assert_eq!(networks[0]["config"]["ageing"], "60s");
    assert_eq!(networks[0]["config"]["vlan_aware"], true);
    d.ctl(&["network", "set", "lan", "--ageing", "5m"]);
    let network = d.ctl_json(&["network", "show", "lan"]);
    assert_eq!(network[0]["config"]["ageing"], "300s");
    assert_eq!(
        network[0]["config"]["vlan_aware"], true,
        "what isn't named stays"
    );
    assert!(d.ctl(&["network", "show"]).contains("vlan-aware"));
    d.ctl(&["network", "del", "lan"]);
    assert_eq!(d.ctl_json(&["network", "show"]), serde_json::json!([]));
}

#[test]
fn refusals_name_act_thing_and_remedy_and_have_exit_codes() {
    let lab = lab!("ctl-refusals");
    let mut d = lab.daemon();
    d.ctl(&["network", "add", "frontend"]);
    let code = |args: &[&str]| {
        let out = d.run_ctl(args);
        assert!(out.stdout.is_empty(), "{args:?}: {}", out.stdout);
        (out.code.unwrap_or(-1), out.stderr)
    };
    // Typos: the right name is proposed.
    for args in [
        &["network", "show", "fronted"][..],
        &["network", "set", "fronted", "--ageing", "1s"],
        &["network", "del", "fronted"],
        &["fdb", "show", "fronted"],
        &["fdb", "flush", "fronted"],
        &["port", "add", "web", "--network", "fronted"],
    ] {
        let (code, err) = code(args);
        assert_eq!(code, 4, "{args:?}: {err}");
        assert!(err.contains("did you mean `frontend`?"), "{args:?}: {err}");
    }
    for args in [
        &["port", "show", "web"][..],
        &["port", "set", "web", "--mtu", "1400"],
        &["port", "del", "web"],
        &["stats", "web"],
        &["mirror", "del", "m"],
        &["mirror", "add", "m", "--target", "web", "--ingress", "db"],
        &["fdb", "add", "frontend", "02:00:00:00:00:01", "web"],
        &["fdb", "del", "frontend", "02:00:00:00:00:01"],
    ] {
        let (code, err) = code(args);
        assert_eq!(code, 4, "{args:?}: {err}");
        assert!(
            err.contains("vswitchctl: ") && err.contains(';'),
            "{args:?}: {err}"
        );
    }
    let (exists, err) = code(&["network", "add", "frontend"]);
    assert_eq!(exists, 1, "{err}");
    for args in [
        &["netwrok", "show"][..],
        &["network", "add", "x", "--ageing", "5 parsecs"],
        &["network", "ad", "x"],
        &["port", "add", "x"],
        &["attach", "frontend"],
        &["completions", "tcsh"],
        &["network", "set", "frontend"],
        &["port", "set", "web"],
        &["top", "--interval", "0"],
    ] {
        let (code, err) = code(args);
        assert_eq!(code, 2, "{args:?}: {err}");
    }
    let (unknown, err) = code(&["apply", "/no/such/file.toml"]);
    assert_eq!(unknown, 1);
    assert!(err.contains("/no/such/file.toml"), "{err}");
    d.stop();
    let out = d.run_ctl(&["port", "show"]);
    assert_eq!(out.code, Some(3), "{out}");
    assert!(out.stderr.contains("vswitchd run"), "{out}");
}

#[test]
fn what_cant_be_meant_is_refused_with_a_remedy() {
    let lab = lab!("ctl-meant");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    d.ctl(&["network", "add", "wan"]);
    let gateway = |addresses| {
        vec![
            "gateway",
            "set",
            "lan",
            "--addresses",
            addresses,
            "--ra",
            "off",
        ]
    };
    let stream = |path| {
        let port = ["port", "add", "s", "--network", "lan", "--kind", "stream"];
        [&port[..], &["--listen", path]].concat()
    };
    let attach = |address| vec!["attach", "lan", "--netns", "web", "--ip", address];
    for (args, code, said) in [
        (vec!["events", "--only", "port_dwn"], 2, "port_down"),
        (vec!["events", "--count", "0"], 2, "--count"),
        (vec!["network", "add", ""], 2, "the name is empty"),
        (
            vec!["network", "set", "lan", "--snooping", "maybe"],
            2,
            "write on or off",
        ),
        (
            vec!["attach", "lan", "--ip", "192.0.2.1/24"],
            2,
            "--netns <NETNS>|--pid <PID>",
        ),
        (attach("192.0.2.10"), 2, "like 192.0.2.10/24"),
        (attach("2001:db8::10"), 2, "like 2001:db8::10/64"),
        (gateway("192.0.2.1"), 2, "like 192.0.2.1/24"),
        (gateway("192.0.2.0/24"), 1, "the prefix itself"),
        (gateway("192.0.2.127/25"), 1, "its broadcast address"),
        (
            vec!["gateway", "set", "lan", "--uplink", "on"],
            1,
            "set one like 192.0.2.1/24",
        ),
        (stream("vm.sock"), 1, "the whole path"),
        (
            vec![
                "policy",
                "add",
                "p",
                "--from",
                "dns:example.com",
                "--default",
                "drop",
            ],
            1,
            "use DNS names in `to`",
        ),
        (
            vec!["publish", "del", "web"],
            4,
            "there is no published port yet: `vswitchctl publish add`",
        ),
        (
            vec!["capture", "--end", "7"],
            4,
            "`vswitchctl capture --list`",
        ),
    ] {
        let out = d.run_ctl(&args);
        assert_eq!(out.code, Some(code), "{args:?}: {out}");
        assert!(out.stderr.contains(said), "{args:?}: {out}");
    }
    // Addresses of hosts at the edge of what is refused.
    for address in ["192.0.2.126/25", "192.0.2.0/31", "192.0.2.1/32"] {
        d.ctl(&gateway(address));
    }
    let publish = [
        "publish",
        "add",
        "web",
        "--ports",
        "80",
        "--to",
        "192.0.2.9",
    ];
    d.ctl(&publish);
    let err = d.run_ctl(&publish).stderr;
    assert!(err.contains("`vswitchctl publish del`"), "{err}");
    d.ctl(&["gateway", "set", "lan", "--uplink", "on", "--dns", "on"]);
    let shown = d.ctl(&["gateway", "show"]);
    assert!(shown.trim_end().ends_with("uplink,nat,dns"), "{shown}");
}

#[test]
fn completions_and_man_pages_are_made_of_the_definition() {
    let lab = lab!("ctl-documents");
    let d = lab.daemon();
    for shell in ["bash", "fish", "zsh"] {
        assert!(
            d.ctl(&["completions", shell]).contains("vswitchctl"),
            "{shell}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    d.ctl(&["man", "--dir", dir.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let top = page("vswitchctl.1");
    for text in ["Exit codes", "isn\\*(Aqt reachable", "port"] {
        assert!(top.contains(text), "no `{text}` in vswitchctl.1:\n{top}");
    }
    assert!(page("vswitchd-run.1").contains("ready\\-fd"));
    for name in [
        "vswitchctl-port-add.1",
        "vswitchctl-fdb-flush.1",
        "vswitchctl-attach.1",
    ] {
        assert!(page(name).contains(".TH"), "{name}");
    }
    assert!(d.ctl(&["--help"]).contains("Exit codes"));
}
