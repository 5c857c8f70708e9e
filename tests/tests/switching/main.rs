//! Containers whose connections are made by sockets of the host, with real kernels at both ends.

mod clients;
mod hostile;
mod life;
mod policy;
mod rig;
mod rootless;
mod runtime;
