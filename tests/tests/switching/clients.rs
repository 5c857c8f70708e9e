//! Programs find what they have asked for.

use crate::rig::{FAR, HOST, Site, serve, site};
use vswitch_tests::{tap_lab, wait_until};

#[test]
fn payload_arrives_whole_and_crosses_no_switch() {
    let lab = tap_lab!("switching-payload");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    for far in FAR {
        let (before, switched) = (s.port_bytes(), s.switched());
        for way in ["upload", "download"] {
            assert_eq!(s.peer(&[way, far, "7000", "50000000"]), "same", "{far}");
        }
        let crossed = s.port_bytes() - before;
        assert!(crossed < 1_000_000, "{crossed} bytes crossed the switch");
        assert_eq!(s.switched(), switched + 2, "{}", s.counts());
    }
    // As who they come, and that short ones do as well.
    let seen = ["::ffff:198.51.100.1", "2001:db8:2::1"];
    for (far, seen) in FAR.into_iter().zip(seen) {
        assert_eq!(s.peer(&["peer", far, "7000"]), seen);
    }
    let said = s.peer(&["many", FAR[0], "7000", "320"]);
    assert!(said.starts_with("done 320 failed 0"), "{said}");
    s.d.assert_ledger();
}

#[test]
fn programs_that_wait_and_those_that_do_not() {
    let lab = tap_lab!("switching-waiting");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    for far in FAR {
        // EINPROGRESS, no error, and then as connect(2) says of one that is made.
        let said = s.client(&["nonblocking", far, "7000"]);
        assert_eq!(said, "EINPROGRESS 0 0 EISCONN hello", "{far}");
        let said = s.client(&["nonblocking_refused", far, "7009", "7000"]);
        assert_eq!(said, "EINPROGRESS ECONNREFUSED EINPROGRESS hello", "{far}");
        assert_eq!(
            s.peer(&["attempt", far, "7009"]),
            "ConnectionRefusedError 111"
        );
        assert_eq!(s.client(&["loop", far, "7000"]), "hello");
    }
    let switched = s.switched();
    // Registered with epoll sets before: it stays so, by the number that the program knows, and with its data.
    for (far, edge) in [(FAR[0], "0"), (FAR[1], "1")] {
        let said = s.client(&["registered", far, "7000", edge]);
        assert_eq!(said, "EINPROGRESS 0 hello readable removed 0", "{far}");
    }
    assert_eq!(s.switched(), switched + 2, "{}", s.counts());
    let said = s.client(&["selector", FAR[0], "7000", "8"]);
    assert_eq!(said, "hello 8");
    assert_eq!(s.switched(), switched + 10, "{}", s.counts());
    let refused = s.client(&["registered_refused", FAR[0], "7009"]);
    assert_eq!(refused, "EINPROGRESS ECONNREFUSED");
    // A duplicate stays with its own, and so does what can't be registered anew.
    let switched = s.switched();
    assert_eq!(s.client(&["duplicate", FAR[0], "7000"]), "hello");
    assert_eq!(s.client(&["disarmed", FAR[0], "7000"]), "EINPROGRESS hello");
    assert_eq!((s.switched(), s.by_network("shared")), (switched, 2));
    let metrics = s.d.http("GET", "/metrics", None).body;
    for line in [
        "vswitch_port_unswitched_total{port=\"a\",reason=\"shared\"} 2",
        &format!("vswitch_port_switched_total{{port=\"a\"}} {switched}"),
    ] {
        assert!(metrics.contains(line), "{line} {metrics}");
    }
    // Nobody answers there. A signal is heard all the same, and so is the end of patience.
    let block = "ip route add blackhole 203.0.113.9 && nft add table ip t && nft add chain ip t c '{ type filter hook input priority 0; }' && \
                 nft add rule ip t c tcp dport 7010 drop";
    s.outside.ok(&["sh", "-c", block]);
    assert_eq!(s.client(&["interrupted", FAR[0], "7010"]), "interrupted");
    // Who waits with a limit has its own socket, and is told what that is told.
    assert_eq!(s.client(&["impatient", FAR[0], "7010"]), "EINPROGRESS");
    assert_eq!(s.by_network("options"), 1, "{}", s.counts());
    s.d.assert_ledger();
}

#[test]
fn a_socket_keeps_the_options_that_it_was_given() {
    let lab = tap_lab!("switching-options");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    for (far, own) in FAR.into_iter().zip(HOST) {
        let said = s.client(&["options", far, "7000"]);
        assert_eq!(said, format!("same True {own}"), "{far}");
    }
    assert_eq!(s.switched(), 2);
    // Real programs.
    let mut web = s
        .outside
        .spawn(&["python3", "-u", "-m", "http.server", "8080"]);
    web.wait_for("Serving");
    let url = format!("http://{}:8080/", FAR[0]);
    let curl = s.start(&["curl", "-sS", "--max-time", "20", &url]);
    let page = curl.finish(std::time::Duration::from_secs(30)).expect_ok();
    assert!(page.contains("<html"), "{page}");
    assert_eq!(s.switched(), 3, "{}", s.counts());
}

#[test]
fn what_stays_inside_goes_by_the_network() {
    let lab = tap_lab!("switching-inside");
    let s = site(&lab);
    let Site { d, a, outside } = &s;
    let _server = serve(outside, "7000");
    // Its own loopback, a neighbour, the gateway's own address, and a network of its own that outside has too.
    let b = lab.container("b");
    let pid = b.pid().to_string();
    let ip = ["--ip", "192.0.2.11/24", "--gw", "192.0.2.1"];
    d.ctl(&[&["attach", "lan", "--name", "b", "--pid", &pid], &ip[..]].concat());
    let _near = serve(&b, "7000");
    let _own = serve(a, "7000");
    assert_eq!(s.peer(&["peer", "127.0.0.1", "7000"]), "::ffff:127.0.0.1");
    assert_eq!(s.peer(&["peer", "192.0.2.11", "7000"]), "::ffff:192.0.2.10");
    a.addr("lo", "198.51.100.254/32");
    assert_eq!(s.peer(&["peer", FAR[0], "7000"]), "::ffff:198.51.100.254");
    a.ok(&["ip", "addr", "del", "198.51.100.254/32", "dev", "lo"]);
    assert_eq!(s.switched(), 0, "{}", s.counts());
    // The host's loopback is where it was.
    let _local = serve(d.host(), "7002");
    d.ctl(&["gateway", "set", "lan", "--host-loopback", "on"]);
    assert_eq!(s.peer(&["peer", "192.0.2.1", "7002"]), "::ffff:127.0.0.1");
    assert_eq!(s.switched(), 0);
    // A namespace within the container is another's.
    let shut = ["unshare", "--net", "/usr/bin/python3", "-c"];
    let program = "import socket,sys\ntry:\n socket.create_connection((sys.argv[1], 7000), 5); print('open')\nexcept OSError as e: print(e.errno)";
    let out = s.start(&[&shut[..], &[program, FAR[0]]].concat());
    let out = out.finish(std::time::Duration::from_secs(30)).expect_ok();
    assert_eq!(out.trim(), "101", "no network");
    wait_until("it is counted", || s.by_network("namespace") == 1);
    assert_eq!(s.peer(&["peer", FAR[0], "7000"]), "::ffff:198.51.100.1");
    assert_eq!(s.switched(), 1);
}
