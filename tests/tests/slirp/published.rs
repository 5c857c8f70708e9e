//! Published ports at sockets of the host: who comes by them, and what becomes of him.

use crate::rig::{FAR, HOST, Site, peer, serve, site};
use vswitch_tests::{Daemon, tap_lab};

const BYTES: &str = "100000000";

/// Publishes a port of the host for the container of [`site`], in both families.
fn publish(d: &Daemon, name: &str, more: &[&str]) -> String {
    let to = "192.0.2.10:7000,[2001:db8:1::10]:7000";
    let base = ["publish", "add", name, "--to", to];
    d.ctl(&[&base[..], more].concat())
}

#[test]
fn bytes_cross_a_published_port_both_ways() {
    let lab = tap_lab!("pub-bytes");
    let Site { d, a, outside } = site(&lab, "1500");
    let mut server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    for host in HOST {
        assert_eq!(
            peer(&outside, &["upload", host, "8080", BYTES]),
            "same",
            "{host}"
        );
        assert_eq!(
            peer(&outside, &["download", host, "8080", BYTES]),
            "same",
            "{host}"
        );
    }
    let said = peer(&outside, &["both", HOST[0], "8080", BYTES]);
    let digest = said.strip_prefix("same ").expect("what came was sent");
    server.wait_for(&format!("both {digest}"));
    a.assert_no_checksum_errors();
    d.assert_ledger();
}

#[test]
fn client_addresses_are_preserved_on_published_ports() {
    let lab = tap_lab!("pub-client");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    let said = peer(&outside, &["peer", HOST[0], "8080"]);
    assert_eq!(said, format!("::ffff:{}", FAR[0]));
    assert_eq!(peer(&outside, &["peer", HOST[1], "8080"]), FAR[1]);
    let shown = d.ctl(&["conntrack", "show", "--protocol", "tcp"]);
    assert!(
        shown.contains(FAR[0]) && shown.contains("192.0.2.10:7000"),
        "{shown}"
    );
    d.assert_ledger();
}
