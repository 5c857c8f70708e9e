#![no_main]
//! The virtio-net header of a hostile sender: what passes the check lies inside the frame, and
//! survives being written and read again.

use libfuzzer_sys::fuzz_target;
use vswitch_core::frame::{GsoType, Offloads, VNET_HDR_LEN, VnetHdr};

fuzz_target!(|input: ([u8; VNET_HDR_LEN], u16)| {
    let (bytes, frame_len) = (input.0, usize::from(input.1));
    let Some(header) = VnetHdr::checked(&bytes, frame_len) else {
        return;
    };
    if header.needs_csum {
        let field = usize::from(header.csum_start) + usize::from(header.csum_offset);
        assert!(header.csum_start >= 14 && field + 2 <= frame_len);
    }
    if header.gso != GsoType::None {
        assert!(header.needs_csum && header.gso_size > 0);
    }
    assert_eq!(header.is_plain(), Offloads::NONE.takes(&header));
    assert!(Offloads::ALL.takes(&header));
    let written = header.to_bytes();
    let again = VnetHdr::checked(&written, frame_len).expect("our own header is sound");
    // With nothing to do the offsets mean nothing, and may be forgotten.
    if !header.is_plain() {
        assert_eq!(again.to_bytes(), written);
    }
    assert_eq!(
        (again.gso, again.needs_csum),
        (header.gso, header.needs_csum)
    );
});
