//! The switch as a person has it: vswitchd set up by vswitchctl, containers with the kernel's own network stack.

mod fast;
mod fast_policy;
mod forwarding;
mod guard;
mod host_stack;
mod joining;
mod limits;
mod loops;
mod multicast;
mod outage;
mod people;
mod rig;
mod rootless;
mod state;
mod vlan;
mod vm;
mod workers;
