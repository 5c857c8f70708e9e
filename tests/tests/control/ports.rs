//! Ports of containers: real traffic, the end of a container, queues handed over.

use vswitch_tests::{Lab, Node, lab, tap_lab, wait_until};

fn connect(d: &vswitch_tests::Daemon, node: &Node, address: &str) {
    let netns = format!("pid:{}", node.pid());
    let name = node.name();
    d.ctl(&[
        "port",
        "add",
        name,
        "--network",
        "lan",
        "--netns",
        &netns,
        "--device",
        "eth0",
    ]);
    node.addr("eth0", address);
}

fn two(lab: &Lab) -> (vswitch_tests::Daemon, Node, Node) {
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    connect(&d, &a, "192.0.2.1/24");
    connect(&d, &b, "192.0.2.2/24");
    (d, a, b)
}

#[test]
fn two_containers_talk_and_counters_tell() {
    let lab = tap_lab!("ctl-ports");
    let (d, a, b) = two(&lab);
    a.assert_ping("192.0.2.2");
    let fdb = d.ctl_json(&["fdb", "show", "lan"]);
    for (node, port) in [(&a, "a"), (&b, "b")] {
        let mac = node.mac("eth0");
        let found = fdb
            .as_array()
            .unwrap()
            .iter()
            .find(|e| e["mac"] == mac.as_str());
        assert_eq!(
            found.unwrap_or_else(|| panic!("no {mac} in {fdb}"))["port"],
            port
        );
    }
    let stats = d.ctl_json(&["stats", "a"]);
    assert!(
        stats["ports"][0]["rx_frames"].as_u64().unwrap() > 0,
        "{stats}"
    );
    let events = d.spawn_ctl(&["events", "--only", "port_up,port_down"]);
    wait_until("link events", || {
        // Not kept for who comes later, so it is done until the watcher is there.
        d.ctl(&["port", "set", "a", "--up", "off"]);
        d.ctl(&["port", "set", "a", "--up", "on"]);
        let seen = events.output();
        seen.contains("port_down port=a: set down\n") && seen.contains("port_up port=a\n")
    });
    drop(events);
    d.ctl(&["port", "set", "b", "--up", "off"]);
    assert_eq!(d.ctl_json(&["port", "show", "b"])[0]["state"], "admin-down");
    a.assert_no_ping("192.0.2.2");
    d.ctl(&["port", "set", "b", "--up", "on"]);
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
    let removed = d.ctl_json(&["fdb", "flush", "lan"]);
    assert!(removed["removed"].as_u64().is_some(), "{removed}");
}

#[test]
fn a_socket_without_a_peer_says_so_briefly() {
    let lab = lab!("ctl-peer");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let dir = d.socket().with_file_name("peers");
    std::fs::create_dir(&dir).unwrap();
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (ours, theirs) = (at("ours"), at("theirs"));
    let add = ["port", "add", "tool", "--network", "lan", "--kind", "dgram"];
    d.ctl(&[&add[..], &["--listen", &ours, "--connect", &theirs]].concat());
    let reason = || {
        let port = d.ctl_json(&["port", "show", "tool"]);
        port[0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    wait_until("the port to be down", || !reason().is_empty());
    let wanted = format!("peer not connected: datagram socket `{theirs}`: no peer yet");
    assert_eq!(reason(), wanted);
    // A socket that nobody serves any more is the same.
    drop(std::os::unix::net::UnixDatagram::bind(&theirs).unwrap());
    assert_eq!(reason(), wanted);
}

#[test]
fn a_container_that_ends_takes_its_port_down_and_no_other() {
    let lab = tap_lab!("ctl-gone");
    let (d, a, b) = two(&lab);
    let c = lab.container("c");
    connect(&d, &c, "192.0.2.3/24");
    a.assert_ping("192.0.2.2");
    let mut events = d.host().spawn(&[
        "curl",
        "-sN",
        "--unix-socket",
        d.socket().to_str().unwrap(),
        "http://vswitchd/v1/events",
    ]);
    // The stream is open once an event of our own making arrives.
    wait_until("the events stream", || {
        d.ctl(&["network", "add", "more"]);
        d.ctl(&["network", "del", "more"]);
        events.output().contains("configured")
    });
    drop(b);
    wait_until("port b to go down", || {
        d.ctl_json(&["port", "show", "b"])[0]["state"] == "down"
    });
    let port = d.ctl_json(&["port", "show", "b"]);
    let reason = port[0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("ended") || reason.contains("deleted"),
        "{reason}"
    );
    events.wait_for("port_down");
    events.kill();
    a.assert_ping("192.0.2.3");
}

#[test]
fn a_queue_is_handed_over() {
    let lab = tap_lab!("ctl-fd");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let socket = d.socket();
    let ctl = std::env::current_exe().unwrap();
    let ctl = ctl.parent().unwrap().parent().unwrap().join("vswitchctl");
    // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, TUNSETIFF; exec keeps the descriptor.
    let script = format!(
        "import fcntl, os, struct\n\
         fd = os.open('/dev/net/tun', os.O_RDWR)\n\
         fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'handed0', 0x5002))\n\
         os.set_inheritable(fd, True)\n\
         os.execv({ctl:?}, ['vswitchctl', '--socket', {socket:?}, 'port', 'add', 'h', '--network', 'lan',\n\
             '--tap-fd', str(fd), '--json'])\n",
    );
    let out = d.host().ok(&["python3", "-c", &script]);
    let port: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&port["state"], &port["device"]),
        (&"up".into(), &"handed0".into()),
        "{port}"
    );
    let a = lab.container("a");
    connect(&d, &a, "192.0.2.1/24");
    d.host().addr("handed0", "192.0.2.2/24");
    a.assert_ping("192.0.2.2");
    d.assert_ledger();
    let refused = d.ctl_fails(&["port", "add", "x", "--network", "lan", "--kind", "fd"]);
    assert!(refused.contains("--tap-fd"), "{refused}");
}
