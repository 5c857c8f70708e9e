//! Control plane of vswitch.
//!
//! # Theory of operation
//!
//! [`daemon`] composes everything: workers of the data path, and one control thread that serves the [`api`]. What is asked for
//! is a declarative [`model`]; [`plane`] carries it out as transactions and shows what is. [`client`] and [`cli`] are the other
//! end of the socket.

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod daemon_cli;
mod demo;
pub mod events;
mod fnv;
mod follow;
pub mod handover;
pub mod integrations;
mod interface;
mod listening;
mod lockfile;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod netns;
mod open;
pub mod pcapng;
pub mod plane;
pub mod refusal;
pub mod server;
mod state;
mod switching;
pub mod units;
