//! Containers that reach outside by sockets of the host, with real kernels at both ends.

mod datagrams;
mod published;
mod rig;
mod rootless;
mod tcp;
