//! The bridge's features on real containers: TAP ports in namespaces of the lab, served by workers in this process.

mod guarding;
mod limits;
mod multicast;
mod offloads;
mod rig;
mod switching;
