//! All of it as an ordinary user: daemon and container without any privilege of the machine.

use crate::rig::{FAR, HOST, Site, peer, serve, site};
use nix::unistd::geteuid;
use vswitch_tests::tap_lab;

#[test]
fn an_ordinary_user_reaches_outside() {
    let lab = tap_lab!("slirp-rootless");
    if geteuid().is_root() {
        lab.again_as_user("rootless::an_ordinary_user_reaches_outside");
        return;
    }
    assert!(lab.is_rootless());
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    let _datagrams = serve(&outside, "datagrams", "7100");
    for far in FAR {
        assert_eq!(
            peer(&a, &["upload", far, "7000", "50000000"]),
            "same",
            "{far}"
        );
        assert_eq!(
            peer(&a, &["download", far, "7000", "50000000"]),
            "same",
            "{far}"
        );
        assert_eq!(
            peer(&a, &["datagram", far, "7100", "1200", "20"]),
            "same 20"
        );
    }
    // The other way round, by ports that take no privilege.
    let _inside = serve(&a, "serve", "7000");
    let to = "192.0.2.10:7000,[2001:db8:1::10]:7000";
    d.ctl(&[
        "publish", "add", "web", "--ports", "8080", "--to", to, "--splice",
    ]);
    for (host, as_seen) in HOST
        .iter()
        .zip(["::ffff:198.51.100.254", "2001:db8:2::254"])
    {
        assert_eq!(peer(&outside, &["peer", host, "8080"]), as_seen);
        let said = peer(&outside, &["upload", host, "8080", "50000000"]);
        assert_eq!(said, "same", "{host}");
    }
    let said = peer(d.host(), &["upload", "127.0.0.1", "8080", "50000000"]);
    assert_eq!(said, "same");
    // The user's own group, as it is known in the namespace.
    let range = "net.ipv4.ping_group_range=0 0";
    d.host().ok(&["sysctl", "-qw", range]);
    a.assert_ping(FAR[0]);
    d.assert_ledger();
    println!("done as {}", geteuid());
}

#[test]
fn an_ordinary_users_switch_follows_its_host() {
    let lab = tap_lab!("slirp-rootless-follows");
    if geteuid().is_root() {
        lab.again_as_user("rootless::an_ordinary_users_switch_follows_its_host");
        return;
    }
    assert!(lab.is_rootless());
    crate::moving::switch_networks(&lab);
    println!("done as {}", geteuid());
}
