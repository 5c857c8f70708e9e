//! VDE2: a switch, and in each container a plug that copies between it and a TAP device.

use std::time::{Duration, Instant};

use anyhow::ensure;
use vswitch_tests::{Background, Lab, Node};

use super::{Bed, address, checked, containers};

pub(super) fn start(lab: &Lab) -> anyhow::Result<Bed> {
    let (a, b) = containers(lab);
    let middle = lab.host("middle");
    let dir = lab.dir().join("vde");
    let dir = dir.to_string_lossy();
    checked(middle.run(&["rm", "-rf", &dir]))?;
    // It takes commands from stdin and ends with it, hence the pipe.
    let command = format!("sleep infinity | exec vde_switch --sock {dir}");
    let mut processes = vec![middle.spawn(&["sh", "-c", &command])];
    let control = lab.dir().join("vde/ctl");
    until("vde_switch's socket", || control.exists())?;
    for node in [&a, &b] {
        processes.push(node.spawn(&["vde_plug2tap", "--sock", &dir, "eth0"]));
        until("vde_plug2tap's device", || has_eth0(node))?;
    }
    address(&a, &b)?;
    let pids = processes
        .iter()
        .map(Background::pid)
        .flat_map(with_children)
        .collect();
    let mut bed = Bed::of_processes(a, b, vec![middle], processes);
    bed.switch = pids;
    Ok(bed)
}

fn has_eth0(node: &Node) -> bool {
    node.run(&["ip", "link", "show", "eth0"]).success()
}

fn until(what: &str, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    while !done() {
        ensure!(Instant::now() < end, "waited 5 s for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn with_children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let mut all = vec![pid];
    all.extend(
        children
            .split_whitespace()
            .filter_map(|c| c.parse::<i32>().ok()),
    );
    all
}
