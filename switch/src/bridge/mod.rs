//! The bridge: guard -> learn -> look up -> forward or flood.
//!
//! # Theory of operation
//!
//! Each worker has a bridge of its own with all networks and ports; networks are isolated from each other.
//! A frame is classified into a VLAN of its ingress port's network, its source is learned in the
//! network's [`fdb::Fdb`], its destination looked up; known unicast leaves by one port, everything else is flooded to the
//! network's other ports. Workers tell each other what they learn ([`crate::worker::Sync`]).

mod config;
pub mod fdb;
mod stage;

pub use config::{
    LoopGuard, MirrorConfig, MirrorId, MirrorSource, NetworkConfig, NetworkId, PortConfig, Rate,
    StormLimits, VlanSet,
};
pub use stage::Bridge;
