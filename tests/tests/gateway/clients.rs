//! What DHCP clients and hosts are told, as it was configured; leases as they come, go and outlive the daemon; resolvers that change.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::services::{Site, dig, site, udhcpc};
use vswitch_tests::{Daemon, Lab, Mtu, Node, tap_lab, wait_until};

/// Has `eth0` a link-local address at once.
fn without_dad(node: &Node) {
    let off = "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad";
    node.ok(&["sh", "-c", off]);
    node.ok(&["ip", "link", "set", "eth0", "down"]);
    node.ok(&["ip", "link", "set", "eth0", "up"]);
}

fn set(d: &Daemon, options: &[&str]) {
    d.ctl(&[&["gateway", "set", "lan"][..], options].concat());
}

/// Whether a line of `rdisc6` says so, whatever its spaces.
fn says(text: &str, expected: &str) -> bool {
    let squeeze = |s: &str| s.split_whitespace().collect::<String>();
    let mut lines = text.lines();
    lines.any(|l| squeeze(l).starts_with(&squeeze(expected)))
}

#[test]
fn clients_get_the_addresses_that_are_theirs() {
    let lab = tap_lab!("static-leases");
    let Site { d, a, b, .. } = &site(&lab, &[]);
    let mac = a.mac("eth0");
    let by_mac = format!("{mac}=192.0.2.50=printer");
    set(d, &["--dhcp-static", &by_mac]);
    let told = udhcpc(&lab, a, "box");
    for expected in ["ip=192.0.2.50", "hostname=printer"] {
        assert!(told.lines().any(|l| l == expected), "{expected} in {told}");
    }
    // By port, with another router, resolver and MTU.
    set(
        d,
        &[
            "--dhcp-static",
            "a=192.0.2.51",
            "--dhcp-dns",
            "192.0.2.11",
            "--dhcp-domain",
            "other.example",
            "--dhcp-mtu",
            "1400",
            "--dhcp-router",
            "192.0.2.11",
        ],
    );
    fs::remove_file(lab.dir().join("a.log")).expect("remove the log");
    let told = udhcpc(&lab, a, "box");
    for expected in [
        "ip=192.0.2.51",
        "dns=192.0.2.11",
        "domain=other.example",
        "mtu=1400",
        "router=192.0.2.11",
    ] {
        assert!(told.lines().any(|l| l == expected), "{expected} in {told}");
    }
    // Names and services.
    set(
        d,
        &[
            "--dns-record",
            "www=192.0.2.11+2001:db8:1::11,mail=192.0.2.11",
            "--dns-service",
            "_http._tcp.www=8080,_smtp._tcp.mail=25:5:6",
        ],
    );
    assert_eq!(dig(b, &["www.lan.example"]), "192.0.2.11");
    assert_eq!(dig(b, &["www.lan.example", "AAAA"]), "2001:db8:1::11");
    let service = |name: &str| dig(b, &[name, "SRV"]);
    assert_eq!(
        service("_http._tcp.www.lan.example"),
        "0 0 8080 www.lan.example."
    );
    assert_eq!(
        service("_smtp._tcp.mail.lan.example"),
        "5 6 25 mail.lan.example."
    );
    // All of it in a topology, and from there again.
    let file = lab.dir().join("all.toml");
    fs::write(&file, d.ctl(&["export"])).expect("write the topology");
    let file = file.display().to_string();
    let text = fs::read_to_string(&file).expect("read it");
    for part in ["192.0.2.51", "other.example", "_smtp"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    set(
        d,
        &[
            "--dns-record",
            "none",
            "--dhcp-static",
            "none",
            "--dhcp-dns",
            "none",
        ],
    );
    assert_eq!(dig(b, &["www.lan.example"]), "");
    d.ctl(&["apply", &file]);
    assert_eq!(dig(b, &["www.lan.example"]), "192.0.2.11");
    // What can't be.
    for (options, told) in [
        (&["--dhcp-static", "192.0.2.7"][..], "write it like"),
        (&["--dhcp-static", "02:00=192.0.2.7"], "write it like"),
        (&["--dhcp-static", "a=203.0.113.7"], "203.0.113.7"),
        (&["--dns-record", "www"], "write it like"),
        (
            &[
                "--dns-record",
                "www=192.0.2.1",
                "--dns-service",
                "_http._tcp.web=80",
            ],
            "web",
        ),
        (&["--dns-service", "_http._tcp.web=80"], "--dns-record"),
        (&["--host-loopback", "off"], "--host-uplink on"),
        (&["--outbound-interface", "none"], "--host-uplink on"),
    ] {
        let refused = d.ctl_fails(&[&["gateway", "set", "lan"][..], options].concat());
        assert!(refused.contains(told), "{options:?}: {refused}");
    }
    let mtu = || d.ctl_json(&["gateway", "show", "lan"])[0]["config"]["gateway"]["mtu"].clone();
    d.ctl(&["gateway", "set", "lan", "--mtu", "1400"]);
    assert_eq!(mtu(), 1400);
    d.ctl(&["gateway", "set", "lan", "--unset", "mtu,dhcp"]);
    assert_eq!(mtu(), 1500);
    for (what, wrong) in [("gateway", "mtuu"), ("network", "agein")] {
        let refused = d.ctl_fails(&[what, "set", "lan", "--unset", wrong]);
        assert!(refused.contains(wrong), "{refused}");
    }
    d.ctl(&["network", "set", "lan", "--unset", "ageing"]);
    for what in ["show", "leases", "neighbours"] {
        d.ctl(&["gateway", what, "lan"]);
        let refused = d.ctl_fails(&["gateway", what, "lam"]);
        assert!(refused.contains("`lam`"), "{what}: {refused}");
    }
    d.assert_ledger();
}

#[test]
fn hosts_hear_what_router_advertisements_are_to_say() {
    let lab = tap_lab!("ra-options");
    let Site { d, a, .. } = &site(&lab, &[]);
    without_dad(a);
    set(
        d,
        &[
            "--ra-managed",
            "on",
            "--ra-other",
            "off",
            "--ra-lifetime",
            "20m",
            "--ra-mtu",
            "1400",
            "--ra-prefix",
            "2001:db8:1::/64=no-autonomous+off-link,2001:db8:9::/64=valid:2h+preferred:1h",
            "--ra-dns",
            "2001:db8:1::53",
            "--ra-search",
            "ra.example",
        ],
    );
    let mut seen = String::new();
    let expected = [
        "Stateful address conf.    :          Yes",
        "Stateful other conf.      :           No",
        "Router lifetime           :         1200",
        "MTU                      :         1400",
        "Prefix                   : 2001:db8:1::/64",
        "Prefix                   : 2001:db8:9::/64",
        "Autonomous address conf.:           No",
        "On-link                 :           No",
        "Valid time              :         7200",
        "Pref. time              :         3600",
        "Recursive DNS server     : 2001:db8:1::53",
        "DNS search list          : ra.example",
    ];
    wait_until("an advertisement with all of it", || {
        seen = a.run(&["rdisc6", "-1", "-w", "3000", "eth0"]).stdout;
        says(&seen, "Router lifetime : 1200")
    });
    for line in expected {
        assert!(says(&seen, line), "{line} in {seen}");
    }
    wait_until("an address of the autonomous prefix", || {
        a.ok(&["ip", "-6", "addr", "show", "dev", "eth0", "scope", "global"])
            .contains("2001:db8:9:")
    });
    set(d, &["--ra-lifetime", "0s"]);
    wait_until("no default router any more", || {
        let seen = a.run(&["rdisc6", "-1", "-w", "3000", "eth0"]).stdout;
        says(&seen, "Router lifetime : 0")
    });
    for (options, told) in [
        (["--ra-lifetime", "5s"], "longest interval"),
        (["--ra-mtu", "9000"], "more than the gateway's"),
        (["--ra-mtu", "1000"], "1280"),
        (["--ra-prefix", "192.0.2.0/24"], "isn't an IPv6 prefix"),
        (["--ra-prefix", "2001:db8:1::/64=slow"], "write it like"),
        (
            ["--ra-prefix", "2001:db8:1::/64=valid:1h+preferred:2h"],
            "preferred longer",
        ),
    ] {
        let refused = d.ctl_fails(&[&["gateway", "set", "lan"][..], &options].concat());
        assert!(refused.contains(told), "{options:?}: {refused}");
    }
    d.assert_ledger();
}

#[test]
fn dhclient_asks_the_gateway_for_information() {
    let lab = tap_lab!("dhcp6-gateway");
    let Site { d, a, .. } = &site(&lab, &[]);
    without_dad(a);
    let file = |name: &str| lab.dir().join(name).display().to_string();
    let script = format!(
        "#!/bin/sh\n{{ echo \"event=$reason\"; env; }} >>{}\nexit 0\n",
        file("log")
    );
    fs::write(file("script"), script).expect("write the script");
    fs::set_permissions(file("script"), fs::Permissions::from_mode(0o755)).expect("executable");
    let also = "also request dhcp6.name-servers, dhcp6.domain-search;\n";
    fs::write(file("conf"), also).expect("write the configuration");
    let (script, conf, leases, pid) = (file("script"), file("conf"), file("leases"), file("pid"));
    let files = ["-sf", &script, "-cf", &conf, "-lf", &leases, "-pf", &pid];
    let command = [&["dhclient", "-6", "-S", "-1"][..], &files, &["eth0"]].concat();
    let output = a.run_for(&command, Duration::from_secs(60));
    assert!(output.success(), "{output}");
    let text = fs::read_to_string(file("log")).unwrap_or_default();
    for expected in [
        "new_dhcp6_name_servers=2001:db8:1::1",
        "new_dhcp6_domain_search=lan.example.",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    d.assert_ledger();
}

#[test]
fn leases_are_told_as_they_come_and_go() {
    let lab = tap_lab!("lease-events");
    let Site { d, a, .. } = &site(&lab, &[]);
    let events = d.spawn_ctl(&["events", "--only", "lease", "--json"]);
    // It watches once it gets what happens again and again.
    let mut lines = String::new();
    wait_until("the event of a lease", || {
        udhcpc(&lab, a, "box");
        lines = events.output();
        lines.contains("bound")
    });
    let lease = d.ctl_json(&["gateway", "leases", "lan"])[0].clone();
    assert_eq!(
        d.ctl_json(&["gateway", "leases", "wan"]),
        serde_json::json!([])
    );
    let address = lease["address"].as_str().expect("an address").to_owned();
    let first: serde_json::Value =
        serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    let bound = format!("{address} bound");
    for (field, value) in [
        ("event", "lease"),
        ("network", "lan"),
        ("port", "a"),
        ("mac", &a.mac("eth0")),
        ("reason", &bound),
    ] {
        assert_eq!(first[field], value, "{field} in {first}");
    }
    d.ctl(&["port", "del", "a"]);
    wait_until("the event of its end", || {
        events.output().contains(&format!("{address} ended"))
    });
    drop(events);
    d.assert_ledger();
}

#[test]
fn leases_outlive_a_crash() {
    let lab = tap_lab!("lease-crash");
    let mut s = site(&lab, &[]);
    // Its interface is made anew with the same address.
    s.d.ctl(&["port", "del", "a"]);
    let netns = format!("pid:{}", s.a.pid());
    let place = [
        "--netns",
        &netns,
        "--device",
        "eth0",
        "--mac",
        "02:00:00:00:00:0a",
    ];
    s.d.ctl(&[&["port", "add", "a", "--network", "lan"][..], &place].concat());
    s.a.ok(&["ip", "link", "set", "eth0", "up"]);
    udhcpc(&lab, &s.a, "box");
    let before = s.d.ctl_json(&["gateway", "leases"]);
    let address = before[0]["address"]
        .as_str()
        .expect("an address")
        .to_owned();
    let saved = lab.dir().join("state.leases.json");
    wait_until("the lease is written down", || {
        fs::read_to_string(&saved).is_ok_and(|text| text.contains(&address))
    });
    s.d.kill();
    s.d.restart();
    let after = s.d.ctl_json(&["gateway", "leases"]);
    for field in ["address", "mac", "port", "name", "client_id"] {
        assert_eq!(before[0][field], after[0][field], "{field} in {after}");
    }
    let ends = |l: &serde_json::Value| l[0]["ends"].as_u64().expect("its end");
    // Whole seconds, rounded once more.
    assert!(
        ends(&before).abs_diff(ends(&after)) <= 2,
        "{before} {after}"
    );
    // Its client gets it, whose interface is made anew.
    s.a.ok(&["ip", "link", "set", "eth0", "up"]);
    let told = udhcpc(&lab, &s.a, "box");
    let last = told.lines().rfind(|l| l.starts_with("ip="));
    assert_eq!(last, Some(&*format!("ip={address}")), "{told}");
    s.d.assert_ledger();
}

#[test]
fn resolvers_of_the_machine_are_followed() {
    let lab: Lab = tap_lab!("resolv-conf");
    let Site { d, b, .. } = &site(&lab, &[]);
    // The daemon's own file, in its mount namespace.
    let file = lab.dir().join("resolv.conf");
    fs::write(&file, "nameserver 203.0.113.2\n").expect("write the list");
    let path = file.display().to_string();
    d.host().ok(&["mount", "--bind", &path, "/etc/resolv.conf"]);
    let second = lab.host("second");
    lab.link(d.host(), "out1", &second, "eth0", Mtu(1500));
    d.host().addr("out1", "203.0.113.5/30");
    second.addr("eth0", "203.0.113.6/30");
    let mut dnsmasq = second.spawn(&[
        "dnsmasq",
        "-k",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--host-record=www.example,198.51.100.253",
        "--log-facility=-",
    ]);
    dnsmasq.wait_for("started");
    set(d, &["--dns-upstream", "none"]);
    assert_eq!(dig(b, &["www.example"]), "198.51.100.254");
    fs::write(&file, "nameserver 203.0.113.6\n").expect("write the list");
    wait_until("answers of the other resolver", || {
        dig(b, &["www.example"]) == "198.51.100.253"
    });
    // An empty list leaves nobody to ask; names of the network are told all the same.
    fs::write(&file, "").expect("write the list");
    wait_until("no answers", || {
        let asked = b.run(&["dig", "@192.0.2.1", "+tries=1", "www.example"]);
        asked.stdout.contains("SERVFAIL")
    });
    assert_eq!(dig(b, &["db.lan.example"]), "192.0.2.11");
    fs::write(&file, "nameserver 203.0.113.2\n").expect("write the list");
    wait_until("answers of the first resolver", || {
        dig(b, &["www.example"]) == "198.51.100.254"
    });
    d.assert_ledger();
}
