//! A socket of the host that takes the place of one of a container: with its options, and good for one peer only.
//!
//! The program in the container gets the host's socket instead of its own, so it has to find what it has set: [`twin`] copies the
//! options of a stream that isn't connected yet, and refuses one that has what can't be copied.
//!
//! A socket of the host in a container's hands could be disconnected and connected to somebody else. So each has a filter (classic
//! BPF, socket(7)) that lets in only what its one peer sends, and is locked: nobody who holds the socket can take it off, whatever
//! he is. Whoever else the socket is connected to, or listens for, is never heard.

use super::filter::{AND, EQUAL, LOAD, LOAD_BYTE, LOAD_HALF, NET, RETURN, set_program};
use super::sock::{local, set_option};
use super::source::Source;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket,
};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// include/uapi/asm-generic/socket.h; SOL_SOCKET's that libc hasn't.
const SO_NETNS_COOKIE: libc::c_int = 71;
const SO_BUF_LOCK: libc::c_int = 72;
/// SO_BUF_LOCK: the size was set.
const SNDBUF_LOCKED: i32 = 1;
const RCVBUF_LOCKED: i32 = 2;
/// include/uapi/linux/tcp.h
const TCP_FASTOPEN_CONNECT: libc::c_int = 30;
const TCP_MPTCP: libc::c_int = 262;
/// include/net/tcp_states.h
const CLOSE: u8 = 7;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;

/// Options that are copied as they are: an int each.
const PLAIN: &[(libc::c_int, libc::c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
];
const PLAIN6: &[(libc::c_int, libc::c_int)] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
];
/// The same, of other lengths.
const BYTES: &[(libc::c_int, libc::c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
];
/// What can't be copied; who has set one keeps his own socket.
const ODD: &[(libc::c_int, libc::c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
    (libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
    (libc::IPPROTO_TCP, libc::TCP_REPAIR),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, TCP_MPTCP),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
];

/// Reads an option into `into`; how many bytes there were.
fn get(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    into: &mut [u8],
) -> io::Result<usize> {
    let mut len = into.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the slice.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            into.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(r)?;
    Ok((len as usize).min(into.len()))
}

fn set(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, from: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the slice has.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            from.as_ptr().cast(),
            from.len() as libc::socklen_t,
        )
    };
    Errno::result(r)?;
    Ok(())
}

fn get_int(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<i32> {
    let mut bytes = [0; 4];
    get(fd, level, option, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

fn get_u64(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut bytes = [0; 8];
    get(fd, libc::SOL_SOCKET, option, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The number of the network namespace that a socket belongs to, which no other one ever gets. Errors: ENOTSOCK; ENOPROTOOPT before
/// Linux 5.14.
pub fn namespace(fd: impl AsFd) -> io::Result<u64> {
    get_u64(fd.as_fd(), SO_NETNS_COOKIE)
}

/// The number of a socket, which no other one ever gets. Errors: ENOTSOCK.
pub fn number(fd: impl AsFd) -> io::Result<u64> {
    get_u64(fd.as_fd(), libc::SO_COOKIE)
}

/// Whether it has a filter that stays, as each twin has.
pub fn is_locked(fd: impl AsFd) -> bool {
    get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER).is_ok_and(|v| v != 0)
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// It has no peer yet, or not any more.
    Unconnected,
    /// It asks for one.
    Connecting,
    /// Anything else.
    Other,
}

/// Where a stream of TCP stands; `None` for another kind of socket. Errors: ENOTSOCK.
pub fn stands(fd: impl AsFd) -> io::Result<Option<Stands>> {
    let fd = fd.as_fd();
    let option = |o| get_int(fd, libc::SOL_SOCKET, o);
    let domain = option(libc::SO_DOMAIN)?;
    if !matches!(domain, libc::AF_INET | libc::AF_INET6)
        || option(libc::SO_TYPE)? != libc::SOCK_STREAM
        || option(libc::SO_PROTOCOL)? != libc::IPPROTO_TCP
    {
        return Ok(None);
    }
    let mut state = [0];
    get(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
    Ok(Some(match state {
        [CLOSE] => Stands::Unconnected,
        [SYN_SENT | SYN_RECV] => Stands::Connecting,
        _ => Stands::Other,
    }))
}

/// Whether calls on the descriptor don't wait.
pub fn is_nonblocking(fd: impl AsFd) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags.contains(OFlag::O_NONBLOCK))
}

/// Whether connect(2) that waits has a limit (SO_SNDTIMEO).
pub fn is_impatient(fd: impl AsFd) -> io::Result<bool> {
    let mut bytes = [0; 16];
    get(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, &mut bytes)?;
    Ok(bytes != [0; 16])
}

fn unsupported() -> io::Error {
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

/// A socket of this namespace that can stand for a container's, towards `to` and nobody else. It doesn't block, and isn't connected yet.
/// `again`: the other is such a one itself. Errors: EOPNOTSUPP when the container's has what can't be copied; as [`Source::bind`] and socket(2).
pub fn twin(of: impl AsFd, to: SocketAddr, source: &Source, again: bool) -> io::Result<OwnedFd> {
    let of = of.as_fd();
    let is_set = |(level, option): &(_, _)| get_int(of, *level, *option).is_ok_and(|v| v != 0);
    let filtered = !again && (is_locked(of) || has_filter(of));
    if ODD.iter().any(is_set) || filtered {
        return Err(unsupported());
    }
    let flags = OFlag::from_bits_retain(fcntl(of, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_ASYNC) {
        return Err(unsupported());
    }
    let is_v6 = get_int(of, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6;
    let family = match is_v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    };
    let kind = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, kind, SockProtocol::Tcp)?;
    copy(of, fd.as_fd(), is_v6)?;
    only_from(fd.as_fd(), to)?;
    bind_to(&fd, to, is_v6, source)?;
    Ok(fd)
}

/// Asks for the filter itself: a socket without one has none of its instructions.
fn has_filter(fd: BorrowedFd<'_>) -> bool {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes nothing but the number of instructions.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::null_mut(),
            &raw mut len,
        )
    };
    r == 0 && len != 0
}

/// What a new socket of this namespace has: of each plain option, and of each of [`BYTES`] with its length.
#[derive(Clone, Debug)]
struct Fresh {
    since: Instant,
    plain: Vec<Option<i32>>,
    bytes: Vec<([u8; 16], usize)>,
}

/// By family, IPv4 first. It is asked of the kernel again when it is older than a second, for it depends on sysctls.
static FRESH: Mutex<[Option<Fresh>; 2]> = Mutex::new([None, None]);
const KEPT: Duration = Duration::from_secs(1);

fn plain(is_v6: bool) -> impl Iterator<Item = &'static (libc::c_int, libc::c_int)> {
    let plain6: &[_] = if is_v6 { PLAIN6 } else { &[] };
    PLAIN.iter().chain(plain6)
}

/// Tells of a socket that nothing has been set of yet what all such have.
fn fresh(of: BorrowedFd<'_>, is_v6: bool) -> io::Result<Fresh> {
    let mut all = FRESH.lock().unwrap_or_else(PoisonError::into_inner);
    let [v4, v6] = &mut *all;
    let known = if is_v6 { v6 } else { v4 };
    if let Some(known) = known.as_ref().filter(|k| k.since.elapsed() < KEPT) {
        return Ok(known.clone());
    }
    let plain = plain(is_v6).map(|(level, option)| get_int(of, *level, *option).ok());
    let bytes = BYTES.iter().map(|(level, option)| {
        let mut all = [0; 16];
        let n = get(of, *level, *option, &mut all)?;
        Ok((all, n))
    });
    let asked = Fresh {
        since: Instant::now(),
        plain: plain.collect(),
        bytes: bytes.collect::<io::Result<_>>()?,
    };
    Ok(known.insert(asked).clone())
}

fn copy(of: BorrowedFd<'_>, to: BorrowedFd<'_>, is_v6: bool) -> io::Result<()> {
    let fresh = fresh(to, is_v6)?;
    for ((level, option), has) in plain(is_v6).zip(fresh.plain) {
        // None: a kernel that doesn't know it.
        let Some(has) = has else { continue };
        let Ok(wanted) = get_int(of, *level, *option) else {
            continue;
        };
        if wanted != has {
            set_option(to, *level, *option, wanted)?;
        }
    }
    let locked = get_int(of, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    for (lock, option) in [
        (SNDBUF_LOCKED, libc::SO_SNDBUF),
        (RCVBUF_LOCKED, libc::SO_RCVBUF),
    ] {
        if locked & lock != 0 {
            // The kernel doubles what is set (socket(7)).
            let size = get_int(of, libc::SOL_SOCKET, option)? / 2;
            set_option(to, libc::SOL_SOCKET, option, size)?;
        }
    }
    for ((level, option), (has, m)) in BYTES.iter().zip(fresh.bytes) {
        let mut wanted = [0; 16];
        let n = get(of, *level, *option, &mut wanted)?;
        if wanted != has || n != m {
            let text = *level == libc::IPPROTO_TCP;
            let end = wanted.iter().position(|b| text && *b == 0).unwrap_or(n);
            set(to, *level, *option, wanted.get(..end).unwrap_or_default())?;
        }
    }
    Ok(())
}

/// Lets in what comes from there only, for good.
fn only_from(fd: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<()> {
    let ip = peer.ip().to_canonical();
    // The IP version, then the source address; the source port is what TCP's header begins with (`tcp_filter`, net/ipv4/tcp_ipv4.c).
    let (version, at, words): (u32, u32, Vec<u32>) = match ip {
        IpAddr::V4(a) => (0x40, 12, vec![a.to_bits()]),
        IpAddr::V6(a) => {
            let words = a.octets();
            let words = words.chunks_exact(4);
            let word = |w: &[u8]| w.iter().fold(0, |all, b| all << 8 | u32::from(*b));
            (0x60, 8, words.map(word).collect())
        }
    };
    let mut checks = vec![
        (LOAD_BYTE, NET, version, true),
        (LOAD_HALF, 0, peer.port().into(), false),
    ];
    checks.extend(
        (0u32..)
            .zip(words)
            .map(|(i, w)| (LOAD, NET + at + i * 4, w, false)),
    );
    let mut program = Vec::new();
    for (load, from, value, masked) in checks {
        program.push((load, 0, 0, from));
        if masked {
            program.push((AND, 0, 0, 0xf0));
        }
        program.push((EQUAL, 1, 0, value));
        program.push((RETURN, 0, 0, 0));
    }
    program.push((RETURN, 0, 0, u32::MAX));
    set_program(fd, (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), &program)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// An address as a socket of this family knows it.
fn as_family(at: SocketAddr, is_v6: bool) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(a) if is_v6 => SocketAddr::new(a.to_ipv6_mapped().into(), at.port()),
        _ => at,
    }
}

fn bind_to(fd: &OwnedFd, to: SocketAddr, is_v6: bool, source: &Source) -> io::Result<()> {
    let ip = to.ip().to_canonical();
    if is_v6 == ip.is_ipv6() {
        return source.bind(fd, ip);
    }
    source.bind_interface(fd, ip)?;
    let Some(from) = source.towards(ip) else {
        return Ok(());
    };
    let from = as_family(SocketAddr::new(from, 0), is_v6);
    let late = libc::IP_BIND_ADDRESS_NO_PORT;
    let _ = set_option(fd.as_fd(), libc::IPPROTO_IP, late, 1);
    Ok(nix::sys::socket::bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(from),
    )?)
}

/// Begins to connect a twin; true if it is connected already.
pub fn begin(fd: impl AsFd, to: SocketAddr) -> io::Result<bool> {
    let fd = fd.as_fd();
    let is_v6 = get_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6;
    let to = as_family(SocketAddr::new(to.ip().to_canonical(), to.port()), is_v6);
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(true),
        Err(Errno::EINPROGRESS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Has calls on it wait, as on any socket.
pub fn make_blocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The local address, as IPv4 if it is one.
pub fn here(fd: impl AsFd) -> io::Result<SocketAddr> {
    let at = local(fd)?;
    Ok(SocketAddr::new(at.ip().to_canonical(), at.port()))
}

/// Resets the connection, whoever has the socket besides (connect(2) with AF_UNSPEC).
pub fn disconnect(fd: impl AsFd) -> io::Result<()> {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: the kernel reads the struct.
    let r = unsafe {
        libc::connect(
            fd.as_fd().as_raw_fd(),
            &raw const unspecified,
            size_of_val(&unspecified) as libc::socklen_t,
        )
    };
    Errno::result(r)?;
    Ok(())
}

/// An address of a system call, as it lies in memory. `None`: it isn't of IPv4 or IPv6, or has a scope.
#[must_use]
pub fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match libc::c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => Some((*rest.first_chunk::<4>()?, port).into()),
        libc::AF_INET6 => {
            let (_, rest) = rest.split_first_chunk::<4>()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let scoped = rest.iter().any(|b| *b != 0);
            let ip = IpAddr::from(Ipv6Addr::from(*ip)).to_canonical();
            (!scoped && rest.len() >= 4).then_some((ip, port).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::sockopt::{KeepAlive, RcvBuf, TcpNoDelay};
    use nix::sys::socket::{getsockopt, setsockopt};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn own(family: AddressFamily) -> OwnedFd {
        let none = SockFlag::SOCK_CLOEXEC;
        socket(family, SockType::Stream, none, SockProtocol::Tcp).unwrap()
    }

    fn connected(of: &OwnedFd, to: SocketAddr) -> OwnedFd {
        let fd = twin(of, to, &Source::default(), false).unwrap();
        begin(&fd, to).unwrap();
        make_blocking(&fd).unwrap();
        fd
    }

    #[test]
    fn a_twin_has_the_options_and_reaches_its_peer() {
        for (family, at) in [
            (AddressFamily::Inet, "127.0.0.1:0"),
            (AddressFamily::Inet6, "127.0.0.1:0"),
            (AddressFamily::Inet6, "[::1]:0"),
        ] {
            let listener = TcpListener::bind(at).unwrap();
            let to = listener.local_addr().unwrap();
            let of = own(family);
            setsockopt(&of, TcpNoDelay, &true).unwrap();
            setsockopt(&of, KeepAlive, &true).unwrap();
            setsockopt(&of, RcvBuf, &30_000).unwrap();
            let fd = connected(&of, to);
            assert!(getsockopt(&fd, TcpNoDelay).unwrap() && getsockopt(&fd, KeepAlive).unwrap());
            let size = |s: &OwnedFd| getsockopt(s, RcvBuf).unwrap();
            assert_eq!(size(&fd), size(&of));
            let (mut far, _) = listener.accept().unwrap();
            far.write_all(b"hello").unwrap();
            let mut near = TcpStream::from(fd);
            let mut all = [0; 5];
            near.read_exact(&mut all).unwrap();
            assert_eq!(&all, b"hello", "{at}");
        }
    }

    #[test]
    fn nobody_but_its_peer_is_ever_heard() {
        let [first, other] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let of = own(AddressFamily::Inet);
        let fd = connected(&of, first.local_addr().unwrap());
        first.accept().unwrap();
        disconnect(&fd).unwrap();
        // Who holds it tries all he can.
        assert!(set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 0).is_err());
        assert!(set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0).is_err());
        assert!(only_from(fd.as_fd(), other.local_addr().unwrap()).is_err());
        let wait = nix::sys::time::TimeVal::new(0, 300_000);
        assert!(!is_impatient(&fd).unwrap());
        setsockopt(&fd, nix::sys::socket::sockopt::SendTimeout, &wait).unwrap();
        assert!(is_impatient(&fd).unwrap());
        let said = begin(&fd, other.local_addr().unwrap());
        assert!(matches!(said, Ok(false)), "{said:?}");
        assert_eq!(stands(&fd).unwrap(), Some(Stands::Connecting));
    }

    #[test]
    fn what_cannot_be_copied_is_refused_and_sockets_are_told_apart() {
        let to = "127.0.0.1:9".parse().unwrap();
        let of = own(AddressFamily::Inet);
        set_option(of.as_fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, 1).unwrap();
        let refused = twin(&of, to, &Source::default(), false).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
        let other = own(AddressFamily::Inet);
        assert_ne!(number(&of).unwrap(), number(&other).unwrap());
        assert_eq!(namespace(&of).unwrap(), namespace(&other).unwrap());
        assert_eq!(stands(&of).unwrap(), Some(Stands::Unconnected));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(stands(&null).is_err());
    }

    #[test]
    fn addresses_are_read_as_they_lie_in_memory() {
        let v4 = [2, 0, 0, 80, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(address(&v4), Some("192.0.2.1:80".parse().unwrap()));
        let mut v6 = vec![10, 0, 0, 80, 0, 0, 0, 0];
        v6.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(address(&v6), None, "too short");
        v6.extend([0; 4]);
        assert_eq!(address(&v6), Some("[2001:db8::1]:80".parse().unwrap()));
        v6[24] = 1;
        assert_eq!(address(&v6), None, "a scope");
        assert_eq!(address(&[1, 0, b'/']), None);
        assert_eq!(address(&[]), None);
    }
}
