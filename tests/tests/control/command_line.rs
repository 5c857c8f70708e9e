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
