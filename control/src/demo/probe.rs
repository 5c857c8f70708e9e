//! What runs in a container: a discard and an echo service (RFC 863, RFC 862), and the ping, transfer and round trips that use
//! another container's. Plain sockets of the container's own kernel stack.

use super::talk::Reply;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};
use vswitch_core::wire::csum;

/// Port of the discard service, TCP.
const DISCARD: u16 = 9;
/// Port of the echo service, UDP.
const ECHO: u16 = 7;
/// An answer that takes longer is lost.
const LOST: Duration = Duration::from_millis(250);
/// A silent TCP peer is given up after this time.
const SILENCE: Duration = Duration::from_secs(5);
/// Bytes of a datagram of [`measure`].
const DATAGRAM: usize = 64;
/// Exchanges before [`measure`] counts.
const WARM_UP: u64 = 100;

/// Starts the services, each on a thread.
pub(super) fn serve() -> io::Result<()> {
    let discard = TcpListener::bind((Ipv4Addr::UNSPECIFIED, DISCARD))?;
    let echo = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO))?;
    let named = |name: &str| thread::Builder::new().name(name.into());
    named("discard").spawn(move || {
        for stream in discard.incoming().flatten() {
            // A connection that breaks is its client's to tell.
            let _ = swallow(stream);
        }
    })?;
    named("echo").spawn(move || {
        let mut datagram = [0; 2048];
        loop {
            if let Ok((n, from)) = echo.recv_from(&mut datagram) {
                let _ = echo.send_to(datagram.get(..n).unwrap_or_default(), from);
            }
        }
    })?;
    Ok(())
}

/// Reads to the end, then tells the number of bytes (big-endian) and closes.
fn swallow(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut bytes = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        match stream.read(&mut bytes)? {
            0 => break,
            n => total += n as u64,
        }
    }
    stream.write_all(&total.to_be_bytes())
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Sends echo requests (RFC 792, RFC 4443), one after the other; gives up after two lost ones in a row.
pub(super) fn ping(to: IpAddr, count: u16) -> io::Result<Vec<Option<u64>>> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // The standard library has no raw sockets, but what it does with a datagram socket fits them.
    let raw = UdpSocket::from(raw);
    let mut trips: Vec<Option<u64>> = Vec::new();
    for sequence in 1..=count {
        let trip = echo(&raw, to, sequence).unwrap_or_default();
        trips.push(trip);
        if let [.., None, None] = trips[..] {
            break;
        }
        if trip.is_none() {
            thread::sleep(LOST);
        }
    }
    Ok(trips)
}

/// One round trip; none if the answer doesn't come in time.
fn echo(raw: &UdpSocket, to: IpAddr, sequence: u16) -> io::Result<Option<u64>> {
    let v4 = to.is_ipv4();
    let (request, reply) = if v4 { (8, 0) } else { (128, 129) };
    let mut packet = [0u8; 64];
    packet[0] = request;
    packet[4..6].copy_from_slice(b"vs");
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let wanted: [u8; 4] = [packet[4], packet[5], packet[6], packet[7]];
    if v4 {
        // The kernel computes ICMPv6's, with its pseudo-header.
        let sum = csum::finish(csum::add(0, &packet));
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    raw.connect((to, 0))?;
    let start = Instant::now();
    raw.send(&packet)?;
    let mut answer = [0; 256];
    loop {
        let left = LOST.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        raw.set_read_timeout(Some(left))?;
        let n = match raw.recv(&mut answer) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        let trip = nanos(start);
        let packet = answer.get(..n).unwrap_or_default();
        // An IPv4 raw socket gives the IP header as well.
        let header = match packet.first() {
            Some(b) if v4 => usize::from(b & 0xf) * 4,
            _ => 0,
        };
        let icmp = packet.get(header..).unwrap_or_default();
        if icmp.first() == Some(&reply) && icmp.get(4..8) == Some(&wanted[..]) {
            return Ok(Some(trip));
        }
    }
}

/// Sends over one TCP connection for this long.
pub(super) fn send(to: IpAddr, time: Duration) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&(to, DISCARD).into(), SILENCE)?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_read_timeout(Some(SILENCE))?;
    let bytes = vec![0; 128 << 10];
    let mut tenths = vec![0u64; usize::try_from(time.as_millis() / 100).unwrap_or(0)];
    let start = Instant::now();
    while start.elapsed() < time {
        let written = stream.write(&bytes)?;
        let tenth = usize::try_from(start.elapsed().as_millis() / 100).unwrap_or(usize::MAX);
        if let Some(t) = tenths.get_mut(tenth) {
            *t += written as u64;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed)?;
    Ok(Reply::Sent {
        bytes: u64::from_be_bytes(confirmed),
        nanos: nanos(start),
        tenths,
    })
}

/// Exchanges datagrams, each after the answer to the last, for this long.
pub(super) fn measure(to: IpAddr, time: Duration) -> io::Result<Reply> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((to, ECHO))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut counts = BTreeMap::new();
    let (mut number, mut lost) = (0u64, 0);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let mut datagram = [0; DATAGRAM];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        let start = Instant::now();
        socket.send(&datagram)?;
        match receive(&socket, &datagram)? {
            true if number >= WARM_UP => *counts.entry(nanos(start) / 100 * 100).or_insert(0) += 1,
            true => {}
            false => lost += 1,
        }
        number += 1;
    }
    let counts = counts.into_iter().collect();
    Ok(Reply::Measured { counts, lost })
}

/// Whether this datagram comes back; late ones are passed over.
fn receive(socket: &UdpSocket, datagram: &[u8]) -> io::Result<bool> {
    let mut answer = [0; DATAGRAM];
    loop {
        match socket.recv(&mut answer) {
            Ok(n) if answer.get(..n) == Some(datagram) => return Ok(true),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}
