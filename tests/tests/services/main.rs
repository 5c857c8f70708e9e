//! The gateway's services against real clients: a small gateway of the test's own hands them what arrives on veth ends.

mod dhcp;
mod dns;
mod frames;
mod gateway;
mod resolver;
mod router;
