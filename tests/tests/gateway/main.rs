//! The gateway: a router in the switch, with real containers on its networks.

mod nat;
mod policy;
mod routing;
mod services;
