//! Services of the gateway: DHCPv4, router advertisements, stateless DHCPv6 and DNS of one network.
//!
//! # Theory of operation
//! The gateway's stage takes off Ethernet, IP and UDP and hands the payload to a service; what the service returns it sends.
//! So a service is a state machine: bytes, the time and, where needed, a random number go in, bytes come out. It owns no
//! socket, reads no clock and never blocks. The one exception is [`dns::Forwarder`], which has the host's sockets
//! towards the resolvers, on a thread of its own behind bounded queues.
//!
//! A container chooses every byte that comes in. Requests are therefore read by small parsers of our own that can't
//! panic ([`dhcp4`] and [`dhcp6`] need a dozen fields; the option decoders of `dhcproto` assert on lengths a client chose), while
//! answers, whose content is ours, are written by `dhcproto` and `hickory-proto`. Every table has a limit and an order of eviction.
//!
//! Nothing here is on the path of ordinary frames; one request allocates a little.

pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
pub mod ra;

mod name;

pub use name::{InvalidName, host_label};
