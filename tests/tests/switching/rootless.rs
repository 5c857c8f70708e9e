//! All of it as an ordinary user: daemon and container without any privilege of the machine.

use crate::rig::{FAR, serve, site};
use nix::unistd::geteuid;
use serde_json::json;
use vswitch_tests::tap_lab;

#[test]
fn an_ordinary_users_sockets_are_switched() {
    let lab = tap_lab!("switching-rootless");
    if geteuid().is_root() {
        lab.again_as_user("rootless::an_ordinary_users_sockets_are_switched");
        return;
    }
    assert!(lab.is_rootless());
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    for far in FAR {
        for way in ["upload", "download"] {
            assert_eq!(s.peer(&[way, far, "7000", "20000000"]), "same", "{far}");
        }
        assert_eq!(
            s.client(&["nonblocking", far, "7000"]),
            "EINPROGRESS 0 0 EISCONN hello"
        );
    }
    assert_eq!(s.switched(), 6, "{}", s.counts());
    // One in a user namespace of its own, whose listener a runtime hands over.
    let b = lab.user_container("b");
    let pid = b.pid().to_string();
    let ip = ["--ip", "192.0.2.11/24", "--gw", "192.0.2.1"];
    s.d.ctl(&[&["attach", "lan", "--name", "b", "--pid", &pid], &ip[..]].concat());
    let socket = s.d.socket();
    let path = format!("{}.seccomp", socket.to_str().expect("UTF-8"));
    let state = json!({"pid": b.pid()}).to_string();
    let connect = "import socket; s=socket.create_connection(('198.51.100.254',7000),10); s.sendall(b'peer\\n'); print(s.recv(99).decode())";
    let mut client = b.spawn(&[
        "/usr/bin/python3",
        "-c",
        crate::rig::CLIENT,
        "runtime",
        &path,
        &state,
        "/usr/bin/python3",
        "-c",
        connect,
    ]);
    client.wait_for("::ffff:198.51.100.1");
    let of_b = s.d.ctl_json(&["port", "show", "b"])[0]["switching"].clone();
    assert_eq!(of_b["switched"], 1, "{of_b} {}", s.d.log());
    println!("done as {}", geteuid());
}
