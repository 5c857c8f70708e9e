//! Joining small datagrams of a flow on their way to a port that takes UDP segmentation offload.
//!
//! # Theory of operation
//!
//! A datagram that would be queued right behind one of the same flow and length is appended to it instead, as the kernel's own receive
//! offload does (net/ipv4/udp_offload.c, `udp_gro_receive`): the two leave as one segmentation-offload frame (UDP_L4). The kernel
//! cuts it again where the socket doesn't ask for it whole, so what arrives is the same datagrams, for one system call and one
//! walk through the stack instead of one each.
//!
//! Only what differs in lengths, identification and checksum alone is joined, with "don't fragment" set (then the identification
//! means nothing, RFC 6864), and only with the checksum left to offloading, since a finished one would have to be summed anew.
//! A shorter datagram ends a frame, as the last segment may be short.

use super::{Frame, GsoType};
use crate::wire::csum;

/// Most datagrams in a frame (UDP_MAX_SEGMENTS of the kernels that know UDP_L4 in virtio-net headers).
const MAX_SEGMENTS: u16 = 64;
/// Where UDP has its checksum.
const UDP_CHECKSUM: u16 = 6;
const UDP_LEN: usize = 8;
const MAX_PACKET: usize = 65_535;

/// What two datagrams have to agree in, and where.
struct Layout {
    l3: usize,
    l4: usize,
    v4: bool,
}

impl Layout {
    /// Where the headers of an unfragmented UDP packet without options are, whose checksum is left to be done.
    fn of(frame: &Frame) -> Option<Layout> {
        let v = &frame.vnet;
        if !v.needs_csum || v.csum_offset != UDP_CHECKSUM {
            return None;
        }
        let (head, l4) = (frame.head(), usize::from(v.csum_start));
        let version = |back: usize| {
            let l3 = l4.checked_sub(back)?;
            Some((l3, *head.get(l3)?, head.get(l3.checked_sub(2)?..l3)?))
        };
        match (version(20), version(40)) {
            (Some((l3, 0x45, [8, 0])), _) => {
                let ip: &[u8; 20] = head.get(l3..)?.first_chunk()?;
                (ip[6..8] == [0x40, 0] && ip[9] == 17).then_some(Layout { l3, l4, v4: true })
            }
            (_, Some((l3, v, [0x86, 0xdd]))) if v >> 4 == 6 => {
                (*head.get(l3 + 6)? == 17).then_some(Layout { l3, l4, v4: false })
            }
            _ => None,
        }
    }

    /// Length of the UDP payload, if the lengths in the headers say that the frame ends with it.
    fn payload(&self, frame: &Frame) -> Option<usize> {
        let head = frame.head();
        let len = |at: usize| {
            Some(usize::from(u16::from_be_bytes(
                *head.get(at..)?.first_chunk()?,
            )))
        };
        let l4_len = frame.len().checked_sub(self.l4)?;
        let ip = if self.v4 {
            len(self.l3 + 2)? == frame.len() - self.l3
        } else {
            len(self.l3 + 4)? == l4_len
        };
        (ip && len(self.l4 + 4)? == l4_len).then_some(l4_len.checked_sub(UDP_LEN)?)
    }

    /// Whether all but lengths, identification and checksums is the same.
    fn same_flow(&self, a: &[u8], b: &[u8]) -> bool {
        let same = |from: usize, to: usize| a.get(from..to) == b.get(from..to);
        let (l3, l4) = (self.l3, self.l4);
        let ip = if self.v4 {
            same(0, l3 + 2) && same(l3 + 6, l3 + 10) && same(l3 + 12, l4)
        } else {
            same(0, l3 + 4) && same(l3 + 6, l4)
        };
        ip && same(l4, l4 + 4)
    }
}

/// Appends `next` to `last` if both are datagrams of one flow that can leave as one frame; false, and both unchanged, if not.
#[inline]
pub(crate) fn merge(last: &mut Frame, next: &Frame) -> bool {
    let (a, b) = (&last.vnet, &next.vnet);
    if !a.needs_csum || !b.needs_csum || a.csum_offset != UDP_CHECKSUM || b.gso != GsoType::None {
        return false;
    }
    let joined = a.gso == GsoType::UdpL4 && last.merged > 0;
    if a.csum_start != b.csum_start || !(joined || a.gso == GsoType::None) {
        return false;
    }
    append(last, next).is_some()
}

fn append(last: &mut Frame, next: &Frame) -> Option<()> {
    let layout = Layout::of(next)?;
    if !next.tail().is_empty() || !layout.same_flow(last.head(), next.head()) {
        return None;
    }
    let (payload, have) = (layout.payload(next)?, layout.payload(last)?);
    let size = match last.merged {
        0 => have,
        _ => usize::from(last.vnet.gso_size),
    };
    let whole = size > 0 && have.is_multiple_of(size) && last.merged + 1 < MAX_SEGMENTS;
    let room = last.len() - layout.l3 + payload <= MAX_PACKET;
    if payload == 0 || payload > size || !whole || !room {
        return None;
    }
    let data = next.head().get(layout.l4 + UDP_LEN..)?;
    if !last.append(data) {
        return None;
    }
    grow(last.head_mut(), &layout, payload as u16)?;
    last.merged += 1;
    last.vnet.gso = GsoType::UdpL4;
    last.vnet.gso_size = size as u16;
    last.vnet.hdr_len = (layout.l4 + UDP_LEN) as u16;
    Some(())
}

/// Adds to the lengths in the headers; they were read before.
fn grow(head: &mut [u8], layout: &Layout, by: u16) -> Option<()> {
    let mut add = |at: usize| {
        let field: &mut [u8; 2] = head.get_mut(at..)?.first_chunk_mut()?;
        let (old, new) = (
            u16::from_be_bytes(*field),
            u16::from_be_bytes(*field).wrapping_add(by),
        );
        *field = new.to_be_bytes();
        Some((old, new))
    };
    if layout.v4 {
        let (old, new) = add(layout.l3 + 2)?;
        let sum: &mut [u8; 2] = head.get_mut(layout.l3 + 10..)?.first_chunk_mut()?;
        *sum = csum::update(u16::from_be_bytes(*sum), csum::diff16(old, new)).to_be_bytes();
    } else {
        add(layout.l3 + 4)?;
    }
    let udp: &mut [u8; 8] = head.get_mut(layout.l4..)?.first_chunk_mut()?;
    let old = u16::from_be_bytes([udp[4], udp[5]]);
    let new = old.wrapping_add(by);
    udp[4..6].copy_from_slice(&new.to_be_bytes());
    // The field holds the sum of the pseudo-header, which has the length.
    let sum = u16::from_be_bytes([udp[6], udp[7]]);
    let sum = csum::update_partial(sum, csum::diff16(old, new));
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Offloads, VnetHdr, gso};

    fn datagram(v4: bool, port: u16, id: u16, data: &[u8]) -> Frame {
        let mut b = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let udp_len = (8 + data.len()) as u16;
        let addresses: Vec<u8> = if v4 {
            vec![192, 0, 2, 1, 192, 0, 2, 2]
        } else {
            [[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]; 2].concat()
        };
        if v4 {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + udp_len).to_be_bytes());
            ip.extend(id.to_be_bytes());
            ip.extend([0x40, 0, 64, 17, 0, 0]);
            ip.extend(&addresses);
            let sum = csum::finish(csum::add(0, &ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            b.extend([8, 0]);
            b.extend(ip);
        } else {
            b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            b.extend(udp_len.to_be_bytes());
            b.extend([17, 64]);
            b.extend(&addresses);
        }
        let l4 = b.len();
        b.extend(port.to_be_bytes());
        b.extend([0, 53]);
        b.extend(udp_len.to_be_bytes());
        let pseudo = csum::add(17 + u64::from(udp_len), &addresses);
        b.extend(csum::fold(pseudo).to_be_bytes());
        b.extend(data);
        let mut f = Frame::from_bytes(&b).expect("fits");
        f.vnet = VnetHdr {
            needs_csum: true,
            csum_start: l4 as u16,
            csum_offset: UDP_CHECKSUM,
            ..VnetHdr::default()
        };
        f
    }

    fn finished(mut f: Frame) -> Vec<u8> {
        gso::complete(&mut f).expect("sums");
        f.to_vec()
    }

    #[test]
    fn what_was_joined_is_cut_into_the_same_datagrams() {
        for v4 in [true, false] {
            let data: Vec<Vec<u8>> = (0..40u8)
                .map(|i| vec![i; 64])
                .chain([vec![99; 10]])
                .collect();
            let make = |i: usize| datagram(v4, 7, 100 + i as u16, &data[i]);
            let mut joined = make(0);
            for i in 1..data.len() {
                assert!(merge(&mut joined, &make(i)), "{i}");
            }
            assert_eq!(joined.merged as usize, data.len() - 1);
            assert!(!merge(&mut joined, &make(1)), "a short one is the last");
            let mut cut = Vec::new();
            gso::finish(joined, Offloads::NONE, 1500, &mut |f| cut.push(f.to_vec())).expect("cut");
            let want: Vec<Vec<u8>> = (0..data.len()).map(|i| finished(make(i))).collect();
            assert!(cut == want);
        }
    }

    #[test]
    fn what_differs_stays_apart() {
        let base = || datagram(true, 7, 1, &[1; 64]);
        let apart = |change: &dyn Fn(&mut Frame)| {
            let mut next = base();
            change(&mut next);
            let mut last = base();
            let before = last.to_vec();
            assert!(!merge(&mut last, &next));
            assert_eq!(last.to_vec(), before);
        };
        let mut last = base();
        assert!(merge(&mut last, &base()));
        apart(&|f| f.head_mut()[5] = 9);
        apart(&|f| f.head_mut()[15] = 4);
        apart(&|f| f.head_mut()[20] = 0);
        apart(&|f| f.head_mut()[22] = 63);
        apart(&|f| f.head_mut()[33] = 3);
        apart(&|f| f.head_mut()[35] = 8);
        apart(&|f| f.head_mut()[17] = 0);
        apart(&|f| f.head_mut()[39] = 0);
        apart(&|f| f.vnet.needs_csum = false);
        apart(&|f| f.vnet.csum_offset = 16);
        apart(&|f| *f = datagram(true, 7, 2, &[1; 65]));
        apart(&|f| *f = datagram(true, 7, 2, &[]));
        apart(&|f| *f = datagram(false, 7, 2, &[1; 64]));
        // A frame that its sender made for segmentation isn't touched.
        let mut theirs = base();
        theirs.vnet.gso = GsoType::UdpL4;
        theirs.vnet.gso_size = 64;
        assert!(!merge(&mut theirs, &base()));
    }

    #[test]
    fn the_number_and_length_of_a_frame_are_bounded() {
        let mut last = datagram(true, 7, 0, &[1; 64]);
        let n = (1..200).take_while(|i| merge(&mut last, &datagram(true, 7, *i, &[1; 64])));
        assert_eq!(n.count() + 1, usize::from(MAX_SEGMENTS));
        let mut last = datagram(true, 7, 0, &[1; 1472]);
        while merge(&mut last, &datagram(true, 7, 1, &[1; 1472])) {}
        assert!(last.len() <= MAX_PACKET + 14 && last.len() > 60_000);
    }
}
