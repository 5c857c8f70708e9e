//! Segments as the container's end makes and reads them, by the offsets of its two streams; written down from RFC 9293, RFC 7323 and
//! RFC 2018, and not with the code that is under test.

use super::{pattern_down, pattern_up};
use vswitch_core::frame::Frame;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// Initial sequence numbers near the wrap: the container's, and ours.
pub(crate) const THEIRS: u32 = 0xffff_f000;
pub(crate) const OURS: u32 = 0xffff_e000;

/// Ports: the container's, the host's.
const PORTS: [u16; 2] = [5000, 80];

/// What the container sends: where in its stream, how much of it, and what it says of the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Up {
    /// Sequence number and acknowledgement.
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    /// Payload: bytes of its stream.
    pub(crate) from: u32,
    pub(crate) len: u32,
}

impl Up {
    /// The frame, its checksum left alone: sums are another test's.
    pub(crate) fn frame(&self, v6: bool) -> Frame {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 1);
        let tcp = 20 + options.len() + self.len as usize;
        let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if v6 {
            b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            b.extend((tcp as u16).to_be_bytes());
            b.extend([6, 64]);
            b.extend([0x20; 32]);
        } else {
            b.extend([8, 0, 0x45, 0]);
            b.extend((20 + tcp as u16).to_be_bytes());
            b.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
        }
        b.extend(PORTS.iter().flat_map(|p| p.to_be_bytes()));
        b.extend(self.seq.to_be_bytes());
        b.extend(self.ack.to_be_bytes());
        b.extend([((20 + options.len()) / 4 << 4) as u8, self.flags]);
        b.extend(self.window.to_be_bytes());
        b.extend([0; 4]);
        b.extend(options);
        b.extend((self.from..self.from + self.len).map(pattern_up));
        let mut frame = Frame::from_bytes(&b).expect("it fits");
        frame.vnet.data_valid = true;
        frame
    }
}

/// What the container is sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Down {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Of a SYN.
    pub(crate) scale: Option<u8>,
    pub(crate) may_sack: bool,
    /// Selectively acknowledged, in its order.
    pub(crate) blocks: Vec<(u32, u32)>,
    /// Where in the host's stream it begins, and bytes of it, which were looked at.
    pub(crate) at: u32,
    pub(crate) len: u32,
}

fn word(b: &[u8]) -> u32 {
    u32::from_be_bytes(b[..4].try_into().expect("four"))
}

impl Down {
    /// Reads a frame made for the container; every byte of payload is the one that belongs there.
    pub(crate) fn read(frame: &Frame, v6: bool) -> Down {
        let b = frame.to_vec();
        let l4 = if v6 { 54 } else { 34 };
        let tcp = &b[l4..];
        let total = match v6 {
            true => 40 + usize::from(u16::from_be_bytes([b[18], b[19]])),
            false => usize::from(u16::from_be_bytes([b[16], b[17]])),
        };
        assert_eq!(14 + total, b.len(), "the length of the packet");
        let ports = [[tcp[0], tcp[1]], [tcp[2], tcp[3]]].map(u16::from_be_bytes);
        assert_eq!(ports, [PORTS[1], PORTS[0]]);
        let data = usize::from(tcp[12] >> 4) * 4;
        let mut d = Down {
            seq: word(&tcp[4..]),
            ack: word(&tcp[8..]),
            flags: tcp[13],
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
            len: (tcp.len() - data) as u32,
            ..Down::default()
        };
        d.at = d.seq.wrapping_sub(OURS.wrapping_add(1));
        for (i, byte) in (0u32..).zip(&tcp[data..]) {
            assert_eq!(
                *byte,
                pattern_down(d.at.wrapping_add(i)),
                "byte {i} of {d:?}"
            );
        }
        let mut options = &tcp[20..data];
        while let [kind, rest @ ..] = options {
            if *kind < 2 {
                options = rest;
                continue;
            }
            let (option, others) = options.split_at(usize::from(rest[0]));
            match option {
                [3, 3, scale] => d.scale = Some(*scale),
                [4, 2] => d.may_sack = true,
                [5, _, edges @ ..] => {
                    let edges = edges.chunks_exact(8).map(|e| (word(e), word(&e[4..])));
                    d.blocks = edges.collect();
                }
                _ => {}
            }
            options = others;
        }
        d
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}
