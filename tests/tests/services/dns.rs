//! DNS: dig and dnsperf against names of containers, and against dnsmasq behind the forwarder.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use vswitch_nat::service::dns::{
    Config, Dns, Host, ResolvConf, Service, Zone, ZoneConfig, parse_resolv_conf,
};
use vswitch_tests::{Background, Lab, Mtu, Node};

use crate::gateway::Gateway;
use crate::own_lab;
use crate::resolver::Resolver;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn zone() -> Zone {
    let mut zone = Zone::new(ZoneConfig {
        domain: "net1.example".into(),
        gateway: vec![address("192.0.2.1")],
        pinned: vec![],
        subnets: vec![(address("192.0.2.0"), 24)],
        ttl: 60,
        negative_ttl: 5,
    })
    .expect("a zone");
    let web = Host {
        name: "web".into(),
        aliases: vec!["www".into()],
        addresses: vec![address("192.0.2.10"), address("2001:db8:0:1::10")],
        services: vec![Service {
            service: "_http".into(),
            protocol: "_tcp".into(),
            port: 8080,
            priority: 1,
            weight: 2,
        }],
        claimed: false,
    };
    zone.register("c1", web).expect("registers");
    zone
}

/// A client on the bridge, the service at the gateway, and dnsmasq on a machine behind.
struct Rig {
    client: Node,
    resolver: Resolver,
    upstream: Node,
    _dnsmasq: Background,
    _gateway: Gateway,
}

fn resolvers(text: &str) -> ResolvConf {
    parse_resolv_conf(text, |_| None)
}

fn dnsmasq(node: &Node, www: &str) -> Background {
    let mut argv: Vec<String> = [
        "dnsmasq",
        "-k",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--cache-size=0",
        "--local-ttl=100",
        "--local=/example/",
        "--log-queries",
        "--log-facility=-",
    ]
    .map(String::from)
    .into();
    argv.push(format!("--host-record=www.example,{www}"));
    let long: Vec<String> = (0..30).map(|n| format!("{n}-{}", "x".repeat(60))).collect();
    argv.push(format!("--txt-record=long.example,{}", long.join(",")));
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut process = node.spawn(&argv);
    process.wait_for("started");
    process
}

fn rig(lab: &Lab, conf: &str) -> Rig {
    let gateway = Gateway::new(lab);
    let (client, upstream) = (lab.container("a"), lab.host("up"));
    gateway.join(lab, &client);
    client.addr("eth0", "192.0.2.20/24");
    lab.link(gateway.host(), "out0", &upstream, "eth0", Mtu(1500));
    gateway.host().addr("out0", "198.51.100.1/24");
    upstream.addr("eth0", "198.51.100.2/24");
    let dnsmasq = dnsmasq(&upstream, "203.0.113.80");
    let config = Config {
        rate: 0,
        ..Config::default()
    };
    let dns = Dns::new(config, zone());
    let at = "192.0.2.1:53".parse().expect("an address");
    let resolver = Resolver::start(gateway.host(), at, dns, resolvers(conf));
    Rig {
        client,
        resolver,
        upstream,
        _dnsmasq: dnsmasq,
        _gateway: gateway,
    }
}

impl Rig {
    fn dig(&self, arguments: &[&str]) -> String {
        let head = ["dig", "@192.0.2.1", "+tries=2", "+timeout=10"];
        self.client.ok(&[&head, arguments].concat())
    }
}

#[test]
fn dig_finds_containers() {
    let lab = own_lab!("dns-local");
    let rig = rig(&lab, "");
    for tcp in ["+notcp", "+tcp"] {
        let short = |arguments: &[&str]| rig.dig(&[&["+short", tcp], arguments].concat());
        assert_eq!(short(&["web.net1.example"]), "192.0.2.10\n");
        assert_eq!(short(&["WEB", "AAAA"]), "2001:db8:0:1::10\n");
        assert_eq!(short(&["-x", "192.0.2.10"]), "web.net1.example.\n");
        assert_eq!(
            short(&["_http._tcp.www", "SRV"]),
            "1 2 8080 web.net1.example.\n"
        );
    }
    let none = rig.dig(&["nobody.net1.example"]);
    assert!(
        none.contains("status: NXDOMAIN") && none.contains("SOA"),
        "{none}"
    );
    assert!(none.contains("flags: qr aa rd ra"), "{none}");
    let no_data = rig.dig(&["web", "MX"]);
    assert!(
        no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0"),
        "{no_data}"
    );
    let plain = rig.dig(&["+noedns", "+nocookie", "web"]);
    assert!(!plain.contains("OPT PSEUDOSECTION"), "{plain}");
    let version = rig.dig(&["+edns=1", "+noednsneg", "web"]);
    assert!(version.contains("status: BADVERS"), "{version}");
    // Nobody to ask about the rest.
    let failed = rig.dig(&["www.example"]);
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
}

#[test]
fn dig_through_the_forwarder() {
    let lab = own_lab!("dns-forward");
    // The first resolver doesn't exist; nobody answers for its address.
    let rig = rig(
        &lab,
        "nameserver 198.51.100.9\nnameserver 198.51.100.2\noptions timeout:1 attempts:2\n",
    );
    let first = rig.dig(&["www.example"]);
    assert!(
        first.contains("203.0.113.80") && !first.contains("flags: qr aa"),
        "{first}"
    );
    let again = rig.dig(&["+short", "wWw.eXample"]);
    assert_eq!(again, "203.0.113.80\n");
    let stats = rig.resolver.dns().stats();
    assert_eq!((stats.forwarded, stats.cached), (1, 1));
    let none = rig.dig(&["nobody.example"]);
    assert!(none.contains("status: NXDOMAIN"), "{none}");
    // Too long for a datagram: upstream by TCP, and dig comes again by TCP.
    let long = rig.dig(&["long.example", "TXT"]);
    assert!(long.contains("Truncated, retrying in TCP mode"), "{long}");
    assert_eq!(long.matches("xxxxx\"").count(), 30, "{long}");
    // Other resolvers, as when the host changes networks.
    rig.upstream.addr("eth0", "198.51.100.3/24");
    rig.resolver
        .set_resolvers(&resolvers("nameserver 198.51.100.3\n"));
    assert_eq!(rig.dig(&["+short", "www.example"]), "203.0.113.80\n");
    assert_eq!(rig.resolver.dns().in_flight(), 0);
}

#[test]
fn dnsperf_loses_nothing() {
    let lab = own_lab!("dns-load");
    let rig = rig(&lab, "nameserver 198.51.100.2\n");
    let mut rates = vec![];
    for (what, queries) in [
        (
            "names of containers",
            "web.net1.example A\nweb A\nwww AAAA\n",
        ),
        ("cached answers", "www.example A\n"),
    ] {
        let file = lab.dir().join("queries");
        fs::write(&file, queries).expect("write the queries");
        let output = rig.client.run_for(
            &[
                "dnsperf",
                "-s",
                "192.0.2.1",
                "-d",
                &file.display().to_string(),
                "-l",
                "2",
                "-c",
                "4",
                "-q",
                "50",
                "-t",
                "20",
            ],
            Duration::from_secs(60),
        );
        let text = output.expect_ok();
        let number = |label: &str| -> f64 {
            let line = text.lines().find(|l| l.trim_start().starts_with(label));
            let word = line.and_then(|l| l.split(':').nth(1)?.split_whitespace().next());
            word.and_then(|w| w.parse().ok())
                .unwrap_or_else(|| panic!("{label} in {text}"))
        };
        assert!(number("Queries completed") > 100.0, "{text}");
        assert_eq!(number("Queries lost"), 0.0, "{text}");
        assert!(
            text.contains("NOERROR") && text.contains("100.00%"),
            "{text}"
        );
        rates.push(format!(
            "{what}: {:.0} queries/s",
            number("Queries per second")
        ));
    }
    println!("{}", rates.join(", "));
    assert!(rig.resolver.dns().stats().cached > 100);
}
