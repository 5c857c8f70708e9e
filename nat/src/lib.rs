//! L3 gateway of vswitch: connection tracking, address translation, services.
//!
//! # Theory of operation
//!
//! [`Pipeline`] is what a worker runs: the bridge first, then the [`gateway`] on frames that the bridge found to be for it.
//! Everything here is deterministic: time and randomness are passed in, and nothing but the DNS forwarder's thread does I/O.

pub mod conntrack;
pub mod gateway;
mod pipeline;

pub use pipeline::Pipeline;
