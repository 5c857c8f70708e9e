//! Peers that translate addresses: the kernel's masquerade and vswitchd's gateway, between the same two ends.
//!
//! `a` is inside (192.0.2.1), its `eth0` a veth or a TAP device; `b` is outside (198.51.100.2) behind a veth pair, and knows no way to
//! `a`: what it answers, it answers to the router's address.

use vswitch_tests::{Lab, Mtu, Node};

use super::vswitch::{Build, Switch};
use super::{ADDRESSES, Bed, checked, containers};

/// Addresses of the router inside and outside, and of `b`.
const INSIDE: &str = "192.0.2.254";
pub(super) const OUTSIDE: &str = "198.51.100.1";
pub(super) const FAR: &str = "198.51.100.2";

const MASQUERADE: &str = "\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"out\" masquerade
    }
}
";

pub(super) fn address(node: &Node, device: &str, address: &str) -> anyhow::Result<()> {
    let address = format!("{address}/24");
    checked(node.run(&["ip", "address", "add", &address, "dev", device]))?;
    checked(node.run(&["ip", "link", "set", device, "up"]))?;
    Ok(())
}

/// A router of the kernel, with the rule that is in everybody's example.
pub(super) fn nftables(lab: &Lab) -> anyhow::Result<Bed> {
    let (a, b) = containers(lab);
    let router = lab.host("router");
    lab.link(&router, "in", &a, "eth0", Mtu(1500));
    lab.link(&router, "out", &b, "eth0", Mtu(1500));
    address(&router, "in", INSIDE)?;
    address(&router, "out", OUTSIDE)?;
    address(&a, "eth0", ADDRESSES[0])?;
    address(&b, "eth0", FAR)?;
    checked(a.run(&["ip", "route", "add", "default", "via", INSIDE]))?;
    checked(router.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]))?;
    router.ok_with_input(&["nft", "-f", "-"], MASQUERADE.as_bytes());
    let mut bed = Bed::of_kernel(a, b, vec![router]);
    bed.far = FAR;
    Ok(bed)
}

/// vswitchd with a gateway of two networks, one of which is the uplink.
pub(super) fn vswitch(lab: &Lab, build: Build) -> anyhow::Result<Bed> {
    let (a, b) = containers(lab);
    let switch = Switch::new(lab, build);
    lab.link(&switch.host, "up0", &b, "eth0", Mtu(1500));
    address(&b, "eth0", FAR)?;
    let daemon = switch.start()?;
    let (inside, outside) = (format!("{INSIDE}/24"), format!("{OUTSIDE}/24"));
    for line in [
        &["network", "add", "lan"][..],
        &["network", "add", "wan"],
        &["gateway", "set", "lan", "--addresses", &inside],
        &[
            "gateway",
            "set",
            "wan",
            "--uplink",
            "on",
            "--addresses",
            &outside,
        ],
        &["port", "add", "up0", "--network", "wan", "--kind", "packet"],
    ] {
        switch.ctl(line)?;
    }
    let (pid, ip) = (a.pid().to_string(), format!("{}/24", ADDRESSES[0]));
    switch.ctl(&[
        "attach", "--pid", &pid, "--ip", &ip, "--gw", INSIDE, "--name", "a", "lan",
    ])?;
    let mut bed = Bed::of_processes(a, b, vec![switch.host], vec![daemon]);
    bed.far = FAR;
    Ok(bed)
}
