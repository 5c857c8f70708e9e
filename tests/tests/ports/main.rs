//! Kinds of ports on real traffic: AF_PACKET on veth, unix sockets; served by workers in this process.

#[allow(dead_code, reason = "shared with the scenarios of the bridge")]
#[path = "../bridge/rig.rs"]
mod rig;

mod fanout;
mod packet;
mod unix;
