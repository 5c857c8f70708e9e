//! Peers of the kernel: the veth pair and the bridge.

use vswitch_tests::{Lab, Mtu, Node};

use super::{Bed, address, checked, containers};

/// Near ends of the containers' veth pairs.
pub(super) const NEAR: [&str; 2] = ["pa", "pb"];

pub(super) fn veth(lab: &Lab, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b) = containers(lab);
    lab.link(&a, "eth0", &b, "eth0", Mtu(mtu));
    address(&a, &b, mtu)?;
    Ok(Bed::of_kernel(a, b, vec![]))
}

/// Two containers, each with a veth pair to a third namespace in the middle.
pub(super) fn star(lab: &Lab, mtu: u32) -> anyhow::Result<(Node, Node, Node)> {
    let (a, b) = containers(lab);
    let middle = lab.host("middle");
    for (node, near) in [&a, &b].into_iter().zip(NEAR) {
        lab.link(&middle, near, node, "eth0", Mtu(mtu));
    }
    address(&a, &b, mtu)?;
    Ok((a, b, middle))
}

pub(super) fn bridge(lab: &Lab, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b, middle) = star(lab, mtu)?;
    checked(middle.run(&["ip", "link", "add", "br0", "type", "bridge"]))?;
    for near in NEAR {
        checked(middle.run(&["ip", "link", "set", near, "master", "br0"]))?;
    }
    checked(middle.run(&["ip", "link", "set", "br0", "up"]))?;
    Ok(Bed::of_kernel(a, b, vec![middle]))
}
