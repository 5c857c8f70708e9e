//! What of the host itself containers reach: nothing, but for what is allowed.

use crate::rig::{alone, default_routes, dig, host, plug, serve, start};
use vswitch_tests::{Background, Daemon, Node, tap_lab, wait_until};

/// Servers of the host's that are meant for itself, and one that is for all.
fn servers(d: &Daemon) -> Vec<Background> {
    d.host().addr("lo", "169.254.169.254/32");
    d.host().addr("lo", "127.0.0.2/8");
    let at = ["127.0.0.1", "127.0.0.2", "::1", "169.254.169.254"];
    let own = ["0.0.0.0", "::"].map(|all| (all, "7002"));
    let all = at.iter().map(|a| (*a, "7001")).chain(own);
    all.map(|(address, port)| {
        let mut server = start(d.host(), &["only", address, port]);
        server.wait_for("serving");
        server
    })
    .collect()
}

fn gateway_mac(a: &Node) -> String {
    a.assert_ping("192.0.2.1");
    let known = a.ok(&["ip", "neigh", "show", "192.0.2.1"]);
    let mac = known.split_whitespace().find(|w| w.len() == 17);
    mac.expect("a MAC address").to_owned()
}

/// What packets the host sends or receives anywhere, to and from a port.
fn watch(d: &Daemon, port: &str) -> Background {
    let mut watch = d.host().spawn(&[
        "tcpdump",
        "-i",
        "any",
        "-n",
        "-l",
        "--immediate-mode",
        "port",
        port,
    ]);
    watch.wait_for("listening on");
    watch
}

const NEVER: [&str; 24] = [
    "0.0.0.0",
    "0.0.0.1",
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "169.254.169.254",
    "169.254.1.2",
    "192.0.2.255",
    "198.51.100.255",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:198.51.100.1",
    "::ffff:169.254.169.254",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
];

#[test]
fn nothing_of_the_host_is_reached_that_is_not_allowed() {
    let lab = tap_lab!("slirp-access");
    let (d, a) = alone(&lab);
    let _outside = plug(&lab, &d, "out0", 100);
    default_routes(&d, 100);
    let _servers = servers(&d);
    let mac = gateway_mac(&a);
    let own = ["192.0.2.1", "2001:db8:1::1"];
    let send = |to: &[&str]| {
        let args = [&["raw", "eth0", &mac, "7001"], to].concat();
        let said = host(&a, &args);
        assert_eq!(said, format!("sent {}", to.len() * 2));
    };
    // Whatever is allowed besides, these never lead anywhere.
    let watch_all = watch(&d, "7001");
    send(&NEVER);
    send(&own);
    assert_eq!(
        host(&a, &["met", own[0], "7001"]),
        "ConnectionRefusedError 111"
    );
    assert_eq!(
        host(&a, &["met", own[1], "7001"]),
        "ConnectionRefusedError 111"
    );
    assert_eq!(
        watch_all.output().matches("7001").count(),
        0,
        "{}",
        watch_all.output()
    );
    d.ctl(&["gateway", "set", "lan", "--host-loopback", "on"]);
    send(&NEVER);
    assert_eq!(
        watch_all.output().matches("7001").count(),
        0,
        "{}",
        watch_all.output()
    );
    assert_eq!(host(&a, &["met", own[0], "7001"]), "127.0.0.1");
    assert_eq!(host(&a, &["met", own[1], "7001"]), "::1");
    // What was seen since is these two, on the loopback; and the watch does see.
    let mut watch_all = watch_all;
    watch_all.wait_for("::1.7001: Flags [S]");
    let seen = watch_all.output();
    let first = |l: &&str| l.contains("Flags [S],") || l.contains("UDP");
    let seen: Vec<&str> = seen.lines().filter(first).collect();
    let is_in = |l: &&&str| l.split_whitespace().nth(2) == Some("In");
    assert_eq!(seen.iter().filter(is_in).count(), 2, "{seen:?}");
    assert!(seen.iter().all(|l| l.contains(" lo ")), "{seen:?}");
    // What the host offers to all it offers to containers, from its own address, as to its own processes.
    assert_eq!(host(&a, &["met", "198.51.100.1", "7002"]), "198.51.100.1");
    assert_eq!(
        host(&a, &["met", "2001:db8:100::1", "7002"]),
        "2001:db8:100::1"
    );
    assert_eq!(
        host(&a, &["met", "198.51.100.1", "7001"]),
        "ConnectionRefusedError 111"
    );
    // Link-local addresses, such as a cloud's metadata service, only where that is said; IPv6 has none to be reached by a router.
    assert_ne!(
        host(&a, &["met", "169.254.169.254", "7001"]),
        "169.254.169.254"
    );
    d.ctl(&["gateway", "set", "lan", "--host-link-local", "on"]);
    assert_eq!(
        host(&a, &["met", "169.254.169.254", "7001"]),
        "169.254.169.254"
    );
    d.ctl(&["gateway", "set", "lan", "--host-link-local", "off"]);
    assert_ne!(
        host(&a, &["met", "169.254.169.254", "7001"]),
        "169.254.169.254"
    );
    d.assert_ledger();
}

#[test]
fn the_host_has_a_name_where_it_is_reached() {
    let lab = tap_lab!("slirp-host-name");
    let (d, a) = alone(&lab);
    let _servers = servers(&d);
    let names = ["host.containers.internal", "host.docker.internal"];
    let named = |v4: &str, v6: &str| {
        for name in names {
            assert_eq!(dig(&a, name), v4, "{name}");
            let args = ["dig", "+short", "+tries=1", "@192.0.2.1", name, "AAAA"];
            let said = a.run(&args).stdout;
            assert_eq!(said.trim(), v6, "{name}");
        }
    };
    named("", "");
    let set = |args: &[&str]| d.ctl(&[&["gateway", "set", "lan"], args].concat());
    set(&["--host-loopback", "on"]);
    named("192.0.2.1", "2001:db8:1::1");
    // As a program in the container finds it.
    let script = "echo nameserver 192.0.2.1 > /run/r; mount --bind /run/r /etc/resolv.conf";
    a.ok(&["sh", "-c", script]);
    let by_name = |name: &str| {
        let said = host(&a, &["met", name, "7001"]);
        assert!(["127.0.0.1", "::1"].contains(&&said[..]), "{name}: {said}");
    };
    names.into_iter().for_each(by_name);
    // Addresses of its own, beyond the network and within it.
    set(&["--host-address", "169.254.1.2,2001:db8:ff::2"]);
    named("169.254.1.2", "2001:db8:ff::2");
    assert_eq!(host(&a, &["met", "169.254.1.2", "7001"]), "127.0.0.1");
    assert_eq!(host(&a, &["met", "2001:db8:ff::2", "7001"]), "::1");
    names.into_iter().for_each(by_name);
    a.assert_ping("169.254.1.2");
    let refused = "ConnectionRefusedError 111";
    assert_eq!(host(&a, &["met", "192.0.2.1", "7001"]), refused);
    // Nobody listens there; datagrams are told too.
    assert_eq!(host(&a, &["met", "169.254.1.2", "7003"]), refused);
    assert_eq!(host(&a, &["ask", "169.254.1.2", "7003"]), refused);
    set(&["--host-address", "192.0.2.2"]);
    named("192.0.2.2", "");
    assert_eq!(host(&a, &["met", "192.0.2.2", "7001"]), "127.0.0.1");
    assert_ne!(host(&a, &["met", "169.254.1.2", "7001"]), "127.0.0.1");
    // Other containers aren't the host, and it isn't reached by other networks' gateways.
    let args = ["gateway", "set", "lan", "--host-address", "192.0.2.10"];
    let err = d.ctl_fails(&args);
    assert!(err.contains("port `a` has 192.0.2.10 already"), "{err}");
    d.ctl(&["network", "add", "other"]);
    let other = "203.0.113.1/24,2001:db8:3::1/64";
    let args = ["--host-uplink", "on", "--dns", "on", "--addresses", other];
    d.ctl(&[&["gateway", "set", "other"], &args[..]].concat());
    let b = lab.container("b");
    let pid = b.pid().to_string();
    d.ctl(&[
        "attach",
        "--pid",
        &pid,
        "--ip",
        "203.0.113.10/24",
        "--gw",
        "203.0.113.1",
        "--name",
        "b",
        "other",
    ]);
    for to in ["192.0.2.2", "192.0.2.1", "203.0.113.1", "169.254.1.2"] {
        assert_ne!(host(&b, &["met", to, "7001"]), "127.0.0.1", "{to}");
    }
    set(&["--host-address", "none"]);
    named("192.0.2.1", "2001:db8:1::1");
    // What is closed is closed for connections under way too, and for no others.
    let _echo = serve(d.host(), "serve", "7004");
    let mut streams = ["192.0.2.1", "2001:db8:1::1"].map(|to| start(&a, &["stream", to, "7004"]));
    streams.iter_mut().for_each(|s| s.wait_for("beat 1\n"));
    set(&["--host-loopback", "off"]);
    for stream in &mut streams {
        wait_until("the connection is reset", || !stream.is_running());
        let said = stream.output();
        assert!(said.contains("ConnectionResetError"), "{said}");
    }
    named("", "");
    // The host's own address under another name: what is for all is there, the loopback isn't.
    set(&["--host-own-address", "169.254.1.2,2001:db8:ff::2"]);
    named("169.254.1.2", "2001:db8:ff::2");
    let said = host(&a, &["met", "169.254.1.2", "7002"]);
    assert_eq!(said, refused, "it has no address outside");
    let _outside = plug(&lab, &d, "out0", 100);
    default_routes(&d, 100);
    let said = host(&a, &["met", "169.254.1.2", "7002"]);
    assert_eq!(said, "198.51.100.1");
    let said = host(&a, &["met", "2001:db8:ff::2", "7002"]);
    assert_eq!(said, "2001:db8:100::1");
    let said = host(&a, &["met", "169.254.1.2", "7001"]);
    assert_eq!(said, refused);
    set(&["--host-own-address", "none"]);
    assert_ne!(host(&a, &["met", "169.254.1.2", "7002"]), "198.51.100.1");
    named("", "");
    assert_eq!(host(&a, &["met", "192.0.2.1", "7001"]), refused);
    d.assert_ledger();
}
