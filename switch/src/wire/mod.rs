//! Wire formats: no I/O, no state.
//!
//! [`parse`] walks Ethernet, VLAN, IP and L4 headers once and leaves offsets and the flow hash in [`Meta`]; it
//! is the one door where lengths are checked. Header views beyond that are `smoltcp::wire`'s.

pub mod crc32c;
pub mod csum;
mod mac;
mod parse;

pub use mac::MacAddr;
pub use parse::{EtherType, L3, L4, Meta, Tag, l2_len, parse};
