//! A packet of TCP.

use vswitch_core::frame::{Frame, VnetHdr};

/// Ethernet, IPv4 and TCP with zeroes, whose checksum is left to be done.
pub(crate) fn packet(payload: usize) -> Frame {
    let mut bytes = vec![0u8; 54 + payload];
    bytes[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    bytes[16..18].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
    bytes[22..24].copy_from_slice(&[64, 6]);
    bytes[46] = 5 << 4;
    let mut frame = Frame::from_bytes(&bytes).expect("fits");
    frame.vnet = VnetHdr {
        needs_csum: true,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    frame
}
