//! A container that has a socket of the host reaches nobody by it but whom it may.

use crate::rig::{FAR, serve, site};
use vswitch_tests::{Background, Node, tap_lab};

/// A service of the host's loopback that greets, and tells of who comes.
fn greeter(host: &Node, port: &str) -> Background {
    let program = "import socket,sys\ns=socket.create_server(('127.0.0.1',int(sys.argv[1])))\nprint('serving',flush=True)\n\
                   while True:\n c,_=s.accept(); print('came',flush=True); c.sendall(b'secret'); c.close()";
    let mut server = host.spawn(&["/usr/bin/python3", "-c", program, port]);
    server.wait_for("serving");
    server
}

#[test]
fn its_own_calls_are_refused() {
    let lab = tap_lab!("switching-hostile");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    s.d.host().ok(&["ip", "link", "set", "lo", "up"]);
    let greeter = greeter(s.d.host(), "7077");
    // Disconnect, bind, listen; connect tells of the connection that it has, which goes on.
    let said = s.client(&["hostile", FAR[0], "7000", "7077"]);
    assert_eq!(said, "ENOTSUP EINVAL EINVAL 0 hello");
    // One without a peer: it goes nowhere but where it may.
    let said = s.client(&["refused", FAR[0], "7009", "7077"]);
    assert_eq!(said, "ENETUNREACH EINPROGRESS EINVAL EINVAL");
    // A thread that changes what is judged.
    let said = s.client(&["race", FAR[0], "7000", "7077", "3"]);
    println!("{said}");
    assert!(said.ends_with("heard 0"), "{said}");
    assert!(!greeter.output().contains("came"), "the host was reached");
    s.d.assert_ledger();
}

#[test]
fn an_accomplice_without_a_filter_hears_nobody() {
    let lab = tap_lab!("switching-accomplice");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    s.d.host().ok(&["ip", "link", "set", "lo", "up"]);
    let greeter = greeter(s.d.host(), "7077");
    let path = lab.dir().join("accomplice");
    let path = path.to_str().expect("UTF-8");
    let mut accomplice = s.start_plain(&["take", path, "7077"]);
    accomplice.wait_for("taking");
    assert_eq!(s.client(&["give", FAR[0], "7000", path]), "given");
    assert_eq!(s.switched(), 1);
    // It may be disconnected, but the handshake with the host's loopback is never heard.
    accomplice.wait_for("0 TimeoutError");
    assert!(!greeter.output().contains("came"), "the host was reached");
}
