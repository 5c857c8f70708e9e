//! The peers: what stands between two containers, started by the bench in namespaces of its own.
//!
//! Each peer makes a [`Bed`]: containers `a` (192.0.2.1) and `b` (192.0.2.2) with `eth0` of MTU 1500 (see --mtu), IPv6 off so that nothing
//! but the workload speaks, and the processes of the switch, if there are any. A bed is handed out only once a ping has gone
//! through it. Of the peers that translate addresses (`nat`) or go by sockets (`rootless`) `b` is outside, at 198.51.100.2.

mod kernel;
mod nat;
mod ovs;
mod plain;
pub(crate) mod rootless;
mod vde;
mod vswitch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;
use vswitch_tests::{Background, Lab, Node, Output};

pub(crate) use vswitch::{Build, Switch};

use crate::machine::bin_dir;

/// Address of container `a` and of `b`.
pub(crate) const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// MTU that rootless containers have by default.
const LONG: u32 = 65_520;

/// The program that others start.
const SLIRP4NETNS: &str = "slirp4netns";

/// How vswitchd is started.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// Folder of the build that peers `before-*` run.
    pub(crate) before: PathBuf,
    /// Further arguments of `vswitchd run`, of peers `vswitch-*` only.
    pub(crate) daemon_args: Vec<String>,
    /// MTU of containers that have nothing but a switch between them.
    pub(crate) mtu: u32,
    /// Root of a Debian 13.
    pub(crate) debian13: PathBuf,
}

impl Setup {
    /// The build a peer runs, and its arguments.
    pub(crate) fn build(&self, peer: Peer) -> Build {
        if peer.is_another_build() {
            Build {
                dir: self.before.clone(),
                args: vec![],
            }
        } else {
            Build {
                dir: bin_dir(),
                args: self.daemon_args.clone(),
            }
        }
    }
}

/// What stands between the two containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// A veth pair, nothing between.
    Veth,
    /// The Linux bridge over two veth pairs.
    Bridge,
    /// Open vSwitch's netdev datapath over two veth pairs, userspace TSO on.
    Ovs,
    /// VDE2: vde_switch and vde_plug2tap.
    Vde,
    /// vswitchd on TAP ports.
    VswitchTap,
    /// vswitchd on veth ports (AF_PACKET).
    VswitchVeth,
    /// vswitchd --accelerate=ebpf on veth ports: what it has approved is forwarded in the kernel.
    VswitchVethEbpf,
    /// The same in a network that policy judges: connections that it has allowed are forwarded in the kernel.
    VswitchVethEbpfPolicy,
    /// vswitchd on veth ports in a network that policy judges.
    VswitchVethPolicy,
    /// vswitchd on veth ports that receive by the ring (TPACKET_V3).
    VswitchRing,
    /// NAT by the kernel: nftables masquerade in a router between two veth pairs.
    Nftables,
    /// NAT by vswitchd: a TAP port, the gateway, an uplink port on a veth pair.
    VswitchNat,
    /// Another build of vswitchd (see --before), as vswitch-nat.
    BeforeNat,
    /// Host sockets by slirp4netns, MTU 65520.
    Slirp4netns,
    /// The same, MTU 1500.
    #[value(name = "slirp4netns-1500")]
    #[serde(rename = "slirp4netns-1500")]
    Slirp4netns1500,
    /// Host sockets by pasta, MTU 65520.
    Pasta,
    /// The same, MTU 1500.
    #[value(name = "pasta-1500")]
    #[serde(rename = "pasta-1500")]
    Pasta1500,
    /// Host sockets by Debian 13's pasta, MTU 65520 (see --debian13).
    #[value(name = "pasta-debian13")]
    PastaDebian13,
    /// Host sockets by vswitchd, MTU 65520.
    VswitchRootless,
    /// The same, MTU 1500.
    #[value(name = "vswitch-rootless-1500")]
    #[serde(rename = "vswitch-rootless-1500")]
    VswitchRootless1500,
    /// vswitchd that connects sockets of the host in place of the container's own (`vswitchctl run`), MTU 1500 for the rest.
    VswitchSwitched,
    /// Another build of vswitchd (see --before) on TAP ports.
    BeforeTap,
    /// Another build of vswitchd (see --before) on veth ports.
    BeforeVeth,
    /// Our slirp4netns, with that program's command line, MTU 65520.
    VswitchSlirp4netns,
    /// Crate tun-tap, plain reads and writes.
    RawTuntap,
    /// Crate afpacket, plain reads and writes.
    RawAfpacket,
}

impl Peer {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// Its slirp4netns, if it is started as that.
    pub(crate) fn slirp4netns(self, setup: &Setup) -> Option<String> {
        match self {
            Peer::Slirp4netns | Peer::Slirp4netns1500 => Some(SLIRP4NETNS.into()),
            Peer::VswitchSlirp4netns => Some(setup.build(self).program(SLIRP4NETNS)),
            _ => None,
        }
    }

    /// Whether it runs the build of `--before`.
    pub(crate) fn is_another_build(self) -> bool {
        matches!(self, Peer::BeforeTap | Peer::BeforeVeth | Peer::BeforeNat)
    }

    /// Whether it runs the build of this tree.
    pub(crate) fn is_ours(self) -> bool {
        matches!(
            self,
            Peer::VswitchTap
                | Peer::VswitchVeth
                | Peer::VswitchRing
                | Peer::VswitchVethEbpf
                | Peer::VswitchVethEbpfPolicy
                | Peer::VswitchVethPolicy
                | Peer::VswitchNat
                | Peer::VswitchRootless
                | Peer::VswitchRootless1500
                | Peer::VswitchSwitched
                | Peer::VswitchSlirp4netns
        )
    }

    /// Whether containers go outside by sockets of the host.
    pub(crate) fn is_rootless(self) -> bool {
        matches!(
            self,
            Peer::Slirp4netns
                | Peer::Slirp4netns1500
                | Peer::Pasta
                | Peer::Pasta1500
                | Peer::PastaDebian13
                | Peer::VswitchRootless
                | Peer::VswitchRootless1500
                | Peer::VswitchSwitched
                | Peer::VswitchSlirp4netns
        )
    }

    /// Whose figures its own are set against, unless somebody else is named.
    pub(crate) fn base(self) -> Peer {
        match self {
            Peer::Nftables | Peer::VswitchNat | Peer::BeforeNat => Peer::Nftables,
            p if p.is_rootless() => Peer::Pasta,
            _ => Peer::Bridge,
        }
    }

    /// A program that tells its version, with the arguments for it.
    pub(crate) fn version_command(self, setup: &Setup) -> Option<Vec<String>> {
        let argv: &[&str] = match self {
            Peer::Ovs => &["ovs-vswitchd", "--version"],
            Peer::Vde => &["vde_switch", "--version"],
            Peer::Nftables => &["nft", "--version"],
            Peer::Slirp4netns | Peer::Slirp4netns1500 => &["slirp4netns", "--version"],
            Peer::Pasta | Peer::Pasta1500 => {
                &["dpkg-query", "-W", "-f", "${Package} ${Version}", "passt"]
            }
            Peer::PastaDebian13 => {
                let list = setup.debian13.join("var/lib/dpkg");
                let list = list.to_string_lossy();
                return Some(
                    [
                        "dpkg-query",
                        "--admindir",
                        &list,
                        "-W",
                        "-f",
                        "${Package} ${Version}",
                        "passt",
                    ]
                    .map(ToOwned::to_owned)
                    .to_vec(),
                );
            }
            Peer::VswitchTap
            | Peer::VswitchVeth
            | Peer::VswitchRing
            | Peer::VswitchVethEbpf
            | Peer::VswitchVethEbpfPolicy
            | Peer::VswitchVethPolicy
            | Peer::VswitchNat
            | Peer::VswitchRootless
            | Peer::VswitchRootless1500
            | Peer::VswitchSwitched
            | Peer::VswitchSlirp4netns
            | Peer::BeforeNat
            | Peer::BeforeTap
            | Peer::BeforeVeth => {
                let daemon = setup.build(self).program("vswitchd");
                return Some(vec![daemon, "--version".into()]);
            }
            _ => return None,
        };
        Some(argv.iter().map(ToString::to_string).collect())
    }

    /// Brings it up.
    pub(crate) fn start(self, lab: &Lab, setup: &Setup) -> anyhow::Result<Bed> {
        let what = self.name();
        let mtu = setup.mtu;
        let make = || match self {
            Peer::Veth => kernel::veth(lab, mtu),
            Peer::Bridge => kernel::bridge(lab, mtu),
            Peer::Ovs => ovs::start(lab, mtu),
            Peer::Vde => vde::start(lab, mtu),
            Peer::VswitchTap | Peer::BeforeTap => vswitch::bed(lab, setup.build(self), "tap", mtu),
            Peer::VswitchVeth | Peer::BeforeVeth => {
                vswitch::bed(lab, setup.build(self), "veth", mtu)
            }
            Peer::VswitchVethEbpf => vswitch::accelerated(lab, setup.build(self), mtu),
            Peer::VswitchVethEbpfPolicy => vswitch::judged(lab, setup.build(self), mtu, true),
            Peer::VswitchVethPolicy => vswitch::judged(lab, setup.build(self), mtu, false),
            Peer::VswitchRing => vswitch::ring(lab, setup.build(self), mtu),
            Peer::Nftables => nat::nftables(lab),
            Peer::VswitchNat | Peer::BeforeNat => nat::vswitch(lab, setup.build(self)),
            Peer::Slirp4netns => rootless::slirp4netns(lab, SLIRP4NETNS, LONG),
            Peer::Slirp4netns1500 => rootless::slirp4netns(lab, SLIRP4NETNS, 1500),
            Peer::VswitchSlirp4netns => {
                rootless::slirp4netns(lab, &setup.build(self).program(SLIRP4NETNS), LONG)
            }
            Peer::Pasta => rootless::pasta(lab, None, LONG),
            Peer::Pasta1500 => rootless::pasta(lab, None, 1500),
            Peer::PastaDebian13 => rootless::pasta(lab, Some(&setup.debian13), LONG),
            Peer::VswitchRootless => rootless::vswitch(lab, setup.build(self), LONG),
            Peer::VswitchRootless1500 => rootless::vswitch(lab, setup.build(self), 1500),
            Peer::VswitchSwitched => rootless::switched(lab, setup.build(self)),
            Peer::RawTuntap => plain::tap(lab, mtu),
            Peer::RawAfpacket => plain::packet(lab, mtu),
        };
        let bed = caught(make).with_context(|| format!("starting {what}"))?;
        bed.reach().with_context(|| format!("trying {what}"))?;
        Ok(bed)
    }
}

/// The lab panics where a test would fail; here that is one peer's failure.
pub(crate) fn caught<T>(f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    result.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
        Err(anyhow::anyhow!(
            text.unwrap_or_else(|| "the lab gave up".into())
        ))
    })
}

/// Two containers and what is between them. Dropped in the order of the fields: first what runs.
#[derive(Debug)]
pub(crate) struct Bed {
    /// Processes of the switch whose CPU time counts.
    pub(crate) switch: Vec<i32>,
    processes: Vec<Background>,
    pub(crate) a: Node,
    pub(crate) b: Node,
    /// Address of `b`.
    pub(crate) far: &'static str,
    /// Address by which `b` reaches `a`'s published port, if it is published.
    pub(crate) published: Option<&'static str>,
    pub(crate) hosts: Vec<Node>,
    /// What starts programs in `a`, if something has to.
    pub(crate) launcher: Vec<String>,
}

impl Bed {
    /// With nothing but the kernel between.
    fn of_kernel(a: Node, b: Node, hosts: Vec<Node>) -> Self {
        Self {
            switch: vec![],
            processes: vec![],
            a,
            b,
            far: ADDRESSES[1],
            published: None,
            hosts,
            launcher: vec![],
        }
    }

    /// With processes, all of which count.
    fn of_processes(a: Node, b: Node, hosts: Vec<Node>, processes: Vec<Background>) -> Self {
        Self {
            switch: processes.iter().map(Background::pid).collect(),
            processes,
            a,
            b,
            far: ADDRESSES[1],
            published: None,
            hosts,
            launcher: vec![],
        }
    }

    /// The processes of the switch, and those that they have started.
    pub(crate) fn all(&self) -> Vec<i32> {
        crate::machine::with_children(&self.switch)
    }

    /// What its processes have printed.
    fn said(&self) -> String {
        let outputs = self.processes.iter().map(Background::output);
        outputs.collect::<Vec<_>>().join("\n")
    }

    /// Waits until a ping gets through.
    fn reach(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let ping = self.a.run(&["ping", "-n", "-c", "1", "-W", "1", self.far]);
            if ping.success() {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "no ping gets through within 10 s: {ping}\n{}",
                self.said()
            );
        }
    }
}

/// A container without IPv6, which asks again soon when an ARP request was lost.
fn container(lab: &Lab, name: &str) -> Node {
    prepared(lab.container(name))
}

fn prepared(node: Node) -> Node {
    let off = "for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done; \
               echo 2 >/proc/sys/net/ipv4/neigh/default/retrans_time_ms";
    // A kernel without IPv6 has nothing to turn off.
    let _ = node.run(&["sh", "-c", off]);
    node
}

/// The two containers.
pub(crate) fn containers(lab: &Lab) -> (Node, Node) {
    (container(lab, "a"), container(lab, "b"))
}

/// The two containers, `a` in a user namespace of its own.
fn rootless_containers(lab: &Lab) -> (Node, Node) {
    (prepared(lab.user_container("a")), container(lab, "b"))
}

/// Puts their addresses and the MTU on `eth0`.
fn address(a: &Node, b: &Node, mtu: u32) -> anyhow::Result<()> {
    for (node, address) in [a, b].into_iter().zip(ADDRESSES) {
        checked(node.run(&[
            "ip",
            "address",
            "add",
            &format!("{address}/24"),
            "dev",
            "eth0",
        ]))?;
        let mtu = mtu.to_string();
        checked(node.run(&["ip", "link", "set", "eth0", "mtu", &mtu, "up"]))?;
    }
    Ok(())
}

/// Stdout of a command that must have worked.
pub(crate) fn checked(output: Output) -> anyhow::Result<String> {
    ensure!(output.success(), "{output}");
    Ok(output.stdout)
}
