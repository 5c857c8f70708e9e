//! Configuration of networks and bridge ports.

use crate::wire::MacAddr;
use std::net::IpAddr;
use std::time::Duration;

/// Index of a network in its switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u16);

/// A network: one broadcast domain (per VLAN, if it is VLAN aware).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// How long a learned MAC stays without being seen. IEEE 802.1D's default is 300 s.
    pub ageing: Duration,
    /// Most FDB entries.
    pub fdb_limit: usize,
    /// Whether 802.1Q tags select VLANs; if not, tagged frames pass as they are.
    pub vlan_aware: bool,
    /// Whether IGMP and MLD are snooped, so that multicast goes to members and routers only.
    pub snooping: bool,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        NetworkConfig {
            ageing: Duration::from_secs(300),
            fdb_limit: 65_536,
            vlan_aware: false,
            snooping: false,
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
    /// Units that may come at once.
    pub burst: u64,
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
    /// VLANs received and sent with tag.
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
            storm: StormLimits::default(),
            ingress_rate: None,
            egress_rate: None,
            loop_guard: true,
        }
    }
}
