//! How connections to published ports go and end.

use super::{publish, shown};
use crate::rig::{HOST, PEER, Site, peer, serve, site};
use std::time::Duration;
use vswitch_tests::{tap_lab, wait_until};

const BYTES: &str = "100000000";

#[test]
fn bytes_cross_a_published_port_both_ways() {
    let lab = tap_lab!("pub-bytes");
    let Site { d, a, outside } = site(&lab, "1500");
    let mut server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    for host in HOST {
        assert_eq!(
            peer(&outside, &["upload", host, "8080", BYTES]),
            "same",
            "{host}"
        );
        assert_eq!(
            peer(&outside, &["download", host, "8080", BYTES]),
            "same",
            "{host}"
        );
    }
    let said = peer(&outside, &["both", HOST[0], "8080", BYTES]);
    let digest = said.strip_prefix("same ").expect("what came was sent");
    server.wait_for(&format!("both {digest}"));
    a.assert_no_checksum_errors();
    d.assert_ledger();
}

#[test]
fn connections_end_as_either_end_ends_them() {
    let lab = tap_lab!("pub-ends");
    let Site { d, a, outside } = site(&lab, "1500");
    let mut server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    for host in HOST {
        // The client's half is closed first; the answer still comes.
        assert_eq!(
            peer(&outside, &["echo", host, "8080", "hello"]),
            "5",
            "{host}"
        );
        assert_eq!(
            peer(&outside, &["was_reset", host, "8080"]),
            "reset",
            "{host}"
        );
    }
    assert_eq!(peer(&outside, &["resets", HOST[0], "8080"]), "done");
    server.wait_for("reset");
    d.assert_ledger();
}

#[test]
fn who_cant_be_served_is_reset() {
    let lab = tap_lab!("pub-refused");
    let Site { d, a, outside } = site(&lab, "1500");
    publish(&d, "web", &["--ports", "8080"]);
    // The container doesn't listen.
    for host in HOST {
        let said = peer(&outside, &["greeted", host, "8080"]);
        assert_eq!(said, "ConnectionResetError 104", "{host}");
    }
    // It says that it forbids it.
    a.ok_with_input(
        &["nft", "-f", "-"],
        b"table inet f { chain in { type filter hook input priority 0;
            tcp dport 7001 reject with icmpx type admin-prohibited; }
        }",
    );
    let to = ["--to", "192.0.2.10:7001,[2001:db8:1::10]:7001"];
    d.ctl(&[&["publish", "add", "no", "--ports", "8081"], &to[..]].concat());
    // There is no container.
    d.ctl(&[
        "publish",
        "add",
        "nobody",
        "--ports",
        "8082",
        "--to",
        "192.0.2.99:7000",
    ]);
    // Policy forbids it, in words or without.
    let _server = serve(&a, "serve", "7002");
    let to = ["--to", "192.0.2.10:7002,[2001:db8:1::10]:7002"];
    d.ctl(&[&["publish", "add", "denied", "--ports", "8083"], &to[..]].concat());
    assert_eq!(peer(&outside, &["greeted", HOST[0], "8083"]), "data");
    for port in ["8081", "8082"] {
        let said = peer(&outside, &["greeted", HOST[0], port]);
        assert_eq!(said, "ConnectionResetError 104", "{port}");
    }
    for action in ["drop", "reject"] {
        let rule = format!("{action} proto tcp ports 7002");
        d.ctl(&[
            "policy",
            "add",
            "in",
            "--to",
            "port:a",
            "--default",
            "accept",
            "--rule",
            &rule,
        ]);
        let said = peer(&outside, &["greeted", HOST[0], "8083"]);
        assert_eq!(said, "ConnectionResetError 104", "{action}");
        d.ctl(&["policy", "del", "in"]);
        assert_eq!(peer(&outside, &["greeted", HOST[0], "8083"]), "data");
    }
    for (name, failed) in [("web", 2), ("no", 1), ("nobody", 1), ("denied", 2)] {
        assert_eq!(shown(&d, name)["failed"], failed, "{name}");
    }
    let stats = d.ctl_json(&["stats"]);
    let ports = stats["ports"].as_array().expect("a list");
    let host = ports.iter().find(|p| p["name"] == "@host").expect("shown");
    assert!(host["drops"]["policy"].as_u64() >= Some(2), "{host}");
    d.assert_ledger();
}

#[test]
fn thousands_of_short_connections_come_from_the_host_and_outside() {
    let lab = tap_lab!("pub-many");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    let fds = || {
        let dir = format!("/proc/{}/fd", d.pid());
        std::fs::read_dir(dir).expect("our daemon").count()
    };
    let before = fds();
    for (from, host) in [
        (d.host(), "127.0.0.1"),
        (&outside, HOST[0]),
        (&outside, HOST[1]),
    ] {
        let said = peer(from, &["many", host, "8080", "3000"]);
        assert_eq!(said, "done 2976 failed 0 []", "{host}");
    }
    assert_eq!(
        peer(&outside, &["hold", HOST[0], "8080", "900"]),
        "held 900"
    );
    wait_until("the sockets to be closed", || fds() <= before + 2);
    d.assert_ledger();
}

#[test]
fn who_waits_for_a_container_is_bounded() {
    let lab = tap_lab!("pub-backlog");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    // The container hears nothing, for as long as it takes.
    let rules =
        b"table inet deaf { chain in { type filter hook input priority 0; tcp dport 7000 drop; }
        }";
    a.ok_with_input(&["nft", "-f", "-"], rules);
    let script = PEER;
    let argv = [
        "/usr/bin/python3",
        "-c",
        script,
        "hold",
        HOST[0],
        "8080",
        "400",
    ];
    let holding = outside.spawn(&argv);
    let accepted = || shown(&d, "web")["accepted"].as_u64();
    wait_until("as many to be accepted as may wait", || {
        accepted() == Some(256)
    });
    // The others wait in the kernel.
    let queue = || d.host().ok(&["ss", "-Hltn", "sport = :8080"]);
    wait_until("the others to wait", || {
        let all = queue();
        let waiting = all.lines().filter_map(|l| l.split_whitespace().nth(1));
        waiting.filter_map(|n| n.parse::<u32>().ok()).sum::<u32>() == 144
    });
    assert_eq!(accepted(), Some(256));
    a.ok(&["nft", "delete", "table", "inet", "deaf"]);
    let said = holding.finish(Duration::from_secs(60)).expect_ok();
    assert_eq!(said.trim(), "held 400");
    assert_eq!(shown(&d, "web")["failed"], 0);
    d.assert_ledger();
}

#[test]
fn connections_from_loopback_are_spliced_where_policy_accepts_them() {
    let lab = tap_lab!("pub-splice");
    let Site { mut d, a, outside } = site(&lab, "1500");
    let mut server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080", "--splice"]);
    let frames = || {
        let stats = d.ctl_json(&["stats"]);
        let ports = stats["ports"].as_array().expect("a list");
        let port = ports.iter().find(|p| p["name"] == "a").expect("shown");
        port["tx_frames"].as_u64().expect("a number")
    };
    // Asked for, it is the container itself; the network has nothing of it.
    let before = frames();
    for (at, own) in [
        ("127.0.0.1", "::ffff:192.0.2.10"),
        ("::1", "2001:db8:1::10"),
    ] {
        assert_eq!(peer(d.host(), &["peer", at, "8080"]), own);
        assert_eq!(peer(d.host(), &["upload", at, "8080", BYTES]), "same");
        assert_eq!(peer(d.host(), &["download", at, "8080", BYTES]), "same");
        assert_eq!(peer(d.host(), &["echo", at, "8080", "hello"]), "5");
        assert_eq!(peer(d.host(), &["was_reset", at, "8080"]), "reset");
    }
    assert_eq!(peer(d.host(), &["resets", "127.0.0.1", "8080"]), "done");
    server.wait_for("reset");
    let said = peer(d.host(), &["both", "127.0.0.1", "8080", BYTES]);
    let digest = said.strip_prefix("same ").expect("what came was sent");
    server.wait_for(&format!("both {digest}"));
    let said = peer(d.host(), &["many", "127.0.0.1", "8080", "1600"]);
    assert_eq!(said, "done 1600 failed 0 []");
    assert!(frames() < before + 20, "{} frames", frames() - before);
    let now = shown(&d, "web");
    assert_eq!(
        (&now["spliced"], &now["failed"]),
        (&now["accepted"], &0.into())
    );
    let metrics = d.http("GET", "/metrics", None).body;
    let line = format!(
        "vswitch_published_spliced_total{{published=\"web\"}} {}",
        now["spliced"]
    );
    assert!(metrics.contains(&line), "{metrics}");
    // Others come by the network. A policy that accepts what is spliced leaves it alone, counts it by its rule, and lets more of it be.
    let said = peer(&outside, &["peer", HOST[0], "8080"]);
    assert_eq!(said, "::ffff:198.51.100.254");
    let argv = [
        "/usr/bin/python3",
        "-c",
        PEER,
        "steady",
        "127.0.0.1",
        "8080",
        "3000",
    ];
    let mut steady = d.host().spawn(&argv);
    steady.wait_for("began");
    let policy = |act: &str, rule: &str| {
        let args = ["policy", act, "in", "--to", "port:a", "--default", "drop"];
        d.ctl(&[&args[..], &["--rule", rule]].concat());
    };
    policy("add", "accept name web proto tcp ports 7000");
    for _ in 0..2 {
        let said = peer(d.host(), &["peer", "127.0.0.1", "8080"]);
        assert_eq!(said, "::ffff:192.0.2.10");
    }
    let all = d.ctl_json(&["policy", "show"]);
    assert_eq!(all[0]["counts"][0]["judged"], 2, "{all}");
    assert!(steady.is_running(), "{}", steady.output());
    // One that no longer does ends it, and what comes then is refused as by the network.
    policy("set", "accept name other proto tcp ports 7001");
    let cut = steady.finish(Duration::from_secs(20));
    assert!(cut.stderr.contains("ConnectionResetError"), "{cut}");
    let before = shown(&d, "web");
    assert_eq!(
        peer(d.host(), &["greeted", "127.0.0.1", "8080"]),
        "ConnectionResetError 104"
    );
    let now = shown(&d, "web");
    assert_eq!(now["spliced"], before["spliced"]);
    assert_eq!(
        now["failed"].as_u64(),
        before["failed"].as_u64().map(|n| n + 1)
    );
    d.ctl(&["policy", "del", "in"]);
    assert_eq!(
        peer(d.host(), &["peer", "127.0.0.1", "8080"]),
        "::ffff:192.0.2.10"
    );
    // Nobody listens there any more, and then there is no container.
    drop(server);
    assert_eq!(
        peer(d.host(), &["greeted", "127.0.0.1", "8080"]),
        "ConnectionResetError 104"
    );
    drop(a);
    assert_eq!(
        peer(d.host(), &["greeted", "127.0.0.1", "8080"]),
        "ConnectionResetError 104"
    );
    d.assert_ledger();
    // That it has gone is no hindrance to other changes, also of a daemon that never saw it.
    publish(&d, "other", &["--ports", "8090"]);
    d.restart();
    publish(&d, "third", &["--ports", "8091"]);
    assert_eq!(
        shown(&d, "web")["host"],
        serde_json::json!(["0.0.0.0", "::"])
    );
}
