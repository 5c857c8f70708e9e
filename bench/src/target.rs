//! The targets vswitch has set itself, against figures of the same run.

use crate::peer::Peer;
use crate::workload::Workload;

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Against {
    /// Ratio to another peer's figure.
    Peer(Peer),
    /// The figure itself.
    Itself,
}

/// A figure and what it should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Whose figure.
    pub(crate) of: Peer,
    pub(crate) workload: Workload,
    pub(crate) name: &'static str,
    pub(crate) against: Against,
    /// At least this, else at most.
    pub(crate) at_least: bool,
    pub(crate) bound: f64,
}

const fn of(
    workload: Workload,
    name: &'static str,
    against: Against,
    at_least: bool,
    bound: f64,
) -> Target {
    Target {
        of: Peer::VswitchTap,
        workload,
        name,
        against,
        at_least,
        bound,
    }
}

const BRIDGE: Against = Against::Peer(Peer::Bridge);
const OVS: Against = Against::Peer(Peer::Ovs);

/// Of the gateway, to the kernel's masquerade.
const fn nat(workload: Workload, name: &'static str, at_least: bool, bound: f64) -> Target {
    Target {
        of: Peer::VswitchNat,
        ..of(
            workload,
            name,
            Against::Peer(Peer::Nftables),
            at_least,
            bound,
        )
    }
}

const PASTA: Against = Against::Peer(Peer::Pasta);
const SLIRP: Against = Against::Peer(Peer::Slirp4netns);
const LONG: Against = Against::Peer(Peer::VswitchRootless);

/// Of host sockets at MTU 65520.
const fn rootless(
    workload: Workload,
    name: &'static str,
    against: Against,
    at_least: bool,
    bound: f64,
) -> Target {
    Target {
        of: Peer::VswitchRootless,
        ..of(workload, name, against, at_least, bound)
    }
}

/// Of host sockets at MTU 1500.
const fn rootless_1500(workload: Workload, bound: f64) -> Target {
    Target {
        of: Peer::VswitchRootless1500,
        ..of(workload, "rate", LONG, true, bound)
    }
}

/// Of our slirp4netns.
const fn drop_in(workload: Workload, name: &'static str, bound: f64) -> Target {
    Target {
        of: Peer::VswitchSlirp4netns,
        ..of(workload, name, Against::Itself, false, bound)
    }
}

/// Of TAP ports, of the gateway at MTU 1500 and of host sockets, workers as by default.
pub(crate) const TARGETS: [Target; 33] = [
    of(Workload::Tcp1, "rate", BRIDGE, true, 0.80),
    of(Workload::Tcp8, "rate", BRIDGE, true, 0.65),
    of(Workload::Udp64, "delivered", BRIDGE, true, 1.0),
    of(Workload::Rtt, "p50", BRIDGE, false, 1.0),
    of(Workload::Rtt, "p99", BRIDGE, false, 1.0),
    of(Workload::Conn, "connections", BRIDGE, true, 0.9),
    of(Workload::Mixed, "p99", BRIDGE, false, 0.8),
    of(Workload::Tcp1, "rate", OVS, true, 1.7),
    of(Workload::Tcp8, "rate", OVS, true, 1.7),
    of(Workload::Udp64, "delivered", OVS, true, 3.0),
    of(Workload::Idle, "resident", Against::Itself, false, 12.0),
    of(Workload::Idle, "wake-ups", Against::Itself, false, 0.5),
    of(
        Workload::Start,
        "to first frame",
        Against::Itself,
        false,
        20.0,
    ),
    nat(Workload::Tcp1, "rate", true, 0.75),
    nat(Workload::Tcp1Down, "rate", true, 0.75),
    nat(Workload::Udp64, "delivered", true, 0.9),
    nat(Workload::Rtt, "p50", false, 1.0),
    nat(Workload::Conn, "connections", true, 0.9),
    rootless(Workload::Tcp1Down, "rate", PASTA, true, 1.1),
    rootless(Workload::Tcp1Down, "rate", SLIRP, true, 2.5),
    rootless(
        Workload::Tcp1,
        "rate",
        Against::Peer(Peer::Nftables),
        true,
        0.7,
    ),
    rootless(Workload::Tcp1, "rate", SLIRP, true, 3.0),
    rootless_1500(Workload::Tcp1, 0.85),
    rootless_1500(Workload::Tcp1Down, 0.85),
    rootless(Workload::Published, "rate", PASTA, true, 1.2),
    rootless(Workload::Published, "rate", SLIRP, true, 1.2),
    rootless(Workload::PublishedLocal, "rate", PASTA, true, 0.9),
    rootless(Workload::Rtt, "p50", PASTA, false, 0.85),
    rootless(Workload::Rtt, "p50", SLIRP, false, 0.85),
    rootless(Workload::Conn, "connections", PASTA, true, 1.5),
    rootless(Workload::Udp64, "delivered", PASTA, true, 1.2),
    drop_in(Workload::Idle, "resident", 8.0),
    drop_in(Workload::Start, "to ready", 20.0),
];

impl Target {
    pub(crate) fn met(&self, value: f64) -> bool {
        if self.at_least {
            value >= self.bound
        } else {
            value <= self.bound
        }
    }
}
