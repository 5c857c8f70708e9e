//! Fragmenting packets that are longer than the next link takes: those of IPv4 that may be fragmented (RFC 791 3.2, RFC 1812 5.2.6),
//! and those that we are the source of ourselves, as of what came by a socket of the host (RFC 8200 4.5).

use vswitch_core::frame::{DropReason, Frame, GsoType, Offloads, gso};
use vswitch_core::wire::{self, L3, Meta, csum};

const MORE: u16 = 0x2000;

/// Cuts a frame into fragments of at most `mtu` bytes (L3 length), in order. A checksum left to offloading is summed first, a
/// segmentation-offload frame cut into its packets. `id` is what identifies the fragments of an IPv6 packet, the next ones those of
/// further packets. Errors: nothing was handed over, or of several packets the last ones weren't.
pub(super) fn split(
    frame: Frame,
    mtu: u32,
    id: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    let (mut frame, mut id) = (frame, id);
    if frame.vnet.gso != GsoType::None {
        let mut packets = Vec::new();
        gso::finish(frame, Offloads::NONE, 65_535, &mut |f| packets.push(f))?;
        for packet in packets {
            fragment(&packet, mtu, id, out)?;
            id = id.wrapping_add(1);
        }
        return Ok(());
    }
    gso::complete(&mut frame)?;
    fragment(&frame, mtu, id, out)
}

/// Appends bytes of a frame to another.
fn copy(frame: &Frame, from: usize, to: usize, piece: &mut Frame) {
    let (head, tail) = (frame.head(), frame.tail());
    let split = head.len();
    let first = head.get(from.min(split)..to.min(split));
    let rest = tail.get(from.saturating_sub(split)..to.saturating_sub(split));
    piece.append(first.unwrap_or_default());
    piece.append(rest.unwrap_or_default());
}

fn fragment(
    frame: &Frame,
    mtu: u32,
    id: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    let meta = wire::parse(frame.head(), frame.len()).ok_or(DropReason::BadPacket)?;
    match meta.l3 {
        L3::V4 => fragment4(frame, &meta, mtu, out),
        L3::V6 => fragment6(frame, &meta, mtu, id, out),
        _ => Err(DropReason::Mtu),
    }
}

const FRAGMENT: u8 = 44;

/// A packet without extension headers, as ours are.
fn fragment6(
    frame: &Frame,
    meta: &Meta,
    mtu: u32,
    id: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::BadPacket;
    let (head, l3) = (frame.head(), usize::from(meta.l3_off));
    let link = head.get(..l3).ok_or(BAD)?;
    let fixed: &[u8; 40] = head.get(l3..).and_then(|b| b.first_chunk()).ok_or(BAD)?;
    let (start, end) = (l3 + 40, meta.l3_end as usize);
    if usize::from(meta.l4_off) != start || meta.fragment {
        return Err(DropReason::Mtu);
    }
    let fits = frame.len() <= mtu as usize + l3;
    let room = (mtu as usize).checked_sub(48).ok_or(DropReason::Mtu)? & !7;
    if room == 0 {
        return Err(DropReason::Mtu);
    }
    let mut at = start;
    while at < end {
        let next = if fits { end } else { (at + room).min(end) };
        let mut header = *fixed;
        let mut piece = Frame::new();
        piece.append(link);
        if fits {
            // The last of a segmentation-offload frame may be short.
            piece.append(&header);
        } else {
            header[4..6].copy_from_slice(&((8 + next - at) as u16).to_be_bytes());
            header[6] = FRAGMENT;
            piece.append(&header);
            let offset = (at - start) as u16 | u16::from(next < end);
            let ([o1, o0], [a, b, c, d]) = (offset.to_be_bytes(), id.to_be_bytes());
            piece.append(&[fixed[6], 0, o1, o0, a, b, c, d]);
        }
        copy(frame, at, next, &mut piece);
        out(piece);
        at = next;
    }
    Ok(())
}

fn fragment4(
    frame: &Frame,
    meta: &Meta,
    mtu: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::BadPacket;
    let head = frame.head();
    let l3 = usize::from(meta.l3_off);
    let ip = head.get(l3..).ok_or(BAD)?;
    let fixed: &[u8; 20] = ip.first_chunk().ok_or(BAD)?;
    let ihl = usize::from(fixed[0] & 15) * 4;
    let options = ip.get(20..ihl).ok_or(BAD)?;
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let (base, more) = (usize::from(field & 0x1fff) * 8, field & MORE);
    let end = meta.l3_end as usize;
    let later = copied(options);
    let room = (mtu as usize).checked_sub(ihl).ok_or(DropReason::Mtu)? & !7;
    if room == 0 {
        return Err(DropReason::Mtu);
    }
    let mut at = l3 + ihl;
    while at < end {
        let first = at == l3 + ihl;
        let next = (at + room).min(end);
        let options = if first { options } else { &later };
        let len = 20 + options.len();
        let mut header = *fixed;
        header[0] = 0x40 | (len / 4) as u8;
        header[2..4].copy_from_slice(&((len + next - at) as u16).to_be_bytes());
        let offset = ((base + at - l3 - ihl) / 8) as u16;
        let flags = if next < end { MORE } else { more };
        header[6..8].copy_from_slice(&(offset | flags).to_be_bytes());
        header[10..12].fill(0);
        let sum = csum::finish(csum::add(csum::add(0, &header), options));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut piece = Frame::new();
        piece.append(&head[..l3]);
        piece.append(&header);
        piece.append(options);
        copy(frame, at, next, &mut piece);
        out(piece);
        at = next;
    }
    Ok(())
}

/// The options that every fragment carries (RFC 791 3.1: the copied flag), padded to whole words.
fn copied(mut options: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    while let [kind, rest @ ..] = options {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => rest.first().map_or(0, |l| usize::from(*l)),
        };
        let Some(option) = options.get(..len).filter(|o| !o.is_empty()) else {
            break;
        };
        if kind & 0x80 != 0 {
            kept.extend_from_slice(option);
        }
        options = &options[len..];
    }
    kept.resize(kept.len().next_multiple_of(4), 0);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(options: &[u8], payload: usize, flags: u16) -> Frame {
        let ihl = 20 + options.len();
        let mut b = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        b.extend([0x40 | (ihl / 4) as u8, 0]);
        b.extend(((ihl + payload) as u16).to_be_bytes());
        b.extend([0x12, 0x34]);
        b.extend(flags.to_be_bytes());
        b.extend([64, 253, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
        b.extend(options);
        b.extend((0..payload).map(|i| (i % 251) as u8));
        Frame::from_bytes(&b).expect("fits")
    }

    #[test]
    fn fragments_join_to_the_packet() {
        for (options, flags) in [(&[][..], 0), (&[0x83, 4, 1, 1, 7, 4, 5, 0], MORE | 10)] {
            let f = packet(options, 4000, flags);
            let mut out = Vec::new();
            split(f, 576, 7, &mut |f| out.push(f.to_vec())).expect("cut");
            let mut joined = Vec::new();
            for (i, b) in out.iter().enumerate() {
                assert!(b.len() <= 576 + 14);
                let ihl = usize::from(b[14] & 15) * 4;
                let kept = if i == 0 {
                    options.len()
                } else {
                    options.len().min(4)
                };
                assert_eq!(ihl, 20 + kept, "only copied options");
                assert_eq!(csum::finish(csum::add(0, &b[14..14 + ihl])), 0);
                let field = u16::from_be_bytes([b[20], b[21]]);
                assert_eq!(
                    usize::from(field & 0x1fff) * 8,
                    usize::from(flags & 0x1fff) * 8 + joined.len()
                );
                let last = i == out.len() - 1;
                assert_eq!(field & MORE != 0, !last || flags & MORE != 0);
                joined.extend_from_slice(&b[14 + ihl..]);
            }
            assert_eq!(joined.len(), 4000);
            assert!(
                joined
                    .iter()
                    .enumerate()
                    .all(|(i, b)| *b == (i % 251) as u8)
            );
        }
    }

    #[test]
    fn fragments_of_ipv6_join_to_the_packet() {
        for payload in [1241usize, 4000, 60_000] {
            let mut b = vec![
                2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0,
            ];
            b.extend((payload as u16).to_be_bytes());
            b.extend([17, 64]);
            b.extend([[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]; 2].concat());
            b.extend((0..payload).map(|i| (i % 251) as u8));
            let mut joined = Vec::new();
            split(Frame::from_bytes(&b).unwrap(), 1280, 9, &mut |f| {
                let f = f.to_vec();
                assert!(f.len() <= 1280 + 14);
                let meta = wire::parse(&f, f.len()).unwrap();
                let frame = Frame::from_bytes(&f).unwrap();
                let h = crate::frag::FragmentHeader::of(&frame, &meta).unwrap();
                let last = h.offset as usize + h.len as usize == payload;
                assert_eq!((h.id, h.offset as usize, h.more), (9, joined.len(), !last));
                joined.extend_from_slice(&f[14 + 48..]);
            })
            .unwrap();
            assert_eq!(joined, b[54..]);
        }
    }
}
