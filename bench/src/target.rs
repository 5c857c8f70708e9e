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

/// Of TAP ports and of the gateway at MTU 1500, one worker.
pub(crate) const TARGETS: [Target; 17] = [
    of(Workload::Tcp1, "rate", BRIDGE, true, 0.80),
    of(Workload::Tcp8, "rate", BRIDGE, true, 0.65),
    of(Workload::Udp64, "delivered", BRIDGE, true, 1.0),
    of(Workload::Rtt, "p50", BRIDGE, false, 1.0),
    of(Workload::Rtt, "p99", BRIDGE, false, 1.0),
    of(Workload::Conn, "connections", BRIDGE, true, 0.9),
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
