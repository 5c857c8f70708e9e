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
fn what_an_ordinary_user_may_not_is_refused_with_a_remedy() {
    let lab = tap_lab!("slirp-refused");
    let with = lab.daemon_with();
    let bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    with.host().ok(&["ip", "link", "set", "lo", "up"]);
    let d = with.under(&bare).start();
    let a = lab.container("a");
    d.ctl(&["network", "add", "lan"]);
    let set = ["gateway", "set", "lan", "--host-uplink", "on"];
    d.ctl(&[&set[..], &["--addresses", "192.0.2.1/24"]].concat());
    let namespace = format!("pid:{}", a.pid());
    let port = |more: serde_json::Value| {
        let mut body = serde_json::json!({"network": "lan"});
        let fields = body.as_object_mut().expect("a table");
        fields.extend(more.as_object().expect("a table").clone());
        body
    };
    let publish =
        |port: u16| serde_json::json!({"ports": port.to_string(), "to": ["192.0.2.10:80"]});
    for (path, body, reason, remedy) in [
        (
            "/v1/ports/a",
            port(serde_json::json!({"netns": namespace})),
            "network namespace",
            "CAP_SYS_ADMIN",
        ),
        (
            "/v1/ports/a",
            port(serde_json::json!({"kind": "packet", "device": "lo"})),
            "cannot open a packet socket",
            "CAP_NET_RAW",
        ),
        (
            "/v1/ports/a",
            port(serde_json::json!({"device": "tap9"})),
            "cannot create TAP device",
            "CAP_NET_ADMIN",
        ),
        (
            "/v1/publish/web",
            publish(80),
            "privileged",
            "net.ipv4.ip_unprivileged_port_start=80",
        ),
    ] {
        let said = d.http("POST", path, Some(&body));
        assert_eq!(said.status, 403, "{}", said.body);
        for part in [reason, remedy] {
            assert!(said.body.contains(part), "{part}: {}", said.body);
        }
    }
    // Nothing is left of them, and what takes no right goes on.
    assert_eq!(d.ctl_json(&["port", "show"]), serde_json::json!([]));
    assert_eq!(d.ctl_json(&["publish", "show"]), serde_json::json!([]));
    let allow = "net.ipv4.ip_unprivileged_port_start=80";
    d.host().ok(&["sysctl", "-qw", allow]);
    let said = d.http("POST", "/v1/publish/web", Some(&publish(80)));
    assert_eq!(said.status, 201, "{}", said.body);
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
