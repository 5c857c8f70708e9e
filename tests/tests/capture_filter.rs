//! The filters of captures against libpcap: the same frames, the same words, the same choice.
//!
//! Frames are written to a pcap file with their number as the time, and read back by `tcpdump -r FILE FILTER`. libpcap
//! sees behind VLAN tags only what a `vlan` before it uncovers, so tagged frames are compared with `vlan and (FILTER)`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use vswitch_core::capture::Filter;
use vswitch_core::wire::parse;

/// Single tests; the names of addresses and ports are those of the frames below, and some that are in none.
const TESTS: &[&str] = &[
    "arp",
    "ip",
    "ip6",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "broadcast",
    "multicast",
    "ether broadcast",
    "ether multicast",
    "ip multicast",
    "ip6 multicast",
    "host 192.0.2.1",
    "src host 192.0.2.1",
    "dst host 192.0.2.2",
    "src 192.0.2.2",
    "src and dst host 192.0.2.1",
    "src or dst 192.0.2.1",
    "ip host 192.0.2.1",
    "arp host 192.0.2.1",
    "arp dst host 192.0.2.2",
    "ip src host 192.0.2.2",
    "host 2001:db8::1",
    "src host 2001:db8::2",
    "ip6 dst host 2001:db8::2",
    "net 192.0.2.0/24",
    "net 192.0.2.0/31",
    "src net 198.51.100.0/24",
    "dst net 192.0.2.2/32",
    "net 192.0.2.1",
    "net 0.0.0.0/0",
    "arp net 192.0.2.0/30",
    "net 2001:db8::/32",
    "ip6 net 2001:db8:1::/48",
    "src net 2001:db8::/126",
    "port 53",
    "src port 53",
    "dst port 80",
    "src and dst port 53",
    "tcp port 80",
    "udp port 53",
    "udp dst port 5353",
    "sctp port 2905",
    "tcp src port 40000",
    "portrange 50-80",
    "portrange 80-50",
    "udp src portrange 5000-6000",
    "ether host 02:00:00:00:00:01",
    "ether src 02:00:00:00:00:02",
    "ether dst 01:00:5e:00:00:fb",
    "ether proto 0x88cc",
    "ether proto 0x0806",
    "ether proto \\arp",
    "ip proto 6",
    "ip proto \\icmp",
    "ip6 proto 58",
    "proto 17",
    "proto 47",
    "less 60",
    "greater 60",
    "less 42",
    "greater 200",
    "port 53 or 80",
    "host 192.0.2.1 or 198.51.100.7",
];

/// An L4 header with ports and enough behind it.
fn l4(proto: u8, src: u16, dst: u16, more: usize) -> Vec<u8> {
    let mut b = Vec::new();
    match proto {
        1 | 58 => b.extend([8, 0, 0, 0, 0, 1, 0, 1]),
        _ => {
            b.extend(src.to_be_bytes());
            b.extend(dst.to_be_bytes());
        }
    }
    let least = match proto {
        6 => 20,
        132 => 12,
        _ => 8,
    };
    b.resize(least, 0x50);
    b.resize(least + more, 0);
    b
}

fn v4(src: &str, dst: &str, proto: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut b = vec![0x45, 0];
    b.extend((20 + body.len() as u16).to_be_bytes());
    b.extend([0, 1]);
    b.extend(fragment.to_be_bytes());
    b.extend([64, proto, 0, 0]);
    b.extend(src.parse::<Ipv4Addr>().unwrap().octets());
    b.extend(dst.parse::<Ipv4Addr>().unwrap().octets());
    b.extend(body);
    b
}

fn v6(src: &str, dst: &str, next: u8, body: &[u8]) -> Vec<u8> {
    let mut b = vec![0x60, 0, 0, 0];
    b.extend((body.len() as u16).to_be_bytes());
    b.extend([next, 64]);
    b.extend(src.parse::<Ipv6Addr>().unwrap().octets());
    b.extend(dst.parse::<Ipv6Addr>().unwrap().octets());
    b.extend(body);
    b
}

fn arp(operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let mut b = vec![0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, 1];
    b.extend(sender.parse::<Ipv4Addr>().unwrap().octets());
    b.extend([0; 6]);
    b.extend(target.parse::<Ipv4Addr>().unwrap().octets());
    b
}

/// EtherType and body.
fn packets() -> Vec<(u16, Vec<u8>)> {
    let mut all = vec![
        (0x0806, arp(1, "192.0.2.1", "192.0.2.2")),
        (0x0806, arp(2, "192.0.2.2", "198.51.100.7")),
        (0x88cc, vec![0; 60]),
        (0x88b5, vec![0; 300]),
        // Later fragment: no ports. First fragment: ports.
        (
            0x0800,
            v4("192.0.2.1", "192.0.2.2", 17, 5, &l4(17, 53, 53, 40)),
        ),
        (
            0x0800,
            v4("192.0.2.1", "192.0.2.2", 17, 0x2000, &l4(17, 53, 53, 40)),
        ),
        (
            0x0800,
            v4("192.0.2.1", "224.0.0.251", 17, 0, &l4(17, 5353, 5353, 1)),
        ),
        (0x0800, v4("192.0.2.1", "203.0.113.1", 47, 0, &[0; 30])),
        (
            0x86dd,
            v6("2001:db8::1", "ff02::fb", 17, &l4(17, 5353, 5353, 9)),
        ),
        (0x86dd, v6("fe80::1", "ff02::1", 58, &l4(58, 0, 0, 20))),
    ];
    for (proto, src, dst) in [
        (6, 40000, 80),
        (6, 80, 40000),
        (17, 53, 53),
        (17, 5353, 53),
        (17, 51, 90),
        (132, 2905, 9),
        (1, 0, 0),
    ] {
        for (a, b) in [("192.0.2.1", "192.0.2.2"), ("198.51.100.7", "192.0.2.1")] {
            all.push((0x0800, v4(a, b, proto, 0, &l4(proto, src, dst, 7))));
        }
        let proto = if proto == 1 { 58 } else { proto };
        for (a, b) in [
            ("2001:db8::1", "2001:db8::2"),
            ("2001:db8:1::9", "2001:db8::1"),
        ] {
            all.push((0x86dd, v6(a, b, proto, &l4(proto, src, dst, 130))));
        }
    }
    all
}

/// Every packet in frames with these tags; addresses go round.
fn frames(tags: &[(u16, u16)]) -> Vec<Vec<u8>> {
    let macs: [[u8; 6]; 4] = [
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 0xfb],
    ];
    let frame = |(i, (ethertype, body)): (usize, (u16, Vec<u8>))| {
        let mut f = macs[i % 4].to_vec();
        f.extend(macs[i / 2 % 2]);
        for (tpid, tci) in tags {
            f.extend(tpid.to_be_bytes());
            f.extend(tci.to_be_bytes());
        }
        f.extend(ethertype.to_be_bytes());
        f.extend(body);
        f
    };
    packets().into_iter().enumerate().map(frame).collect()
}

/// Classic pcap, Ethernet, microseconds.
fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        out.extend(word.to_le_bytes());
    }
    for (i, f) in frames.iter().enumerate() {
        for word in [i as u32, 0, f.len() as u32, f.len() as u32] {
            out.extend(word.to_le_bytes());
        }
        out.extend(f);
    }
    std::fs::write(path, out).expect("write the capture file");
}

/// Numbers of the frames that pass by libpcap.
fn by_libpcap(path: &Path, filter: &str) -> Vec<usize> {
    let out = Command::new("tcpdump")
        .args(["-n", "-t", "-Z", "root", "-r"])
        .arg(path)
        .args(["-w", "-", filter])
        .output()
        .expect("run tcpdump (package tcpdump)");
    let said = String::from_utf8_lossy(&out.stderr);
    if said.contains("expression rejects all packets") {
        return Vec::new();
    }
    assert!(out.status.success(), "tcpdump on `{filter}`: {said}");
    let word = |at: usize| u32::from_le_bytes(out.stdout[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut passed) = (24, Vec::new());
    while at < out.stdout.len() {
        passed.push(word(at));
        at += 16 + word(at + 8);
    }
    passed
}

fn by_us(frames: &[Vec<u8>], filter: &str) -> Vec<usize> {
    let filter: Filter = filter.parse().unwrap_or_else(|e| panic!("`{filter}`: {e}"));
    let passes = |f: &&Vec<u8>| filter.matches(f, f.len(), &parse(f, f.len()).expect("a frame"));
    let numbered = frames.iter().enumerate();
    numbered
        .filter(|(_, f)| passes(f))
        .map(|(i, _)| i)
        .collect()
}

/// Compounds of the tests, the same in every run.
fn compounds(n: usize) -> Vec<String> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut below = move |n: usize| {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let compound = |_| {
        let mut text = String::new();
        let mut open = 0;
        for i in 0..2 + below(4) {
            if i > 0 {
                text.push_str([" and ", " or ", " && ", " || "][below(4)]);
            }
            if below(3) == 0 {
                text.push_str(["not ", "! "][below(2)]);
            }
            if below(3) == 0 {
                text.push('(');
                open += 1;
            }
            text.push_str(TESTS[below(TESTS.len())]);
            if open > 0 && below(2) == 0 {
                text.push(')');
                open -= 1;
            }
        }
        text + &")".repeat(open)
    };
    (0..n).map(compound).collect()
}

#[test]
fn filters_choose_as_libpcap_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("frames.pcap");
    let plain = frames(&[]);
    write_pcap(&path, &plain);
    let (mut some, mut all) = (0, 0);
    let compounds = compounds(250);
    for filter in TESTS
        .iter()
        .copied()
        .chain(compounds.iter().map(String::as_str))
    {
        let passed = by_us(&plain, filter);
        assert_eq!(passed, by_libpcap(&path, filter), "`{filter}`");
        all += 1;
        some += usize::from(!passed.is_empty() && passed.len() < plain.len());
    }
    assert!(
        some * 3 > all * 2,
        "{some} of {all} filters tell frames apart"
    );
}

#[test]
fn tagged_frames_are_chosen_as_behind_vlan() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("frames.pcap");
    let one = frames(&[(0x8100, 0x600a)]);
    write_pcap(&path, &one);
    for filter in TESTS {
        // The length and MAC addresses are the whole frame's either way.
        let behind = format!("vlan and ({filter})");
        assert_eq!(
            by_us(&one, filter),
            by_libpcap(&path, &behind),
            "`{filter}`"
        );
    }
    for filter in [
        "vlan",
        "vlan 10",
        "vlan 11",
        "not vlan",
        "vlan 10 and tcp",
        "ether proto 0x8100",
    ] {
        assert_eq!(by_us(&one, filter), by_libpcap(&path, filter), "`{filter}`");
    }
    let two = frames(&[(0x88a8, 20), (0x8100, 10)]);
    write_pcap(&path, &two);
    for filter in [
        "vlan 20 and vlan 10",
        "vlan 20 and vlan 10 and udp port 53",
        "vlan 20 and vlan 11",
        "vlan and vlan and host 2001:db8::1",
    ] {
        assert_eq!(by_us(&two, filter), by_libpcap(&path, filter), "`{filter}`");
    }
}
