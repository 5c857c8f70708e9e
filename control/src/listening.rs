//! The ports that processes of a network namespace listen on, read from /proc/net.
//!
//! Of TCP what listens, of UDP what is bound and not connected; where an address is given, only what can be reached at that. Ports of UDP
//! that the kernel gives out by itself are left out: every process that asks a question has one.

use crate::netns;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Most bytes read of a table: what listens stands at its beginning.
const MOST: u64 = 1 << 20;
/// The ports that the kernel gives out, as it is set for the daemon.
const GIVEN_OUT: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The tables of this process's own namespace.
pub(crate) const OF_HOST: &str = "/proc/self/net";
/// States (include/net/tcp_states.h).
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// Where the tables of a namespace are, if that can be read from here.
fn tables(namespace: &str) -> Option<PathBuf> {
    let path = netns::path_of(namespace);
    let process = path.to_str()?.strip_prefix("/proc/")?;
    let pid: u32 = process.strip_suffix("/ns/net")?.parse().ok()?;
    Some(format!("/proc/{pid}/net").into())
}

fn read(dir: &Path, table: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open(dir.join(table)) {
        // As far as it goes.
        let _ = file.take(MOST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// An address as the kernel writes it: words in the machine's order of bytes.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok();
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into());
    }
    let mut octets = [0; 16];
    for (i, to) in octets.chunks_exact_mut(4).enumerate() {
        to.copy_from_slice(&word(i * 8)?.to_ne_bytes());
    }
    let v6 = Ipv6Addr::from(octets);
    Some(v6.to_ipv4_mapped().map_or(v6.into(), IpAddr::V4))
}

/// What is bound by a table, in this state.
fn bound<'a>(text: &'a str, state: &'a str) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, is) = (fields.next()?, fields.next()?, fields.next()?);
        let (ip, port) = local.split_once(':')?;
        let ip = address(ip)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (is == state && port != 0).then_some((ip, port))
    })
}

/// The ports of a table that can be reached at one of the addresses.
fn ports<'a>(text: &'a str, state: &'a str, at: &'a [IpAddr]) -> impl Iterator<Item = u16> + 'a {
    let reached = |(ip, _): &(IpAddr, u16)| ip.is_unspecified() || at.contains(ip);
    bound(text, state).filter(reached).map(|(_, port)| port)
}

/// The same of two tables at loopback, of IPv4 (true) and IPv6. What is at all addresses of IPv6 may be at those of IPv4 too.
fn at_loopback(texts: &[String; 2], state: &str) -> BTreeSet<(bool, u16)> {
    let [four, six] = texts;
    let all = bound(four, state).chain(bound(six, state));
    let families = all.flat_map(|(ip, port)| {
        let any = ip.is_unspecified();
        let is = [
            any || ip == Ipv4Addr::LOCALHOST,
            any && ip.is_ipv6() || ip == Ipv6Addr::LOCALHOST,
        ];
        let of = is.into_iter().zip([true, false]);
        of.filter_map(move |(is, v4)| is.then_some((v4, port)))
    });
    families.collect()
}

/// The ports that the kernel gives out by itself.
pub(crate) fn given_out() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string(GIVEN_OUT).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|n| n.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32_768..=60_999,
    }
}

/// What is listened on in a namespace, TCP (`udp`: UDP), and can be reached at one of the addresses. Nothing, if the namespace is
/// gone or can't be looked into.
pub(crate) fn found(namespace: &str, udp: bool, at: &[IpAddr]) -> BTreeSet<u16> {
    let names = if udp {
        ["udp", "udp6"]
    } else {
        ["tcp", "tcp6"]
    };
    let texts = match tables(namespace) {
        Some(dir) => names.map(|n| read(&dir, n)),
        None => {
            let there = || names.map(|n| read(Path::new("/proc/thread-self/net"), n));
            netns::within(namespace, there).unwrap_or_default()
        }
    };
    let state = if udp { UDP_UNCONNECTED } else { TCP_LISTEN };
    let all = texts.iter().flat_map(|t| ports(t, state, at));
    let given_out = given_out();
    all.filter(|p| !udp || !given_out.contains(p)).collect()
}

/// What the host, where this process is, listens on at its loopback: of IPv4 (true) and IPv6.
pub(crate) fn of_host(udp: bool) -> BTreeSet<(bool, u16)> {
    let (names, state) = match udp {
        true => (["udp", "udp6"], UDP_UNCONNECTED),
        false => (["tcp", "tcp6"], TCP_LISTEN),
    };
    let given_out = given_out();
    let mut all = at_loopback(&names.map(|n| read(Path::new(OF_HOST), n)), state);
    all.retain(|(_, port)| !udp || !given_out.contains(port));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let four = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n\
             1: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n\
             2: 0A0200C0:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n\
             3: 0A0200C0:1F93 016433C6:0050 01 00000000:00000000 00:00000000 00000000 0 0 1\n\
             4: broken\n";
        let at: IpAddr = "192.0.2.10".parse().unwrap();
        if cfg!(target_endian = "little") {
            let all: Vec<u16> = ports(four, TCP_LISTEN, &[at]).collect();
            assert_eq!(all, [8080, 8082]);
        }
        let texts = |four: &str, six: &str| [four.to_owned(), six.to_owned()];
        if cfg!(target_endian = "little") {
            let found = at_loopback(&texts(four, "head\n"), TCP_LISTEN);
            assert_eq!(Vec::from_iter(found), [(true, 8080), (true, 8081)]);
        }
        let six = "head\n\
             0: 00000000000000000000000000000000:0050 0:0 0A\n\
             1: 00000000000000000000000001000000:0051 0:0 0A\n";
        assert_eq!(ports(six, TCP_LISTEN, &[]).collect::<Vec<_>>(), [80]);
        if cfg!(target_endian = "little") {
            let found = at_loopback(&texts("head\n", six), TCP_LISTEN);
            assert_eq!(
                Vec::from_iter(found),
                [(false, 80), (false, 81), (true, 80)]
            );
        }
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let namespace = format!("pid:{}", std::process::id());
        assert!(found(&namespace, false, &[own.ip()]).contains(&own.port()));
        assert!(!found(&namespace, false, &[]).contains(&own.port()));
        assert_eq!(found("pid:999999999", false, &[]), BTreeSet::new());
        assert_eq!(found("no-such-name", true, &[]), BTreeSet::new());
    }
}
