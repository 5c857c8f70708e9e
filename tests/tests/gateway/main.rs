//! The gateway: a router in the switch, with real containers on its networks.

mod abuse;
mod nat;
mod rfc;
mod routing;
