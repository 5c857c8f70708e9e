#![no_main]
//! ICMP errors with any quote: no panic; what is accepted can be rewritten, is then accepted again and tells the new endpoints.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vswitch_core::frame::Frame;
use vswitch_core::wire::{csum, parse};
use vswitch_nat::Endpoint;
use vswitch_nat::icmp_error::{QuotedError, Translated};

#[derive(Arbitrary, Debug)]
struct Input {
    v6: bool,
    /// The message gets a sound checksum, and a quoted IPv4 header as well, so that its content is read.
    repair: bool,
    outer: [[u8; 16]; 2],
    new: [([u8; 16], u16); 2],
    mtu: Option<u16>,
    message: Vec<u8>,
}

fn frame(input: &Input) -> Vec<u8> {
    let mut message = input.message.clone();
    message.truncate(3000);
    let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let len = message.len() as u16;
    let mut pseudo = 0;
    if input.v6 {
        b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        b.extend(len.to_be_bytes());
        b.extend([58, 64]);
        b.extend(input.outer.concat());
        pseudo = csum::add(u64::from(len) + 58, &input.outer.concat());
    } else {
        b.extend([8, 0, 0x45, 0]);
        b.extend((20 + len).to_be_bytes());
        b.extend([0, 0, 0, 0, 64, 1, 0, 0]);
        b.extend(&input.outer[0][..4]);
        b.extend(&input.outer[1][..4]);
    }
    if input.repair {
        let header = message.get(8).map_or(0, |v| usize::from(v & 0xf) * 4);
        if !input.v6 && header >= 20 && message.len() >= 8 + header {
            put_sum(&mut message[8..8 + header], 10, 0);
        }
        if message.len() >= 4 {
            put_sum(&mut message, 2, pseudo);
        }
    }
    b.extend(message);
    b
}

fn put_sum(b: &mut [u8], at: usize, pseudo: u64) {
    b[at..at + 2].fill(0);
    let sum = csum::finish(csum::add(pseudo, b)).to_be_bytes();
    b[at..at + 2].copy_from_slice(&sum);
}

fuzz_target!(|input: Input| {
    let Some(mut frame) = Frame::from_bytes(&frame(&input)) else {
        return;
    };
    let Some(meta) = parse(frame.head(), frame.len()) else {
        return;
    };
    let Ok(error) = QuotedError::parse(&frame, &meta) else {
        return;
    };
    let end = |(a, port): ([u8; 16], u16)| {
        let v4 = [a[0], a[1], a[2], a[3]];
        Endpoint::new(if input.v6 { a.into() } else { v4.into() }, port)
    };
    let [mut src, mut dst] = input.new.map(end);
    if error.quoted.is_query() {
        if error.quoted.dst.port != 0 {
            src.port = 0;
        } else {
            dst.port = 0;
        }
    }
    let new = Translated {
        outer: (dst.addr, src.addr),
        quoted: (src, dst),
        mtu: input.mtu.map(u32::from),
    };
    let before = frame.len();
    error.rewrite(&mut frame, &new).expect("of one family");
    assert_eq!(frame.len(), before);
    let again = QuotedError::parse(&frame, &meta).expect("as sound as before");
    assert_eq!(again.outer, new.outer);
    let (s, d) = (again.quoted.src, again.quoted.dst);
    assert_eq!((s.addr, d.addr), (src.addr, dst.addr));
    if matches!(error.quoted.proto, 6 | 17 | 132) && !error.quoted.is_later_fragment() {
        assert_eq!((s, d), (src, dst));
    }
});
