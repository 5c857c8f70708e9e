//! The gateway: a router in the switch, with real containers on its networks.

mod nat;
mod routing;
mod services;
