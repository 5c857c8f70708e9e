//! Cross checks of a topology: what each value says for itself is checked when it is read, what they say together here.

use super::{Mirror, Network, Port, PortKind, Receive, Topology};
use crate::refusal::{Kind, Refusal, nearest};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Most networks; each has tables of its own in every worker.
const MAX_NETWORKS: usize = 1024;
/// Most ports.
const MAX_PORTS: usize = 16_384;
/// Most mirror sessions.
const MAX_MIRRORS: usize = 64;

/// Sizes of a receive ring in KiB: from two blocks on (switch/src/sys/ring.rs).
const RING_KIB: RangeInclusive<u32> = 256..=65_536;

/// A fault of a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Keys that lead to the fault, such as `ports`, `web`, `network`.
    pub path: Vec<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    pub(super) fn at(
        path: &[&str],
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem {
            path: path.iter().map(|p| (*p).to_owned()).collect(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// As a refusal of `act`.
    #[must_use]
    pub fn refusal(&self, act: &str) -> Refusal {
        let thing = format!("`{}`", self.path.join("."));
        Refusal::new(Kind::Invalid, act, thing, &self.reason, &self.remedy)
    }
}

type Checked = Result<(), Problem>;

impl Topology {
    /// Looks for the first fault.
    pub fn check(&self) -> Checked {
        self.check_sizes()?;
        for (name, network) in &self.networks {
            check_name("networks", name, 64)?;
            network.check(name, self)?;
        }
        self.check_gateways()?;
        let mut devices = HashMap::new();
        for (name, port) in &self.ports {
            check_name("ports", name, 64)?;
            port.check(name, self)?;
            if matches!(port.kind, PortKind::Tap | PortKind::Veth | PortKind::Packet) {
                let device = (port.netns.as_deref(), port.device_name(name));
                if let Some(other) = devices.insert(device, name) {
                    return Err(Problem::at(
                        &["ports", name, "device"],
                        format!("port `{other}` has the device `{}` already", device.1),
                        "name another device",
                    ));
                }
            }
        }
        for name in self.publish.keys() {
            check_name("publish", name, 64)?;
        }
        self.check_publish()?;
        self.check_policies()?;
        self.conntrack.check()?;
        for (name, mirror) in &self.mirrors {
            check_name("mirrors", name, 64)?;
            mirror.check(name, self)?;
        }
        Ok(())
    }

    fn check_sizes(&self) -> Checked {
        for (what, n, most) in [
            ("networks", self.networks.len(), MAX_NETWORKS),
            ("ports", self.ports.len(), MAX_PORTS),
            ("mirrors", self.mirrors.len(), MAX_MIRRORS),
        ] {
            if n > most {
                let reason = format!("{n} are too many, {most} are possible");
                return Err(Problem::at(&[what], reason, "run a second vswitchd"));
            }
        }
        Ok(())
    }

    pub(super) fn known_network(&self, name: &str, path: &[&str]) -> Checked {
        if self.networks.contains_key(name) {
            return Ok(());
        }
        Err(Problem::at(
            path,
            format!("there is no network `{name}`"),
            near("network", name, self.networks.keys()),
        ))
    }

    pub(super) fn known_port(&self, name: &str, path: &[&str]) -> Checked {
        if self.ports.contains_key(name) {
            return Ok(());
        }
        Err(Problem::at(
            path,
            format!("there is no port `{name}`"),
            near("port", name, self.ports.keys()),
        ))
    }
}

fn near<'a>(what: &str, name: &str, names: impl Iterator<Item = &'a String>) -> String {
    match nearest(name, names.map(String::as_str)) {
        Some(n) => format!("did you mean `{n}`?"),
        None => format!("add the {what} first, or name one that exists"),
    }
}

pub(super) fn check_name(section: &str, name: &str, most: usize) -> Checked {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= most && name.chars().all(letters) {
        return Ok(());
    }
    Err(Problem::at(
        &[section, name],
        "this can't be a name",
        format!("use 1 to {most} of a-z A-Z 0-9 - _ . : @, a letter or digit first"),
    ))
}

/// Names of interfaces: IFNAMSIZ less one, no slash, no space (dev_valid_name of net/core/dev.c).
fn valid_device(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 15
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control())
}

impl Network {
    fn check(&self, name: &str, all: &Topology) -> Checked {
        let at = |field: &str, reason: &str, remedy: &str| {
            Err(Problem::at(&["networks", name, field], reason, remedy))
        };
        if !(1..=4_194_304).contains(&self.fdb_limit) {
            return at(
                "fdb_limit",
                "it is out of range",
                "use 1 to 4194304 entries",
            );
        }
        if !(1..=1_048_576).contains(&self.mdb_limit) {
            return at(
                "mdb_limit",
                "it is out of range",
                "use 1 to 1048576 memberships",
            );
        }
        if !self.ageing.0.is_zero() && self.ageing.0.as_millis() < 1000 {
            return at(
                "ageing",
                "it is shorter than a second",
                "use 1s or more, or 0s for never",
            );
        }
        if self.membership.0.as_secs() < 2 {
            return at(
                "membership",
                "it is shorter than two seconds",
                "use 2s or more; 260s is usual",
            );
        }
        if self.loop_interval.0.as_millis() < 100 {
            return at(
                "loop_interval",
                "it is shorter than 100ms",
                "use 100ms or more; 5s is usual",
            );
        }
        if self.loop_hold.0.as_millis() < 100 {
            return at(
                "loop_hold",
                "it is shorter than 100ms",
                "use 100ms or more; 30s is usual",
            );
        }
        let mut seen = HashMap::new();
        for entry in &self.fdb {
            let path = ["networks", name, "fdb"];
            all.known_port(&entry.port, &path)?;
            let of = &all.ports[&entry.port].network;
            if of != name {
                let reason = format!("port `{}` is in network `{of}`", entry.port);
                return Err(Problem::at(&path, reason, "name a port of this network"));
            }
            if entry.mac.0.is_group() {
                let reason = format!("{} is a group address", entry.mac);
                return Err(Problem::at(&path, reason, "pin unicast addresses"));
            }
            if self
                .gateway
                .as_ref()
                .is_some_and(|g| g.mac_in(name) == entry.mac.0)
            {
                let reason = format!("{} is the gateway's", entry.mac);
                return Err(Problem::at(&path, reason, "pin another address"));
            }
            let fits = if self.vlan_aware {
                (1..=4094).contains(&entry.vlan)
            } else {
                entry.vlan == 0
            };
            if !fits {
                let reason = format!("VLAN {} of {} can't be", entry.vlan, entry.mac);
                let remedy = if self.vlan_aware {
                    "use VLAN 1 to 4094"
                } else {
                    "leave the VLAN out, for the network isn't VLAN aware"
                };
                return Err(Problem::at(&path, reason, remedy));
            }
            if seen.insert((entry.vlan, entry.mac.key()), ()).is_some() {
                let reason = format!("{} is there twice", entry.mac);
                return Err(Problem::at(&path, reason, "leave one of them out"));
            }
        }
        Ok(())
    }
}

impl Port {
    fn check(&self, name: &str, all: &Topology) -> Checked {
        let at = |field: &str, reason: String, remedy: &str| {
            Err(Problem::at(&["ports", name, field], reason, remedy))
        };
        all.known_network(&self.network, &["ports", name, "network"])?;
        if !(68..=65_535).contains(&self.mtu) {
            return at(
                "mtu",
                format!("{} is out of range", self.mtu),
                "use 68 to 65535 bytes",
            );
        }
        if !(1..=65_536).contains(&self.queue) {
            return at(
                "queue",
                format!("{} is out of range", self.queue),
                "use 1 to 65536 frames",
            );
        }
        if self.pvid > 4094 {
            return at(
                "pvid",
                format!("{} is no VLAN", self.pvid),
                "use 1 to 4094, or 0 to refuse untagged frames",
            );
        }
        if let Some(m) = &self.mac
            && m.0.is_group()
        {
            return at(
                "mac",
                format!("{m} is a group address"),
                "use a unicast address, such as 02:00:00:00:00:01",
            );
        }
        if self.arp_inspection && self.allowed_ips.is_empty() && self.allowed_macs.is_empty() {
            return at(
                "arp_inspection",
                "it has nothing to compare with".into(),
                "set allowed_ips or allowed_macs as well",
            );
        }
        self.check_kind(name)
    }

    fn check_kind(&self, name: &str) -> Checked {
        let at = |field: &str, reason: String, remedy: &str| {
            Err(Problem::at(&["ports", name, field], reason, remedy))
        };
        let kind = self.kind.as_str();
        let has_device = matches!(self.kind, PortKind::Tap | PortKind::Veth | PortKind::Packet);
        if has_device && !valid_device(self.device_name(name)) {
            let reason = format!("`{}` can't be an interface's name", self.device_name(name));
            return at(
                "device",
                reason,
                "set one of at most 15 letters, digits, - and _",
            );
        }
        let is_socket = matches!(self.kind, PortKind::Stream | PortKind::Dgram);
        if !is_socket && (self.listen.is_some() || self.connect.is_some()) {
            let field = if self.listen.is_some() {
                "listen"
            } else {
                "connect"
            };
            return at(
                field,
                format!("a port of kind {kind} has no socket"),
                "leave it out, or use kind stream or dgram",
            );
        }
        for (field, path) in [("listen", &self.listen), ("connect", &self.connect)] {
            if let Some(p) = path
                && !p.is_absolute()
            {
                return at(
                    field,
                    format!("`{}` depends on where vswitchd was started", p.display()),
                    "write the whole path, beginning with /",
                );
            }
        }
        if self.kind == PortKind::Stream && self.listen.is_some() == self.connect.is_some() {
            return at(
                "kind",
                "a stream port listens or connects".into(),
                "set one of `listen` and `connect`",
            );
        }
        if self.kind == PortKind::Dgram && (self.listen.is_none() || self.connect.is_none()) {
            return at(
                "kind",
                "a dgram port needs both ends".into(),
                "set `listen` (our path) and `connect` (the peer's)",
            );
        }
        // Of a queue that was handed over they tell how its interface has been set up.
        let in_container = matches!(self.kind, PortKind::Tap | PortKind::Veth | PortKind::Fd);
        for (field, set) in [
            ("netns", self.netns.is_some()),
            ("addresses", !self.addresses.is_empty()),
            ("gateways", !self.gateways.is_empty()),
            ("mac", self.mac.is_some()),
        ] {
            if set && !in_container {
                return at(
                    field,
                    format!("a port of kind {kind} has no interface of ours"),
                    "leave it out, or use kind tap or veth",
                );
            }
        }
        let by_packet = matches!(self.kind, PortKind::Veth | PortKind::Packet);
        if self.receive == Receive::Ring && !by_packet {
            return at(
                "receive",
                format!("a port of kind {kind} has no receive ring"),
                "leave it out, or use kind veth or packet",
            );
        }
        if !RING_KIB.contains(&self.ring_kib) {
            return at(
                "ring_kib",
                format!("a ring of {} KiB can't be made", self.ring_kib),
                "use 256 to 65536",
            );
        }
        if self.device.is_some() && !has_device {
            return at(
                "device",
                format!("a port of kind {kind} has no device"),
                "leave it out",
            );
        }
        Ok(())
    }
}

impl Mirror {
    fn check(&self, name: &str, all: &Topology) -> Checked {
        all.known_port(&self.target, &["mirrors", name, "target"])?;
        for (field, ports) in [("ingress", &self.ingress), ("egress", &self.egress)] {
            for p in ports {
                all.known_port(p, &["mirrors", name, field])?;
                if *p == self.target {
                    return Err(Problem::at(
                        &["mirrors", name, field],
                        format!("port `{p}` is the target itself"),
                        "mirror other ports",
                    ));
                }
            }
        }
        for v in &self.vlans {
            all.known_network(&v.network, &["mirrors", name, "vlans"])?;
        }
        if self.ingress.is_empty() && self.egress.is_empty() && self.vlans.is_empty() {
            return Err(Problem::at(
                &["mirrors", name],
                "it copies nothing",
                "set ingress, egress or vlans",
            ));
        }
        if self.truncate.is_some_and(|t| t < 14) {
            return Err(Problem::at(
                &["mirrors", name, "truncate"],
                "it is shorter than an Ethernet header",
                "use 14 bytes or more",
            ));
        }
        Ok(())
    }
}
