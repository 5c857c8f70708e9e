//! `vswitchd run --accelerate=ebpf`: what the kernel carries for the switch, and that it ends with whatever forbids it.

use serde_json::Value;
use vswitch_tests::{Daemon, Lab, Node, lab, skip, wait_until};

use crate::rig::{self, at, bare, counter, dropped, port, wait_dropped};

pub(crate) const VETH: [&str; 2] = ["--type", "veth"];

/// A daemon with the network `lan` and the fast path; none where the machine doesn't let us load programs.
pub(crate) fn accelerated(lab: &Lab, options: &[&str]) -> Result<Daemon, String> {
    let args = [&["--accelerate=ebpf"], options].concat();
    let d = lab.daemon_with().args(&args).start();
    d.ctl(&["network", "add", "lan"]);
    let fast = fast(&d);
    if fast["on"] == true {
        return Ok(d);
    }
    Err(fast["reason"].as_str().unwrap_or_default().to_owned())
}

macro_rules! accelerated {
    ($lab:expr, $options:expr) => {
        match accelerated($lab, $options) {
            Ok(d) => d,
            Err(why) => skip!("no fast path here: {why}"),
        }
    };
}

/// What `vswitchctl stats` says of the fast path.
#[track_caller]
pub(crate) fn fast(d: &Daemon) -> Value {
    d.ctl_json(&["stats"])["accelerator"].clone()
}

fn container(d: &Daemon, lab: &Lab, name: &str, address: &str) -> Node {
    rig::container(d, lab, name, address, &VETH)
}

/// Pings until the fast path carries both ways.
#[track_caller]
fn warm(d: &Daemon, from: &Node, to: &str, ports: [&str; 2]) {
    wait_until("the fast path to carry pings", || {
        let before = ports.map(|p| counter(d, p, "fast_rx_frames"));
        from.ping_with(to, &["-c", "3", "-i", "0.2"]);
        let after = ports.map(|p| counter(d, p, "fast_rx_frames"));
        before[0] + 2 <= after[0] && before[1] + 2 <= after[1]
    });
}

fn two(d: &Daemon, lab: &Lab) -> (Node, Node) {
    let a = container(d, lab, "a", "192.0.2.1/24");
    let b = container(d, lab, "b", "192.0.2.2/24");
    warm(d, &a, "192.0.2.2", ["a", "b"]);
    (a, b)
}

#[test]
fn bulk_and_pings_are_carried_and_counted() {
    let lab = lab!("fast-bulk");
    let d = accelerated!(&lab, &[]);
    let (a, b) = two(&d, &lab);
    assert_eq!(port(&d, "a")["fast"], true);
    assert_eq!(fast(&d)["ports"], 2);
    let _server = b.iperf3_server();
    let names = ["rx_bytes", "fast_rx_bytes"];
    let before = names.map(|n| counter(&d, "a", n));
    let run = a.iperf3("192.0.2.2", &["-n", "256M"]);
    let [all, by_kernel] = [0, 1].map(|i| counter(&d, "a", names[i]) - before[i]);
    // The client is done when it has written everything, and the server may end before the last of it has come.
    let got = run.received_bytes;
    assert!(got > 200 << 20, "{got} bytes");
    assert!(by_kernel >= got / 10 * 8, "{by_kernel} of {all} bytes");
    // The headers aren't a tenth of it, nor is what was sent again or not waited for.
    assert!(all >= got && all < got / 10 * 12, "{all} of {got} bytes");
    let passed_on = counter(&d, "b", "tx_bytes");
    assert!(passed_on >= all, "{passed_on} of {all} bytes passed on");
    a.assert_no_checksum_errors();
    b.assert_no_checksum_errors();
    // As many pings as were sent, whoever carried them.
    let frames = ["a", "b"].map(|p| counter(&d, p, "rx_frames"));
    assert_eq!(a.ping("192.0.2.2"), 3);
    for (p, before) in ["a", "b"].into_iter().zip(frames) {
        let more = counter(&d, p, "rx_frames") - before;
        assert!((3..=9).contains(&more), "{p}: {more} frames for 3 pings");
    }
    wait_until("flows to be counted", || {
        fast(&d)["flows"].as_u64() >= Some(2)
    });
    let text = d.ctl(&["stats"]);
    assert!(text.contains("fast path: 2 ports, "), "{text}");
    let metrics = d.http("GET", "/metrics", None).body;
    for line in ["vswitch_fast_path_on 1", "vswitch_fast_path_ports 2"] {
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
    }
    assert!(metrics.contains("vswitch_port_fast_rx_frames_total{port=\"a\""));
    d.assert_ledger();
    // What nobody uses is gone after a while.
    wait_until("idle flows to go", || fast(&d)["flows"] == 0);
    assert_eq!(a.ping("192.0.2.2"), 3);
    d.assert_ledger();
}

#[test]
fn small_datagrams_and_several_workers() {
    let lab = lab!("fast-workers");
    let d = accelerated!(&lab, &["--workers", "2"]);
    let (a, b) = two(&d, &lab);
    let _server = b.iperf3_server();
    let before = counter(&d, "b", "fast_tx_frames");
    let udp = ["-u", "-l", "64", "-b", "5M", "-t", "2"];
    let run = a.iperf3("192.0.2.2", &udp);
    let carried = counter(&d, "b", "fast_tx_frames") - before;
    assert!(run.datagrams > 1000, "{run:?}");
    assert!(
        carried * 10 > run.datagrams * 9,
        "{carried} of {}",
        run.datagrams
    );
    d.assert_ledger();
}

#[test]
fn captures_and_mirrors_see_every_frame() {
    let lab = lab!("fast-taps");
    let d = accelerated!(&lab, &[]);
    let (a, _b) = two(&d, &lab);
    let info = || d.http("GET", "/v1/", None).json()["captures"].clone();
    let file = lab.dir().join("fast.pcapng");
    let path = file.to_str().expect("UTF-8");
    let capture = d.spawn_ctl(&["capture", "a", "-w", path, "-f", "icmp"]);
    wait_until("the capture to begin", || info() == 1);
    let before = counter(&d, "a", "fast_rx_frames");
    a.ping_with("192.0.2.2", &["-c", "5", "-i", "0.2"]);
    assert_eq!(counter(&d, "a", "fast_rx_frames"), before);
    wait_until("the frames to be captured", || {
        let all = d.http("GET", "/v1/captures", None).json();
        all[0]["passed"].as_u64() >= Some(10)
    });
    drop(capture);
    wait_until("the capture to end", || info() == 0);
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    let c = lab.container("c");
    bare(&d, &c, "c", "eth0", &["--kind", "veth"]);
    let mirror = ["--target", "c", "--ingress", "b", "--egress", "b"];
    d.ctl(&[&["mirror", "add", "m"], &mirror[..]].concat());
    let seen = c.capture("eth0", "icmp");
    a.ping_with("192.0.2.2", &["-c", "5", "-i", "0.2"]);
    let seen = seen.count();
    assert_eq!(seen, 10, "of 5 pings and answers");
    d.ctl(&["mirror", "del", "m"]);
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    d.assert_ledger();
}

#[test]
fn a_policy_cuts_at_once() {
    let lab = lab!("fast-policy");
    let d = accelerated!(&lab, &[]);
    let (a, _b) = two(&d, &lab);
    d.ctl(&[
        "policy",
        "add",
        "none",
        "--to",
        "port:b",
        "--default",
        "drop",
    ]);
    a.assert_no_ping("192.0.2.2");
    d.ctl(&["policy", "del", "none"]);
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    // So do the port's own limits, and its link.
    d.ctl(&["port", "set", "b", "--isolated", "on"]);
    d.ctl(&["port", "set", "a", "--isolated", "on"]);
    a.assert_no_ping("192.0.2.2");
    d.ctl(&["port", "set", "a", "--isolated", "off"]);
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    d.ctl(&["port", "set", "b", "--up", "off"]);
    a.assert_no_ping("192.0.2.2");
    d.ctl(&["port", "set", "b", "--up", "on"]);
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    d.assert_ledger();
}

#[test]
fn traffic_follows_an_address_that_moves() {
    let lab = lab!("fast-move");
    let d = accelerated!(&lab, &[]);
    let (a, b) = two(&d, &lab);
    let c = lab.container("c");
    let mac = b.mac("eth0");
    // The same addresses in another container: it speaks, and is heard.
    bare(&d, &c, "c", "eth0", &["--kind", "veth", "--mac", &mac]);
    c.addr("eth0", "192.0.2.2/24");
    b.ok(&["ip", "link", "set", "eth0", "down"]);
    assert!(c.ping("192.0.2.1") > 0);
    warm(&d, &a, "192.0.2.2", ["a", "c"]);
    assert_eq!(at(&d, &mac).expect("an entry")["port"], "c");
    d.ctl(&["port", "del", "c"]);
    a.assert_no_ping("192.0.2.2");
    assert_eq!(fast(&d)["ports"], 2);
    d.assert_ledger();
}

#[test]
fn what_is_too_long_is_dropped_and_counted() {
    let lab = lab!("fast-mtu");
    let d = accelerated!(&lab, &[]);
    let a = rig::container(
        &d,
        &lab,
        "a",
        "192.0.2.1/24",
        &[&VETH[..], &["--mtu", "9000"]].concat(),
    );
    let _b = container(&d, &lab, "b", "192.0.2.2/24");
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    let long = [
        "-c", "3", "-i", "0.2", "-s", "4000", "-M", "dont", "-W", "1",
    ];
    assert!(!a.ping_with("192.0.2.2", &long).success());
    wait_dropped(&d, "b", "mtu", 3);
    let fits = ["-c", "3", "-i", "0.2", "-s", "1472", "-M", "dont"];
    assert!(a.ping_with("192.0.2.2", &fits).success());
    assert_eq!(dropped(&d, "b", "mtu"), 3);
    d.assert_ledger();
}

#[test]
fn addresses_in_use_do_not_age() {
    let lab = lab!("fast-age");
    let d = accelerated!(&lab, &[]);
    d.ctl(&["network", "set", "lan", "--ageing", "4s"]);
    let (a, b) = two(&d, &lab);
    let before = counter(&d, "a", "rx_frames") - counter(&d, "a", "fast_rx_frames");
    let pings = a.ping_with("192.0.2.2", &["-c", "60", "-i", "0.2"]);
    assert!(pings.success(), "{pings}");
    for node in [&a, &b] {
        let entry = at(&d, &node.mac("eth0")).expect("an entry that is alive");
        assert!(entry["age"].as_u64() < Some(4), "{entry}");
    }
    // They didn't have to come to the switch for that.
    let after = counter(&d, "a", "rx_frames") - counter(&d, "a", "fast_rx_frames");
    assert!(after - before < 30, "{} of 60 pings", after - before);
    let _server = b.iperf3_server();
    wait_until("the address to age without traffic", || {
        at(&d, &a.mac("eth0")).is_none()
    });
    d.assert_ledger();
}

#[test]
fn a_killed_daemon_leaves_nothing_behind() {
    let lab = lab!("fast-kill");
    let mut d = accelerated!(&lab, &[]);
    let (a, _b) = two(&d, &lab);
    d.kill();
    a.assert_no_ping("192.0.2.2");
    d.restart();
    // The pairs are made anew, for containers whose process lives.
    wait_until("the fast path to be back", || fast(&d)["ports"] == 2);
    warm(&d, &a, "192.0.2.2", ["a", "b"]);
    d.assert_ledger();
}

#[test]
fn without_privileges_it_goes_on_without() {
    let lab = lab!("fast-none");
    let ours = rig::program("vswitchd");
    let mut d = lab.daemon();
    // Root of a user namespace of its own isn't the machine's.
    let socket = lab.dir().join("user.sock");
    let socket = socket.to_str().expect("UTF-8");
    let argv = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        &ours,
        "run",
        "--no-state",
        "--socket",
        socket,
        "--accelerate=ebpf",
    ];
    let daemon = d.host().spawn(&argv);
    wait_until("the daemon to be ready", || {
        daemon.output().contains("ready")
    });
    let log = daemon.output();
    assert!(log.contains("no fast path"), "{log}");
    assert!(log.contains("CAP_BPF"), "{log}");
    let ctl = rig::program("vswitchctl");
    let stats = d.host().ok(&[&ctl, "--socket", socket, "stats"]);
    assert!(stats.contains("fast path: off: "), "{stats}");
    drop(daemon);
    // Who doesn't ask for it isn't told.
    assert!(fast(&d).is_null());
    assert!(!d.log().contains("fast path"));
    d.stop();
}
