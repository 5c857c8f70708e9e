//! Which sockets there are, as published ports come and go.

use super::{publish, shown};
use crate::rig::{HOST, PEER, Site, peer, serve, site};
use serde_json::{Value, json};
use std::time::Duration;
use vswitch_tests::{tap_lab, wait_until};

#[test]
fn adding_and_removing_leaves_others_untouched() {
    let lab = tap_lab!("pub-change");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    let python = |args: &[&str]| {
        let argv = [&["/usr/bin/python3", "-c", PEER][..], args].concat();
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
fn what_a_container_listens_on_is_published_as_it_comes_and_goes() {
    let lab = tap_lab!("pub-auto");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    let own = serve(d.host(), "serve", "7600");
    let add = |name: &str, protocol: &str| {
        let to = "192.0.2.10,2001:db8:1::10";
        let base = ["publish", "add", name, "--auto", "--ports", "7000-7999"];
        d.ctl(&[&base[..], &["--to", to, "--protocol", protocol]].concat());
    };
    add("tcp", "tcp");
    add("udp", "udp");
    // At once what is there already.
    assert_eq!(shown(&d, "tcp")["found"], json!([7000]));
    for host in HOST {
        assert_eq!(peer(&outside, &["echo", host, "7000", "hello"]), "5");
    }
    let said = peer(&outside, &["attempt", HOST[0], "7500"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    let later = serve(&a, "serve", "7500");
    let _taken = serve(&a, "serve", "7600");
    let _datagrams = serve(&a, "datagrams", "7100");
    let found = |name: &str, ports: Value| {
        wait_until("what listens to be found", || {
            shown(&d, name)["found"] == ports
        });
    };
    found("tcp", json!([7000, 7500]));
    found("udp", json!([7100]));
    assert_eq!(peer(&outside, &["echo", HOST[0], "7500", "hello"]), "5");
    let said = peer(&outside, &["who", HOST[0], "7100"]);
    assert_eq!(said, "::ffff:198.51.100.254 same port");
    // What the host has itself stays its own, for as long as it has it.
    drop(own);
    found("tcp", json!([7000, 7500, 7600]));
    drop(later);
    found("tcp", json!([7000, 7600]));
    let said = peer(&outside, &["attempt", HOST[0], "7500"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    let args = ["publish", "add", "no", "--auto", "--to", "192.0.2.99"];
    let said = d.ctl_fails(&args);
    assert!(said.contains("set netns"), "{said}");
    d.ctl(&["publish", "del", "tcp"]);
    let said = peer(&outside, &["attempt", HOST[0], "7000"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

#[test]
fn a_port_of_one_interface() {
    let lab = tap_lab!("pub-interface");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    let _datagrams = serve(&a, "datagrams", "7000");
    publish(&d, "web", &["--ports", "8080", "--interface", "out0"]);
    let udp = [
        "--ports",
        "8080",
        "--interface",
        "out0",
        "--protocol",
        "udp",
    ];
    publish(&d, "calls", &udp);
    for (host, far) in HOST
        .into_iter()
        .zip(["::ffff:198.51.100.254", "2001:db8:2::254"])
    {
        assert_eq!(peer(&outside, &["peer", host, "8080"]), far);
        assert_eq!(
            peer(&outside, &["who", host, "8080"]),
            format!("{far} same port")
        );
    }
    // A client on the host comes by the interface whose address it asks.
    for (own, wanted) in [
        (HOST[0], "connected"),
        ("127.0.0.1", "ConnectionRefusedError 111"),
        ("::1", "ConnectionRefusedError 111"),
    ] {
        assert_eq!(peer(d.host(), &["attempt", own, "8080"]), wanted, "{own}");
    }
    assert_eq!(shown(&d, "web")["config"]["interface"], "out0");
    assert!(d.ctl(&["publish", "show"]).contains("any%out0"));
    let add = [
        "publish",
        "add",
        "other",
        "--to",
        "192.0.2.10",
        "--ports",
        "8081",
    ];
    let said = d.ctl_fails(&[&add[..], &["--interface", "gone0"]].concat());
    assert!(said.contains("has no interface gone0"), "{said}");
    let said = d.ctl_fails(&[&add[..], &["--interface", "a b"]].concat());
    assert!(said.contains("can't be the name"), "{said}");
    d.assert_ledger();
}
