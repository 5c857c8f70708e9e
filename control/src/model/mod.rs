//! The desired state: networks, ports, mirrors and static FDB entries, as one declarative value.
//!
//! The same types are the API's bodies, the topology file (TOML) and the saved state (JSON). A field left out has its
//! default; an unknown one is an error. [`Topology::check`] looks at the whole before anything is touched,
//! [`diff`] finds what leads from one to another.

mod bridge;
mod check;
mod diff;
mod file;
mod gateway;
mod host;
mod policy;
mod publish;
mod services;
mod tracking;

pub use check::Problem;
pub use diff::{Change, diff};
pub use file::{TopologyError, from_toml, to_toml};
pub use gateway::{Gateway, Nat, NatFiltering, PrefixPair, StaticRoute};
pub use host::HostUplink;
pub(crate) use policy::rule_name;
pub use policy::{Policy, PolicyAction, PolicyRule};
pub(crate) use publish::Found;
pub use publish::{Protocol, PublishedPort};
pub use services::{
    Advertise, AdvertisedPrefix, Dhcp, Dns, DnsRecord, DnsService, FixedLease, Range,
};
pub use tracking::Tracking;

use crate::units::{BitRate, Cidr, FrameRate, Mac, Span, Vlans};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use utoipa::ToSchema;

/// Everything a switch is asked to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// Networks by name.
    pub networks: BTreeMap<String, Network>,
    /// Ports by name.
    pub ports: BTreeMap<String, Port>,
    /// Mirror sessions by name.
    pub mirrors: BTreeMap<String, Mirror>,
    /// Published ports by name.
    pub publish: BTreeMap<String, PublishedPort>,
    /// Policies of the firewall by name.
    pub policies: BTreeMap<String, Policy>,
    /// Connection tracking.
    #[serde(skip_serializing_if = "Tracking::is_default")]
    pub conntrack: Tracking,
}

/// A network: one broadcast domain, per VLAN if it is VLAN aware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// How long a learned MAC stays without being seen; `0s` is for ever.
    pub ageing: Span,
    /// Most FDB entries.
    pub fdb_limit: u32,
    /// Whether 802.1Q tags select VLANs; if not, tagged frames pass as they are.
    pub vlan_aware: bool,
    /// Whether IGMP and MLD are snooped.
    pub snooping: bool,
    /// A leave message ends a multicast membership at once.
    pub fast_leave: bool,
    /// Whether the switch itself asks for multicast memberships.
    pub querier: bool,
    /// How long a multicast membership is remembered without being heard.
    pub membership: Span,
    /// Most multicast memberships.
    pub mdb_limit: u32,
    /// Time between two loop probes of a port.
    pub loop_interval: Span,
    /// How long a port is shut for a loop the first time.
    pub loop_hold: Span,
    /// Static FDB entries.
    pub fdb: Vec<StaticEntry>,
    /// The router's port in the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
}

impl Default for Network {
    fn default() -> Self {
        let c = vswitch_core::bridge::NetworkConfig::default();
        Network {
            ageing: Span(c.ageing),
            fdb_limit: c.fdb_limit as u32,
            vlan_aware: c.vlan_aware,
            snooping: c.snooping,
            fast_leave: c.fast_leave,
            querier: c.querier,
            membership: Span(c.membership),
            mdb_limit: c.mdb_limit as u32,
            loop_interval: Span(c.loop_guard.interval),
            loop_hold: Span(c.loop_guard.hold),
            fdb: Vec::new(),
            gateway: None,
        }
    }
}

/// A MAC pinned to a port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticEntry {
    /// The address.
    pub mac: Mac,
    /// Its VLAN; 0 in networks that aren't VLAN aware.
    #[serde(default)]
    pub vlan: u16,
    /// The port's name.
    pub port: String,
}

/// Where a port's frames come from and go to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// A TAP device that the switch makes, in its own or a container's namespace.
    #[default]
    Tap,
    /// A veth pair that the switch makes; its far end goes into the container.
    Veth,
    /// An existing interface, through AF_PACKET: a veth end or a physical uplink.
    Packet,
    /// A unix stream socket with QEMU's framing.
    Stream,
    /// A unix datagram socket.
    Dgram,
    /// A TAP queue opened by somebody else and handed over.
    Fd,
}

impl PortKind {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PortKind::Tap => "tap",
            PortKind::Veth => "veth",
            PortKind::Packet => "packet",
            PortKind::Stream => "stream",
            PortKind::Dgram => "dgram",
            PortKind::Fd => "fd",
        }
    }
}

/// How frames come from the interface of a veth or packet port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Receive {
    /// By system calls, several frames each: the shortest round trips.
    #[default]
    Socket,
    /// By a ring in shared memory: cheaper per small frame, but a frame may wait up to a millisecond in it.
    Ring,
}

/// Flood limits at ingress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Storm {
    /// Broadcast frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<FrameRate>,
    /// Multicast frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast: Option<FrameRate>,
    /// Unicast frames to unknown destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<FrameRate>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The network it belongs to.
    pub network: String,
    /// Where its frames come from and go to.
    #[serde(default)]
    pub kind: PortKind,
    /// Name of the device (tap, packet) or of the container's end (veth); the port's name by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Network namespace of the device: a path, a name under /run/netns, or `pid:NUMBER`. The daemon's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// MAC address of the container's interface; with addresses, one that stays the same by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Addresses of the container's interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Cidr>,
    /// Default gateways of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub gateways: Vec<IpAddr>,
    /// Further names in the network's DNS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Path of the unix socket that the switch listens on (stream) or binds (dgram).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub listen: Option<PathBuf>,
    /// Path of the unix socket that the switch connects to (stream) or sends to (dgram).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub connect: Option<PathBuf>,
    /// Largest packet in bytes, Ethernet header not included.
    #[serde(default = "defaults::mtu")]
    pub mtu: u32,
    /// Frames that may wait to be sent.
    #[serde(default = "defaults::queue")]
    pub queue: u32,
    /// How frames come from the interface (veth and packet).
    #[serde(default)]
    pub receive: Receive,
    /// Memory of the receive ring in KiB, per worker, resident from the start; rounded up to blocks of 128 KiB. A small
    /// one loses frames in bursts of TCP.
    #[serde(default = "defaults::ring_kib")]
    pub ring_kib: u32,
    /// Whether frames may pass.
    #[serde(default = "defaults::yes")]
    pub up: bool,
    /// VLAN of untagged frames received; 0 refuses them. VLAN-aware networks only, like the next two.
    #[serde(default = "defaults::pvid")]
    pub pvid: u16,
    /// VLANs sent without tag; the PVID by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged: Option<Vlans>,
    /// VLANs received and sent with tag.
    #[serde(default)]
    pub tagged: Vlans,
    /// Exchanges no frame with another isolated port.
    #[serde(default)]
    pub isolated: bool,
    /// May send a frame back where it came from.
    #[serde(default)]
    pub hairpin: bool,
    /// Whether source MACs are learned.
    #[serde(default = "defaults::yes")]
    pub learning: bool,
    /// Most MACs learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_limit: Option<u32>,
    /// MAC source guard: if not empty, the only sources accepted.
    #[serde(default)]
    pub allowed_macs: Vec<Mac>,
    /// IP source guard: if not empty, the only source prefixes accepted.
    #[serde(default)]
    pub allowed_ips: Vec<Cidr>,
    /// Drops ARP and ND claims of addresses that aren't allowed.
    #[serde(default)]
    pub arp_inspection: bool,
    /// A multicast router is behind the port, whether it is heard or not.
    #[serde(default)]
    pub multicast_router: bool,
    /// Whether loop probes are sent, and the port shut when one comes back.
    #[serde(default = "defaults::yes")]
    pub loop_guard: bool,
    /// Labels, by which policies speak of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Flood limits.
    #[serde(default)]
    pub storm: Storm,
    /// Most bits per second received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<BitRate>,
    /// Most bits per second sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<BitRate>,
}

mod defaults {
    pub(super) fn mtu() -> u32 {
        1500
    }
    pub(super) fn queue() -> u32 {
        vswitch_core::port::TxQueue::DEFAULT_LIMIT as u32
    }
    pub(super) fn ring_kib() -> u32 {
        16_384
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn pvid() -> u16 {
        1
    }
}

impl Port {
    /// A TAP port with every default.
    #[must_use]
    pub fn new(network: &str) -> Port {
        Port {
            network: network.to_owned(),
            kind: PortKind::Tap,
            device: None,
            netns: None,
            mac: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            aliases: Vec::new(),
            listen: None,
            connect: None,
            mtu: defaults::mtu(),
            queue: defaults::queue(),
            receive: Receive::Socket,
            ring_kib: defaults::ring_kib(),
            up: true,
            pvid: defaults::pvid(),
            untagged: None,
            tagged: Vlans::default(),
            isolated: false,
            hairpin: false,
            learning: true,
            mac_limit: None,
            allowed_macs: Vec::new(),
            allowed_ips: Vec::new(),
            arp_inspection: false,
            multicast_router: false,
            loop_guard: true,
            labels: Vec::new(),
            storm: Storm::default(),
            ingress_rate: None,
            egress_rate: None,
        }
    }

    /// Name of its device.
    #[must_use]
    pub fn device_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.device.as_deref().unwrap_or(name)
    }
}

/// A mirror session: copies of frames go out of a target port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Port where copies go.
    pub target: String,
    /// Ports whose received frames are copied.
    #[serde(default)]
    pub ingress: Vec<String>,
    /// Ports whose sent frames are copied.
    #[serde(default)]
    pub egress: Vec<String>,
    /// VLANs whose received frames are copied.
    #[serde(default)]
    pub vlans: Vec<MirrorVlan>,
    /// Copies are cut to this many bytes, Ethernet header included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<u16>,
    /// Whether the target still takes part in flooding.
    #[serde(default)]
    pub target_floods: bool,
}

impl Mirror {
    /// A session to this port that copies nothing yet.
    #[must_use]
    pub fn new(target: &str) -> Mirror {
        Mirror {
            target: target.to_owned(),
            ingress: Vec::new(),
            egress: Vec::new(),
            vlans: Vec::new(),
            truncate: None,
            target_floods: false,
        }
    }
}

/// A VLAN of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorVlan {
    /// Network.
    pub network: String,
    /// VLAN; 0 for a network that isn't VLAN aware.
    #[serde(default)]
    pub vlan: u16,
}
