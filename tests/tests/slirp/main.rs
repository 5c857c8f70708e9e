//! Containers that reach outside by sockets of the host, with real kernels at both ends.

mod access;
mod cpu;
mod datagrams;
mod errors;
mod hostile;
mod hosts;
mod lossy;
mod moving;
mod outbound;
mod programs;
mod published;
mod resolvers;
mod rig;
mod rootless;
mod scale;
mod stalls;
mod tcp;
mod warnings;
