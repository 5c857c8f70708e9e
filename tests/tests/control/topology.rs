//! apply, diff, export: all of it or nothing.

use std::path::PathBuf;
use vswitch_tests::{lab, tap_lab};

const TWO: &str = r#"
[networks.lan]
ageing = "60s"
fdb = [{ mac = "02:00:00:00:00:01", port = "a" }]

[ports.a]
network = "lan"
egress_rate = "100mbit"

[ports.b]
network = "lan"

[mirrors.m]
target = "b"
ingress = ["a"]
"#;

fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("topology.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn what_is_applied_is_exported_and_has_no_difference() {
    let lab = tap_lab!("ctl-apply");
    let d = lab.daemon();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, TWO);
    let path = path.to_str().unwrap();
    let would = d.ctl(&["diff", path]);
    assert!(would.contains("+ port a"), "{would}");
    assert_eq!(
        d.ctl_json(&["port", "show"]),
        serde_json::json!([]),
        "diff changes nothing"
    );
    d.ctl(&["apply", path]);
    assert_eq!(d.ctl(&["diff", path]), "no changes\n");
    let fdb = d.ctl_json(&["fdb", "show", "lan"]);
    assert!(
        fdb.as_array()
            .unwrap()
            .iter()
            .any(|e| e["mac"] == "02:00:00:00:00:01" && e["static"] == true),
        "{fdb}"
    );
    let exported = d.ctl(&["export"]);
    std::fs::write(path, &exported).unwrap();
    assert_eq!(d.ctl(&["diff", path]), "no changes\n");
    std::fs::write(path, exported.replace("100mbit", "50mbit")).unwrap();
    let changes = d.ctl(&["apply", path]);
    assert!(
        changes.contains("~ port a") && changes.contains("50mbit"),
        "{changes}"
    );
    std::fs::write(path, "").unwrap();
    d.ctl(&["apply", path]);
    assert_eq!(d.ctl_json(&["port", "show"]), serde_json::json!([]));
}

#[test]
fn a_transaction_that_fails_leaves_everything_as_it_was() {
    let lab = tap_lab!("ctl-transaction");
    let d = lab.daemon();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, TWO);
    d.ctl(&["apply", path.to_str().unwrap()]);
    let before = d.ctl(&["export"]);
    // `a` changes its device, `c` can't be opened: the one must come back.
    let wanted = TWO.replace("egress_rate = \"100mbit\"", "device = \"other0\"")
        + "\n[ports.c]\nnetwork = \"lan\"\nnetns = \"/no/such/netns\"\n[networks.more]\n";
    let path = file(&dir, &wanted);
    let err = d.ctl_fails(&["apply", path.to_str().unwrap()]);
    assert!(err.contains("/no/such/netns"), "{err}");
    assert_eq!(d.ctl(&["export"]), before);
    for port in d.ctl_json(&["port", "show"]).as_array().unwrap() {
        assert_eq!(port["state"], "up", "{port}");
    }
    let devices = d.host().ok(&["ip", "-o", "link"]);
    assert!(
        devices.contains(" a:") && !devices.contains("other0"),
        "{devices}"
    );
}

#[test]
fn a_wrong_file_is_pointed_at() {
    let lab = lab!("ctl-wrong-file");
    let d = lab.daemon();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "[networks.lan]\n\n[ports.a]\nnetwork = \"lna\"\n");
    let err = d.ctl_fails(&["apply", path.to_str().unwrap()]);
    assert!(
        err.contains("topology.toml:4:1") && err.contains("did you mean `lan`"),
        "{err}"
    );
    assert_eq!(d.ctl_json(&["network", "show"]), serde_json::json!([]));
}
