//! Configuration of networks and bridge ports.

use crate::port::PortId;
use crate::wire::MacAddr;
use std::net::IpAddr;
use std::time::Duration;

/// Index of a network in its switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u16);

/// A network: one broadcast domain (per VLAN, if it is VLAN aware).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// How long a learned MAC stays without being seen, rounded up to seconds; zero is forever. IEEE 802.1D's default is
    /// 300 s.
    pub ageing: Duration,
    /// Most FDB entries.
    pub fdb_limit: usize,
    /// Whether 802.1Q tags select VLANs; if not, tagged frames pass as they are.
    pub vlan_aware: bool,
    /// Whether IGMP and MLD are snooped, so that multicast goes to members and routers only.
    pub snooping: bool,
    /// A leave message ends the membership at once; right where every port has one host.
    pub fast_leave: bool,
    /// Whether the switch itself asks for memberships (IGMPv3 and MLDv2 general queries), where no router does.
    pub querier: bool,
    /// How long a membership or multicast router is remembered without being heard (RFC 3376 8.4: 260 s); the querier asks
    /// a bit more often than twice in that time.
    pub membership: Duration,
    /// Most multicast memberships, of ports in groups.
    pub mdb_limit: usize,
    /// Timing of the loop guard; ports switch it on and off.
    pub loop_guard: LoopGuard,
}

/// Timing of the loop guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopGuard {
    /// Time between two probes of a port.
    pub interval: Duration,
    /// How long a port is shut the first time; doubles up to sixteenfold while the loop comes back.
    pub hold: Duration,
}

impl Default for LoopGuard {
    fn default() -> Self {
        LoopGuard {
            interval: Duration::from_secs(5),
            hold: Duration::from_secs(30),
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        NetworkConfig {
            ageing: Duration::from_secs(300),
            fdb_limit: 65_536,
            vlan_aware: false,
            snooping: false,
            fast_leave: false,
            querier: false,
            membership: Duration::from_secs(260),
            mdb_limit: 4096,
            loop_guard: LoopGuard::default(),
        }
    }
}

/// A set of VLAN identifiers, 1 to 4094.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// No VLAN.
    pub const EMPTY: VlanSet = VlanSet([0; 64]);

    /// Adds a VLAN; others than 1 to 4094 are ignored.
    pub fn insert(&mut self, vid: u16) {
        if (1..=4094).contains(&vid) {
            self.0[usize::from(vid / 64)] |= 1 << (vid % 64);
        }
    }

    /// Whether the VLAN is in the set.
    #[must_use]
    pub fn contains(&self, vid: u16) -> bool {
        self.0
            .get(usize::from(vid / 64))
            .is_some_and(|w| w & (1 << (vid % 64)) != 0)
    }

    /// The VLANs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (1..4095).filter(|v| self.contains(*v))
    }
}

impl FromIterator<u16> for VlanSet {
    fn from_iter<I: IntoIterator<Item = u16>>(iter: I) -> Self {
        let mut s = VlanSet::EMPTY;
        iter.into_iter().for_each(|v| s.insert(v));
        s
    }
}

impl Default for VlanSet {
    fn default() -> Self {
        VlanSet::EMPTY
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A token bucket: sustained rate and burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units (bytes or frames, as the user of the rate says) per second.
    pub per_second: u64,
    /// Units that may come at once. A frame passes whenever the bucket isn't empty, however long it is, and the
    /// bucket goes into debt for it.
    pub burst: u64,
}

impl Rate {
    /// A rate with the burst that lets TCP with 64 KiB segmentation-offload frames reach it: 200 ms worth of bytes,
    /// 256 KiB at least.
    #[must_use]
    pub fn bytes(per_second: u64) -> Rate {
        Rate {
            per_second,
            burst: (per_second / 5).max(256 * 1024),
        }
    }

    /// A rate of frames with the burst of a second.
    #[must_use]
    pub fn frames(per_second: u64) -> Rate {
        Rate {
            per_second,
            burst: per_second,
        }
    }
}

/// Limits of what gets flooded, in frames per second at the ingress port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormLimits {
    /// Broadcast frames.
    pub broadcast: Option<Rate>,
    /// Multicast frames.
    pub multicast: Option<Rate>,
    /// Unicast frames to unknown destinations.
    pub unknown: Option<Rate>,
}

/// What the bridge knows of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The port's network.
    pub network: NetworkId,
    /// VLAN of untagged frames received; `None` refuses them. VLAN-aware networks only, like the next two.
    pub pvid: Option<u16>,
    /// VLANs sent without tag.
    pub untagged: VlanSet,
    /// VLANs received and sent with tag. A tagged frame of any other VLAN is refused, even of the PVID's: else a frame
    /// with two tags could hop into a second VLAN. A frame with an 802.1ad tag outside counts as untagged and is carried
    /// whole in the PVID.
    pub tagged: VlanSet,
    /// Isolated (protected): exchanges no frame with another isolated port.
    pub isolated: bool,
    /// May send a frame back where it came from.
    pub hairpin: bool,
    /// Whether sources are learned.
    pub learning: bool,
    /// Most MACs learned at this port.
    pub mac_limit: Option<u32>,
    /// MAC source guard: if not empty, the only sources accepted.
    pub allowed_macs: Vec<MacAddr>,
    /// IP source guard: if not empty, the only source prefixes accepted (address, prefix length). Unspecified
    /// addresses (DHCP, duplicate address detection) and IPv6 link-local ones derived of an allowed MAC pass.
    pub allowed_ips: Vec<(IpAddr, u8)>,
    /// ARP and ND inspection: claims of addresses outside `allowed_ips`/`allowed_macs` are dropped.
    pub arp_inspection: bool,
    /// A multicast router or querier is behind the port, whether it is heard or not.
    pub multicast_router: bool,
    /// Flood limits.
    pub storm: StormLimits,
    /// Ingress rate, bytes.
    pub ingress_rate: Option<Rate>,
    /// Egress rate, bytes.
    pub egress_rate: Option<Rate>,
    /// Whether loop probes are sent, and the port shut when one comes back.
    pub loop_guard: bool,
}

impl PortConfig {
    /// An access port of VLAN 1 without limits.
    #[must_use]
    pub fn new(network: NetworkId) -> PortConfig {
        PortConfig {
            network,
            pvid: Some(1),
            untagged: VlanSet::from_iter([1]),
            tagged: VlanSet::EMPTY,
            isolated: false,
            hairpin: false,
            learning: true,
            mac_limit: None,
            allowed_macs: Vec::new(),
            allowed_ips: Vec::new(),
            arp_inspection: false,
            multicast_router: false,
            storm: StormLimits::default(),
            ingress_rate: None,
            egress_rate: None,
            loop_guard: true,
        }
    }
}

/// Name of a mirror session in the data path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(pub u16);

/// What a mirror session copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorSource {
    /// Frames of a port.
    Port {
        /// Which.
        port: PortId,
        /// Frames received by it, before any check.
        ingress: bool,
        /// Frames sent out of it, as sent.
        egress: bool,
    },
    /// Frames received in a VLAN of a network, after ingress checks; VLAN 0 is a network that isn't VLAN aware.
    Vlan {
        /// Network.
        network: NetworkId,
        /// VLAN.
        vid: u16,
    },
}

/// A mirror session: copies of frames go out of a target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorConfig {
    /// What is copied.
    pub sources: Vec<MirrorSource>,
    /// Where copies go.
    pub target: PortId,
    /// Copies are cut to this many bytes (at least 14), Ethernet header included.
    pub truncate: Option<u16>,
    /// Whether the target still takes part in flooding; usually only copies should leave by it.
    pub target_floods: bool,
}
