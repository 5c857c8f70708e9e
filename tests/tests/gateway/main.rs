//! The gateway: a router in the switch, with real containers on its networks.

mod abuse;
mod against_nftables;
mod clients;
mod commands;
mod dns;
mod input;
mod nat;
mod nptv6;
mod policy;
mod rfc;
mod routing;
mod services;
mod trace;
mod trace_file;
