//! Data plane of vswitch.
//!
//! # Theory of operation
//!
//! A [`worker::Worker`] owns one queue of every port it serves. A *turn* pulls a [`frame::Batch`] of at most
//! [`frame::BATCH_SIZE`] frames from a ready port ([`port::PortIo::recv`]), parses each once
//! ([`wire::parse`]), runs the stages over the batch (bridge, policy, NAT), and pushes every frame to
//! the transmit queue of its egress port or drops it with a counted [`frame::DropReason`].
//! Nothing in a turn blocks, allocates per frame, takes a lock or logs.
//!
//! This crate knows nothing of NAT or of the control plane: those reach it through [`worker::Stage`]
//! and [`worker::WorkerHandle`].

pub mod accel;
pub mod bridge;
pub mod capture;
pub mod clock;
pub mod frame;
pub mod policy;
pub mod port;
pub mod stats;
pub mod sys;
pub mod wire;
pub mod worker;
