//! Published ports at sockets of the host: who comes by them, and what becomes of him.

use crate::rig::{FAR, HOST, Site, peer, serve, site};
use serde_json::{Value, json};
use std::time::Duration;
use vswitch_tests::{Daemon, Mtu, tap_lab, wait_until};

const BYTES: &str = "100000000";

/// Publishes a port of the host for the container of [`site`], in both families.
fn publish(d: &Daemon, name: &str, more: &[&str]) -> String {
    let to = "192.0.2.10:7000,[2001:db8:1::10]:7000";
    let base = ["publish", "add", name, "--to", to];
    d.ctl(&[&base[..], more].concat())
}

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
fn client_addresses_are_preserved_on_published_ports() {
    let lab = tap_lab!("pub-client");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    let said = peer(&outside, &["peer", HOST[0], "8080"]);
    assert_eq!(said, format!("::ffff:{}", FAR[0]));
    assert_eq!(peer(&outside, &["peer", HOST[1], "8080"]), FAR[1]);
    let shown = d.ctl(&["conntrack", "show", "--protocol", "tcp"]);
    assert!(
        shown.contains(FAR[0]) && shown.contains("192.0.2.10:7000"),
        "{shown}"
    );
    d.assert_ledger();
}

/// What is shown of a published port.
fn shown(d: &Daemon, name: &str) -> Value {
    let all = d.ctl_json(&["publish", "show"]);
    let all = all.as_array().expect("a list");
    all.iter()
        .find(|p| p["name"] == name)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn client_addresses_are_preserved_in_two_networks_of_users() {
    let lab = tap_lab!("pub-two");
    let Site { d, a, outside } = site(&lab, "1500");
    d.ctl(&["network", "add", "back"]);
    let addresses = "203.0.113.1/24,2001:db8:3::1/64";
    d.ctl(&[
        "gateway",
        "set",
        "back",
        "--host-uplink",
        "on",
        "--addresses",
        addresses,
    ]);
    let b = lab.container("b");
    let attach = |node: &vswitch_tests::Node, network: &str, ip: &str, more: &[&str]| {
        let pid = node.pid().to_string();
        let base = ["attach", "--pid", &pid, "--ip", ip, network];
        d.ctl(&[&base[..], more].concat());
    };
    let gw = ["--gw", "203.0.113.1,2001:db8:3::1"];
    attach(&b, "back", "203.0.113.10/24,2001:db8:3::10/64", &gw);
    // The first container is in both, and its way out is by the first.
    attach(
        &a,
        "back",
        "203.0.113.20/24",
        &["--device", "eth1", "--name", "a1"],
    );
    let _front = serve(&a, "serve", "7000");
    let _back = serve(&b, "serve", "7000");
    let _datagrams = serve(&b, "datagrams", "7100");
    publish(&d, "front", &["--ports", "8080"]);
    let to = "203.0.113.10:7000,[2001:db8:3::10]:7000";
    d.ctl(&["publish", "add", "back", "--to", to, "--ports", "8081"]);
    let to = "203.0.113.10:7100,[2001:db8:3::10]:7100";
    d.ctl(&[
        "publish",
        "add",
        "udp",
        "--to",
        to,
        "--ports",
        "8081",
        "--protocol",
        "udp",
    ]);
    for port in ["8080", "8081"] {
        let said = peer(&outside, &["peer", HOST[0], port]);
        assert_eq!(said, format!("::ffff:{}", FAR[0]), "{port}");
        assert_eq!(peer(&outside, &["peer", HOST[1], port]), FAR[1], "{port}");
    }
    let said = peer(&outside, &["who", HOST[0], "8081"]);
    assert_eq!(said, format!("::ffff:{} same port", FAR[0]));
    let said = peer(&outside, &["who", HOST[1], "8081"]);
    assert_eq!(said, format!("{} same port", FAR[1]));
    d.assert_ledger();
}

#[test]
fn publishing_on_127_0_0_1_only() {
    let lab = tap_lab!("pub-loop");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    let _datagrams = serve(&a, "datagrams", "7100");
    let add = |name: &str, address: &str, to: &str, protocol: &str| {
        let base = ["publish", "add", name, "--ports", "8080", "--to", to];
        d.ctl(&[&base[..], &["--address", address, "--protocol", protocol]].concat());
    };
    add("four", "127.0.0.1", "192.0.2.10:7000", "tcp");
    add("six", "::1", "[2001:db8:1::10]:7000", "tcp");
    add("dgram", "127.0.0.1", "192.0.2.10:7100", "udp");
    // The gateway stands for who is on the host itself.
    let said = peer(d.host(), &["peer", "127.0.0.1", "8080"]);
    assert_eq!(said, "::ffff:192.0.2.1");
    assert_eq!(peer(d.host(), &["peer", "::1", "8080"]), "2001:db8:1::1");
    let said = peer(d.host(), &["who", "127.0.0.1", "8080"]);
    assert_eq!(said, "::ffff:192.0.2.1 same port");
    let said = peer(d.host(), &["upload", "127.0.0.1", "8080", "20000000"]);
    assert_eq!(said, "same");
    for host in HOST {
        for from in [&outside, d.host()] {
            let said = peer(from, &["attempt", host, "8080"]);
            assert_eq!(
                said,
                "ConnectionRefusedError 111",
                "{host} from {}",
                from.name()
            );
        }
    }
    let said = peer(&outside, &["who", HOST[0], "8080"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

#[test]
fn ipv6_publishing() {
    let lab = tap_lab!("pub-six");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    // What the machine has a dual-stack socket be makes no difference.
    d.host().ok(&["sysctl", "-qw", "net.ipv6.bindv6only=0"]);
    let to = "[2001:db8:1::10]:7000";
    let args = ["publish", "add", "six", "--ports", "8080", "--to", to];
    d.ctl(&[&args[..], &["--address", "::"]].concat());
    assert_eq!(peer(&outside, &["peer", HOST[1], "8080"]), FAR[1]);
    let said = peer(&outside, &["attempt", HOST[0], "8080"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    let said = peer(&outside, &["upload", HOST[1], "8080", "20000000"]);
    assert_eq!(said, "same");
    // The same port in the other family is another's.
    let args = [
        "publish",
        "add",
        "four",
        "--ports",
        "8080",
        "--to",
        "192.0.2.10:7000",
    ];
    d.ctl(&args);
    let said = peer(&outside, &["peer", HOST[0], "8080"]);
    assert_eq!(said, format!("::ffff:{}", FAR[0]));
    assert_eq!(shown(&d, "six")["host"], json!(["::"]));
    assert_eq!(shown(&d, "four")["host"], json!(["0.0.0.0"]));
    d.assert_ledger();
}

#[test]
fn datagrams_are_answered_from_where_they_were_sent_to() {
    let lab = tap_lab!("pub-udp");
    let Site { d, a, outside } = site(&lab, "1500");
    let _datagrams = serve(&a, "datagrams", "7100");
    let to = "192.0.2.10:7100,[2001:db8:1::10]:7100";
    d.ctl(&[
        "publish",
        "add",
        "udp",
        "--to",
        to,
        "--ports",
        "9100",
        "--protocol",
        "udp",
    ]);
    // The host has a second address of either family.
    d.host().addr("out0", "198.51.100.7/24");
    d.host().addr("out0", "2001:db8:2::7/64");
    for (i, far) in [(0, "198.51.100.7"), (1, "2001:db8:2::7")] {
        for host in [HOST[i], far] {
            let as_seen = ["::ffff:198.51.100.254", "2001:db8:2::254"][i];
            let said = peer(&outside, &["who", host, "9100"]);
            assert_eq!(said, format!("{as_seen} same port"), "{host}");
            let said = peer(&outside, &["datagram", host, "9100", "1200", "200"]);
            assert_eq!(said, "same 200", "{host}");
        }
    }
    // Longer than a packet, and as long as they can be.
    for size in ["5000", "65507"] {
        let said = peer(&outside, &["datagram", HOST[0], "9100", size, "5"]);
        assert_eq!(said, "same 5", "{size}");
    }
    let now = shown(&d, "udp");
    assert!(now["accepted"].as_u64() >= Some(10), "{now}");
    // It is closed; the port is nobody's.
    d.ctl(&["publish", "del", "udp"]);
    let said = peer(&outside, &["who", HOST[0], "9100"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

#[test]
fn adding_and_removing_leaves_others_untouched() {
    let lab = tap_lab!("pub-change");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    let python = |args: &[&str]| {
        let argv = [
            &["/usr/bin/python3", "-c", include_str!("peer.py")][..],
            args,
        ]
        .concat();
        outside.spawn(&argv)
    };
    let mut steady = python(&["steady", HOST[0], "8080", "200"]);
    let bulk = python(&["upload", HOST[0], "8080", "400000000"]);
    steady.wait_for("began");
    for port in 8090..8110 {
        let (name, port) = (format!("p{port}"), port.to_string());
        publish(&d, &name, &["--ports", &port]);
        assert_eq!(peer(&outside, &["echo", HOST[0], &port, "hello"]), "5");
        if port.ends_with(['1', '3', '5']) {
            d.ctl(&["publish", "del", &name]);
            let said = peer(&outside, &["attempt", HOST[0], &port]);
            assert_eq!(said, "ConnectionRefusedError 111");
        }
    }
    // Also of the port itself, whose connections go on.
    d.ctl(&["publish", "del", "web"]);
    let said = peer(&outside, &["attempt", HOST[0], "8080"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    publish(&d, "web", &["--ports", "8080"]);
    assert_eq!(peer(&outside, &["echo", HOST[0], "8080", "hello"]), "5");
    let said = steady.finish(Duration::from_secs(60)).expect_ok();
    assert!(said.contains("same 200"), "{said}");
    let said = bulk.finish(Duration::from_secs(120)).expect_ok();
    assert_eq!(said.trim(), "same");
    d.assert_ledger();
}

#[test]
fn a_range_of_ports_is_published() {
    let lab = tap_lab!("pub-range");
    let Site { d, a, outside } = site(&lab, "1500");
    let _third = serve(&a, "serve", "7003");
    let _last = serve(&a, "serve", "7009");
    publish(&d, "range", &["--ports", "8000-8009"]);
    for port in ["8003", "8009"] {
        assert_eq!(
            peer(&outside, &["echo", HOST[0], port, "hello"]),
            "5",
            "{port}"
        );
    }
    // Nobody listens behind the others.
    for port in ["8000", "8008"] {
        let said = peer(&outside, &["greeted", HOST[0], port]);
        assert_eq!(said, "ConnectionResetError 104", "{port}");
    }
    for port in ["7999", "8010"] {
        let said = peer(&outside, &["attempt", HOST[0], port]);
        assert_eq!(said, "ConnectionRefusedError 111", "{port}");
    }
    assert_eq!(shown(&d, "range")["failed"], 2);
    d.assert_ledger();
}

#[test]
fn the_host_picks_a_port_and_it_stays() {
    let lab = tap_lab!("pub-pick");
    let Site { mut d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    let port = publish(&d, "web", &["--ports", "0"]).trim().to_owned();
    assert!(port.parse::<u16>().is_ok_and(|p| p > 0), "{port}");
    for host in HOST {
        assert_eq!(peer(&outside, &["echo", host, &port, "hello"]), "5");
    }
    assert_eq!(shown(&d, "web")["config"]["ports"], json!(port));
    let body = json!({"ports": "0", "to": ["192.0.2.10:7000"]});
    let made = d.http("POST", "/v1/publish/second", Some(&body));
    assert_eq!(made.status, 201, "{made:?}");
    let second = made.json()["config"]["ports"].clone();
    assert_ne!(second, json!(port));
    // What a file leaves to the host stays what it was, and comes back as that.
    let mut topology = d.http("GET", "/v1/topology", None).json();
    topology["publish"]["web"]["ports"] = json!("0");
    let put = d.http("PUT", "/v1/topology", Some(&topology));
    assert_eq!((put.status, put.json()), (200, json!([])));
    d.restart();
    assert_eq!(shown(&d, "web")["config"]["ports"], json!(port));
    assert_eq!(shown(&d, "web")["host"], json!(["0.0.0.0", "::"]));
}

#[test]
fn a_taken_port_is_told_and_nothing_is_half_done() {
    let lab = tap_lab!("pub-taken");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    let other = serve(d.host(), "serve", "8005");
    let refused = |name: &str, ports: &str, address: Option<&str>| {
        let body = json!({"ports": ports, "to": ["192.0.2.10:7000"], "address": address});
        let said = d.http("POST", &format!("/v1/publish/{name}"), Some(&body));
        (said.status, said.json()["error"].clone())
    };
    let (status, error) = refused("range", "8000-8009", None);
    assert_eq!(status, 409, "{error}");
    assert_eq!(error["act"], "publishing");
    assert_eq!(error["thing"], "port `range`");
    assert_eq!(error["reason"], "TCP 0.0.0.0:8005 of the host is taken");
    assert!(
        error["remedy"]
            .as_str()
            .is_some_and(|r| r.contains("ss -ltnp")),
        "{error}"
    );
    let said = peer(&outside, &["attempt", HOST[0], "8000"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    assert_eq!(shown(&d, "range"), Value::Null);
    // By ourselves.
    publish(&d, "web", &["--ports", "8100"]);
    let (status, error) = refused("again", "8100", Some("127.0.0.1"));
    assert_eq!(status, 409);
    assert!(
        error["reason"]
            .as_str()
            .is_some_and(|r| r.contains("`web`")),
        "{error}"
    );
    let (status, error) = refused("far", "8200", Some("203.0.113.5"));
    assert_eq!(
        (status, &error["reason"]),
        (409, &json!("the host has no address 203.0.113.5"))
    );
    // Once it is free it can be had, and one of ours can be moved to another address of the same port.
    drop(other);
    wait_until("the port to be free", || {
        refused("range", "8000-8009", None).0 == 201
    });
    assert_eq!(peer(&outside, &["echo", HOST[0], "8000", "hello"]), "5");
    let mut topology = d.http("GET", "/v1/topology", None).json();
    topology["publish"]["web"]["to"] = json!(["192.0.2.10:7000"]);
    topology["publish"]["web"]["address"] = json!("127.0.0.1");
    let put = d.http("PUT", "/v1/topology", Some(&topology));
    assert_eq!(put.status, 200, "{put:?}");
    assert_eq!(peer(d.host(), &["echo", "127.0.0.1", "8100", "hello"]), "5");
    let said = peer(&outside, &["attempt", HOST[0], "8100"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    // A change that is refused leaves it as it is.
    topology["publish"]["web"]["address"] = json!("0.0.0.0");
    topology["publish"]["zz"] =
        json!({"ports": "9000", "to": ["192.0.2.10"], "address": "203.0.113.5"});
    let put = d.http("PUT", "/v1/topology", Some(&topology));
    assert_eq!(put.status, 409, "{put:?}");
    assert_eq!(peer(d.host(), &["echo", "127.0.0.1", "8100", "hello"]), "5");
    let said = peer(&outside, &["attempt", HOST[0], "8100"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

#[test]
fn a_port_taken_at_start_is_shown_and_tried_again() {
    let lab = tap_lab!("pub-start");
    let Site { mut d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    d.stop();
    let other = serve(d.host(), "serve", "8080");
    d.restart();
    let now = shown(&d, "web");
    assert!(
        now["fault"]
            .as_str()
            .is_some_and(|f| f.contains("is taken")),
        "{now}"
    );
    drop(other);
    // With the next change.
    wait_until("the port to be free", || {
        d.run_ctl(&["publish", "del", "none"]);
        publish(&d, "other", &["--ports", "0"]);
        d.ctl(&["publish", "del", "other"]);
        shown(&d, "web")["fault"].is_null()
    });
    assert_eq!(shown(&d, "web")["host"], json!(["0.0.0.0", "::"]));
    drop(outside);
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
    let script = include_str!("peer.py");
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
fn a_client_of_the_containers_own_prefix_is_answered() {
    let lab = tap_lab!("pub-near");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    // Outside is a machine with an address that the container takes for a neighbour's.
    let near = lab.host("near");
    lab.link(d.host(), "out1", &near, "eth0", Mtu(1500));
    d.host().addr("out1", "192.0.2.200/30");
    near.addr("eth0", "192.0.2.201/30");
    let said = peer(&near, &["peer", "192.0.2.200", "8080"]);
    assert_eq!(said, "::ffff:192.0.2.1");
    drop(outside);
    d.assert_ledger();
}
