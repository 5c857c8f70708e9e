//! The bridge: guard -> learn -> look up -> forward or flood.
//!
//! # Theory of operation
//!
//! Each worker has a bridge of its own with all networks and ports; networks are isolated from each other.
//! A frame is checked ([`ingress`]: mirrors, VLAN, source guard, rate), its source is learned in the network's
//! [`fdb::Fdb`], its destination looked up; known unicast leaves by one port, multicast by the ports
//! that want it ([`snoop`]), everything else by all ports of the VLAN. On the way out it gets the VLAN tag of the
//! egress port ([`vlan`]). A network's gateway is a virtual port: frames to its MAC get a verdict of their own, and it sends
//! by [`Bridge::deliver`] and [`Bridge::originate`]. Workers tell each other what they learn ([`crate::worker::Sync`]); meters and
//! loop guard state are shared by atomics ([`shared`]).

mod config;
mod fast;
pub mod fdb;
mod gateway;
mod guard;
mod ingress;
mod loop_guard;
mod mirror;
mod network;
mod port;
mod setup;
mod shared;
mod snoop;
mod stage;
#[cfg(test)]
mod tests;
mod timers;
mod vlan;

pub use config::{
    LoopGuard, MirrorConfig, MirrorId, MirrorSource, NetworkConfig, NetworkId, PortConfig, Rate,
    StormLimits, VlanSet,
};
pub use fast::Judgeable;
pub use setup::Bridge;
pub use snoop::MdbEntry;
