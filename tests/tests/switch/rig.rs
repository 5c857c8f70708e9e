//! A daemon of the lab with containers at its ports, all made by vswitchctl.

use serde_json::Value;
use vswitch_tests::{Background, Daemon, Lab, Node, wait_until};

/// Python of the distribution, which scapy belongs to.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// A daemon with the network `lan`.
#[track_caller]
pub(crate) fn switch(lab: &Lab, options: &[&str]) -> Daemon {
    let d = lab.daemon();
    d.ctl(&[&["network", "add", "lan"], options].concat());
    d
}

/// `vswitchctl attach` of a node that is there: interface eth0, port named as the node.
#[track_caller]
pub(crate) fn attach(d: &Daemon, node: &Node, address: &str, options: &[&str]) {
    let pid = node.pid().to_string();
    let name = node.name();
    let argv = [
        "attach", "--pid", &pid, "--ip", address, "--name", name, "lan",
    ];
    d.ctl(&[&argv, options].concat());
}

/// A new container at a port of its name.
#[track_caller]
pub(crate) fn container(
    d: &Daemon,
    lab: &Lab,
    name: &str,
    address: &str,
    options: &[&str],
) -> Node {
    let node = lab.container(name);
    attach(d, &node, address, options);
    node
}

/// A port whose interface `device` has no address.
#[track_caller]
pub(crate) fn bare(d: &Daemon, node: &Node, port: &str, device: &str, options: &[&str]) {
    let netns = format!("pid:{}", node.pid());
    let argv = [
        "port",
        "add",
        port,
        "--network",
        "lan",
        "--netns",
        &netns,
        "--device",
        device,
    ];
    d.ctl(&[&argv, options].concat());
    node.ok(&["ip", "link", "set", device, "up"]);
}

/// A counter of a port in `vswitchctl stats`.
#[track_caller]
pub(crate) fn counter(d: &Daemon, port: &str, name: &str) -> u64 {
    let stats = d.ctl_json(&["stats", port]);
    stats["ports"][0][name].as_u64().expect("a counter")
}

/// Frames dropped at a port for a reason.
#[track_caller]
pub(crate) fn dropped(d: &Daemon, port: &str, reason: &str) -> u64 {
    let stats = d.ctl_json(&["stats", port]);
    stats["ports"][0]["drops"][reason].as_u64().unwrap_or(0)
}

/// Waits until a port has dropped this many for a reason.
#[track_caller]
pub(crate) fn wait_dropped(d: &Daemon, port: &str, reason: &str, least: u64) {
    wait_until(&format!("{least} drops for {reason} at {port}"), || {
        dropped(d, port, reason) >= least
    });
}

/// One port of `vswitchctl port show`.
#[track_caller]
pub(crate) fn port(d: &Daemon, name: &str) -> Value {
    d.ctl_json(&["port", "show", name])[0].clone()
}

/// Waits for a port's state; returns the reason shown with it.
#[track_caller]
pub(crate) fn wait_state(d: &Daemon, name: &str, state: &str) -> String {
    wait_until(&format!("port {name} to be {state}"), || {
        port(d, name)["state"] == state
    });
    port(d, name)["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The port an address is at, in `vswitchctl fdb show`.
#[track_caller]
pub(crate) fn at(d: &Daemon, mac: &str) -> Option<Value> {
    let fdb = d.ctl_json(&["fdb", "show", "lan"]);
    let entries = fdb.as_array().expect("a list");
    entries.iter().find(|e| e["mac"] == mac).cloned()
}

/// `vswitchctl events`, listening.
#[track_caller]
pub(crate) fn events(d: &Daemon) -> Background {
    let socket = d.socket();
    let ctl = program("vswitchctl");
    let socket = socket.to_str().expect("UTF-8");
    let listener = d
        .host()
        .spawn(&[&ctl, "--socket", socket, "events", "--json"]);
    // It listens once an event of our own making arrives.
    wait_until("the events stream", || {
        d.ctl(&["network", "add", "other"]);
        d.ctl(&["network", "del", "other"]);
        listener.output().contains("configured")
    });
    listener
}

/// Whether an event came with these fields.
pub(crate) fn told(events: &Background, event: &str, fields: &[(&str, &str)]) -> bool {
    events.output().lines().any(|line| {
        serde_json::from_str::<Value>(line)
            .is_ok_and(|e| e["event"] == event && fields.iter().all(|(k, v)| e[*k] == *v))
    })
}

/// Path of a program of ours, beside the directory of the test binary.
#[track_caller]
pub(crate) fn program(name: &str) -> String {
    let dir = std::env::var_os("VSWITCH_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("path of the test binary");
            let target = test.parent().and_then(std::path::Path::parent);
            target.expect("cargo's target directory").to_owned()
        },
        std::path::PathBuf::from,
    );
    dir.join(name).to_str().expect("a UTF-8 path").to_owned()
}

/// Sends broadcasts of EtherType 0x88b6 from many sources, as macof does: eth0, so many.
const MACOF: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
for i in range(int(sys.argv[1])):
    if i % 50 == 0:
        time.sleep(0.01)
    s.send(b'\\xff' * 6 + b'\\x02\\x66' + i.to_bytes(4, 'big') + b'\\x88\\xb6' + b'z' * 46)
";

/// Broadcasts from this many source addresses, out of eth0.
#[track_caller]
pub(crate) fn macof(node: &Node, sources: u32) {
    node.ok(&[PYTHON, "-c", MACOF, &sources.to_string()]);
}

/// A frame of EtherType 0x88b6, 60 bytes.
pub(crate) fn frame(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    frame.extend([0x88, 0xb6]);
    frame.resize(60, 0);
    frame
}

/// The six octets of `02:00:..`.
#[track_caller]
pub(crate) fn octets(mac: &str) -> [u8; 6] {
    let octets: Vec<u8> = mac
        .split(':')
        .map(|o| u8::from_str_radix(o, 16).expect("an octet"))
        .collect();
    octets.try_into().expect("six octets")
}
