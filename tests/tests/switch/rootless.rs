//! The whole lab as an ordinary user: namespaces, daemon, TAP and veth ports without any privilege of the machine.

use nix::unistd::geteuid;
use vswitch_tests::tap_lab;

use crate::rig::{container, switch};

#[test]
fn containers_of_an_ordinary_user() {
    let lab = tap_lab!("sw-rootless");
    if geteuid().is_root() {
        lab.again_as_user("rootless::containers_of_an_ordinary_user");
        return;
    }
    assert!(lab.is_rootless());
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let c = container(&d, &lab, "c", "192.0.2.3/24", &["--type", "veth"]);
    a.assert_ping("192.0.2.2");
    c.assert_ping("192.0.2.1");
    let _server = b.iperf3_server();
    for node in [&a, &c] {
        let got = node.iperf3("192.0.2.2", &["-t", "1"]).received_bytes;
        assert!(got > 1 << 20, "{}: {got} bytes", node.name());
    }
    d.assert_ledger();
    println!("done as {}", geteuid());
}
