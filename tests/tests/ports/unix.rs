//! Stream and datagram ports: two switches joined by a unix socket, a container at each.

use crate::own_lab;
use crate::rig::Switch;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use vswitch_core::bridge::NetworkConfig;
use vswitch_core::port::dgram::Dgram;
use vswitch_core::port::stream::Stream;
use vswitch_core::port::unix::{Address, UnixError};
use vswitch_core::port::{PortId, PortIo};
use vswitch_core::worker::Event;
use vswitch_tests::{Lab, Node};

/// A container on a TAP that finishes its frames itself.
#[track_caller]
fn plain_tap(switch: &mut Switch, node: &Node, address: &str) {
    switch.tap(node, "eth0", &[address], |_| ());
    node.ok(&["ethtool", "-K", "eth0", "tx", "off"]);
}

fn downs(switch: &Switch, id: PortId) -> usize {
    let events = switch.events();
    let down = |e: &&Event| matches!(e, Event::PortDown { port, .. } if *port == id);
    events.iter().filter(down).count()
}

/// Two switches joined by `near` and `far`: traffic, then the far one is stopped and started again.
#[track_caller]
fn joined(lab: &Lab, near: Box<dyn PortIo>, far: impl Fn() -> Box<dyn PortIo>) {
    let (a, b) = (lab.container("a"), lab.container("b"));
    let mut one = Switch::new(1, NetworkConfig::default());
    plain_tap(&mut one, &a, "192.0.2.1/24");
    let port = one.add(near, |_| ());
    one.wait_event(
        "the port to wait for its peer",
        |e| matches!(e, Event::PortDown { port: p, is_final: false, .. } if *p == port),
    );
    for round in 0..2 {
        let mut two = Switch::new(1, NetworkConfig::default());
        two.add(far(), |_| ());
        let name = format!("eth{round}");
        two.tap(&b, &name, &["192.0.2.2/24"], |_| ());
        b.ok(&["ethtool", "-K", &name, "tx", "off"]);
        // The new TAP has another MAC.
        a.ok(&["ip", "neigh", "flush", "dev", "eth0"]);
        vswitch_tests::wait_until("the peer", || {
            let ups = one
                .events()
                .iter()
                .filter(|e| matches!(e, Event::PortUp { port: p } if *p == port))
                .count();
            ups > round
        });
        vswitch_tests::wait_until("an answer over the joined switches", || {
            a.run(&["ping", "-c", "1", "-W", "1", "192.0.2.2"])
                .success()
        });
        let _server = b.iperf3_server();
        for way in [&["-n", "24M"][..], &["-n", "24M", "-R"]] {
            let got = a.iperf3("192.0.2.2", way).received_bytes;
            assert!(got >= 8 << 20, "{way:?}: {got} bytes");
        }
        two.assert_ledger();
        let before = downs(&one, port);
        drop(two);
        vswitch_tests::wait_until("the port to lose its peer", || downs(&one, port) > before);
    }
    one.assert_ledger();
}

#[test]
fn stream_server_and_client() {
    let lab = own_lab!("stream");
    let path = lab.dir().join("stream");
    let at = Address::Path(path.clone());
    let server = Stream::server(at.clone(), vec![]).expect("listen");
    let mode = std::fs::metadata(&path).expect("socket file").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert!(
        matches!(Stream::server(at.clone(), vec![]), Err(UnixError::InUse(_))),
        "a served socket isn't taken over"
    );
    let client =
        || -> Box<dyn PortIo> { Box::new(Stream::client(at.clone(), vec![]).expect("an address")) };
    joined(&lab, Box::new(server), client);
    assert!(!path.exists(), "the socket file is removed");
}

#[test]
fn datagrams_both_ways() {
    let lab = own_lab!("dgram");
    let [l, r] = ["l", "r"].map(|n| Address::Path(lab.dir().join(n)));
    let near = Dgram::new(&l, r.clone()).expect("bind");
    let far = || -> Box<dyn PortIo> { Box::new(Dgram::new(&r, l.clone()).expect("bind")) };
    joined(&lab, Box::new(near), far);
}

#[test]
fn a_stream_peer_that_breaks_the_framing_is_dropped() {
    let path = tempfile::tempdir().expect("directory");
    let file = path.path().join("s");
    let mut switch = Switch::new(1, NetworkConfig::default());
    let server = Stream::server(Address::Path(file.clone()), vec![]).expect("listen");
    let port = switch.add(Box::new(server), |_| ());
    for (length, told) in [(0u32, "of 0 bytes"), (u32::MAX, "of 4294967295 bytes")] {
        let mut peer = UnixStream::connect(&file).expect("connect");
        let limit = Some(std::time::Duration::from_secs(20));
        peer.set_read_timeout(limit).expect("limit the wait");
        peer.write_all(&length.to_be_bytes()).expect("write");
        assert_eq!(peer.read(&mut [0; 1]).expect("end of the connection"), 0);
        switch.wait_event("the reason", |e| {
            matches!(e, Event::PortDown { port: p, reason, .. } if *p == port && reason.contains(told))
        });
    }
}
