//! L3 gateway of vswitch: connection tracking, address translation, services.
//!
//! # Theory of operation
//!
//! [`Pipeline`] is what a worker runs: the bridge first, then the [`gateway`] on frames that the bridge found to be for it.
//! Everything here is deterministic: time and randomness are passed in, and nothing but the DNS forwarder's thread does I/O.
//! A flow's [`rewrite::Rewrite`] is compiled once per direction and applied to its frames.

pub mod conntrack;
mod crc32c;
pub mod endpoint;
pub mod gateway;
mod pipeline;
pub mod rewrite;
pub mod segment;

pub use endpoint::Endpoint;
pub use pipeline::Pipeline;
