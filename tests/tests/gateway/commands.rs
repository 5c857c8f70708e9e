//! `vswitchctl conntrack`: filters, flush, events.

use crate::rfc::{plain_site, program};
use vswitch_tests::{program as binary, tap_lab};

#[test]
fn connections_are_found_flushed_and_told() {
    let lab = tap_lab!("conntrack-commands");
    let s = plain_site(&lab);
    let socket = s.d.socket();
    let ctl = binary("vswitchctl");
    let argv = [
        &ctl,
        "--socket",
        socket.to_str().unwrap(),
        "--json",
        "conntrack",
        "events",
    ];
    let mut events = s.d.host().spawn(&argv);
    // The first request begins the keeping of events.
    let flows = "
o = udp('outside', FAR, 7000); l = tcp('outside', FAR2, 7001, True)
through(udp('a', A, 40001), o); through(udp('b', B, 40002), o)
c = tcp('a', A, 40003); c.connect(l.getsockname()); t, e = l.accept()
through(udp('a', '2001:db8:1::10', 40004), udp('outside', '2001:db8:2::254', 7002))
";
    vswitch_tests::wait_until("events to be kept", || {
        s.a.ping("198.51.100.254");
        events.output().contains("\"new\"")
    });
    program(&s, flows);
    let ports = |args: &[&str]| {
        let found = s.d.ctl_json(&[&["conntrack", "show"], args].concat());
        let found = found.as_array().unwrap().iter();
        let mut ports: Vec<u64> = found
            .filter(|c| c["protocol"] == "udp" || c["protocol"] == "tcp")
            .map(|c| c["original"]["src_port"].as_u64().unwrap())
            .collect();
        ports.sort_unstable();
        ports
    };
    for (filter, found) in [
        (&["--protocol", "udp"][..], &[40001, 40002, 40004][..]),
        (&["--protocol", "17", "--src", "192.0.2.11/32"], &[40002]),
        (&["--src", "192.0.2.10/32"], &[40001, 40003]),
        (&["--dst", "203.0.113.0/24"], &[40003]),
        (&["--dst", "2001:db8:2::/64"], &[40004]),
        (&["--port", "7000"], &[40001, 40002]),
        (&["--port", "40002"], &[40002]),
        (&["--port", "40005"], &[]),
    ] {
        assert_eq!(ports(filter), found, "{filter:?}");
    }
    let one = s.d.ctl_json(&["conntrack", "show", "--limit", "1"]);
    assert_eq!(one.as_array().unwrap().len(), 1, "{one}");
    let state = s.d.ctl_json(&["conntrack", "show", "--port", "40003"])[0]["state"].clone();
    let state = state.as_str().unwrap();
    assert_eq!(ports(&["--state", state]), [40003]);
    let err = s.d.ctl_fails(&["conntrack", "show", "--protocol", "ucp"]);
    assert!(err.contains("there is no such protocol"), "{err}");
    // Flush by filter takes these and no others.
    let filter = [
        "conntrack",
        "flush",
        "--protocol",
        "udp",
        "--src",
        "192.0.2.0/24",
    ];
    assert_eq!(s.d.ctl_json(&filter)["removed"], 2);
    assert_eq!(ports(&[]), [40003, 40004]);
    let told = |event: &str, port: u64| {
        events.output().lines().any(|line| {
            let e: serde_json::Value = serde_json::from_str(line).unwrap();
            e["event"].as_str().unwrap().starts_with(event)
                && e.to_string().contains(&format!("\"src_port\":{port}"))
        })
    };
    for port in [40001, 40002, 40003, 40004] {
        vswitch_tests::wait_until("an event of a new one", || told("new", port));
    }
    for port in [40001, 40002] {
        vswitch_tests::wait_until("an event of an ended one", || {
            told("flush", port) || told("destroy", port) || told("end", port)
        });
    }
    assert!(events.is_running());
    s.d.assert_ledger();
}
