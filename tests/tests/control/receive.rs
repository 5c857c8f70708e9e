//! How packet ports receive: the option from the command line to the socket and back.

use vswitch_tests::{Daemon, Lab, Node, tap_lab, wait_until};

/// A veth port into a container.
fn connect(d: &Daemon, node: &Node, address: &str, receive: &str) {
    let netns = format!("pid:{}", node.pid());
    let place = ["--kind", "veth", "--device", "eth0", "--netns", &netns];
    let how = ["--receive", receive, "--addresses", address];
    let add = ["port", "add", node.name(), "--network", "lan"];
    d.ctl(&[&add[..], &place, &how].concat());
}

/// Memory-mapped packet rings of the daemon.
fn rings(d: &Daemon) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", d.pid())).unwrap();
    maps.lines().filter(|l| l.contains("socket:[")).count()
}

fn rings_and_sockets(lab: &Lab, workers: &str) {
    let d = lab.daemon_with().args(&["--workers", workers]).start();
    let each: usize = workers.parse().unwrap();
    d.ctl(&["network", "add", "lan"]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    connect(&d, &a, "192.0.2.1/24", "ring");
    connect(&d, &b, "192.0.2.2/24", "socket");
    assert_eq!(rings(&d), each);
    a.assert_ping("192.0.2.2");
    let server = b.iperf3_server();
    for way in [&["-n", "100M", "-P", "4"][..], &["-n", "100M", "-R"]] {
        let got = a.iperf3("192.0.2.2", way).received_bytes;
        // Not counted is what waits in the sockets at the end: with four streams 10 MB and more, however much was sent.
        assert!(got >= 60 << 20, "{way:?}: {got} bytes");
    }
    drop(server);
    // Before ports are opened anew: their counters begin anew, too.
    d.assert_ledger();
    // The other way round, while they are there: both are opened anew.
    d.ctl(&["port", "set", "a", "--receive", "socket"]);
    d.ctl(&["port", "set", "b", "--receive", "ring", "--ring-kib", "512"]);
    assert_eq!(rings(&d), each);
    wait_until("the containers to be joined again", || {
        a.ping("192.0.2.2") == 3
    });
    let port = d.ctl_json(&["port", "show", "b"]);
    let config = &port[0]["config"];
    assert_eq!(
        (&config["receive"], &config["ring_kib"]),
        (&"ring".into(), &512.into()),
        "{port}"
    );
    let topology = d.ctl(&["export"]);
    assert_eq!(
        topology.matches("receive = \"ring\"").count(),
        1,
        "{topology}"
    );
    d.ctl(&["port", "del", "a", "b"]);
    assert_eq!(rings(&d), 0);
}

#[test]
fn a_port_receives_by_the_ring_when_asked() {
    let lab = tap_lab!("ctl-ring");
    rings_and_sockets(&lab, "1");
}

#[test]
fn every_worker_has_a_ring_of_its_own() {
    let lab = tap_lab!("ctl-rings");
    rings_and_sockets(&lab, "2");
}

#[test]
fn a_ring_that_cannot_be_is_refused_with_the_remedy() {
    let lab = tap_lab!("ctl-no-ring");
    let d = lab.daemon();
    d.ctl(&["network", "add", "lan"]);
    let add = ["port", "add", "x", "--network", "lan"];
    let refused = d.ctl_fails(&[&add[..], &["--receive", "ring"]].concat());
    assert!(refused.contains("use kind veth or packet"), "{refused}");
    let small = ["--kind", "packet", "--receive", "ring", "--ring-kib", "1"];
    let refused = d.ctl_fails(&[&add[..], &small].concat());
    assert!(refused.contains("256 to 65536"), "{refused}");
}
