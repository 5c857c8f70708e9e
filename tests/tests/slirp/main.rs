//! Containers that reach outside by sockets of the host, with real kernels at both ends.

mod datagrams;
mod errors;
mod hostile;
mod lossy;
mod measure;
mod programs;
mod published;
mod rig;
mod rootless;
mod scale;
mod stalls;
mod tcp;
