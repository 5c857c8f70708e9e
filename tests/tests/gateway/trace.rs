//! `vswitchctl trace` against what really happens: the frame that was traced is sent, and leaves, byte for byte, where the trace said,
//! or is counted dropped with the reason it gave.

use serde_json::Value;
use vswitch_tests::{tap_lab, wait_until};

use crate::nat::{Site, site};
use crate::rfc::program;

pub(crate) fn trace(s: &Site, args: &[&str]) -> Value {
    let said = s.d.ctl_json(&[&["trace"], args].concat());
    // Asking changes nothing.
    let again = s.d.ctl_json(&[&["trace"], args].concat());
    assert_eq!(said, again, "{args:?}");
    said
}

/// The decision of a stage.
#[track_caller]
pub(crate) fn assert_step(said: &Value, stage: &str, decision: &str, detail: &str) {
    let steps = said["steps"].as_array().unwrap();
    let found = steps.iter().any(|s| {
        s["stage"] == stage
            && s["decision"] == decision
            && s["detail"].as_str().unwrap_or("").contains(detail)
    });
    assert!(found, "{stage} {decision} {detail}: {said:#}");
}

fn node_of(port: &str) -> &str {
    if port == "up0" { "outside" } else { port }
}

fn drops(s: &Site, port: &str, reason: &str) -> u64 {
    let stats = s.d.ctl_json(&["stats"]);
    let ports = stats["ports"].as_array().unwrap();
    let port = ports.iter().find(|p| p["name"] == port).unwrap();
    port["drops"][reason].as_u64().unwrap_or(0)
}

/// Sends the frame that was traced; what the trace said has to happen.
#[track_caller]
fn assert_happens(s: &Site, said: &Value) {
    let from = said["from"].as_str().unwrap();
    let expected = |list: &str| -> Vec<(String, String)> {
        let all = said[list].as_array().unwrap().iter();
        let leaving = all.filter(|l| l["drop"].is_null());
        let of = |v: &Value, key: &str| v[key].as_str().unwrap().to_owned();
        leaving
            .map(|l| (node_of(&of(l, "port")).to_owned(), of(l, "frame")))
            .collect()
    };
    let all = [expected("sent"), expected("besides")].concat();
    let list: Vec<String> = all.iter().map(|(n, f)| format!("('{n}', '{f}')")).collect();
    let reason = said["reason"].as_str();
    let before = reason.map(|r| drops(s, from, r));
    program(
        s,
        &format!(
            "
expected = [(n, bytes.fromhex(f)) for n, f in [{}]]
wires = {{n: wire(n) for n in NS}}
socket.socket.send(wires['{}'], bytes.fromhex('{}'))
end = time.time() + 5
while expected and time.time() < end:
    ready = select.select(list(wires.values()), [], [], 0.2)[0]
    for n, w in wires.items():
        if w in ready:
            data, where = w.recvfrom(65535)
            if where[2] != 4 and (n, data) in expected: expected.remove((n, data))
assert not expected, [(n, f.hex()) for n, f in expected]
",
            list.join(", "),
            node_of(from),
            said["frame"].as_str().unwrap(),
        ),
    );
    if let (Some(reason), Some(before)) = (reason, before) {
        wait_until("the drop is counted", || drops(s, from, reason) > before);
    }
}

/// Traces, checks the verdict, and that it happens.
#[track_caller]
fn check(s: &Site, args: &[&str], verdict: &str, reason: Option<&str>) -> Value {
    let said = trace(s, args);
    assert_eq!(
        (said["verdict"].as_str(), said["reason"].as_str()),
        (Some(verdict), reason),
        "{said:#}"
    );
    assert_happens(s, &said);
    said
}

pub(crate) const FAR: &str = "203.0.113.7";

/// Everybody knows everybody.
pub(crate) fn warm(s: &Site) {
    for to in [
        "198.51.100.254",
        FAR,
        "192.0.2.11",
        "2001:db8:2::254",
        "2001:db8:1::11",
    ] {
        s.a.assert_ping(to);
    }
    s.b.assert_ping("198.51.100.254");
}

#[test]
fn frames_go_where_the_trace_says() {
    forwarded("1");
}

#[test]
fn frames_go_where_the_trace_says_with_two_workers() {
    forwarded("2");
}

fn forwarded(workers: &str) {
    let lab = tap_lab!("trace-forward");
    let s = site(&lab, &["--workers", workers]);
    warm(&s);
    let from_a = |rest: &[&'static str]| [&["--from", "a"], rest].concat();
    // Within the network.
    let said = check(
        &s,
        &from_a(&["--dst-ip", "192.0.2.11", "--dport", "5432"]),
        "sent",
        None,
    );
    assert_step(&said, "learn", "known", "");
    assert_step(&said, "fdb", "found", "");
    assert_step(&said, "egress", "sends", "");
    assert_eq!(said["sent"][0]["port"], "b");
    let unknown = from_a(&["--dst-ip", "192.0.2.77", "--dst-mac", "02:00:00:00:00:77"]);
    let said = check(&s, &unknown, "sent", None);
    assert_step(&said, "fdb", "flood", "unknown");
    let all = from_a(&[
        "--dst-ip",
        "255.255.255.255",
        "--proto",
        "udp",
        "--dport",
        "9",
    ]);
    assert_step(
        &check(&s, &all, "sent", None),
        "group",
        "flood",
        "ff:ff:ff:ff:ff:ff",
    );
    let back = from_a(&[
        "--dst-ip",
        "192.0.2.10",
        "--dst-mac",
        "02:00:00:00:00:78",
        "--src-mac",
        "02:00:00:00:00:78",
    ]);
    let said = trace(&s, &back);
    assert_step(&said, "learn", "new", "02:00:00:00:00:78");
    // To the gateway itself.
    let said = check(
        &s,
        &from_a(&["--dst-ip", "192.0.2.1", "--icmp", "echo-request"]),
        "sent",
        None,
    );
    assert_step(&said, "gateway", "answers", "echo");
    assert_eq!(said["sent"][0]["port"], "a");
    // Out, translated: the first packet, a further one, and the answer.
    for (to, ours, theirs) in [
        (FAR, "198.51.100.1", "192.0.2.10"),
        ("2001:db8:2::254", "2001:db8:2::1", "2001:db8:1::10"),
    ] {
        let out = [
            "--from", "a", "--dst-ip", to, "--proto", "udp", "--dport", "9953", "--sport", "40000",
        ];
        let said = check(&s, &out, "sent", None);
        assert_step(&said, "conntrack", "new", "udp");
        assert_step(&said, "route", "found", "");
        assert_step(&said, "nat", "rewrite", ours);
        assert_step(&said, "neighbour", "known", "");
        let said = check(&s, &out, "sent", None);
        assert_step(&said, "conntrack", "known", "udp");
        let back = [
            "--from", "up0", "--src-ip", to, "--dst-ip", ours, "--proto", "udp", "--dport",
            "40000", "--sport", "9953",
        ];
        let said = check(&s, &back, "sent", None);
        assert_step(&said, "conntrack", "reply", "udp");
        assert_step(&said, "nat", "rewrite", theirs);
        assert_eq!(said["sent"][0]["port"], "a");
    }
    // A published port, and one that isn't.
    s.d.ctl(&[
        "publish",
        "add",
        "web",
        "--ports",
        "8080",
        "--to",
        "192.0.2.11:80",
    ]);
    let outside = ["--from", "up0", "--src-ip", FAR, "--dst-ip", "198.51.100.1"];
    let said = check(
        &s,
        &[&outside[..], &["--dport", "8080"]].concat(),
        "sent",
        None,
    );
    assert_step(&said, "publish", "found", "192.0.2.11:80");
    assert_eq!(said["sent"][0]["port"], "b");
    let said = check(
        &s,
        &[&outside[..], &["--dport", "99", "--proto", "udp"]].concat(),
        "dropped",
        Some("consumed"),
    );
    assert_eq!(said["besides"][0]["kind"], "made", "port unreachable");
    let said = check(
        &s,
        &[
            "--from",
            "up0",
            "--src-ip",
            FAR,
            "--dst-ip",
            "192.0.2.10",
            "--dst-mac",
            &gateway_mac(&s),
        ],
        "dropped",
        Some("policy"),
    );
    assert_step(&said, "policy", "drop", "uplink");
    // A question for the gateway's MAC is answered.
    let (own, asked) = (mac(&s).replace(':', ""), "000000000000c0000201");
    let arp = format!("ffffffffffff{own}08060001080006040001{own}c000020a{asked}");
    let said = check(
        &s,
        &["--from", "a", "--frame", &arp],
        "dropped",
        Some("consumed"),
    );
    assert_step(&said, "gateway", "answers", "asks the gateway");
    assert_eq!(said["besides"][0]["port"], "a", "an ARP reply");
    // Nobody there: the gateway asks, and keeps the packet.
    let said = check(
        &s,
        &from_a(&["--dst-ip", "198.51.100.77", "--dport", "80"]),
        "held",
        None,
    );
    assert_step(&said, "neighbour", "held", "198.51.100.77");
    assert_eq!(said["besides"][0]["port"], "up0", "an ARP request");
    s.d.assert_ledger();
}

/// MAC of the gateway in the outer network.
fn gateway_mac(s: &Site) -> String {
    let shown = s.outside.ok(&["ip", "neigh", "show", "198.51.100.1"]);
    let mut words = shown.split_whitespace().skip_while(|w| *w != "lladdr");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn frames_are_dropped_as_the_trace_says() {
    let lab = tap_lab!("trace-drop");
    let s = site(&lab, &[]);
    warm(&s);
    let from_a = |rest: &[&'static str]| [&["--from", "a"], rest].concat();
    let dropped = |rest: &[&'static str], why| check(&s, &from_a(rest), "dropped", Some(why));
    // At the router.
    let said = dropped(&["--dst-ip", FAR, "--ttl", "1"], "ttl_exceeded");
    assert_step(&said, "gateway", "drop", "TTL");
    assert_eq!(said["besides"][0]["port"], "a", "time exceeded");
    dropped(&["--dst-ip", FAR, "--src-ip", "198.51.100.9"], "martian");
    let said = dropped(&["--dst-ip", FAR, "--tcp-flags", "SF"], "invalid_state");
    assert_step(&said, "conntrack", "invalid", "flags");
    s.d.ctl(&["gateway", "set", "wan", "--mtu", "1300"]);
    let long = [
        "--dst-ip",
        FAR,
        "--proto",
        "udp",
        "--dport",
        "9",
        "--payload",
        "1400",
    ];
    let said = dropped(&long, "mtu");
    assert_step(&said, "gateway", "drop", "1300");
    let may = from_a(&[&long[..], &["--dont-fragment", "false"]].concat());
    let said = check(&s, &may, "sent", None);
    assert_step(&said, "gateway", "fragments", "1300");
    let pieces = ["sent", "besides"].map(|list| said[list].as_array().unwrap().len());
    assert_eq!(pieces, [1, 1], "the first piece, and the other");
    // By policy: routed and within the network, silently and not.
    s.d.ctl(&["port", "set", "a", "--labels", "app"]);
    s.d.ctl(&[
        "policy",
        "add",
        "app",
        "--from",
        "label:app",
        "--rule",
        "drop name telnet proto tcp ports 23",
        "--rule",
        "reject name smtp proto tcp ports 25",
        "--rule",
        "accept name slow proto tcp ports 80 limit 1",
    ]);
    for to in [FAR, "192.0.2.11"] {
        let said = check(
            &s,
            &["--from", "a", "--dst-ip", to, "--dport", "23"],
            "dropped",
            Some("policy"),
        );
        assert_step(
            &said,
            "policy",
            "drop",
            "`app/telnet` is the first rule that matches",
        );
        let said = check(
            &s,
            &["--from", "a", "--dst-ip", to, "--dport", "25"],
            "dropped",
            Some("policy"),
        );
        assert_step(&said, "policy", "reject", "`app/smtp`");
        assert_eq!(said["besides"][0]["port"], "a", "a reset");
        let said = check(
            &s,
            &["--from", "a", "--dst-ip", to, "--dport", "26"],
            "sent",
            None,
        );
        assert_step(&said, "policy", "accept", "no rule matches");
    }
    // By the source guard.
    s.d.ctl(&[
        "port",
        "set",
        "a",
        "--allowed-ips",
        "192.0.2.10/32",
        "--allowed-macs",
        &mac(&s),
    ]);
    let said = dropped(
        &["--dst-ip", "192.0.2.11", "--src-ip", "192.0.2.66"],
        "ip_guard",
    );
    assert_step(&said, "ingress", "drop", "ip_guard");
    dropped(
        &["--dst-ip", "192.0.2.11", "--src-mac", "02:00:00:00:00:66"],
        "mac_guard",
    );
    let said = trace(&s, &from_a(&["--dst-ip", "192.0.2.11"]));
    assert_step(&said, "ingress", "guard passes", "");
    // Without a route.
    s.d.ctl(&[
        "gateway",
        "set",
        "wan",
        "--route",
        "203.0.113.0/24=198.51.100.254",
    ]);
    let said = dropped(&["--dst-ip", "198.18.0.1"], "no_route");
    assert_step(&said, "route", "none", "198.18.0.1");
    assert_eq!(said["besides"][0]["port"], "a", "unreachable");
    s.d.ctl(&["port", "set", "a", "--up", "off"]);
    let said = trace(&s, &from_a(&["--dst-ip", "192.0.2.11"]));
    assert_eq!(said["reason"], "port_down");
    s.d.assert_ledger();
}

fn mac(s: &Site) -> String {
    s.a.ok(&["cat", "/sys/class/net/eth0/address"])
        .trim()
        .to_owned()
}

/// What a trace must leave alone; what only shows the time is left out.
fn state(s: &Site) -> Value {
    let mut all = Vec::new();
    for args in [
        &["fdb", "show", "lan"][..],
        &["fdb", "show", "wan"],
        &["gateway", "neighbours"],
        &["conntrack", "show"],
        &["conntrack", "count"],
        &["policy", "show"],
    ] {
        let mut shown = s.d.ctl_json(args);
        for entry in shown.as_array_mut().into_iter().flatten() {
            if let Some(fields) = entry.as_object_mut() {
                for time in ["age", "fresh_for", "idle", "expires"] {
                    fields.remove(time);
                }
            }
        }
        if let Some(list) = shown.as_array_mut() {
            list.sort_by_key(Value::to_string);
        }
        all.push(shown);
    }
    all.into()
}

#[test]
fn asking_changes_nothing() {
    let lab = tap_lab!("trace-dry");
    let s = site(&lab, &[]);
    s.d.ctl(&[
        "policy",
        "add",
        "all",
        "--rule",
        "accept name few proto tcp ports 80 limit 1",
        "--default",
        "accept",
    ]);
    s.d.ctl(&[
        "publish",
        "add",
        "web",
        "--ports",
        "8080",
        "--to",
        "192.0.2.11:80",
    ]);
    warm(&s);
    let before = state(&s);
    let mut frames = vec![
        vec!["--from", "a", "--dst-ip", FAR, "--dport", "80"],
        vec![
            "--from", "a", "--dst-ip", FAR, "--proto", "udp", "--dport", "53",
        ],
        vec![
            "--from",
            "a",
            "--dst-ip",
            "2001:db8:2::254",
            "--icmp",
            "echo-request",
        ],
        vec![
            "--from",
            "a",
            "--dst-ip",
            "192.0.2.11",
            "--src-mac",
            "02:00:00:00:00:99",
        ],
        vec!["--from", "a", "--dst-ip", "198.51.100.99"],
        vec![
            "--from",
            "up0",
            "--src-ip",
            FAR,
            "--dst-ip",
            "198.51.100.1",
            "--dport",
            "8080",
        ],
        vec!["--from", "a", "--dst-ip", "198.51.100.1", "--dport", "8080"],
    ];
    // An ARP request of an address that nobody has spoken for, and a fragment.
    frames.push(vec![
        "--from",
        "a",
        "--frame",
        "ffffffffffff0200000000990806000108000604000102000000009900000000000000000000c0000201",
    ]);
    for args in &frames {
        for _ in 0..3 {
            s.d.ctl_json(&[&["trace"], &args[..]].concat());
        }
    }
    assert_eq!(state(&s), before);
    s.d.assert_ledger();
}
