//! A daemon as the host, a container behind it, and a machine outside that knows the host only.

use std::time::{Duration, Instant};
use vswitch_tests::{Background, Daemon, Lab, Mtu, Node, wait_until};
pub(crate) use vswitch_tests::{FAR, HOST};

pub(crate) const PEER: &str = include_str!("peer.py");
const HOST_PY: &str = include_str!("host.py");
pub(crate) struct Site {
    pub(crate) d: Daemon,
    pub(crate) a: Node,
    pub(crate) outside: Node,
}

/// Inside 192.0.2.0/24 and 2001:db8:1::/64, the host 198.51.100.1 and 2001:db8:2::1, outside 198.51.100.254 and 2001:db8:2::254.
pub(crate) fn site(lab: &Lab, mtu: &str) -> Site {
    site_of(lab, mtu, |_| {})
}

/// The same, with something done to the daemon before it has a host uplink.
pub(crate) fn site_of(lab: &Lab, mtu: &str, first: impl FnOnce(&Daemon)) -> Site {
    let (d, outside) = ground(lab, mtu, first);
    let a = attached(lab, &d, mtu);
    Site { d, a, outside }
}

/// Container `a` in the network.
pub(crate) fn attached(lab: &Lab, d: &Daemon, mtu: &str) -> Node {
    vswitch_tests::attached(lab, d, &["--mtu", mtu])
}

/// Host and outside alone, with the network for containers.
pub(crate) fn ground(lab: &Lab, mtu: &str, first: impl FnOnce(&Daemon)) -> (Daemon, Node) {
    vswitch_tests::ground(lab, &["--mtu", mtu], first)
}

/// Starts a server of peer.py.
pub(crate) fn serve(node: &Node, what: &str, port: &str) -> Background {
    let mut server = node.spawn(&["/usr/bin/python3", "-c", PEER, what, port]);
    server.wait_for("serving");
    server
}

/// Runs peer.py to its end; what it printed.
pub(crate) fn peer(node: &Node, args: &[&str]) -> String {
    let argv = [&["/usr/bin/python3", "-c", PEER][..], args].concat();
    let out = node.run_for(&argv, Duration::from_secs(120));
    out.expect_ok().trim().to_owned()
}

/// A server of host.py that answers datagrams with who sent them.
pub(crate) fn datagrams_tell(node: &Node, port: &str) -> Background {
    let mut server = node.spawn(&["/usr/bin/python3", "-c", HOST_PY, "whence", port]);
    server.wait_for("serving");
    server
}

/// Who it says that we are, or how that failed.
pub(crate) fn ask(node: &Node, far: &str, port: &str) -> String {
    host(node, &["ask", far, port])
}

/// Starts a command of host.py that goes on.
pub(crate) fn start(node: &Node, args: &[&str]) -> Background {
    node.spawn(&[&["/usr/bin/python3", "-c", HOST_PY], args].concat())
}

/// Tries to connect until that works; who the server says that we are.
pub(crate) fn until(node: &Node, far: &str, port: &str) -> String {
    host(node, &["until", far, port])
}

/// A daemon on a host that has no network but its loopback, and an /etc of its own without a list of resolvers; a container behind it.
pub(crate) fn alone(lab: &Lab) -> (Daemon, Node) {
    let with = lab.daemon_with();
    let etc = lab.dir().join("etc");
    let etc = etc.to_str().expect("UTF-8");
    let make = "mkdir $0 && cd /etc && cp -r passwd group nsswitch.conf ld.so.cache alternatives $0 && mount --bind $0 /etc";
    with.host().ok(&["sh", "-c", make, etc]);
    let d = with.start();
    d.ctl(&["network", "add", "lan"]);
    let addresses = "192.0.2.1/24,2001:db8:1::1/64";
    let set = [
        "gateway",
        "set",
        "lan",
        "--host-uplink",
        "on",
        "--dns",
        "on",
    ];
    d.ctl(&[&set[..], &["--addresses", addresses]].concat());
    let a = attached(lab, &d, "1500");
    (d, a)
}

/// A machine outside, reached by the host's `interface` with .1 and ::1 there, itself .254 and ::254; behind it are [`BEYOND`].
/// `net` is the third byte of 198.51.x.0 and the last group of 2001:db8:x::.
pub(crate) fn plug(lab: &Lab, d: &Daemon, interface: &str, net: u8) -> Node {
    let outside = lab.host(&format!("outside{net}"));
    lab.link(d.host(), interface, &outside, "eth0", Mtu(1500));
    for beyond in BEYOND {
        let len = if beyond.contains(':') { 128 } else { 32 };
        outside.addr("lo", &format!("{beyond}/{len}"));
    }
    for (node, interface, last) in [(d.host(), interface, "1"), (&outside, "eth0", "254")] {
        node.addr(interface, &format!("198.51.{net}.{last}/24"));
        node.addr(interface, &format!("2001:db8:{net}::{last}/64"));
    }
    outside
}

/// Leads the host everywhere by the machine outside in `net`.
pub(crate) fn default_routes(d: &Daemon, net: u8) {
    d.host().route("default", &format!("198.51.{net}.254"));
    d.host().route("default", &format!("2001:db8:{net}::254"));
}

/// What is beyond the first router.
pub(crate) const BEYOND: [&str; 2] = ["203.0.113.80", "2001:db8:80::80"];

/// dnsmasq that has an address for www.example.
pub(crate) fn names(node: &Node, address: &str, args: &[&str]) -> Background {
    let www = format!("--address=/www.example/{address}");
    let common = [
        "dnsmasq",
        "--no-daemon",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--log-facility=-",
        "--log-queries",
        "--user=root",
        "--group=root",
        &www,
    ];
    let mut server = node.spawn(&[&common[..], args].concat());
    server.wait_for("started");
    server
}

/// What a container gets to hear of a name, by datagrams; empty if nothing.
pub(crate) fn dig(node: &Node, name: &str) -> String {
    let args = ["dig", "+short", "+tries=1", "+time=5", "@192.0.2.1", name];
    let said = node.run(&args).stdout;
    said.lines().filter(|l| !l.starts_with(';')).collect()
}

/// How long something takes from now on; 20 s at most.
pub(crate) fn time_until(what: &str, condition: impl FnMut() -> bool) {
    let since = Instant::now();
    wait_until(what, condition);
    println!("{what}: {} ms", since.elapsed().as_millis());
}

/// Runs a command of host.py to its end; what it printed.
pub(crate) fn host(node: &Node, args: &[&str]) -> String {
    let argv = [&["/usr/bin/python3", "-c", HOST_PY], args].concat();
    node.ok(&argv).trim().to_owned()
}
