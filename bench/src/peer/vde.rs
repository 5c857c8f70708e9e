//! VDE2: a switch, and in each container a plug that copies between it and a TAP device.

use std::time::{Duration, Instant};

use anyhow::ensure;
use vswitch_tests::{Lab, Node};

use super::{Bed, address, checked, containers};

pub(super) fn start(lab: &Lab, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b) = containers(lab);
    let middle = lab.host("middle");
    let dir = lab.dir().join("vde");
    let dir = dir.to_string_lossy();
    checked(middle.run(&["rm", "-rf", &dir, &format!("{dir}.stdin")]))?;
    // It takes commands from stdin and ends with it: a pipe that nobody closes.
    let command = format!("mkfifo {dir}.stdin && exec vde_switch --sock {dir} <>{dir}.stdin");
    let mut processes = vec![middle.spawn(&["sh", "-c", &command])];
    let control = lab.dir().join("vde/ctl");
    until("vde_switch's socket", || control.exists())?;
    for node in [&a, &b] {
        processes.push(node.spawn(&["vde_plug2tap", "--sock", &dir, "eth0"]));
        until("vde_plug2tap's device", || has_eth0(node))?;
    }
    address(&a, &b, mtu)?;
    Ok(Bed::of_processes(a, b, vec![middle], processes))
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
