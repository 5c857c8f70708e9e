//! The only unsafe corner: system calls that no safe crate offers.
//!
//! Each function here is safe to call with any arguments; the kernel checks what it is given.
#![allow(unsafe_code)]

pub mod bpf;
pub mod child;
pub mod datagram;
mod filter;
pub mod listen;
pub mod mem;
pub mod mmsg;
pub mod packet;
pub mod pidfd;
pub mod registrar;
pub mod ring;
pub mod scm;
pub mod seccomp;
pub mod sock;
pub mod source;
pub mod splice;
pub mod steer;
pub mod timer;
pub mod tun;
pub mod twin;
pub mod userns;
