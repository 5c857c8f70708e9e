//! TCP segments: read from a container's frames, and made for it.
//!
//! What is made leaves its checksum to offloading, and is up to 64 KiB long: the kernel in the container takes it in one piece,
//! and where a port can't, it is cut there.

use crate::rewrite::left_to_offload;
use crate::slirp::packet::ip_header;
use crate::verify::l4_sum_is_right;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use vswitch_core::frame::{Frame, GsoType, VnetHdr};
use vswitch_core::wire::{L4, Meta, csum};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

const ETH: usize = 14;
const TCP: usize = 20;
/// MSS and window scale, padded; that selective acknowledgement is permitted, padded.
const SYN_OPTIONS: usize = 8;
const SACK_PERMITTED: [u8; 4] = [1, 1, 4, 2];
/// Blocks of an acknowledgement (RFC 2018 3): as many as go with timestamps too, and others do no more.
pub(crate) const BLOCKS: usize = 3;
const OPTIONS: usize = 4 + 8 * BLOCKS;
const TTL: u8 = 64;
/// Longest packet.
const PACKET: usize = 65_535;

/// A segment of a container.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Of a SYN.
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
    pub(crate) sack: bool,
    /// Where the first begins of what is acknowledged selectively.
    pub(crate) sacked: Option<u32>,
    pub(crate) payload: [&'a [u8]; 2],
}

impl<'a> Segment<'a> {
    /// Reads the segment of a frame; `None` if it is damaged.
    pub fn read(frame: &'a Frame, meta: &Meta) -> Option<Segment<'a>> {
        if meta.l4 != L4::Tcp || meta.fragment {
            return None;
        }
        let checked = left_to_offload(frame, meta) || frame.vnet.data_valid;
        if !checked && !l4_sum_is_right(frame, meta) {
            return None;
        }
        let (head, tail) = (frame.head(), frame.tail());
        let at = usize::from(meta.l4_off);
        let tcp: &[u8; TCP] = head.get(at..)?.first_chunk()?;
        let data = at + usize::from(tcp[12] >> 4) * 4;
        let end = meta.l3_end as usize;
        let options = head.get(at + TCP..data)?;
        let first = head.get(data..end.min(head.len()))?;
        let rest = tail.get(..end.saturating_sub(head.len()))?;
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let (mut mss, mut scale, mut sack, mut sacked) = (None, None, false, None);
        if tcp[13] & SYN != 0 {
            (mss, scale, sack) = syn_options(options);
        } else if !options.is_empty() {
            sacked = first_sacked(options, word(8));
        }
        Some(Segment {
            seq: word(4),
            ack: word(8),
            flags: tcp[13],
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
            mss,
            scale,
            sack,
            sacked,
            payload: [first, rest],
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Where it begins, and how long it is in sequence numbers.
    #[must_use]
    pub fn place(&self) -> (u32, u32) {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        (self.seq, self.len().wrapping_add(flags))
    }

    /// Bytes of payload.
    pub(crate) fn len(&self) -> u32 {
        (self.payload[0].len() + self.payload[1].len()) as u32
    }
}

/// The options of a header, each with its kind and length.
fn each_option(mut options: &[u8], see: &mut dyn FnMut(&[u8])) {
    while let [kind, rest @ ..] = options {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => match rest.first() {
                Some(l) if *l >= 2 => usize::from(*l),
                _ => break,
            },
        };
        let Some(option) = options.get(..len) else {
            break;
        };
        see(option);
        options = options.get(len..).unwrap_or_default();
    }
}

/// MSS, window scale, and whether selective acknowledgement is permitted (RFC 9293 3.2, RFC 7323 2.2, RFC 2018 2).
fn syn_options(options: &[u8]) -> (Option<u16>, Option<u8>, bool) {
    let (mut mss, mut scale, mut sack) = (None, None, false);
    each_option(options, &mut |option| match option {
        [2, 4, a, b] => mss = Some(u16::from_be_bytes([*a, *b])),
        // RFC 7323 2.3: 14 at most.
        [3, 3, s] => scale = Some((*s).min(14)),
        [4, 2] => sack = true,
        _ => {}
    });
    (mss, scale, sack)
}

/// Where the first block behind `ack` begins (RFC 2018 3). One before it is of what came twice (RFC 2883).
fn first_sacked(options: &[u8], ack: u32) -> Option<u32> {
    let mut first: Option<u32> = None;
    each_option(options, &mut |option| {
        let [5, _, blocks @ ..] = option else {
            return;
        };
        for block in blocks.chunks_exact(8) {
            if let Some(edge) = block.first_chunk().copied().map(u32::from_be_bytes)
                && super::before(ack, edge)
                && first.is_none_or(|f| super::before(edge, f))
            {
                first = Some(edge);
            }
        }
    });
    first
}

/// What a segment says beside its fixed header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    Nothing,
    /// A SYN: MSS, window scale if the far end scales, and that selective acknowledgement is permitted.
    Syn(u16, Option<u8>, bool),
    /// Selective acknowledgement of as many blocks, each from and to.
    Blocks(u8, [(u32, u32); BLOCKS]),
}

impl Says {
    fn len(self) -> usize {
        match self {
            Says::Nothing | Says::Blocks(0, _) => 0,
            Says::Syn(_, _, sack) => SYN_OPTIONS + if sack { SACK_PERMITTED.len() } else { 0 },
            Says::Blocks(n, _) => 4 + 8 * usize::from(n).min(BLOCKS),
        }
    }

    /// Writes as many bytes as [`Says::len`] says.
    fn write(self, field: &mut [u8]) {
        match self {
            Says::Nothing => {}
            Says::Syn(mss, scale, sack) => {
                let [a, b] = mss.to_be_bytes();
                // Without a scale the place is padding.
                let scale = scale.map_or([1, 1, 1, 0], |s| [1, 3, 3, s]);
                let bytes = [2, 4, a, b].into_iter().chain(scale);
                let sack = sack.then_some(SACK_PERMITTED).into_iter().flatten();
                field
                    .iter_mut()
                    .zip(bytes.chain(sack))
                    .for_each(|(f, b)| *f = b);
            }
            Says::Blocks(n, blocks) => {
                let all = blocks.iter().take(n.into());
                let edges = all.flat_map(|(from, to)| [*from, *to]);
                let bytes = [1, 1, 5, 2 + 8 * n].into_iter();
                let bytes = bytes.chain(edges.flat_map(u32::to_be_bytes));
                field.iter_mut().zip(bytes).for_each(|(f, b)| *f = b);
            }
        }
    }
}

/// The header of a segment made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) says: Says,
}

/// Bytes of all headers in front of the payload.
pub(crate) fn headers(v6: bool) -> usize {
    ETH + if v6 { 40 } else { 20 } + TCP
}

/// Most payload of one frame, in whole segments.
pub(crate) fn most(v6: bool, mss: u16) -> usize {
    let room = PACKET + ETH - headers(v6);
    let mss = usize::from(mss).clamp(1, room);
    room / mss * mss
}

/// A segment without payload.
pub(crate) fn bare(h: &Header) -> Option<Frame> {
    let options = h.says.len();
    let zero = [0; ETH + 40 + TCP + OPTIONS];
    let len = headers(h.to.is_ipv6()) + options;
    let mut frame = Frame::from_bytes(zero.get(..len)?)?;
    finish(&mut frame, h, 0, u16::MAX)?;
    Some(frame)
}

/// A segment whose payload, `most` bytes at most, `read` puts there; also how many bytes that were. `None`: there were none.
pub(crate) fn filled(
    h: &Header,
    mss: u16,
    most: usize,
    read: &mut dyn FnMut(&mut [IoSliceMut<'_>; 2]) -> io::Result<usize>,
) -> io::Result<Option<Frame>> {
    let len = headers(h.to.is_ipv6());
    let mut frame = Frame::new();
    let n = {
        let [mut head, mut tail] = frame.recv_slices(0);
        let head = head.get_mut(len..).unwrap_or_default();
        let in_head = most.min(head.len());
        let in_tail = (most - in_head).min(tail.len());
        let mut into = [
            IoSliceMut::new(head.get_mut(..in_head).unwrap_or_default()),
            IoSliceMut::new(tail.get_mut(..in_tail).unwrap_or_default()),
        ];
        read(&mut into)?
    };
    if n == 0 {
        return Ok(None);
    }
    frame.received(0, len + n);
    drop(frame.take_spare_tail());
    finish(&mut frame, h, n, mss).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(frame))
}

/// Writes the headers of a frame that has room for them, and its offload state.
pub(crate) fn finish(frame: &mut Frame, h: &Header, payload: usize, mss: u16) -> Option<()> {
    let head = frame.head_mut();
    let options = h.says.len();
    let l4 = ip_header(
        head,
        h.from.ip(),
        h.to.ip(),
        6,
        TTL,
        TCP + options + payload,
    )?;
    let tcp = head.get_mut(l4.at..)?;
    let fixed: &mut [u8; TCP] = tcp.first_chunk_mut()?;
    fixed[..2].copy_from_slice(&h.from.port().to_be_bytes());
    fixed[2..4].copy_from_slice(&h.to.port().to_be_bytes());
    fixed[4..8].copy_from_slice(&h.seq.to_be_bytes());
    fixed[8..12].copy_from_slice(&h.ack.to_be_bytes());
    fixed[12] = (((TCP + options) / 4) as u8) << 4;
    fixed[13] = h.flags;
    fixed[14..16].copy_from_slice(&h.window.to_be_bytes());
    fixed[16..18].copy_from_slice(&csum::fold(l4.pseudo).to_be_bytes());
    fixed[18..20].fill(0);
    h.says.write(tcp.get_mut(TCP..TCP + options)?);
    let several = payload > usize::from(mss);
    let gso = match (several, h.to.is_ipv6()) {
        (false, _) => GsoType::None,
        (true, false) => GsoType::Tcp4,
        (true, true) => GsoType::Tcp6,
    };
    frame.vnet = VnetHdr {
        needs_csum: true,
        gso,
        hdr_len: (l4.at + TCP + options) as u16,
        gso_size: if several { mss } else { 0 },
        csum_start: l4.at as u16,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::frame::gso;
    use vswitch_core::wire::parse;

    #[test]
    fn what_is_made_can_be_read() {
        for (from, to) in [
            ("192.0.2.1:80", "192.0.2.2:999"),
            ("[2001:db8::1]:80", "[2001:db8::2]:9"),
        ] {
            let h = Header {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                seq: 7,
                ack: 9,
                flags: SYN | ACK,
                window: 512,
                says: Says::Syn(1460, Some(8), true),
            };
            let mut frame = bare(&h).unwrap();
            gso::complete(&mut frame).unwrap();
            let meta = parse(frame.head(), frame.len()).unwrap();
            assert!(l4_sum_is_right(&frame, &meta));
            let s = Segment::read(&frame, &meta).unwrap();
            assert_eq!(
                (s.seq, s.ack, s.window, s.mss, s.scale, s.sack),
                (7, 9, 512, Some(1460), Some(8), true)
            );
            let h = Header {
                says: Says::Nothing,
                flags: ACK,
                ..h
            };
            let made = filled(&h, 1000, 5000, &mut |into| {
                into.iter_mut().for_each(|b| b.fill(3));
                Ok(into.iter().map(|b| b.len()).sum())
            });
            let frame = made.unwrap().unwrap();
            let meta = parse(frame.head(), frame.len()).unwrap();
            let s = Segment::read(&frame, &meta).unwrap();
            assert_eq!(s.payload.concat(), [3; 5000]);
            assert_eq!((frame.vnet.gso_size, s.len()), (1000, 5000));
        }
    }

    #[test]
    fn hostile_options_end() {
        assert_eq!(
            syn_options(&[2, 4, 5, 0xb4, 3, 3, 99]),
            (Some(1460), Some(14), false)
        );
        let mut sack = vec![1, 1, 5, 26];
        for edge in [400u32, 500, 200, 300, 50, 60] {
            sack.extend(edge.to_be_bytes());
        }
        assert_eq!(first_sacked(&sack, 100), Some(200));
        assert_eq!(first_sacked(&sack[..20], 100), None, "cut off");
        assert_eq!(first_sacked(&[5, 2, 5, 6, 0, 0, 0, 9], 1), None);
        for bad in [
            &[2][..],
            &[2, 0, 0],
            &[2, 9, 1],
            &[3, 1],
            &[0, 2, 4, 1, 1],
            &[5, 40],
        ] {
            assert_eq!(syn_options(bad), (None, None, false));
        }
    }
}
