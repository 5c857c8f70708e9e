//! L3 gateway of vswitch: connection tracking, address translation, services.
//!
//! # Theory of operation
//!
//! [`Pipeline`] is what a worker runs: the bridge first, then the [`gateway`] on frames that the bridge found to be for it.
//! Everything here is deterministic: time and randomness are passed in, and nothing but the DNS forwarder's thread does I/O.
//!
//! The parts stand alone: [`conntrack`] tells which connection a packet belongs to; a flow's [`rewrite::Rewrite`]
//! is compiled once per direction and applied to its frames; [`icmp_error`] does the same to an error and the packet it
//! quotes, and [`reply`] makes the gateway's own errors; [`portalloc`] chooses external ports; [`frag`] lets later fragments follow
//! the first; [`nptv6`] needs no state at all; [`service`] has DHCP, router advertisements and DNS; [`policy`]
//! is the firewall.

pub mod conntrack;
pub mod endpoint;
pub mod frag;
pub mod gateway;
pub mod hop;
pub mod icmp_error;
pub mod nptv6;
mod pipeline;
pub mod policy;
pub mod portalloc;
pub mod reply;
pub mod rewrite;
pub mod service;
pub mod slirp;
mod verify;

pub use endpoint::Endpoint;
pub use pipeline::Pipeline;
pub use slirp::{
    HostAddresses, HostConfig, HostPort, HostPortCounters, SpliceOpen, SplicePath, Splicer,
};
pub use vswitch_core::sys::source::Source;
