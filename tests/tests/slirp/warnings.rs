//! What is configured and leads nowhere as things stand is told, and isn't refused.

use crate::rig::{Site, site};
use vswitch_tests::{Daemon, tap_lab};

/// Does something, and says what a person is warned of.
#[track_caller]
fn warned(d: &Daemon, args: &[&str]) -> String {
    let out = d.run_ctl(args);
    assert!(out.success(), "{out}");
    out.stderr
}

#[test]
fn what_leads_nowhere_is_told() {
    let lab = tap_lab!("slirp-warnings");
    let Site {
        d,
        a: _a,
        outside: _outside,
    } = site(&lab, "1500");
    let set = |more: &[&str]| warned(&d, &[&["gateway", "set", "lan"], more].concat());
    // Addresses and interfaces that aren't the host's.
    assert_eq!(set(&["--outbound-addr", "198.51.100.1"]), "");
    let said = set(&["--outbound-addr", "198.51.100.77"]);
    assert!(
        said.contains("warning: the host has no address 198.51.100.77"),
        "{said}"
    );
    let said = warned(&d, &["gateway", "show"]);
    assert!(
        said.contains("gateway of `lan`: the host has no address"),
        "{said}"
    );
    d.host().addr("out0", "198.51.100.77/24");
    assert_eq!(warned(&d, &["gateway", "show"]), "");
    assert_eq!(set(&["--outbound-interface", "out0"]), "");
    let said = set(&["--outbound-interface", "out7"]);
    assert!(
        said.contains("no interface `out7`") && said.contains("ip link"),
        "{said}"
    );
    set(&["--outbound-addr", "none", "--outbound-interface", "none"]);
    // A back end that nobody has.
    let add = |name: &str, more: &[&str]| warned(&d, &[&["publish", "add", name], more].concat());
    assert_eq!(
        add("web", &["--ports", "8080", "--to", "192.0.2.10:80"]),
        ""
    );
    let said = add("lost", &["--ports", "8081", "--to", "203.0.113.9:80"]);
    assert!(said.contains("no network has 203.0.113.9"), "{said}");
    let said = warned(&d, &["publish", "show"]);
    assert!(
        said.contains("published port `lost`: no network has"),
        "{said}"
    );
    d.ctl(&["publish", "del", "lost"]);
    // Two that look for the same ports.
    let second = lab.container("second");
    let pid = second.pid().to_string();
    let attach = ["attach", "--pid", &pid, "--ip", "192.0.2.11/24"];
    d.ctl(&[&attach[..], &["--name", "second", "lan"]].concat());
    let auto =
        |name: &str, to: &str, ports: &str| add(name, &["--auto", "--ports", ports, "--to", to]);
    assert_eq!(auto("one", "192.0.2.10", "5000-5999"), "");
    let said = auto("two", "192.0.2.11", "5500-6999");
    let what = "`one` looks for ports 5500-5999 too: of one that both containers listen on, `one` has the host's";
    assert!(said.contains(what), "{said}");
    d.ctl(&["publish", "del", "two"]);
    assert_eq!(auto("two", "192.0.2.11", "6000-6999"), "");
}
