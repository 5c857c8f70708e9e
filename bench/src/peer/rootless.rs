//! Peers that stand between a container and the sockets of its host: slirp4netns, pasta and vswitchd with a host uplink.
//!
//! `a` is the container; its `eth0` is the peer's TAP device. The host is a namespace of its own with a veth pair to `b` (198.51.100.2),
//! MTU 1500 as wires have. Port 7000 of the host is published for `a`, which is reached by it from `b` and from the host's loopback.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vswitch_tests::{Background, Lab, Mtu, Node};

use super::nat::{FAR, OUTSIDE, address};
use super::vswitch::{Build, Switch};
use super::{ADDRESSES, Bed, checked, rootless_containers};
use crate::workload::PORT;

/// Address of vswitchd's gateway.
const GATEWAY: &str = "192.0.2.254";

/// The host's namespace, with its way to `b`.
fn outside(lab: &Lab, host: &Node, b: &Node) -> anyhow::Result<()> {
    lab.link(host, "out", b, "eth0", Mtu(1500));
    address(host, "out", OUTSIDE)?;
    address(b, "eth0", FAR)?;
    checked(host.run(&["ip", "link", "set", "lo", "up"]))?;
    checked(host.run(&["ip", "route", "add", "default", "via", FAR]))?;
    // Echo requests leave by unprivileged sockets.
    let ping = "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range";
    checked(host.run(&["sh", "-c", ping]))?;
    Ok(())
}

fn bed(a: Node, b: Node, host: Node, process: Background) -> Bed {
    let mut bed = Bed::of_processes(a, b, vec![host], vec![process]);
    bed.far = FAR;
    bed.published = Some(OUTSIDE);
    bed
}

/// What slirp4netns, or who stands in for it, is started with, as podman does.
fn command_line(program: &str, mtu: u32, more: &[&str], a: &Node) -> Vec<String> {
    let mtu = format!("--mtu={mtu}");
    let head = [
        program,
        "--configure",
        &mtu,
        "--disable-host-loopback",
        "--enable-sandbox",
        "--enable-seccomp",
    ];
    let pid = a.pid().to_string();
    let all = [&head[..], more, &[&pid, "eth0"]].concat();
    all.into_iter().map(ToOwned::to_owned).collect()
}

/// A host and a container for a start of the program, with its command line.
pub(crate) fn to_start(lab: &Lab, program: &str) -> anyhow::Result<(Node, Node, Vec<String>)> {
    let (a, b) = rootless_containers(lab);
    let host = lab.host("starting");
    outside(lab, &host, &b)?;
    // podman gives a descriptor to watch; standard output is as good as any.
    let argv = command_line(program, super::LONG, &["--exit-fd=1"], &a);
    Ok((a, host, argv))
}

/// slirp4netns as podman starts it, with a forwarded port.
pub(super) fn slirp4netns(lab: &Lab, program: &str, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b) = rootless_containers(lab);
    let host = lab.host("slirp4netns");
    outside(lab, &host, &b)?;
    let api = lab.dir().join(format!("slirp4netns-{}.sock", a.pid()));
    let argv = command_line(program, mtu, &["--api-socket", &api.to_string_lossy()], &a);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let process = host.spawn(&argv);
    for proto in ["tcp", "udp"] {
        forward(&api, proto).with_context(|| process.output())?;
    }
    Ok(bed(a, b, host, process))
}

/// Asks slirp4netns to forward the port.
fn forward(api: &Path, proto: &str) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    let mut socket = loop {
        match UnixStream::connect(api) {
            Ok(socket) => break socket,
            Err(e) if Instant::now() > end => return Err(e).context("connecting to slirp4netns"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let request = format!(
        "{{\"execute\":\"add_hostfwd\",\"arguments\":{{\"proto\":\"{proto}\",\"host_addr\":\"0.0.0.0\",\"host_port\":{PORT},\"guest_addr\":\"\",\"guest_port\":{PORT}}}}}\n"
    );
    let mut answer = String::new();
    socket
        .write_all(request.as_bytes())
        .and_then(|()| socket.shutdown(std::net::Shutdown::Write))
        .and_then(|()| socket.read_to_string(&mut answer).map(drop))
        .context("talking to slirp4netns")?;
    ensure!(answer.contains("return"), "slirp4netns answered {answer}");
    Ok(())
}

/// pasta as podman starts it, with a forwarded port; of another Debian, whose root is given, or of this one.
pub(super) fn pasta(lab: &Lab, root: Option<&Path>, mtu: u32) -> anyhow::Result<Bed> {
    let (a, b) = rootless_containers(lab);
    let host = lab.host("pasta");
    outside(lab, &host, &b)?;
    let port = PORT.to_string();
    let root = root.map(debian).transpose()?;
    let enter: Vec<&str> = root.iter().flatten().map(String::as_str).collect();
    let pid = a.pid().to_string();
    let mtu = mtu.to_string();
    let argv = [
        "pasta",
        "--config-net",
        "--foreground",
        "--quiet",
        "--runas",
        "0",
        "--ipv4-only",
        "--mtu",
        &mtu,
        "--ns-ifname",
        "eth0",
        "-t",
        &port,
        "-u",
        &port,
        "-T",
        "none",
        "-U",
        "none",
        "--no-map-gw",
        &pid,
    ];
    let process = host.spawn(&[&enter[..], &argv].concat());
    Ok(bed(a, b, host, process))
}

/// How a program of another Debian's root is started, in a mount namespace that nobody else sees.
fn debian(root: &Path) -> anyhow::Result<Vec<String>> {
    ensure!(
        root.join("usr/bin/pasta").exists(),
        "no pasta below {}: `tests/run` unpacks a Debian 13 at target/trixie, or name another by --debian13",
        root.display()
    );
    // pasta makes its root unbindable, so that is a mount of its own.
    let enter = "mount --bind \"$1\" \"$1\" && for d in proc dev; do mount --rbind /$d \"$1/$d\" || exit; done; root=$1; shift; exec chroot \"$root\" \"$@\"";
    let root = root.to_string_lossy().into_owned();
    Ok(["sh", "-c", enter, "enter", &root]
        .map(ToOwned::to_owned)
        .to_vec())
}

/// vswitchd with a host uplink, whose sockets take the places of the container's.
pub(super) fn switched(lab: &Lab, build: Build) -> anyhow::Result<Bed> {
    let (mut bed, switch) = uplink(lab, build, 1500)?;
    switch.ctl(&["gateway", "set", "lan", "--socket-switching", "on"])?;
    bed.launcher = switch.command(&["run", "a", "--"]);
    bed.hosts.push(switch.host);
    Ok(bed)
}

/// vswitchd with a host uplink.
pub(super) fn vswitch(lab: &Lab, build: Build, mtu: u32) -> anyhow::Result<Bed> {
    let (mut bed, switch) = uplink(lab, build, mtu)?;
    bed.hosts.push(switch.host);
    Ok(bed)
}

/// The same, with the switch itself.
fn uplink(lab: &Lab, build: Build, mtu: u32) -> anyhow::Result<(Bed, Switch)> {
    let (a, b) = rootless_containers(lab);
    let switch = Switch::new(lab, build);
    outside(lab, &switch.host, &b)?;
    let daemon = switch.start()?;
    let (inside, mtu) = (format!("{GATEWAY}/24"), mtu.to_string());
    for line in [
        &["network", "add", "lan"][..],
        &[
            "gateway",
            "set",
            "lan",
            "--addresses",
            &inside,
            "--mtu",
            &mtu,
            "--host-uplink",
            "on",
        ],
        &[
            "attach",
            "--pid",
            &a.pid().to_string(),
            "--ip",
            &format!("{}/24", ADDRESSES[0]),
            "--gw",
            GATEWAY,
            "--mtu",
            &mtu,
            "--name",
            "a",
            "lan",
        ],
    ] {
        switch.ctl(line)?;
    }
    let (port, to) = (PORT.to_string(), format!("{}:{PORT}", ADDRESSES[0]));
    let publish = ["publish", "add", "bench", "--splice", "--ports", &port];
    switch.ctl(&[&publish[..], &["--to", &to]].concat())?;
    let publish = ["publish", "add", "bench-udp", "--protocol", "udp"];
    switch.ctl(&[&publish[..], &["--ports", &port, "--to", &to]].concat())?;
    let mut bed = Bed::of_processes(a, b, vec![], vec![daemon]);
    bed.far = FAR;
    bed.published = Some(OUTSIDE);
    Ok((bed, switch))
}
