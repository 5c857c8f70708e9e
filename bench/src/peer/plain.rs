//! The baselines as peers: this program as a forwarder, see `crate::baseline`.

use vswitch_tests::Lab;

use super::kernel::{NEAR, star};
use super::{Bed, address, checked, containers};
use crate::machine::this_program;

pub(super) fn tap(lab: &Lab, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b) = containers(lab);
    let middle = lab.host("middle");
    let program = this_program()?;
    let netns = [a.netns_path(), b.netns_path()].map(|p| p.to_string_lossy().into_owned());
    let mut forwarder = middle.spawn(&[&program, "tool", "forward-tap", &netns[0], &netns[1]]);
    forwarder.wait_for("ready");
    address(&a, &b, mtu)?;
    Ok(Bed::of_processes(a, b, vec![middle], vec![forwarder]))
}

pub(super) fn packet(lab: &Lab, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b, middle) = star(lab, mtu)?;
    for node in [&a, &b] {
        checked(node.run(&[
            "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off",
        ]))?;
    }
    let program = this_program()?;
    let mut forwarder = middle.spawn(&[&program, "tool", "forward-packet", NEAR[0], NEAR[1]]);
    forwarder.wait_for("ready");
    Ok(Bed::of_processes(a, b, vec![middle], vec![forwarder]))
}
