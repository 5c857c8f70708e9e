//! What tracking reads of a packet: its tuple and, for TCP and SCTP, the fields that drive their states.

use super::tuple::{Tuple, proto};
use vswitch_core::wire::Meta;

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// A TCP segment, without its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flags; [`flag`] has those that matter.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as in the header, unscaled.
    pub window: u16,
    /// Bytes of data.
    pub len: u32,
    /// Window scale offered (RFC 7323), only read from SYN segments.
    pub scale: Option<u8>,
}

impl TcpSegment {
    /// Reads the segment of a parsed frame; `None` if its header is damaged.
    #[must_use]
    pub fn of(head: &[u8], meta: &Meta) -> Option<TcpSegment> {
        let at = usize::from(meta.l4_off);
        let tcp = head.get(at..)?;
        let h: &[u8; 20] = tcp.first_chunk()?;
        let header = usize::from(h[12] >> 4) * 4;
        let len = (meta.l3_end as usize)
            .checked_sub(at)?
            .checked_sub(header)?;
        if header < 20 {
            return None;
        }
        let flags = h[13];
        let scale = if flags & flag::SYN == 0 {
            None
        } else {
            scale(tcp.get(20..header)?)
        };
        Some(TcpSegment {
            flags,
            seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            window: u16::from_be_bytes([h[14], h[15]]),
            len: len as u32,
            scale,
        })
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence number after the segment; SYN and FIN count.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.seq
            .wrapping_add(self.len)
            .wrapping_add(u32::from(self.has(flag::SYN)))
            .wrapping_add(u32::from(self.has(flag::FIN)))
    }
}

/// The window scale among TCP options; at most 14 (RFC 7323 section 2.3).
fn scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match *options {
            [1, ref rest @ ..] => options = rest,
            [3, 3, shift, ..] => return Some(shift.min(14)),
            [kind, len, ..] if kind != 0 && len >= 2 => {
                options = options.get(usize::from(len)..)?;
            }
            _ => return None,
        }
    }
}

/// First chunk of an SCTP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SctpChunk {
    /// Verification tag of the packet.
    pub vtag: u32,
    /// Type of the chunk.
    pub kind: u8,
    /// Flags of the chunk.
    pub flags: u8,
    /// Initiate tag, of INIT and INIT ACK.
    pub tag: u32,
}

impl SctpChunk {
    /// Reads the first chunk of a parsed frame; `None` if there is no whole chunk header.
    #[must_use]
    pub fn of(head: &[u8], meta: &Meta) -> Option<SctpChunk> {
        let end = (meta.l3_end as usize).min(head.len());
        let sctp = head.get(usize::from(meta.l4_off)..end)?;
        let &[_, _, _, _, v0, v1, v2, v3, _, _, _, _, kind, flags, _, _] = sctp.first_chunk()?;
        let tag = match kind {
            1 | 2 => u32::from_be_bytes(*sctp.get(16..)?.first_chunk()?),
            _ => 0,
        };
        Some(SctpChunk {
            vtag: u32::from_be_bytes([v0, v1, v2, v3]),
            kind,
            flags,
            tag,
        })
    }
}

/// What the transport header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(TcpSegment),
    /// SCTP.
    Sctp(SctpChunk),
    /// A protocol without states of its own.
    Other,
}

/// A packet to track.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Where from and to.
    pub tuple: Tuple,
    /// Its transport header.
    pub transport: Transport,
    /// What it counts for: the segments of a segmentation-offload frame.
    pub packets: u32,
    /// Bytes it counts for.
    pub bytes: u32,
    /// Whether its connection lives longer for it.
    pub refreshes: bool,
}

impl Packet {
    /// Reads a parsed frame; counts as one packet of its IP length. `None`: there is nothing to track (see [`Tuple::of`]), or
    /// the transport header is damaged.
    #[must_use]
    pub fn of(head: &[u8], meta: &Meta, zone: u16) -> Option<Packet> {
        let tuple = Tuple::of(head, meta, zone)?;
        let transport = match tuple.proto {
            proto::TCP => Transport::Tcp(TcpSegment::of(head, meta)?),
            proto::SCTP => Transport::Sctp(SctpChunk::of(head, meta)?),
            _ => Transport::Other,
        };
        Some(Packet {
            tuple,
            transport,
            packets: 1,
            bytes: meta.l3_end.saturating_sub(u32::from(meta.l3_off)),
            refreshes: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::wire::parse;

    fn tcp(doff: u8, flags: u8, options: &[u8], data: usize) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        f.extend((40 + options.len() as u16 + data as u16).to_be_bytes());
        f.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        f.extend([0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 8, doff << 4, flags, 1, 0]);
        f.extend([0; 4]);
        f.extend(options);
        f.extend(vec![0; data]);
        f
    }

    fn read(f: &[u8]) -> Option<TcpSegment> {
        TcpSegment::of(f, &parse(f, f.len())?)
    }

    #[test]
    fn a_segment_is_read() {
        let options = [2, 4, 5, 180, 1, 3, 3, 7, 0, 0, 0, 0];
        let f = tcp(8, flag::SYN, &options, 5);
        let seg = read(&f).expect("sound");
        let want = TcpSegment {
            flags: flag::SYN,
            seq: 9,
            ack: 8,
            window: 256,
            len: 5,
            scale: Some(7),
        };
        assert_eq!((seg, seg.end()), (want, 15));
        // Ethernet padding isn't data.
        let mut padded = tcp(5, flag::ACK | flag::FIN, &[], 0);
        padded.extend([0; 6]);
        let seg = read(&padded).expect("sound");
        assert_eq!((seg.len, seg.end(), seg.scale), (0, 10, None));
    }

    #[test]
    fn damaged_headers_and_options_are_survived() {
        assert_eq!(read(&tcp(4, flag::ACK, &[], 0)), None);
        assert_eq!(
            read(&tcp(15, flag::ACK, &[], 0)),
            None,
            "longer than the packet"
        );
        let meta = parse(&tcp(8, flag::SYN, &[1; 12], 0), 66).expect("whole");
        let f = tcp(8, flag::SYN, &[1; 12], 0);
        for n in 0..f.len() {
            assert_eq!(TcpSegment::of(&f[..n], &meta), None);
        }
        for options in [
            &[3u8, 3, 200][..],
            &[3, 3],
            &[2, 0, 3, 3, 1],
            &[2, 1, 3, 3, 1],
            &[8, 200, 3, 3, 1],
            &[0, 3, 3, 1],
            &[5],
            &[],
        ] {
            let want = (options.len() == 3 && options[2] == 200).then_some(14);
            assert_eq!(scale(options), want, "{options:?}");
        }
    }

    #[test]
    fn an_sctp_chunk_is_read() {
        let mut f = tcp(5, 0, &[], 0);
        f[23] = 132;
        f[34..].copy_from_slice(&[0, 1, 0, 2, 0, 0, 0, 0, 9, 9, 9, 9, 1, 3, 0, 20, 1, 2, 3, 4]);
        let packet = Packet::of(&f, &parse(&f, f.len()).expect("whole"), 0).expect("SCTP");
        let want = SctpChunk {
            vtag: 0,
            kind: 1,
            flags: 3,
            tag: 0x0102_0304,
        };
        assert_eq!(packet.transport, Transport::Sctp(want));
        assert_eq!((packet.tuple.dst_port, packet.bytes), (2, 40));
    }
}
