//! Where the host's sockets leave from, chosen by gateway.

use crate::rig::{FAR, Site, ask, datagrams_tell, names, peer, serve, site};
use vswitch_tests::{Mtu, tap_lab};

const OWN: [&str; 2] = ["::ffff:198.51.100.1", "2001:db8:2::1"];
const OTHER: [&str; 2] = ["::ffff:198.51.100.2", "2001:db8:2::2"];

#[test]
fn the_source_address_is_the_one_chosen() {
    let lab = tap_lab!("slirp-source");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    let _datagrams = datagrams_tell(&outside, "7100");
    let mut dns = names(&outside, "203.0.113.80", &[]);
    d.host()
        .ok(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 1000"]);
    let whence = |what: &str, wanted: [&str; 2]| {
        for (far, wanted) in FAR.into_iter().zip(wanted) {
            assert_eq!(peer(&a, &["peer", far, "7000"]), wanted, "{what}");
            assert_eq!(ask(&a, far, "7100"), wanted, "{what}");
            a.assert_ping(far);
        }
    };
    whence("nothing is chosen", OWN);
    let choose = |args: &[&str]| d.ctl(&[&["gateway", "set", "lan"], args].concat());
    let both = ["--outbound-addr", "198.51.100.2", "--outbound-addr6"];
    choose(&[&both[..], &["2001:db8:2::2"]].concat());
    // The host doesn't have them yet.
    for far in FAR {
        let said = peer(&a, &["attempt", far, "7000"]);
        assert_eq!(said, "OSError 101", "{far}");
    }
    d.host().addr("out0", "198.51.100.2/24");
    // Deprecated, or the kernel would choose it by itself.
    let add = "addr add 2001:db8:2::2/64 dev out0 nodad preferred_lft 0";
    let args: Vec<&str> = ["ip"].into_iter().chain(add.split(' ')).collect();
    d.host().ok(&args);
    whence("both are", OTHER);
    // Questions of the gateway's DNS too, in datagrams; by TCP they are opened the same way.
    choose(&["--dns-upstream", FAR[0]]);
    let said = a.ok(&["dig", "+short", "@192.0.2.1", "www.example"]);
    assert_eq!(said.trim(), "203.0.113.80");
    dns.wait_for("query[A] www.example from 198.51.100.2");
    // One family alone; then none.
    choose(&["--outbound-addr", "none"]);
    whence("IPv6 is", [OWN[0], OTHER[1]]);
    let shown = d.ctl_json(&["network", "show", "lan"]);
    let host = &shown[0]["config"]["gateway"]["host_uplink"];
    assert_eq!(host["outbound_addr6"], "2001:db8:2::2", "{shown}");
    choose(&["--outbound-addr6", "none"]);
    whence("none is", OWN);
    // What can't be one is refused.
    for wrong in ["127.0.0.1", "224.0.0.1", "0.0.0.0"] {
        let args = ["gateway", "set", "lan", "--outbound-addr", wrong];
        let err = d.ctl_fails(&args);
        assert!(err.contains("can't be a source address"), "{err}");
    }
    d.assert_ledger();
}

#[test]
fn each_gateway_leaves_by_the_interface_it_has_chosen() {
    let lab = tap_lab!("slirp-interface");
    let Site { d, a, outside } = site(&lab, "1500");
    // Another network outside, with the same addresses, where the host is .3.
    let second = lab.host("second");
    lab.link(d.host(), "out1", &second, "eth0", Mtu(1500));
    for (node, interface, last) in [(d.host(), "out1", "3"), (&second, "eth0", "254")] {
        node.addr(interface, &format!("198.51.100.{last}/24"));
        node.addr(interface, &format!("2001:db8:2::{last}/64"));
    }
    let servers =
        [&outside, &second].map(|o| (serve(o, "serve", "7000"), datagrams_tell(o, "7100")));
    d.ctl(&["network", "add", "lan2"]);
    let addresses = ["--addresses", "203.0.113.1/24,2001:db8:3::1/64"];
    let by = ["--host-uplink", "on", "--outbound-interface", "out1"];
    d.ctl(&[&["gateway", "set", "lan2"], &by[..], &addresses].concat());
    let b = lab.container("b");
    let pid = b.pid().to_string();
    let ip = "203.0.113.10/24,2001:db8:3::10/64";
    let gw = "203.0.113.1,2001:db8:3::1";
    d.ctl(&[
        "attach", "--pid", &pid, "--ip", ip, "--gw", gw, "--name", "b", "lan2",
    ]);
    let whence = |node, wanted: [&str; 2]| {
        for (far, wanted) in FAR.into_iter().zip(wanted) {
            assert_eq!(peer(node, &["peer", far, "7000"]), wanted);
            assert_eq!(ask(node, far, "7100"), wanted);
        }
    };
    let by_out1 = ["::ffff:198.51.100.3", "2001:db8:2::3"];
    whence(&b, by_out1);
    whence(&a, OWN);
    // The host's loopback is where it was, if that is allowed.
    let _local = serve(d.host(), "serve", "7002");
    d.ctl(&["gateway", "set", "lan2", "--host-loopback", "on"]);
    let said = peer(&b, &["peer", "203.0.113.1", "7002"]);
    assert_eq!(said, "::ffff:127.0.0.1");
    // An interface that isn't there leads nowhere, and comes back with its name.
    d.ctl(&["gateway", "set", "lan2", "--outbound-interface", "out2"]);
    let said = peer(&b, &["attempt", FAR[0], "7000"]);
    assert!(said.starts_with("OSError 1"), "{said}");
    d.host().ok(&["ip", "link", "set", "out1", "down"]);
    d.host()
        .ok(&["ip", "link", "set", "out1", "name", "out2", "up"]);
    let said = peer(&b, &["peer", FAR[0], "7000"]);
    assert_eq!(said, by_out1[0]);
    d.ctl(&["gateway", "set", "lan2", "--outbound-interface", "none"]);
    whence(&b, OWN);
    let long = "an-interface-that-is-too-long";
    let args = ["gateway", "set", "lan2", "--outbound-interface", long];
    let err = d.ctl_fails(&args);
    assert!(err.contains("can't be the name of an interface"), "{err}");
    // The same by a topology, and what is exported is applied again without a difference.
    let exported = d.ctl(&["export"]);
    let table = "host_uplink = { outbound_interface = \"out2\", loopback = true, addresses = [\"169.254.1.2\"] }";
    let changed = exported.replace(
        "[networks.lan2.gateway]\n",
        &format!("[networks.lan2.gateway]\n{table}\n"),
    );
    let changed = without(&changed, "[networks.lan2.gateway.host_uplink]");
    let file = lab.dir().join("topology.toml");
    std::fs::write(&file, &changed).expect("write the topology");
    let file = file.to_str().expect("UTF-8").to_owned();
    d.ctl(&["apply", &file]);
    // Of its addresses only that of IPv4 has outlived the change of its name.
    assert_eq!(peer(&b, &["peer", FAR[0], "7000"]), by_out1[0]);
    let said = peer(&b, &["peer", "169.254.1.2", "7002"]);
    assert_eq!(said, "::ffff:127.0.0.1");
    std::fs::write(&file, d.ctl(&["export"])).expect("write the topology");
    let difference = d.ctl_json(&["diff", &file]);
    assert_eq!(difference.as_array().map(Vec::len), Some(0), "{difference}");
    drop(servers);
    d.assert_ledger();
}

/// A topology without one of its tables.
fn without(topology: &str, table: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in topology.lines() {
        if line.starts_with('[') {
            inside = line == table;
        }
        if !inside {
            out += line;
            out.push('\n');
        }
    }
    out
}
