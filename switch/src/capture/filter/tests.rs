//! Filters without libpcap at hand: precedence, errors, limits.

use super::*;
use crate::wire;

fn frame(ethertype: u16, tags: &[u16], body: &[u8]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for vid in tags {
        f.extend([0x81, 0]);
        f.extend(vid.to_be_bytes());
    }
    f.extend(ethertype.to_be_bytes());
    f.extend(body);
    f
}

fn udp(src: u16, dst: u16) -> Vec<u8> {
    let mut p = vec![
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2,
    ];
    p.extend(src.to_be_bytes());
    p.extend(dst.to_be_bytes());
    p.extend([0, 8, 0, 0]);
    p
}

fn passes(filter: &str, bytes: &[u8]) -> bool {
    let filter: Filter = filter.parse().unwrap_or_else(|e| panic!("{filter}: {e}"));
    let meta = wire::parse(bytes, bytes.len()).expect("long enough");
    filter.matches(bytes, bytes.len(), &meta)
}

#[test]
fn and_and_or_bind_equally_from_the_left() {
    let f = frame(0x0800, &[], &udp(53, 5353));
    assert!(!passes("udp or tcp and arp", &f), "as (udp or tcp) and arp");
    assert!(passes("udp or (tcp and arp)", &f));
    assert!(passes("not tcp and udp", &f), "as (not tcp) and udp");
    assert!(passes("! arp && (port 1 || port 53)", &f));
}

#[test]
fn a_lone_value_takes_the_qualifiers_before_it() {
    let f = frame(0x0800, &[], &udp(53, 5353));
    assert!(passes("src port 1 or 53", &f));
    assert!(!passes("src port 1 or 5353", &f));
    assert!(passes("host 203.0.113.1 or 198.51.100.2", &f));
    assert!(passes("192.0.2.1", &f));
    assert!(!passes("src and dst host 192.0.2.1", &f));
    assert!(passes("dst or src host 192.0.2.1", &f));
}

#[test]
fn tags_hide_nothing() {
    let f = frame(0x0800, &[10, 20], &udp(53, 5353));
    for yes in [
        "ip",
        "udp port 53",
        "vlan",
        "vlan 10 and vlan 20",
        "ether proto 0x8100",
    ] {
        assert!(passes(yes, &f), "{yes}");
    }
    assert!(!passes("vlan 30", &f));
    assert!(!passes("vlan", &frame(0x0800, &[], &udp(1, 2))));
}

#[test]
fn errors_say_where_and_what() {
    for (text, at, has) in [
        ("", 0, "ends where a test"),
        ("tcp and", 7, "ends where a test"),
        ("tcp and prot 80", 8, "`prot` isn't known"),
        ("tcp udp", 4, "`udp`"),
        ("(tcp or udp", 0, "never closed"),
        ("tcp)", 3, "closes nothing"),
        ("port 70000", 5, "0 to 65535"),
        ("port 80-90", 5, "portrange"),
        ("net 192.0.2.1/24", 4, "write 192.0.2.0/24"),
        ("net 2001:db8::1/32", 4, "write 2001:db8::/32"),
        ("net 192.0.2.0/33", 4, "0 to 32"),
        ("ip6 host 192.0.2.1", 9, "ip6"),
        ("tcp host 192.0.2.1", 0, "ports"),
        ("ether host 192.0.2.1", 11, "MAC address"),
        ("ether", 5, "ends where"),
        ("ether proto 5", 12, "0x600"),
        ("vlan 4096", 5, "4095"),
        ("host web", 5, "`web`"),
        ("tcp & udp", 4, "`&`"),
        ("ü and prot", 0, "`ü`"),
        ("tcp[13] == 2", 0, "`tcp[13]`"),
        ("less -1", 5, "`-1`"),
        ("port 010", 5, "`010`"),
    ] {
        let e = text.parse::<Filter>().expect_err(text);
        assert_eq!(e.at, at, "{text}: {e}");
        assert!(e.problem.contains(has), "{text}: {e}");
        assert!(e.to_string().contains(&format!("character {}", at + 1)));
    }
    let unknown = "tcp and prot 80".parse::<Filter>().unwrap_err().unknown;
    assert_eq!(unknown.as_deref(), Some("prot"));
}

#[test]
fn depth_and_length_are_bounded() {
    let deep = format!("{}tcp{}", "(".repeat(64), ")".repeat(64));
    assert!(deep.parse::<Filter>().is_ok());
    for bad in [
        format!("{}tcp{}", "(".repeat(66), ")".repeat(66)),
        format!("{}tcp", "not ".repeat(70)),
        format!("tcp{}", " or tcp".repeat(600)),
    ] {
        assert!(bad.parse::<Filter>().is_err());
    }
    let wide = format!("arp{}", " or arp".repeat(580));
    assert!(!passes(&wide, &frame(0x0800, &[], &udp(1, 2))));
}

#[test]
fn words_are_in_order_and_known() {
    assert!(WORDS.is_sorted());
    for w in WORDS {
        let e = format!("zzz {w}").parse::<Filter>().unwrap_err();
        assert_eq!(e.unknown.as_deref(), Some("zzz"));
    }
}
