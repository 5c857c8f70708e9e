#![no_main]
//! Finishing frames of any bytes and any offload state: no panic, every slot comes back, and what comes out is fit for the port and
//! carries the payload that went in.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vswitch_core::frame::{Frame, GsoType, Offloads, VNET_HDR_LEN, VnetHdr, gso, outstanding};
use vswitch_core::wire;

#[derive(Arbitrary, Debug)]
struct Input {
    header: [u8; VNET_HDR_LEN],
    csum: bool,
    mtu: u16,
    fill: u16,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let before = outstanding();
    run(&input);
    assert_eq!(outstanding(), before, "every slot came back");
});

fn run(input: &Input) {
    let mut bytes = input.bytes.clone();
    bytes.truncate(4096);
    bytes.extend(std::iter::repeat_n(0xa5, usize::from(input.fill)));
    let Some(mut frame) = Frame::from_bytes(&bytes) else {
        return;
    };
    let Some(vnet) = VnetHdr::checked(&input.header, bytes.len()) else {
        return;
    };
    frame.vnet = vnet;
    let offloads = Offloads {
        csum: input.csum,
        ..Offloads::NONE
    };
    let mtu = u32::from(input.mtu);
    let mut out = Vec::new();
    if gso::finish(frame, offloads, mtu, &mut |f| out.push(f)).is_err() {
        assert!(out.is_empty(), "all or nothing");
        return;
    }
    assert!(!out.is_empty());
    for f in &out {
        assert!(gso::fits(f, offloads, mtu), "{f:?}");
    }
    if vnet.gso != GsoType::None {
        let meta = wire::parse(&bytes, bytes.len()).expect("it was cut");
        let payload: usize = out.iter().map(|f| f.len() - headers(f)).sum();
        let whole = Frame::from_bytes(&bytes).expect("fitted before");
        assert_eq!(payload, meta.l3_end as usize - headers(&whole));
    }
}

/// Length of all headers of a TCP or UDP packet.
fn headers(f: &Frame) -> usize {
    let m = wire::parse(f.head(), f.len()).expect("an Ethernet header");
    let l4 = usize::from(m.l4_off);
    match m.l4 {
        wire::L4::Tcp => l4 + usize::from(f.head()[l4 + 12] >> 4) * 4,
        _ => l4 + 8,
    }
}
