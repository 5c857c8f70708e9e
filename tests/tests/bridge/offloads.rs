//! Frames with offload state on their way to ports that can't take it: summed and cut in software, verified by real kernels.

use vswitch_core::bridge::{NetworkConfig, NetworkId};
use vswitch_core::frame::{DropReason, Offloads};
use vswitch_core::port::mem;
use vswitch_tests::{Node, wait_until};

use crate::own_lab;
use crate::rig::{NET, Switch};

/// Two containers whose switches are joined by a link with these offloads.
fn joined(lab: &vswitch_tests::Lab, link: Offloads) -> (Switch, Node, Node) {
    let mut s = Switch::new(1, NetworkConfig::default());
    let far = NetworkId(1);
    s.network(far, NetworkConfig::default());
    let (one, other) = mem::pair(4096, link).expect("an eventfd");
    s.add(Box::new(one), |_| {});
    s.add(Box::new(other), |c| c.network = far);
    let (a, b) = (lab.container("a"), lab.container("b"));
    let addresses = |n: u8| [format!("192.0.2.{n}/24"), format!("2001:db8::{n}/64")];
    let [v4, v6] = addresses(1);
    s.tap(&a, "eth0", &[&v4, &v6], |_| {});
    let [v4, v6] = addresses(2);
    s.tap(&b, "eth0", &[&v4, &v6], |c| c.network = far);
    (s, a, b)
}

/// Receives datagrams until 5 s are over or `n` have come; prints how many, and whether each was the size and content expected.
const RECEIVE: &str = "\
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
s.bind((sys.argv[1], 7)); s.settimeout(5); print('ready', flush=True)
n = good = 0
try:
    while n < int(sys.argv[2]):
        d = s.recv(2000); good += len(d) == 1000 and d == bytes([d[0]]) * 1000; n += 1
except TimeoutError: pass
print('got', n, good, flush=True)
";

/// Sends bursts of 40 datagrams by one call each (UDP_SEGMENT, udp(7)).
const SEND: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(17, 103, 1000); s.connect((sys.argv[1], 7))
for i in range(int(sys.argv[2])):
    s.send(b''.join(bytes([40 * i + k & 255]) * 1000 for k in range(40))); time.sleep(0.002)
";

fn udp_segments_arrive(from: &Node, to: &Node, address: &str) {
    let mut receiver = to.spawn(&["/usr/bin/python3", "-c", RECEIVE, address, "800"]);
    receiver.wait_for("ready");
    from.ok(&["/usr/bin/python3", "-c", SEND, address, "20"]);
    receiver.wait_for("got 800 800");
}

#[test]
fn a_port_without_offloads_gets_finished_frames() {
    let lab = own_lab!("finish");
    let csum = Offloads {
        csum: true,
        ..Offloads::NONE
    };
    for link in [Offloads::NONE, csum] {
        let (s, a, b) = joined(&lab, link);
        let server = b.iperf3_server();
        for to in ["192.0.2.2", "2001:db8::2"] {
            a.assert_ping(to);
            let run = a.iperf3(to, &["-n", "30M"]);
            println!("{link:?} {to}: {:.2} Gbit/s", run.bits_per_second / 1e9);
            assert!(run.received_bytes > 15_000_000, "{:?}", run.report["end"]);
            udp_segments_arrive(&a, &b, to);
        }
        drop(server);
        assert!(s.splits() > 5_000, "{} frames were cut off", s.splits());
        a.assert_no_checksum_errors();
        b.assert_no_checksum_errors();
        s.assert_ledger();
    }
}

#[test]
fn packets_over_a_ports_mtu_are_dropped_and_counted() {
    let lab = own_lab!("mtu");
    let mut s = Switch::new(1, NetworkConfig::default());
    let (a, b) = (lab.container("a"), lab.container("b"));
    s.tap(&a, "eth0", &["192.0.2.1/24"], |_| {});
    let pb = s.tap(&b, "eth0", &["192.0.2.2/24"], |c| c.network = NET);
    s.set_mtu(pb, 1400);
    let size = |payload: &str| {
        let args = ["-c", "1", "-W", "1", "-M", "do", "-s", payload];
        a.ping_with("192.0.2.2", &args)
            .stdout
            .matches(" ttl=")
            .count()
    };
    // 28 bytes of headers.
    assert_eq!(size("1372"), 1);
    assert_eq!(size("1373"), 0);
    wait_until("the long packet to be counted", || {
        s.dropped(pb, DropReason::Mtu) == 1
    });
    // Segments of a TCP sender that doesn't know of it are refused too, as a whole.
    let _server = b.iperf3_server();
    let args = ["-c", "192.0.2.2", "-t", "1", "-M", "1400"];
    a.run(&[&["timeout", "3", "iperf3"], &args[..]].concat());
    assert!(s.dropped(pb, DropReason::Mtu) > 1);
    s.assert_ledger();
}
