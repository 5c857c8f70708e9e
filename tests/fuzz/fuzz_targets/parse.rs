#![no_main]
//! The one door for frame bytes: no panic, every offset inside the bytes, and where `parse` calls a
//! header sound, smoltcp's views agree.

use libfuzzer_sys::fuzz_target;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, UdpPacket};
use vswitch_core::wire::{L3, L4, parse};

fuzz_target!(|input: (u16, &[u8])| {
    // The head of a long frame is shorter than the frame.
    let (beyond, head) = input;
    let len = head.len() + usize::from(beyond);
    let Some(meta) = parse(head, len) else {
        assert!(head.len() < 14);
        return;
    };
    let (l3, end) = (usize::from(meta.l3_off), meta.l3_end as usize);
    assert!(end <= len, "the packet ends inside the frame");
    if meta.l4 != L4::Other {
        assert!(meta.l3 == L3::V4 || meta.l3 == L3::V6);
        let l4 = usize::from(meta.l4_off);
        let need = match meta.l4 {
            L4::Tcp => 20,
            L4::Udp | L4::Icmp => 8,
            L4::Sctp => 12,
            L4::Icmp6 => 4,
            L4::Other => 0,
        };
        assert!(l3 < l4 && l4 + need <= head.len().min(end), "{meta:?}");
    }
    if beyond > 0 {
        return;
    }
    match meta.l3 {
        L3::V4 => {
            let packet = Ipv4Packet::new_checked(&head[l3..]).expect("a sound IPv4 header");
            assert_eq!(l3 + usize::from(packet.total_len()), end);
            assert_eq!(u8::from(packet.next_header()), meta.proto);
            assert_eq!(
                packet.more_frags() || packet.frag_offset() > 0,
                meta.fragment
            );
        }
        L3::V6 => {
            let packet = Ipv6Packet::new_checked(&head[l3..]).expect("a sound IPv6 header");
            assert_eq!(l3 + packet.total_len(), end);
        }
        L3::Arp => assert!(l3 + 28 <= head.len()),
        L3::Other => assert_eq!(meta.l4, L4::Other),
    }
    if meta.l4 == L4::Udp {
        let _ = UdpPacket::new_unchecked(&head[usize::from(meta.l4_off)..]).dst_port();
    }
});
