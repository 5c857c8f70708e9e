//! Segments are compared with what they were cut from, and every checksum is verified by the sum over all it covers.

use super::*;

const MAC: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

fn payload(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 % 251) as u8).collect()
}

/// Ethernet (with these tags), IPv4 and TCP with 12 bytes of options, flags PSH, FIN and CWR set.
fn tcp4(tags: &[u8], data: &[u8], gso_size: u16) -> Frame {
    let total = (20 + 32 + data.len()) as u16;
    let mut b = [&MAC[..], tags, &[8, 0, 0x45, 0]].concat();
    let l3 = b.len() - 2;
    b.extend(total.to_be_bytes());
    b.extend([0xff, 0xff, 0x40, 0, 64, 6, 0, 0]);
    b.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    b.extend([0x12, 0x34, 0, 80]);
    b.extend(0xffff_ff00u32.to_be_bytes());
    b.extend([0, 0, 0, 7, 0x80, CWR | PSH | FIN | 0x10, 1, 0, 0, 0, 0, 0]);
    b.extend([1; 12]);
    b.extend(data);
    let mut f = Frame::from_bytes(&b).expect("fits");
    f.vnet = VnetHdr {
        needs_csum: true,
        gso: GsoType::Tcp4,
        gso_size,
        hdr_len: 0,
        csum_start: (l3 + 20) as u16,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    f
}

/// IPv6 with a hop-by-hop header, and UDP.
fn udp6(data: &[u8], gso_size: u16) -> Frame {
    let mut b = [&MAC[..], &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    b.extend(((8 + 8 + data.len()) as u16).to_be_bytes());
    b.extend([0, 64]);
    b.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    b.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    b.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    b.extend([0, 53, 0, 54]);
    b.extend(((8 + data.len()) as u16).to_be_bytes());
    b.extend([0, 0]);
    b.extend(data);
    let mut f = Frame::from_bytes(&b).expect("fits");
    f.vnet = VnetHdr {
        needs_csum: true,
        gso: GsoType::UdpL4,
        gso_size,
        csum_start: 62,
        csum_offset: 6,
        ..VnetHdr::default()
    };
    f
}

fn cut(f: Frame, offloads: Offloads, mtu: u32) -> Result<Vec<Frame>, DropReason> {
    let mut out = Vec::new();
    finish(f, offloads, mtu, &mut |f| out.push(f)).map(|()| out)
}

/// One's-complement sum over the packet's L4 and pseudo-header, byte by byte.
fn verifies(f: &Frame) -> bool {
    let b = f.to_vec();
    let m = wire::parse(f.head(), f.len()).expect("parses");
    let (l3, l4, end) = (m.l3_off as usize, m.l4_off as usize, m.l3_end as usize);
    let addresses = if m.l3 == L3::V4 {
        let ip: u64 = word_sum(&b[l3..l4]);
        assert_eq!(csum::fold(ip), 0xffff, "IPv4 header");
        &b[l3 + 12..l3 + 20]
    } else {
        &b[l3 + 8..l3 + 40]
    };
    let sum = word_sum(addresses) + u64::from(m.proto) + (end - l4) as u64 + word_sum(&b[l4..end]);
    csum::fold(sum) == 0xffff
}

fn word_sum(b: &[u8]) -> u64 {
    b.chunks(2)
        .map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0)))
        .sum()
}

#[test]
fn tcp_is_cut_into_whole_segments() {
    let data = payload(40_000);
    for tags in [&[][..], &[0x81, 0, 0, 10]] {
        let out = cut(tcp4(tags, &data, 1448), Offloads::NONE, 1500).expect("cut");
        assert_eq!(out.len(), 40_000usize.div_ceil(1448));
        let mut joined = Vec::new();
        for (i, f) in out.iter().enumerate() {
            assert!(verifies(f), "segment {i}");
            assert!(f.vnet.is_plain());
            let b = f.to_vec();
            let ip = 14 + tags.len();
            assert_eq!(&b[12..12 + tags.len()], tags);
            let id = 0xffffu16.wrapping_add(i as u16);
            assert_eq!(b[ip + 4..ip + 6], id.to_be_bytes());
            let seq = 0xffff_ff00u32.wrapping_add(joined.len() as u32);
            assert_eq!(b[ip + 24..ip + 28], seq.to_be_bytes());
            let flags = b[ip + 33];
            let last = i == out.len() - 1;
            assert_eq!(flags & (PSH | FIN) != 0, last, "segment {i}");
            assert_eq!(flags & CWR != 0, i == 0, "segment {i}");
            joined.extend_from_slice(&b[ip + 52..]);
        }
        assert!(joined == data);
    }
}

#[test]
fn udp_is_cut_into_datagrams_behind_extension_headers() {
    let data = payload(5000);
    let out = cut(udp6(&data, 1200), Offloads::NONE, 1500).expect("cut");
    let sizes: Vec<usize> = out.iter().map(|f| f.len() - 70).collect();
    assert_eq!(sizes, [1200, 1200, 1200, 1200, 200]);
    assert!(out.iter().all(verifies));
    let joined: Vec<u8> = out.iter().flat_map(|f| f.to_vec()[70..].to_vec()).collect();
    assert!(joined == data);
}

#[test]
fn a_port_that_sums_gets_partial_checksums() {
    let csum = Offloads {
        csum: true,
        ..Offloads::NONE
    };
    for mut f in cut(tcp4(&[], &payload(9000), 1000), csum, 1500).expect("cut") {
        assert!(f.vnet.needs_csum && f.vnet.gso == GsoType::None);
        assert!(!verifies(&f));
        complete(&mut f).expect("sums");
        assert!(verifies(&f) && f.vnet.is_plain());
    }
}

#[test]
fn what_the_port_takes_stays_whole() {
    let out = cut(tcp4(&[], &payload(60_000), 1448), Offloads::ALL, 1500).expect("passes");
    assert_eq!(out.len(), 1);
    let tso = Offloads {
        csum: true,
        tso4: true,
        ..Offloads::NONE
    };
    let out = cut(udp6(&payload(3000), 1000), tso, 1500).expect("cut");
    assert_eq!(out.len(), 3);
}

#[test]
fn segments_over_the_mtu_are_refused() {
    let f = || tcp4(&[], &payload(9000), 1448);
    assert_eq!(cut(f(), Offloads::ALL, 1400).err(), Some(DropReason::Mtu));
    assert_eq!(cut(f(), Offloads::NONE, 1499).err(), Some(DropReason::Mtu));
    assert!(cut(f(), Offloads::NONE, 1500).is_ok());
    // A VLAN tag isn't part of the packet.
    let tagged = tcp4(&[0x81, 0, 0, 5], &payload(9000), 1448);
    assert!(cut(tagged, Offloads::ALL, 1500).is_ok());
}

#[test]
fn contradictions_are_refused() {
    let refused = |change: &dyn Fn(&mut Frame)| {
        let mut f = tcp4(&[], &payload(9000), 1448);
        change(&mut f);
        cut(f, Offloads::NONE, 1500).err()
    };
    let bad = Some(DropReason::SegmentFailed);
    assert_eq!(refused(&|f| f.vnet.gso = GsoType::Tcp6), bad);
    assert_eq!(refused(&|f| f.vnet.gso = GsoType::UdpL4), bad);
    assert_eq!(refused(&|f| f.vnet.gso_size = 1), bad, "9,000 segments");
    assert_eq!(
        refused(&|f| f.head_mut()[46] = 0x40),
        bad,
        "TCP header of 16"
    );
    assert_eq!(
        refused(&|f| f.head_mut()[46] = 0x70),
        None,
        "shorter options"
    );
    assert_eq!(refused(&|f| f.head_mut()[20] = 0x20), bad, "a fragment");
    assert_eq!(refused(&|f| f.truncate(30)), bad);
    let mut f = Frame::from_bytes(&[0; 60]).expect("fits");
    f.vnet.needs_csum = true;
    f.vnet.csum_start = 59;
    assert_eq!(cut(f, Offloads::NONE, 1500).err(), bad);
}

#[test]
fn a_checksum_that_is_zero_is_sent_as_all_ones() {
    let mut f = Frame::from_bytes(&[0xff; 60]).expect("fits");
    f.vnet = VnetHdr {
        needs_csum: true,
        csum_start: 20,
        csum_offset: 6,
        ..VnetHdr::default()
    };
    complete(&mut f).expect("sums");
    assert_eq!(f.head()[26..28], [0xff, 0xff]);
}

#[test]
fn odd_starts_across_the_slots_sum_right() {
    let bytes = payload(5001);
    for start in [20usize, 21] {
        let mut f = Frame::from_bytes(&bytes).expect("fits");
        f.vnet = VnetHdr {
            needs_csum: true,
            csum_start: start as u16,
            csum_offset: 0,
            ..VnetHdr::default()
        };
        let want = csum::finish(word_sum(&bytes[start..]));
        complete(&mut f).expect("sums");
        assert_eq!(f.to_vec()[start..start + 2], want.to_be_bytes(), "{start}");
    }
}

#[test]
fn a_crc_of_sctp_is_always_computed() {
    let whole = |data: &[u8], pad: usize| {
        let total = (20 + 12 + data.len()) as u16;
        let mut b = [&MAC[..], &[8, 0, 0x45, 0]].concat();
        b.extend(total.to_be_bytes());
        b.extend([0, 1, 0x40, 0, 64, 132, 0, 0]);
        b.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        // Ports, tag, and a checksum of which Linux leaves zeros.
        b.extend([0, 7, 0, 9, 1, 2, 3, 4, 0, 0, 0, 0]);
        b.extend(data);
        b.resize(b.len() + pad, 0x55);
        let mut f = Frame::from_bytes(&b).expect("fits");
        f.vnet = VnetHdr {
            needs_csum: true,
            csum_start: 34,
            csum_offset: 8,
            ..VnetHdr::default()
        };
        f
    };
    for (n, pad) in [(4, 10), (1400, 0), (9000, 0)] {
        let f = whole(&payload(n), pad);
        let mut zeroed = f.to_vec();
        zeroed.truncate(34 + 12 + n);
        let want = crc32c::of(&zeroed[34..]).to_le_bytes();
        assert!(fits(&f, Offloads::ALL, 65_535) && !is_ready(&f, Offloads::ALL, 65_535));
        let mut sent = Vec::new();
        finish(f, Offloads::ALL, 65_535, &mut |f| sent.push(f)).expect("finished");
        let [f] = &sent[..] else { panic!("one frame") };
        assert_eq!(f.to_vec()[42..46], want, "{n}");
        assert_eq!(f.vnet, VnetHdr::default());
        assert!(is_ready(f, Offloads::NONE, 65_535));
    }
    // What only claims to be SCTP.
    let mut f = whole(&payload(100), 0);
    f.vnet.csum_start = 35;
    assert_eq!(complete(&mut f).err(), Some(DropReason::SegmentFailed));
    let mut f = whole(&payload(100), 0);
    f.head_mut()[23] = 17;
    assert_eq!(complete(&mut f).err(), Some(DropReason::SegmentFailed));
}

#[test]
fn a_whole_packet_is_what_a_sender_with_offloads_leaves() {
    // Finished for a port that takes nothing but has room for all, and given back.
    for (mut frame, size, mtu) in [
        (tcp4(&[], &payload(3001), 1200), 1200, Some(1500 - 52)),
        (udp6(&payload(2500), 700), 700, None),
    ] {
        let theirs = frame.vnet;
        let partial = frame.to_vec();
        let (start, offset) = (theirs.csum_start, theirs.csum_offset);
        frame.vnet.gso = GsoType::None;
        complete(&mut frame).expect("a checksum in the head");
        assert_eq!(segment_size(&frame, 1500), mtu);
        assert_eq!(segment_size(&frame, 9000), None);
        assert!(!offload(&mut frame, 0));
        assert!(offload(&mut frame, size));
        assert_eq!((frame.vnet.gso, frame.vnet.gso_size), (theirs.gso, size));
        assert_eq!(
            (frame.vnet.csum_start, frame.vnet.csum_offset),
            (start, offset)
        );
        let at = usize::from(start + offset);
        let mut expected = partial;
        expected[at..at + 2].copy_from_slice(&frame.to_vec()[at..at + 2]);
        assert_eq!(frame.to_vec(), expected);
        let mut n = 0;
        finish(frame, Offloads::default(), 1500, &mut |f| {
            assert!(f.tail().is_empty(), "short segments are in the head");
            assert!(verifies(&f));
            n += 1;
        })
        .expect("segments");
        assert!(n >= 3);
    }
    let mut arp = Frame::from_bytes(&[&MAC[..], &[8, 6], &[0; 46]].concat()).expect("fits");
    assert!(!offload(&mut arp, 100));
}
