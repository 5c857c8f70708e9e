//! A frame in a line.

use crate::pcapng::{Block, DROPPED};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use vswitch_core::capture::Direction;
use vswitch_core::wire::{L3, L4, MacAddr, Meta, parse};

/// As text: time (UTC), port, direction, and what it is.
pub(super) fn line(block: &Block, ports: &[String]) -> String {
    let Block::Packet {
        interface,
        time,
        direction,
        comment,
        len,
        bytes,
    } = block
    else {
        return String::new();
    };
    let seconds = time / 1_000_000_000 % 86_400;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = time / 1000 % 1_000_000;
    let mut line = format!(
        "{h:02}:{m:02}:{s:02}.{micros:06} {} {} {}, {len} bytes",
        name(ports, *interface),
        way(*direction),
        summary(bytes, *len)
    );
    if let Some(comment) = comment {
        line.push_str(&format!(", {comment}"));
    }
    line + "\n"
}

/// As a JSON object.
pub(super) fn json(block: &Block, ports: &[String]) -> String {
    let Block::Packet {
        interface,
        time,
        direction,
        comment,
        len,
        bytes,
    } = block
    else {
        return String::new();
    };
    let direction = match direction {
        Some(Direction::Ingress) => "ingress",
        Some(Direction::Egress) => "egress",
        None => "unknown",
    };
    let mut value = json!({
        "time": time, "port": name(ports, *interface), "direction": direction, "length": len,
        "summary": summary(bytes, *len),
    });
    if let Some(why) = comment.as_deref().and_then(|c| c.strip_prefix(DROPPED)) {
        value["dropped"] = why.into();
    }
    format!("{value}\n")
}

fn name(ports: &[String], interface: u32) -> &str {
    ports.get(interface as usize).map_or("?", String::as_str)
}

fn way(direction: Option<Direction>) -> &'static str {
    match direction {
        Some(Direction::Ingress) => "in ",
        Some(Direction::Egress) => "out",
        None => "?  ",
    }
}

fn at<const N: usize>(bytes: &[u8], off: usize) -> Option<[u8; N]> {
    bytes.get(off..)?.first_chunk().copied()
}

/// What a frame is.
pub(in crate::cli) fn summary(bytes: &[u8], len: usize) -> String {
    let Some(m) = parse(bytes, len) else {
        return "runt".into();
    };
    let tag = m
        .tag
        .map_or(String::new(), |t| format!("vlan {} ", t.vid()));
    let l3 = bytes.get(usize::from(m.l3_off)..).unwrap_or_default();
    let text = match m.l3 {
        L3::Arp => arp(l3),
        L3::V4 => addresses::<4, Ipv4Addr>(l3, 12).map(|a| ip(bytes, &m, a)),
        L3::V6 => addresses::<16, Ipv6Addr>(l3, 8).map(|a| ip(bytes, &m, a)),
        L3::Other => None,
    };
    let plain = || format!("{} > {} ethertype {:#06x}", m.src, m.dst, m.ethertype.0);
    tag + &text.unwrap_or_else(plain)
}

fn addresses<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(
    l3: &[u8],
    off: usize,
) -> Option<(IpAddr, IpAddr)> {
    let read = |off| at::<N>(l3, off).map(|a| A::from(a).into());
    Some((read(off)?, read(off + N)?))
}

/// RFC 826.
fn arp(l3: &[u8]) -> Option<String> {
    let sender = Ipv4Addr::from(at(l3, 14)?);
    let target = Ipv4Addr::from(at(l3, 24)?);
    Some(match at(l3, 6)? {
        [0, 1] => format!("arp who-has {target} tell {sender}"),
        [0, 2] => format!("arp {sender} is-at {}", MacAddr(at(l3, 8)?)),
        [a, b] => format!("arp operation {}", u16::from_be_bytes([a, b])),
    })
}

fn ip(bytes: &[u8], m: &Meta, (src, dst): (IpAddr, IpAddr)) -> String {
    let l4 = bytes.get(usize::from(m.l4_off)..).unwrap_or_default();
    let ports = || {
        let [a, b, c, d] = at(l4, 0).unwrap_or_default();
        let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let end = |ip, port| std::net::SocketAddr::new(ip, port);
        format!("{} > {}", end(src, from), end(dst, to))
    };
    let fragment = if m.fragment { " fragment" } else { "" };
    match m.l4 {
        L4::Tcp => format!("{} tcp {}{fragment}", ports(), flags(l4)),
        L4::Udp => format!("{} udp{fragment}", ports()),
        L4::Sctp => format!("{} sctp{fragment}", ports()),
        L4::Icmp => format!("{src} > {dst} icmp {}{fragment}", icmp(l4)),
        L4::Icmp6 => format!("{src} > {dst} icmp6 {}{fragment}", icmp6(l4)),
        L4::Other => format!("{src} > {dst} protocol {}{fragment}", m.proto),
    }
}

/// TCP's flags (RFC 9293 3.1).
fn flags(l4: &[u8]) -> String {
    let [bits] = at(l4, 13).unwrap_or_default();
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = names.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0);
    let set: Vec<&str> = set.map(|(_, n)| *n).collect();
    if set.is_empty() {
        "no flags".into()
    } else {
        set.join(",")
    }
}

fn icmp(l4: &[u8]) -> String {
    let [kind, code] = at(l4, 0).unwrap_or_default();
    match kind {
        0 => "echo reply".into(),
        3 => format!("unreachable code {code}"),
        5 => "redirect".into(),
        8 => "echo request".into(),
        11 => "time exceeded".into(),
        _ => format!("type {kind}"),
    }
}

fn icmp6(l4: &[u8]) -> String {
    let [kind, code] = at(l4, 0).unwrap_or_default();
    match kind {
        1 => format!("unreachable code {code}"),
        2 => "packet too big".into(),
        3 => "time exceeded".into(),
        128 => "echo request".into(),
        129 => "echo reply".into(),
        130..=132 | 143 => "multicast listener".into(),
        133 => "router solicitation".into(),
        134 => "router advertisement".into(),
        135 => "neighbour solicitation".into(),
        136 => "neighbour advertisement".into(),
        _ => format!("type {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(bytes: Vec<u8>, comment: Option<&str>) -> Block {
        Block::Packet {
            interface: 0,
            time: 1_000_000_000 * (86_400 * 3 + 3661) + 5_000,
            direction: Some(Direction::Egress),
            comment: comment.map(str::to_owned),
            len: bytes.len(),
            bytes,
        }
    }

    fn eth(tag: bool, ethertype: u16) -> Vec<u8> {
        let mut f = vec![0xff; 6];
        f.extend([2, 0, 0, 0, 0, 1]);
        if tag {
            f.extend([0x81, 0, 0, 10]);
        }
        f.extend(ethertype.to_be_bytes());
        f
    }

    #[test]
    fn frames_in_a_line() {
        let ports = ["web".to_owned()];
        let mut arp = eth(true, 0x0806);
        arp.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1]);
        arp.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 2]);
        assert_eq!(
            line(&packet(arp, Some("dropped: vlan_egress")), &ports),
            "01:01:01.000005 web out vlan 10 arp who-has 192.0.2.2 tell 192.0.2.1, 46 bytes, dropped: vlan_egress\n"
        );
        let mut tcp = eth(false, 0x86dd);
        tcp.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
        tcp.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        tcp.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        tcp.extend([
            0, 80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0,
        ]);
        let text = line(&packet(tcp, None), &ports);
        assert!(
            text.ends_with("out [2001:db8::1]:80 > [2001:db8::2]:256 tcp SYN,ACK, 74 bytes\n"),
            "{text}"
        );
        let text = json(
            &packet(eth(false, 0x88cc), Some("dropped: link_local")),
            &ports,
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["dropped"], &value["port"]),
            (&"link_local".into(), &"web".into())
        );
        assert_eq!(
            value["summary"],
            "02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff ethertype 0x88cc"
        );
        assert!(line(&packet(vec![1], None), &ports).contains("runt"));
    }
}
