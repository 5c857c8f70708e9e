//! The host changes networks, and containers find their way: without a route at start, a route that comes later, renewed and new
//! addresses, another network.

use crate::rig::{
    BEYOND, alone, ask, datagrams_tell, default_routes, dig, names, peer, plug, serve, start,
    time_until, until,
};
use vswitch_tests::{Background, Daemon, Lab, Node, tap_lab, wait_until};

/// Resolvers of the host, replaced as a whole.
fn resolvers(d: &Daemon, text: &str) {
    let script = "printf %b \"$0\" > /etc/.new && mv /etc/.new /etc/resolv.conf";
    d.host().ok(&["sh", "-c", script, text]);
}

fn servers(outside: &Node) -> [Background; 3] {
    [
        serve(outside, "serve", "7000"),
        datagrams_tell(outside, "7100"),
        names(outside, "203.0.113.7", &[]),
    ]
}

/// How many times a connection of `stream` has been used.
fn beats(stream: &Background) -> usize {
    let said = stream.output();
    let last = said.lines().rev().find_map(|l| l.strip_prefix("beat "));
    last.map_or(0, |n| n.parse().expect("a number"))
}

fn goes_on(stream: &Background) {
    let before = beats(stream);
    wait_until("the connection is used on", || beats(stream) > before + 5);
}

/// What the last answer to `sender` said.
fn whence(sender: &Background) -> String {
    let said = sender.output();
    let last = said.lines().rev().find_map(|l| l.strip_prefix("from "));
    last.unwrap_or_default().to_owned()
}

#[test]
fn host_without_a_route_at_start() {
    let lab = tap_lab!("slirp-no-route");
    let (d, a) = alone(&lab);
    for far in BEYOND {
        assert_eq!(peer(&a, &["attempt", far, "7000"]), "OSError 101", "{far}");
    }
    assert_eq!(dig(&a, "www.example"), "");
    // Names of containers are known all the same.
    assert_eq!(dig(&a, "a.lan.internal"), "192.0.2.10");
    let outside = plug(&lab, &d, "out0", 100);
    let _servers = servers(&outside);
    default_routes(&d, 100);
    resolvers(&d, "nameserver 203.0.113.80\n");
    let what = "a connection once the host has a network";
    time_until(what, || {
        until(&a, BEYOND[0], "7000") == "::ffff:198.51.100.1"
    });
    assert_eq!(until(&a, BEYOND[1], "7000"), "2001:db8:100::1");
    assert_eq!(ask(&a, BEYOND[0], "7100"), "::ffff:198.51.100.1");
    assert_eq!(ask(&a, BEYOND[1], "7100"), "2001:db8:100::1");
    let what = "a name once the host has a network";
    time_until(what, || dig(&a, "www.example") == "203.0.113.7");
    d.assert_ledger();
}

#[test]
fn route_appears_later() {
    let lab = tap_lab!("slirp-route-later");
    let (d, a) = alone(&lab);
    resolvers(&d, "nameserver 203.0.113.80\n");
    let outside = plug(&lab, &d, "out0", 100);
    let _servers = servers(&outside);
    // Sockets of the container that are there from before on.
    let senders = BEYOND.map(|far| start(&a, &["sender", far, "7100"]));
    for far in BEYOND {
        assert_eq!(peer(&a, &["attempt", far, "7000"]), "OSError 101", "{far}");
    }
    assert_eq!(dig(&a, "www.example"), "");
    let mut told = d.spawn_ctl(&["events", "--only", "host_changed"]);
    default_routes(&d, 100);
    let found = ["::ffff:198.51.100.1", "2001:db8:100::1"];
    for (far, found) in BEYOND.into_iter().zip(found) {
        time_until(&format!("{far} once there is a route"), || {
            until(&a, far, "7000") == found
        });
    }
    time_until("a name once there is a route", || {
        dig(&a, "www.example") == "203.0.113.7"
    });
    for (sender, found) in senders.iter().zip(found) {
        time_until("an old socket once there is a route", || {
            whence(sender).starts_with(found)
        });
    }
    told.wait_for("routes");
    // IPv6 goes and comes by itself.
    let default6 = ["ip", "-6", "route", "del", "default"];
    d.host().ok(&default6);
    assert_eq!(peer(&a, &["attempt", BEYOND[1], "7000"]), "OSError 101");
    assert_eq!(until(&a, BEYOND[0], "7000"), found[0]);
    d.host().route("default", "2001:db8:100::254");
    assert_eq!(until(&a, BEYOND[1], "7000"), found[1]);
    d.assert_ledger();
}

#[test]
fn address_renewal_keeps_established_flows() {
    let lab = tap_lab!("slirp-renewal");
    let (d, a) = alone(&lab);
    let outside = plug(&lab, &d, "out0", 100);
    let _servers = servers(&outside);
    default_routes(&d, 100);
    let host = |args: &str| {
        let argv: Vec<&str> = ["ip"].into_iter().chain(args.split(' ')).collect();
        d.host().ok(&argv);
    };
    let mut streams = BEYOND.map(|far| start(&a, &["stream", far, "7000"]));
    streams.iter_mut().for_each(|s| s.wait_for("beat 1\n"));
    let senders = BEYOND.map(|far| start(&a, &["sender", far, "7100"]));
    wait_until("both have heard", || {
        senders.iter().all(|s| !whence(s).is_empty())
    });
    let first = senders.each_ref().map(whence);
    assert!(first[0].starts_with("::ffff:198.51.100.1 "), "{first:?}");
    // Both addresses go and come back, with the routes by them; others come beside them.
    host("addr del 198.51.100.1/24 dev out0");
    host("addr del 2001:db8:100::1/64 dev out0");
    host("addr add 198.51.100.1/24 dev out0");
    host("addr add 2001:db8:100::1/64 dev out0 nodad");
    default_routes_again(&d);
    host("addr add 198.51.100.7/24 dev out0");
    host("addr add 2001:db8:100::7/64 dev out0 nodad");
    streams.iter().for_each(goes_on);
    let mut told = d.spawn_ctl(&["events", "--only", "host_changed", "--count", "1"]);
    host("addr add 198.51.100.8/24 dev out0");
    told.wait_for("addresses");
    for (far, first) in BEYOND.into_iter().zip(&first) {
        // A renewed flow would be asked from another port.
        assert!(!until(&a, far, "7000").starts_with("never"), "{far}");
        let now = senders.each_ref().map(whence);
        assert!(now.contains(first), "{now:?} {first}");
    }
    // Another address in the place of the first: datagrams come from it, by the same socket of the container.
    host("addr flush dev out0");
    host("addr add 198.51.100.2/24 dev out0");
    host("addr add 2001:db8:100::2/64 dev out0 nodad");
    default_routes_again(&d);
    for (sender, found) in senders
        .iter()
        .zip(["::ffff:198.51.100.2 ", "2001:db8:100::2 "])
    {
        time_until("datagrams from the new address", || {
            whence(sender).starts_with(found)
        });
    }
    assert_eq!(until(&a, BEYOND[0], "7000"), "::ffff:198.51.100.2");
    // The first comes back, and its connections, which nobody has ended, live on.
    host("addr add 198.51.100.1/24 dev out0");
    host("addr add 2001:db8:100::1/64 dev out0 nodad");
    streams.iter().for_each(goes_on);
    d.assert_ledger();
}

fn default_routes_again(d: &Daemon) {
    for (family, via) in [("-4", "198.51.100.254"), ("-6", "2001:db8:100::254")] {
        let replace = ["ip", family, "route", "replace", "default", "via", via];
        d.host().ok(&replace);
    }
}

#[test]
fn switching_networks_recovers_within_a_second() {
    let lab = tap_lab!("slirp-switch");
    switch_networks(&lab);
}

/// The host leaves one network for another, in the middle of everything.
pub(crate) fn switch_networks(lab: &Lab) {
    let (d, a) = alone(lab);
    let first = plug(lab, &d, "wlan0", 100);
    let second = plug(lab, &d, "eth0", 101);
    let mut first_servers = servers(&first);
    let _other = [
        serve(&second, "serve", "7000"),
        datagrams_tell(&second, "7100"),
        names(&second, "203.0.113.8", &[]),
    ];
    default_routes(&d, 100);
    resolvers(&d, "nameserver 198.51.100.254\n");
    assert_eq!(until(&a, BEYOND[0], "7000"), "::ffff:198.51.100.1");
    assert_eq!(dig(&a, "www.example"), "203.0.113.7");
    let senders = BEYOND.map(|far| start(&a, &["sender", far, "7100"]));
    wait_until("both have heard", || {
        senders
            .iter()
            .all(|s| whence(s).contains(":100") || whence(s).contains(".100."))
    });
    // The first network goes silent, while connections are being made and names are asked for.
    first_servers.iter_mut().for_each(Background::kill);
    let silent =
        b"table inet silent { chain in { type filter hook input priority 0; iifname eth0 drop; }\n}\n";
    first.ok_with_input(&["nft", "-f", "-"], silent);
    let mut streams = BEYOND.map(|far| start(&a, &["stream", far, "7000"]));
    streams.iter_mut().for_each(|s| s.wait_for("connecting"));
    let opened = || d.ctl_json(&["conntrack", "count"])["connections"].as_u64() >= Some(4);
    wait_until("both connections are being made", opened);
    let asked = ["dig", "+short", "+tries=1", "+time=20", "@192.0.2.1"];
    let mut waiting = a.spawn(&[&asked[..], &["www.waits.www.example"]].concat());
    // Another network: an address of it, other resolvers, other routes.
    resolvers(&d, "nameserver 198.51.101.254\n");
    d.host().ok(&["ip", "link", "set", "wlan0", "down"]);
    let since = std::time::Instant::now();
    default_routes_again_by(&d, 101);
    let found = ["::ffff:198.51.101.1", "2001:db8:101::1"];
    for (far, found) in BEYOND.into_iter().zip(found) {
        time_until(&format!("{far} in the other network"), || {
            until(&a, far, "7000") == found
        });
    }
    for (sender, found) in senders.iter().zip(found) {
        time_until("an old socket in the other network", || {
            whence(sender).starts_with(found)
        });
    }
    for stream in &mut streams {
        stream.wait_for("beat 1\n");
    }
    time_until("a name in the other network", || {
        dig(&a, "www.example") == "203.0.113.8"
    });
    waiting.wait_for("203.0.113.8");
    println!("all of it: {} ms", since.elapsed().as_millis());
    d.assert_ledger();
}

fn default_routes_again_by(d: &Daemon, net: u8) {
    let v4 = format!("198.51.{net}.254");
    let v6 = format!("2001:db8:{net}::254");
    for (family, via) in [("-4", v4), ("-6", v6)] {
        let replace = ["ip", family, "route", "replace", "default", "via", &via];
        d.host().ok(&replace);
    }
}
