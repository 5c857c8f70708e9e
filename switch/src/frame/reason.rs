//! Why a frame was dropped. Every drop is counted under exactly one of these.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)+ }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// The name used in statistics, metrics and the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(DropReason::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// Longer than a frame can be.
    Oversize = "oversize",
    /// The virtio-net header contradicts the frame.
    BadOffload = "bad_offload",
    /// The source MAC is a group address or zero.
    BadSourceMac = "bad_source_mac",
    /// Sent to a link-local group (01:80:c2:00:00:0x) that a bridge must not forward (IEEE 802.1D 7.12.6).
    LinkLocal = "link_local",
    /// The egress port is the ingress port and hairpin mode is off.
    SamePort = "same_port",
    /// Nobody to send it to.
    NoDestination = "no_destination",
    /// The ingress port isn't a member of the frame's VLAN, or doesn't accept (un)tagged frames.
    VlanIngress = "vlan_ingress",
    /// The egress port isn't a member of the frame's VLAN.
    VlanEgress = "vlan_egress",
    /// Both ports are isolated (protected).
    Isolated = "isolated",
    /// The source MAC isn't the port's (MAC source guard).
    MacGuard = "mac_guard",
    /// The source IP isn't the port's (IP source guard).
    IpGuard = "ip_guard",
    /// An ARP or ND message claims an address that isn't the port's.
    ArpInspection = "arp_inspection",
    /// More MACs than the port's limit.
    MacLimit = "mac_limit",
    /// A MAC pinned to another port by a static entry.
    StaticMac = "static_mac",
    /// An IGMP or MLD message that contradicts itself.
    BadMulticast = "bad_multicast",
    /// Over the port's broadcast, unknown-unicast or multicast rate limit.
    StormControl = "storm_control",
    /// Over the port's ingress rate limit.
    IngressRate = "ingress_rate",
    /// Over the port's egress rate limit.
    EgressRate = "egress_rate",
    /// The port is shut by the loop guard.
    LoopGuard = "loop_guard",
    /// A probe of the loop guard, consumed.
    LoopProbe = "loop_probe",
    /// A frame of the control protocol consumed by the switch itself.
    Consumed = "consumed",
    /// Longer than the egress port's MTU and not divisible.
    Mtu = "mtu",
    /// Segmentation or checksumming in software found headers it can't work on.
    SegmentFailed = "segment_failed",
    /// The egress port is down.
    PortDown = "port_down",
    /// The egress port's transmit queue is full.
    QueueFull = "queue_full",
    /// The kernel refused the frame.
    TxError = "tx_error",
    /// Dropped by a policy rule.
    Policy = "policy",
    /// The gateway has no route to the destination.
    NoRoute = "no_route",
    /// The gateway couldn't resolve the next hop's MAC address (ARP, ND), or too many frames wait for it.
    NoNeighbour = "no_neighbour",
    /// The TTL or hop limit ended at the gateway.
    TtlExceeded = "ttl_exceeded",
    /// A source or destination address that can't come from there, or mustn't be forwarded (RFC 1812 5.3.7).
    Martian = "martian",
    /// A packet that doesn't fit the state of its connection.
    InvalidState = "invalid_state",
    /// No room for the connection: the table is full, or its source has as many as it may.
    ConntrackFull = "conntrack_full",
    /// No external port is free for the connection.
    NatExhausted = "nat_exhausted",
    /// No socket of the host could take it: forbidden, not possible there, or none was left.
    HostSocket = "host_socket",
    /// A fragment that overlaps, repeats or lacks others.
    Fragment = "fragment",
    /// An L3 header that the gateway can't work on.
    BadPacket = "bad_packet",
    /// The egress port is gone.
    NoPort = "no_port",
    /// The hand-off ring to another worker was full.
    HandoffFull = "handoff_full",
    /// The frame was held when its port or the worker was stopped.
    Shutdown = "shutdown",
}
