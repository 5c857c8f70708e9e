//! Names by the host's resolvers: whichever of them answers, by whichever protocol, and as the list changes.

use crate::rig::{alone, default_routes, dig, names, peer, plug, serve, time_until};
use vswitch_tests::{Daemon, Node, tap_lab};

fn host(d: &Daemon, script: &str) {
    d.host().ok(&["sh", "-ec", script]);
}

fn followed(a: &Node, what: &str, address: &str) {
    time_until(what, || dig(a, "www.example") == address);
}

#[test]
fn resolv_conf_change_is_followed() {
    let lab = tap_lab!("slirp-resolv-conf");
    let (d, a) = alone(&lab);
    // Resolvers on the host's loopback, as systemd-resolved is.
    let _servers: Vec<_> = (1..=9)
        .map(|n| {
            let listen = format!("--listen-address=127.0.0.{}", 50 + n);
            let address = format!("203.0.113.{n}");
            names(d.host(), &address, &[&listen, "--bind-interfaces"])
        })
        .collect();
    // There is no list at all.
    assert_eq!(dig(&a, "www.example"), "");
    host(&d, "echo nameserver 127.0.0.51 > /etc/resolv.conf");
    followed(&a, "one that comes later", "203.0.113.1");
    host(&d, "echo nameserver 127.0.0.52 > /etc/resolv.conf");
    followed(&a, "written in place", "203.0.113.2");
    host(
        &d,
        "echo nameserver 127.0.0.53 > /etc/new; mv /etc/new /etc/resolv.conf",
    );
    followed(&a, "renamed over", "203.0.113.3");
    // What systemd does: a link into /run, to a file that is there later and replaced.
    host(
        &d,
        "ln -s ../run/systemd/resolve/stub-resolv.conf /etc/new; mv /etc/new /etc/resolv.conf",
    );
    host(
        &d,
        "mkdir -p /run/systemd/resolve; cd /run/systemd/resolve
         echo nameserver 127.0.0.54 > stub-resolv.conf",
    );
    followed(&a, "a link's target", "203.0.113.4");
    host(
        &d,
        "cd /run/systemd/resolve; echo nameserver 127.0.0.55 > .new; mv .new stub-resolv.conf",
    );
    followed(&a, "a link's target renamed over", "203.0.113.5");
    host(
        &d,
        "echo nameserver 127.0.0.56 > /run/other; ln -s /run/other /etc/new; mv /etc/new /etc/resolv.conf",
    );
    followed(&a, "a link turned elsewhere", "203.0.113.6");
    host(&d, "rm /etc/resolv.conf; rm /run/other");
    assert_eq!(
        dig(&a, "www.example"),
        "203.0.113.6",
        "the last one serves on"
    );
    host(&d, "echo nameserver 127.0.0.57 > /etc/resolv.conf");
    followed(&a, "a file again", "203.0.113.7");
    // Mounted over, as containers have it; inotify says nothing of that.
    host(
        &d,
        "echo nameserver 127.0.0.58 > /run/mounted; mount --bind /run/mounted /etc/resolv.conf",
    );
    followed(&a, "mounted over", "203.0.113.8");
    // The gateway asks there; containers don't reach it.
    let _tcp = serve(d.host(), "serve", "7000");
    for to in ["127.0.0.58", "127.0.0.1", "192.0.2.1"] {
        a.run(&["ip", "route", "add", to, "via", "192.0.2.1"]);
        let said = peer(&a, &["attempt", to, "7000"]);
        assert_ne!(said, "connected", "{to}");
    }
    // Addresses that are given go before the list; `host` takes them back.
    let given = ["gateway", "set", "lan", "--dns-upstream", "127.0.0.59"];
    d.ctl(&given);
    followed(&a, "given", "203.0.113.9");
    d.ctl(&["gateway", "set", "lan", "--dns-upstream", "host"]);
    followed(&a, "the host's", "203.0.113.8");
    d.assert_ledger();
}

#[test]
fn only_second_resolver_answers() {
    let lab = tap_lab!("slirp-second");
    let (d, a) = alone(&lab);
    let outside = plug(&lab, &d, "out0", 100);
    default_routes(&d, 100);
    let _server = names(
        &outside,
        "203.0.113.7",
        &["--listen-address=203.0.113.80", "--bind-interfaces"],
    );
    let silent = b"table inet silent { chain in { type filter hook input priority 0; ip daddr 198.51.100.254 drop; }\n}\n";
    outside.ok_with_input(&["nft", "-f", "-"], silent);
    let first = [
        // Nobody is there; nobody listens there; it says nothing; there is no way there.
        "198.51.100.77",
        "2001:db8:100::254",
        "198.51.100.254",
        "fe80::1%out0",
    ];
    for (n, first) in first.into_iter().enumerate() {
        let list =
            format!("printf 'nameserver {first}\\nnameserver 203.0.113.80\\n' > /etc/resolv.conf");
        host(&d, &list);
        // Each time another name, of which nothing is known.
        let name = format!("n{n}.www.example");
        time_until(&format!("the second one, after {first}"), || {
            dig(&a, &name) == "203.0.113.7"
        });
    }
    // The third, the fourth; the C library reads no more than three.
    let list = "for n in 1 2 3; do echo nameserver 198.51.100.7$n; done > /etc/new
                echo nameserver 203.0.113.80 >> /etc/new; mv /etc/new /etc/resolv.conf";
    host(&d, list);
    time_until("the fourth", || {
        dig(&a, "fourth.www.example") == "203.0.113.7"
    });
    d.assert_ledger();
}

#[test]
fn dns_over_tcp() {
    let lab = tap_lab!("slirp-dns-tcp");
    let (d, a) = alone(&lab);
    let text = vec!["x".repeat(200); 20].join(",");
    let long = format!("--txt-record=long.example,{text}");
    let server = names(
        d.host(),
        "203.0.113.7",
        &["--listen-address=127.0.0.53", "--bind-interfaces", &long],
    );
    host(&d, "echo nameserver 127.0.0.53 > /etc/resolv.conf");
    time_until("a name", || dig(&a, "www.example") == "203.0.113.7");
    for at in ["192.0.2.1", "2001:db8:1::1"] {
        // By TCP from the container.
        let args = ["dig", "+short", "+tcp", &format!("@{at}"), "www.example"];
        assert_eq!(a.ok(&args).trim(), "203.0.113.7", "{at}");
        // Too long for a datagram: truncated towards us, and asked for again by TCP; so does the container.
        for how in ["+notcp", "+tcp"] {
            let args = [
                "dig",
                how,
                "+short",
                &format!("@{at}"),
                "long.example",
                "TXT",
            ];
            let said = a.ok(&args);
            assert_eq!(
                said.matches(&"x".repeat(200)).count(),
                20,
                "{at} {how} {said}"
            );
        }
        let args = [
            "dig",
            "+ignore",
            "+notcp",
            &format!("@{at}"),
            "long.example",
            "TXT",
        ];
        let said = a.ok(&args);
        assert!(said.contains(" tc "), "{said}");
    }
    drop(server);
    d.assert_ledger();
}

#[test]
fn the_hosts_search_list_is_told_to_clients() {
    let lab = tap_lab!("slirp-search");
    let (d, _a) = alone(&lab);
    let set = ["gateway", "set", "lan", "--ra", "on", "--dhcp"];
    d.ctl(&[&set[..], &["192.0.2.100-192.0.2.200"]].concat());
    let b = lab.container("b");
    let netns = format!("pid:{}", b.pid());
    let place = ["--network", "lan", "--netns", &netns, "--device", "eth0"];
    d.ctl(&[&["port", "add", "b"][..], &place].concat());
    // A link-local address at once, by which the router is asked.
    let up = "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 down; ip link set eth0 up";
    b.ok(&["sh", "-c", up]);
    let script = lab.dir().join("told");
    std::fs::write(&script, "#!/bin/sh\necho search=$search\n").expect("write the script");
    b.ok(&["chmod", "755", &script.display().to_string()]);
    let by_dhcp = || {
        let script = script.display().to_string();
        let client = ["udhcpc", "-f", "-q", "-n", "-i", "eth0", "-O", "search"];
        b.run(&[&client[..], &["-s", &script]].concat()).stdout
    };
    let by_ra = || b.run(&["rdisc6", "-1", "eth0"]).stdout;
    let says = |list: &str| {
        let ra = by_ra();
        let fields = ra.lines().filter_map(|l| l.split_once(": "));
        let told = fields.filter(|(field, _)| field.trim() == "DNS search list");
        let told: Vec<&str> = told.flat_map(|(_, l)| l.split_whitespace()).collect();
        let told: Vec<&str> = told.iter().map(|n| n.trim_end_matches('.')).collect();
        let wanted: Vec<&str> = list.split(' ').collect();
        told == wanted && by_dhcp().contains(&format!("search={list}\n"))
    };
    time_until("no list yet", || says("lan.internal"));
    let written = "printf 'search corp.example *.bad two.example\\nnameserver 127.0.0.53\\n' > /etc/resolv.conf";
    host(&d, written);
    time_until("the host's list", || {
        says("lan.internal corp.example two.example")
    });
    host(&d, "echo nameserver 127.0.0.53 > /etc/resolv.conf");
    time_until("no list any more", || says("lan.internal"));
    // Not where others are asked.
    host(&d, written);
    time_until("the host's list again", || {
        says("lan.internal corp.example two.example")
    });
    d.ctl(&["gateway", "set", "lan", "--dns-upstream", "198.51.100.1"]);
    time_until("others are asked", || says("lan.internal"));
    d.assert_ledger();
}
