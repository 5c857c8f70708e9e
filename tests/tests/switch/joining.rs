//! Frames that are joined on their way to a container: nothing of what they say is lost, and all are counted.

use vswitch_tests::{Daemon, Node, tap_lab, wait_until};

use crate::rig::{container, counter, switch};

/// Frames that left by a port as the switch counts them, and frames that the container's kernel got.
fn received(d: &Daemon, node: &Node) -> (u64, u64) {
    let path = "/sys/class/net/eth0/statistics/rx_packets";
    let kernel = node.ok(&["cat", path]).trim().parse().expect("a number");
    (counter(d, node.name(), "tx_frames"), kernel)
}

#[test]
fn acknowledgements_of_bulk_data_are_joined_and_counted() {
    let lab = tap_lab!("sw-joining");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let _server = b.iperf3_server();
    a.assert_ping("192.0.2.2");
    // Read one after the other, so that a frame may come in between.
    wait_until("nothing to be joined yet", || {
        let (counted, kernel) = received(&d, &a);
        counted == kernel
    });
    let run = a.iperf3("192.0.2.2", &["-n", "256M", "-P", "4"]);
    assert!(run.received_bytes > 200 << 20, "{}", run.received_bytes);
    let (counted, kernel) = received(&d, &a);
    println!("{counted} frames as {kernel}, {} repeated", run.retransmits);
    assert!(kernel < counted, "none of {counted} was joined");
    // Who captures at a port sees what the container was sent, so nothing is joined there.
    let file = lab.dir().join("all.pcapng");
    let capture = d.spawn_ctl(&[
        "capture",
        "a",
        "-w",
        file.to_str().expect("UTF-8"),
        "-f",
        "udp port 9",
    ]);
    wait_until("the capture", || {
        d.http("GET", "/v1", None).body.contains("\"captures\":1")
    });
    let missing = |(counted, kernel): (u64, u64)| counted - kernel;
    let before = missing(received(&d, &a));
    let run = a.iperf3("192.0.2.2", &["-n", "64M", "-P", "4"]);
    println!("captured: {} repeated", run.retransmits);
    wait_until("as many as were counted", || {
        missing(received(&d, &a)) == before
    });
    capture.interrupt();
    d.assert_ledger();
}
